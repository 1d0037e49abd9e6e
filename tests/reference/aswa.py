"""ASWA on single numbers: as the paper intends it, and as the released code runs."""

from collections.abc import Callable

import torch
from torch import Tensor

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


def cleared_count(path: list[float], score: Judge) -> float:
    """The final average when a hard update empties the list of models.

    dice-group/aswa@3039db5, ddp_train.py line 222: the model that was just taken weighs nothing in the next average.
    """
    average, n, best = path[0], 1, score(path[0])
    for running in path[1:]:
        ahead = (n * average + running) / (n + 1)
        if score(running) > score(ahead) and score(running) > best:
            average, n, best = running, 0, score(running)
        elif score(ahead) > best:
            average, n, best = ahead, n + 1, score(ahead)
    return average


def train_script(path: list[float], score: Judge, *, remember: Callable[[Tensor], Tensor]) -> float:
    """The final average of the script without hard updates, which scores the provisional average in the live model.

    dice-group/aswa@3039db5, ddp_train.py lines 202 and 232 (train.py has the same): what is remembered before the
    provisional weights are loaded is `model.state_dict()`, which holds the live tensors. `remember` says what is kept:
    ``lambda live: live`` as released, ``torch.clone`` as meant.
    """
    live, n = torch.tensor(path[0], dtype=torch.float64), 1
    for running in path[1:]:
        before = score(live.item())
        remembered = remember(live)
        live.copy_((n * live + running) / (n + 1))
        if score(live.item()) >= before:
            n += 1
        else:
            live.copy_(remembered)
    return live.item()
