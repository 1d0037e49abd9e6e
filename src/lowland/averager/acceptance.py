"""When a validation score lets weights into an average: a gate, the paired bootstrap (Efron 1979) over the examples."""

from __future__ import annotations

import torch
from torch import Tensor

from ..arguments import check_generator, whole


def favour(difference: Tensor, *, resamples: int = 1000, generator: torch.Generator | None = None) -> float:
    """Return the share of bootstrap resamples of the examples in which the mean difference is above 0.

    difference: (N,), the value of each example under the new weights less that under the old ones. At most 32 MB are
    held at once, or one resample.

    Raises:
        ValueError: there is no example, a difference is not finite, or `resamples` is below 1.

    >>> better = torch.tensor([1.0] * 60 + [-1.0] * 40)
    >>> round(favour(better, generator=torch.Generator().manual_seed(0)), 1)
    1.0
    >>> favour(torch.zeros(100))
    0.0
    """
    whole("resamples", resamples, 1)
    check_generator(generator)
    if difference.ndim != 1 or len(difference) == 0 or not bool(torch.isfinite(difference).all()):
        raise ValueError(f"differences must be finite numbers (N,), one an example, got shape {list(difference.shape)}")
    n = len(difference)
    rows = max(1, 2**21 // n)
    device = difference.device if generator is None else generator.device
    values = difference.to(device, torch.float64)
    better = 0
    for first in range(0, resamples, rows):
        places = torch.randint(n, (min(rows, resamples - first), n), generator=generator, device=device)
        better += int((values[places].sum(1) > 0).sum())
    return better / resamples
