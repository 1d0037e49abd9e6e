"""ASWA on single numbers, as the paper intends it."""

from collections.abc import Callable

Judge = Callable[[float], float]


def intended(path: list[float], score: Judge) -> list[tuple[str, float, int]]:
    """Every update's action, average and count (METHODS 11.1)."""
    average, n, best = path[0], 1, score(path[0])
    told = [("first", average, n)]
    for running in path[1:]:
        ahead = (n * average + running) / (n + 1)
        if score(running) > score(ahead) and score(running) > best:
            average, n, best, action = running, 1, score(running), "hard"
        elif score(ahead) > best:
            average, n, best, action = ahead, n + 1, score(ahead), "soft"
        else:
            action = "reject"
        told.append((action, average, n))
    return told
