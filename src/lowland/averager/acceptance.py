"""When a validation score lets weights into an average: the rules of ASWA and of its released codes, and a gate.

With the running weights R, the average A of n models, the look-ahead L = (n A + R) / (n + 1) and a score s, a rule is

    hard:    A = R, n = count_after_hard    if s(R) > s(A), and s(R) > s(L) where `hard` is "beats both"
    soft:    A = L, n = n + 1               else if s(L) > s(A), or equal where `ties` are accepted
    reject:  A and n stay                   else; without `rolls_back` A = L all the same

The paper: Demir, Sharma, Ngonga Ngomo 2024, arXiv 2406.19092. The released codes: dice-group/dice-embeddings,
`dicee/callbacks.py` at 067148a and `dicee/weight_averaging.py` at 12d82ef; dice-group/aswa at 3039db5, `train.py` and
`ddp_train.py`. The gate: a paired bootstrap over validation examples (Efron 1979).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rule:
    """What one code of ASWA does at an update, its faults among them.

    >>> RULES["paper"]
    Rule(hard='beats both', ties=False, count_after_hard=1, scores_average_anew=False, rolls_back=True)
    """

    hard: Literal["beats both", "beats average", "never"] = "beats both"  # "beats average": before looking ahead
    ties: bool = False  # a look-ahead that scores like the average is accepted
    count_after_hard: int = 1  # 0: the model just adopted weighs nothing in the next look-ahead
    scores_average_anew: bool = False  # at every update
    rolls_back: bool = True  # False: after a rejection the look-ahead stays, but is not counted


RULES: dict[str, Rule] = {
    "paper": Rule(),
    "dicee-older": Rule(hard="beats average"),
    "dicee-forgets-adopted": Rule(count_after_hard=0),
    "train.py-no-rollback": Rule(hard="never", ties=True, scores_average_anew=True, rolls_back=False),
    "train.py-mended": Rule(hard="never", ties=True, scores_average_anew=True),
    "ddp_train.py-no-rollback": Rule(ties=True, count_after_hard=0, scores_average_anew=True, rolls_back=False),
}


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
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
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
