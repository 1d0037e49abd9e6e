"""Model soups: averages of finished weights (Wortsman, Ilharco, Gadre, Roelofs, Gontijo-Lopes, Morcos, Namkoong,
Farhadi, Carmon, Kornblith, Schmidt 2022, arXiv 2203.05482).

    uniform:   1/n sum_i w_i
    weighted:  sum_i c_i w_i,  sum_i c_i = 1
    greedy:    go through the ingredients from the best score to the worst; keep w_i in the mean of those kept
               if that raises the score of the mean

Soups of models that were fine-tuned from the same weights work; across basins the mean of weights means
nothing. In all three, means are kept in float32 or wider, tensors are paired by name, the ingredients are
left as they are, and tensors other than floating-point ones (step counters, index tables) are those of the
first ingredient. An ingredient is a mapping with a memory of its own: `weights_of` returns views of the live
model, so clone them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .arithmetic.moments import first_nonfinite, lerp_, wide_zeros
from .averager.scores import judge
from .weights.codes import codes_of
from .weights.kinds import check_kinds, check_same_codes, check_same_kinds, is_table
from .weights.named import Score, Weights, check_same, clone_of


@torch.no_grad()
def uniform(ingredients: Iterable[Weights]) -> dict[str, Tensor]:
    """Return the equal average of all ingredients.

    They are read one at a time and not kept: a generator that loads one file after the other needs the memory
    of two.

    Raises:
        ValueError: there is none, or one has other names or shapes than the first, or a value that is not
        finite.

    Example:
        >>> uniform({"w": torch.tensor([x])} for x in (1.0, 2.0, 6.0))
        {'w': tensor([3.])}
    """
    mean: dict[str, Tensor] = {}
    for index, weights in enumerate(ingredients):
        _check(mean, weights, index)
        if index == 0:
            mean = _start(weights)
        _stir_(mean, weights, index)
    return _served(mean)


@torch.no_grad()
def weighted(
    ingredients: Iterable[Weights], coefficients: Sequence[float], *, normalise: bool = False
) -> dict[str, Tensor]:
    """Return the sum of the ingredients times their coefficients. A coefficient may be negative.

    Args:
        ingredients: read one at a time, as in `uniform`. coefficients: one for each ingredient; they sum to
        1, or are divided by their sum if `normalise` is true.

    Raises:
        ValueError: the coefficients do not sum to 1 (with `normalise`: not to a positive number), are not as
        many as
            the ingredients, or are not finite; and as `uniform`.

    Example:
        >>> weighted([{"w": torch.tensor([0.0])}, {"w": torch.tensor([4.0])}], [0.75, 0.25])
        {'w': tensor([1.])}
    """
    return _sum(ingredients, _shares(coefficients, normalise))


@torch.no_grad()
def combined(ingredients: Iterable[Weights], coefficients: Sequence[float]) -> dict[str, Tensor]:
    """Return the sum of the ingredients times their coefficients, whatever these sum to.

    Differences and extrapolations: with a sum other than 1 the result is not of the size of a model's weights. Tensors
    other than floating-point ones are those of the first ingredient.

    Raises:
        ValueError: the coefficients are not as many as the ingredients, or are not finite; and as `uniform`.

    Example:
        >>> combined([{"w": torch.tensor([3.0])}, {"w": torch.tensor([1.0])}], [1.5, -1.5])
        {'w': tensor([3.])}
    """
    shares = [float(c) for c in coefficients]
    if not all(map(math.isfinite, shares)):
        raise ValueError(f"coefficients must be finite, got {shares}")
    return _sum(ingredients, shares)


def _sum(ingredients: Iterable[Weights], shares: Sequence[float]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    used = 0
    for index, weights in enumerate(ingredients):
        _check(total, weights, index)
        if index >= len(shares):
            raise ValueError(f"there are {len(shares)} coefficients and more ingredients: pass one for each")
        if index == 0:
            total = _start(weights)
        for name, tensor in total.items():
            if tensor.is_floating_point():
                tensor.add_(weights[name].to(tensor.device, tensor.dtype), alpha=shares[index])
        used += 1
    if used != len(shares):
        raise ValueError(f"there are {len(shares)} coefficients and {used} ingredients: pass one for each")
    return _served(total)


class Search(NamedTuple):
    """Which ingredients a greedy search keeps, and the scores that it saw.

    Example:
        >>> search(2, score=lambda members: float(sum(members)))
        Search(members=[1], scores=[0.0, 1.0], trials=[1.0, 1.0])
    """

    members: list[int]  # places of the ingredients kept, in the order in which they entered
    scores: list[float]  # score of every ingredient alone, in the order given
    trials: list[float]  # score of the soup with this ingredient in it when its turn came, in the order given


def search(count: int, score: Callable[[Sequence[int]], float]) -> Search:
    """Go through `count` ingredients from the best alone to the worst and keep those that raise the score.

    The search of `greedy` for ingredients that are too large to hold: `score` is asked for the soup of the ingredients
    at these places, in this order, and may build it from files. An ingredient that leaves the score equal is left out.

    Raises:
        ValueError: there is no ingredient.

    Example:
        >>> values = [9.0, 4.0, 7.0]
        >>> def score(members):
        ...     return -abs(sum(values[place] for place in members) / len(members) - 5)
        >>> search(3, score).members
        [1, 2]
    """
    if count == 0:
        raise ValueError("a soup needs at least one ingredient, got none")
    scores = [score([index]) for index in range(count)]
    order = sorted(range(count), key=lambda index: -scores[index])
    best, members, trials = scores[order[0]], [order[0]], list(scores)
    for index in order[1:]:
        trials[index] = score([*members, index])
        if trials[index] > best:
            best = trials[index]
            members.append(index)
    return Search(members, scores, trials)


class Greedy(NamedTuple):
    """A greedy soup and how it came about.

    Example:
        >>> soup = greedy([{"w": torch.tensor(1.0)}], score=lambda weights: 0.5)
        >>> soup.members, soup.score
        ([0], 0.5)
    """

    weights: dict[str, Tensor]  # the soup
    members: list[int]  # places of the ingredients kept, in the order in which they entered
    scores: list[float]  # score of every ingredient alone, in the order given
    trials: list[float]  # score of the soup with this ingredient in it when its turn came, in the order given

    @property
    def score(self) -> float:
        """The score of the soup."""
        return self.trials[self.members[-1]]


@torch.no_grad()
def greedy(ingredients: Sequence[Weights], score: Score) -> Greedy:
    """Return the soup of those ingredients that each raised its score, tried from the best alone to the worst.

    An ingredient that leaves the score equal is left out (the authors' code; their text keeps it). Equal
    scores are tried in the order given. The score should come from validation data that the report does not
    use. `ingredients` is indexed twice an element, and no more than one is asked for at a time: it may load
    files.

    Raises:
        ValueError: there is no ingredient, or one does not fit the first (as `uniform`), or a score is NaN.
        RuntimeError: the score raised.

    Example:
        >>> weights = [{"w": torch.tensor(x)} for x in (9.0, 4.0, 7.0)]
        >>> soup = greedy(weights, score=lambda weights: -abs(weights["w"].item() - 5))
        >>> soup.weights, soup.members, soup.scores
        ({'w': tensor(5.5000)}, [1, 2], [-4.0, -1.0, -2.0])
        >>> soup.trials  # with 9 the mean would be 6.67
        [-1.6666665077209473, -1.0, -0.5]
    """
    like: dict[str, Tensor] = {}
    soup: dict[str, Tensor] = {}  # of the ingredients kept so far
    trial: dict[str, Tensor] = {}  # the latest one scored
    held, tried = 0, 0  # ingredients in each

    def judged(members: Sequence[int]) -> float:
        nonlocal like, soup, trial, held, tried
        index = members[-1]
        weights = ingredients[index]
        if len(members) == 1:
            _check(like, weights, index)
            if index == 0:
                like = {name: t.clone() if is_table(t) else t.to("meta") for name, t in weights.items()}
            return judge(score, weights, f"ingredient {index}")
        if not soup:
            soup = _start(ingredients[0])
            _stir_(soup, ingredients[members[0]], 0)
            held = 1
        elif len(members) - 1 == tried and tried > held:
            soup, held = trial, tried
        trial, tried = clone_of(soup), len(members)
        _stir_(trial, weights, held)
        return judge(score, trial, f"the soup with ingredient {index}")

    members, scores, trials = search(len(ingredients), judged)
    if not soup:
        soup = _start(ingredients[0])
        _stir_(soup, ingredients[members[0]], 0)
    return Greedy(trial if tried == len(members) else soup, members, scores, trials)


def _start(weights: Weights) -> dict[str, Tensor]:
    """Zeros where an average will be, copies of everything else."""
    zeros = wide_zeros(weights)
    return {name: tensor if tensor.is_floating_point() else weights[name].clone() for name, tensor in zeros.items()}


def _stir_(mean: dict[str, Tensor], weights: Weights, held: int) -> None:
    """Take one more ingredient into the mean of `held`."""
    floats = [name for name, tensor in mean.items() if tensor.is_floating_point()]
    lerp_((mean[name] for name in floats), (weights[name] for name in floats), 1 / (held + 1))


def _check(first: Weights, weights: Weights, index: int) -> None:
    if not hasattr(weights, "items"):
        raise ValueError(
            f"ingredient {index} must be a mapping from names to tensors, got {type(weights).__name__}: "
            "pass an iterable of such mappings, and clone_of(weights_of(model)) for a model"
        )
    what = f"ingredient {index}"
    check_kinds(weights, what, ", or leave them out")
    if index > 0:
        check_same(first, weights, what=f"{what} beside ingredient 0")
        check_same_kinds(first, weights, f"{what} beside ingredient 0")
        check_same_codes(first, weights, f"{what} beside ingredient 0")
    elif not weights:
        raise ValueError("ingredient 0 is an empty mapping: pass at least one named tensor")
    codes = codes_of({name: (tensor.dtype, tensor.numel()) for name, tensor in weights.items()})
    if codes:
        raise ValueError(
            f"ingredient {index} holds quantised weights, {codes[:5]}: codes and scales are a product, whose average "
            "is not that of its factors; dequantise them first"
        )
    name = first_nonfinite(weights)
    if name is not None:
        raise ValueError(f"{name} of ingredient {index} holds a value that is not finite: leave this ingredient out")


def _served(soup: dict[str, Tensor]) -> dict[str, Tensor]:
    if not soup:
        raise ValueError("a soup needs at least one ingredient, got none")
    name = first_nonfinite(soup)
    if name is not None:
        raise ValueError(f"the sum of {name} is beyond the range of {soup[name].dtype}: smaller coefficients fit")
    return soup


def _shares(coefficients: Sequence[float], normalise: bool) -> list[float]:
    shares = [float(c) for c in coefficients]
    if not all(map(math.isfinite, shares)):
        raise ValueError(f"coefficients must be finite, got {shares}")
    total = math.fsum(shares)
    if normalise:
        if not total > 0:
            raise ValueError(f"coefficients must have a positive sum to be normalised, got a sum of {total}")
        return [c / total for c in shares]
    if abs(total - 1) > 1e-6:
        raise ValueError(f"coefficients must sum to 1, got a sum of {total}: change them or pass normalise=True")
    return shares
