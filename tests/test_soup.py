"""Soups: by number, in float32, in bounded memory, and what they refuse."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Mapping

import pytest
import torch
from torch import Tensor, nn

from lowland.soup import Greedy, greedy, uniform, weighted

from .problems import four_iterates, walk


def points(*values: float) -> list[dict[str, Tensor]]:
    return [{"w": torch.tensor(value)} for value in values]


def near_five(weights: Mapping[str, Tensor]) -> float:
    return -abs(weights["w"].item() - 5)


# Uniform and weighted.


def test_uniform_17_1() -> None:
    assert uniform(four_iterates())["w"].tolist() == [3.0, 2.0]


def test_one_ingredient_is_itself() -> None:
    only = walk(1)
    for soup in (uniform(only), weighted(only, [1.0]), greedy(only, lambda weights: 0.0).weights):
        assert all(torch.equal(soup[name], only[0][name]) for name in only[0])
        assert all(soup[name].data_ptr() != only[0][name].data_ptr() for name in only[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_means_are_float32_or_wider(dtype: torch.dtype) -> None:
    path = walk(200, dtype=dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    equal = weighted(path, [1 / 200] * 200)
    for name, tensor in uniform(path).items():
        exact = torch.stack([weights[name].double() for weights in path]).mean(0)
        assert tensor.dtype == equal[name].dtype == wide
        assert torch.allclose(tensor.double(), exact, atol=2e-6)
        assert torch.allclose(equal[name].double(), exact, atol=2e-6)


def test_weighted_by_number() -> None:
    assert weighted(four_iterates(), [0.1, 0.2, 0.3, 0.4])["w"].tolist() == pytest.approx([3.7, 1.9])
    assert weighted(four_iterates(), [1, 2, 3, 4], normalise=True)["w"].tolist() == pytest.approx([3.7, 1.9])
    assert weighted(points(1.0, 3.0), [-0.5, 1.5])["w"].item() == 4.0


@pytest.mark.parametrize("make", [uniform, lambda items: weighted(items, [0.25] * 4)])
def test_ingredients_are_streamed(make: Callable[[Iterator[dict[str, Tensor]]], dict[str, Tensor]]) -> None:
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def files() -> Iterator[dict[str, Tensor]]:
        nonlocal most
        for weights in four_iterates():
            tensor = weights.pop("w").clone()
            alive.append(weakref.ref(tensor))
            most = max(most, sum(reference() is not None for reference in alive))
            yield {"w": tensor}
            del tensor

    assert make(files())["w"].tolist() == [3.0, 2.0]
    assert most <= 2  # the one in use and the one being read


def test_ingredients_are_left_as_they_are() -> None:
    def rude(weights: Mapping[str, Tensor]) -> float:
        value = float(weights["scale"])
        for tensor in weights.values():
            tensor.fill_(9.0)
        return value

    path, before = walk(4), walk(4)
    uniform(path)
    weighted(path, [0.25] * 4)
    greedy(path, rude)
    for weights, kept in zip(path, before, strict=True):
        assert all(torch.equal(weights[name], kept[name]) for name in kept)


def test_other_than_floats_are_the_first_ingredients() -> None:
    ingredients = [{"w": torch.tensor(float(i)), "steps": torch.tensor(10 + i)} for i in range(3)]
    soups = (
        uniform(ingredients),
        weighted(ingredients, [0.0, 0.5, 0.5]),
        greedy(ingredients, lambda weights: weights["w"].item()).weights,
    )
    for soup in soups:
        assert soup["steps"].item() == 10
        assert soup["steps"].dtype == torch.int64
    soups[0]["steps"].add_(1)
    assert ingredients[0]["steps"].item() == 10


def test_a_state_dict_with_batch_norm_is_an_ingredient() -> None:
    models = [nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)) for _ in range(3)]
    soup = uniform(model.state_dict() for model in models)
    models[0].load_state_dict(soup)


# Greedy.


def test_greedy_by_number() -> None:
    # Alone: -4, -1, -2, -3.5. From 4: with 7 the mean is 5.5 (-0.5, in), with 1.5 then 4.1667 (-0.8333, out),
    # with 9 then 6.6667 (-1.6667, out).
    soup = greedy(points(9.0, 4.0, 7.0, 1.5), near_five)
    assert soup.weights["w"].item() == 5.5
    assert soup.members == [1, 2]
    assert soup.scores == [-4.0, -1.0, -2.0, -3.5]
    assert soup.trials == pytest.approx([-5 / 3, -1.0, -0.5, -5 / 6], abs=1e-6)
    assert soup.score == -0.5


def test_greedy_wants_a_strict_improvement() -> None:
    soup = greedy(points(4.0, 6.0, 4.0), lambda weights: 0.0)
    assert soup.members == [0]
    assert soup.weights["w"].item() == 4.0


def test_greedy_tries_equal_scores_in_the_order_given() -> None:
    assert greedy(points(6.0, 4.0), near_five).members == [0, 1]
    assert greedy(points(4.0, 6.0), near_five).members == [0, 1]


def test_greedy_is_never_below_its_best_ingredient() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        values = (5 + 3 * torch.randn(6, generator=generator)).tolist()
        soup = greedy(points(*values), near_five)
        assert soup.score >= max(soup.scores)
        assert soup.score == near_five(soup.weights)
        kept = [values[index] for index in soup.members]
        assert soup.weights["w"].item() == pytest.approx(sum(kept) / len(kept), abs=1e-5)


def test_greedy_takes_infinite_scores() -> None:
    table = {1.0: -math.inf, 2.0: 1.0, 1.5: -math.inf}
    soup = greedy(points(1.0, 2.0), lambda weights: table[weights["w"].item()])
    assert soup.members == [1]
    assert isinstance(soup, Greedy)


# Refusals.


def nan_second() -> list[dict[str, Tensor]]:
    return points(1.0, math.nan)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: uniform([]), "a soup needs at least one ingredient, got none"),
        (lambda: greedy([], near_five), "a soup needs at least one ingredient, got none"),
        (lambda: uniform([{}]), "ingredient 0 is an empty mapping"),
        (lambda: uniform({"w": torch.zeros(1)}), "ingredient 0 must be a mapping .* got str"),  # type: ignore[arg-type]
        (lambda: uniform([nn.Linear(1, 1)]), r"got Linear.*clone_of\(weights_of\(model\)\)"),  # type: ignore[list-item]
        (
            lambda: uniform([{"w": torch.zeros(1)}, {"v": torch.zeros(1)}]),
            r"ingredient 1 beside ingredient 0: .*missing \['w'\], unexpected \['v'\]",
        ),
        (lambda: uniform([{"w": torch.zeros(1)}, {"w": torch.zeros(2)}]), r"w \(2,\) instead of \(1,\)"),
        (
            lambda: greedy([{"w": torch.zeros(1)}, {"w": torch.zeros(2)}], lambda weights: 0.0),
            r"ingredient 1 beside ingredient 0: .*w \(2,\) instead of \(1,\)",
        ),
        (lambda: uniform(nan_second()), "w of ingredient 1 holds a value that is not finite"),
        (lambda: weighted(nan_second(), [0.5, 0.5]), "w of ingredient 1 holds a value that is not finite"),
        (lambda: greedy(nan_second(), near_five), "w of ingredient 1 holds a value that is not finite"),
        (
            lambda: weighted(points(1.0, 2.0), [0.5, 0.6]),
            "coefficients must sum to 1, got a sum of 1.1: change them or pass normalise=True",
        ),
        (lambda: weighted(points(1.0, 2.0), [1.0, -1.0], normalise=True), "positive sum to be normalised, got .* 0.0"),
        (lambda: weighted(points(1.0, 2.0), [math.nan, 1.0]), r"coefficients must be finite, got \[nan, 1.0\]"),
        (lambda: weighted(points(1.0, 2.0), [1.0]), "there are 1 coefficients and more ingredients: pass one for each"),
        (lambda: weighted(points(1.0), [0.5, 0.5]), "there are 2 coefficients and 1 ingredients: pass one for each"),
        (lambda: greedy(points(1.0, 2.0), lambda weights: math.nan), "the score of ingredient 0 is NaN"),
    ],
)
def test_errors(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_score_that_raises_is_told_with_its_ingredient() -> None:
    def score(weights: Mapping[str, Tensor]) -> float:
        if weights["w"].item() == 2.0:
            raise OSError("no file")
        return 0.0

    with pytest.raises(RuntimeError, match="the score of ingredient 1 failed with OSError: no file"):
        greedy(points(1.0, 2.0), score)
