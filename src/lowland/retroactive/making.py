"""The average that a candidate stands for, read one checkpoint at a time; groups of tensors may have coefficients of
their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from ..arithmetic.moments import check_numbers, wide
from ..weights.kinds import check_kinds, check_same_codes, check_same_kinds, check_tensors
from ..weights.named import Weights, check_same
from .choice import Candidate


def made(ingredients: Iterable[Weights], candidate: Candidate, steps: Sequence[float]) -> dict[str, Tensor]:
    """Return a candidate's average of a run's checkpoints, read one at a time.

    Tensors other than floating-point ones are those of the last checkpoint.

    Raises:
        ValueError: there are not as many checkpoints as steps.

    >>> made([{"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}], Candidate("linear", 2, 0.5), [1, 2])
    {'w': tensor([2.5000])}
    """
    return grouped(ingredients, candidate.coefficients(steps), groups_of(candidate, steps))


def groups_of(candidate: Candidate, steps: Sequence[float]) -> list[tuple[str, list[float]]]:
    """Return a candidate's patterns of names, each with the coefficients of the run's checkpoints.

    >>> groups_of(Candidate("linear", 2, 1.0, (("embed*", 0.0),)), [1, 2])
    [('embed*', [0.0, 1.0])]
    """
    return [
        (pattern, Candidate(candidate.shape, candidate.window, blend).coefficients(steps))
        for pattern, blend in candidate.groups
    ]


@torch.no_grad()
def grouped(
    ingredients: Iterable[Weights],
    coefficients: Sequence[float],
    groups: Iterable[tuple[str, Sequence[float]]] = (),
) -> dict[str, Tensor]:
    """Return the sum of the ingredients times coefficients, in which groups of tensors have coefficients of their own.

    Tensors other than floating-point ones are those of the last ingredient. An ingredient whose coefficient is zero
    may hold anything.

    Args:
        groups: patterns of names, such as `*embed*`, with coefficients; of several that match a name the first counts.

    Raises:
        ValueError: there are not as many ingredients as coefficients.

    >>> rows = [{"embed": torch.tensor([1.0]), "head": torch.tensor([1.0])}, {"embed": torch.tensor([3.0]), "head":
    ...     torch.tensor([3.0])}]
    >>> grouped(rows, [0.5, 0.5], [("emb*", [0.0, 1.0])])
    {'embed': tensor([3.]), 'head': tensor([2.])}
    """
    own = [(pattern, list(shares)) for pattern, shares in groups]
    count = len(coefficients)
    if any(len(shares) != count for _, shares in own):
        raise ValueError(f"every group wants {count} coefficients, got {[len(shares) for _, shares in own]}")
    total: dict[str, Tensor] = {}
    chosen: dict[str, Sequence[float]] = {}
    used = 0
    for place, weights in enumerate(ingredients):
        if place == count:
            raise ValueError(f"there are {count} steps and more checkpoints: give a step for each")
        what = f"checkpoint {place + 1}"
        check_tensors(weights, what)
        if place:
            check_same(total, weights, what=f"{what} beside the first")
            check_same_kinds(total, weights, f"{what} beside the first")
            check_same_codes(total, weights, f"{what} beside the first")
        for name, tensor in weights.items():
            check_kinds({name: tensor}, what, ", which have no average", vectors=False)
            if not tensor.is_floating_point():
                total[name] = tensor.clone()
                continue
            if name not in chosen:
                chosen[name] = next((s for pattern, s in own if fnmatchcase(name, pattern)), coefficients)
                total[name] = torch.zeros_like(tensor, dtype=wide(tensor.dtype))
            if chosen[name][place]:
                check_numbers({name: tensor}, what)  # not a NaN of a checkpoint that the average leaves out
                total[name].add_(tensor.to(total[name].dtype), alpha=chosen[name][place])
        used += 1
    if used != count:
        raise ValueError(f"there are {count} steps and {used} checkpoints: give a step for each")
    return total
