"""The moving average of a list of numbers, in float64, one line after the definition."""

from collections.abc import Callable


def ema(path: list[list[float]], decay: Callable[[int], float]) -> list[float]:
    """`decay(n)` is asked at every update but the first, n counting the updates before it."""
    mean = list(path[0])
    for n, iterate in enumerate(path[1:], start=1):
        d = decay(n)
        mean = [d * m + (1.0 - d) * w for m, w in zip(mean, iterate, strict=True)]
    return mean
