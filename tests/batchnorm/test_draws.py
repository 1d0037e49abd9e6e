"""BatchNorm for draws: the reference that is nearest, points exactly, and prediction as with the exact refresh."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowland import SWA, SWAG, Mixture, Snapshots, applied, refresh_bn
from lowland.averager import Drawable
from lowland.batchnorm import FastRefresh
from lowland.batchnorm.draws import DrawRefresher
from lowland.predict import one_by_one, predict
from lowland.predict.predict import Prediction

from .test_batchnorm import assert_same, state
from .test_reference import convolutional, distance, many, near


def posterior(model: nn.Module, seed: int = 0, spread: float = 0.02) -> SWAG:
    g = torch.Generator().manual_seed(seed)
    swag = SWAG(rank=4)
    for _ in range(6):
        swag.update({name: p + spread * torch.randn(p.shape, generator=g) for name, p in model.named_parameters()})
    return swag


def counted() -> tuple[list[int], Any]:
    calls = [0]

    def forward(model: nn.Module, batch: Tensor) -> object:
        calls[0] += 1
        return model(batch)

    return calls, forward


def draw(source: Drawable, seed: int = 0) -> dict[str, Tensor]:
    return dict(source.sample(generator=torch.Generator().manual_seed(seed)))  # type: ignore[union-attr]


def test_one_full_pass_and_two_batches_a_draw() -> None:
    model, batches = convolutional(), many(20)
    swag = posterior(model)
    calls, forward = counted()
    refresher = DrawRefresher(swag, batches, forward=forward)
    assert calls == [0]
    for seed in range(3):
        weights = draw(swag, seed)
        with applied(model, weights):
            found = refresher.refresh(model, weights)
            exact = copy.deepcopy(model)
            refresh_bn(exact, batches)
            own = distance(model, exact)
            refresh_bn(model, batches[:2])
            assert found.batches == 2 and found.error > 0
            assert own < 0.5 * distance(model, exact)
    assert calls == [20 + 3 * 2]


def test_the_tolerance_is_handed_on() -> None:
    model, batches = convolutional(), many(10)
    swag = posterior(model)
    refresher = DrawRefresher(swag, batches, tolerance=0.0)
    weights = draw(swag)
    with applied(model, weights):
        found = refresher.refresh(model, weights)
        exact = copy.deepcopy(model)
        refresh_bn(exact, batches)
        assert found.error == 0.0 and found.batches == 8 + 10 and distance(model, exact) == 0.0


def test_each_component_of_a_mixture_has_its_own_reference() -> None:
    one, two = convolutional(), near(convolutional(), 3.0)
    batches = many(20)
    swags = [posterior(one, 1), posterior(two, 2)]
    mixture = Mixture([swags[0], Mixture([swags[1].tempered(0.5), swa_of(two)])])
    calls, forward = counted()
    refresher = DrawRefresher(mixture, batches, forward=forward)
    model = convolutional()
    for number, component in enumerate(swags):
        weights = draw(component)
        with applied(model, weights):
            found = refresher.refresh(model, weights)
            alone = DrawRefresher(component, batches).refresh(copy.deepcopy(model), weights)
        assert found == alone and calls == [(20 + 2) * (number + 1)]
    weights = swa_of(two).mean()
    with applied(model, weights):
        assert refresher.refresh(model, weights).error == 0.0  # the point is its own
    assert calls == [2 * (20 + 2) + 20]


def swa_of(model: nn.Module) -> SWA:
    average = SWA()
    average.update(model)
    return average


def test_points_are_refreshed_exactly() -> None:
    model, batches = convolutional(), many(5)
    kept = Snapshots(3)
    for seed in range(3):
        kept.update(draw(posterior(model), seed))
    refresher = DrawRefresher(kept, batches)
    for weights in kept.members():
        with applied(model, weights):
            found = refresher.refresh(model, weights)
            exact = copy.deepcopy(model)
            refresh_bn(exact, batches)
            assert found.batches == 5 and found.error == 0.0 and distance(model, exact) < 1e-6


def test_a_posterior_without_a_mean_is_refused() -> None:
    class Odd:
        def sample(self, samples: int | None = None, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
            return {"0.weight": torch.zeros(1)}

    with pytest.raises(ValueError, match=r"Odd has no mean\(\) to refresh BatchNorm from: pass bn_batches=batches"):
        DrawRefresher(Odd(), many(2))


# --- in predict ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:the running statistics")
@pytest.mark.parametrize("plan", ["auto", "loop"])
def test_predict_is_near_the_exact_refresh_and_reads_less(plan: Any) -> None:
    model, batches = convolutional(), many(20)
    swag, inputs = posterior(model), many(2)
    before = state(model)

    def run(**arguments: Any) -> Prediction:
        generator = torch.Generator().manual_seed(0)
        with one_by_one() if plan == "loop" else nullcontext():
            return predict(model, swag, inputs, samples=5, generator=generator, **arguments)

    exact, stale = run(bn_batches=batches), run()
    calls, forward = counted()
    fast = run(bn_batches=FastRefresh(batches), forward=forward)
    assert calls[0] < 20 + 5 * 2 + 5 * 2 + 5  # the reference, the few, the inputs, and what a plan tries
    assert (fast.probs - exact.probs).abs().max() < 0.15 * (stale.probs - exact.probs).abs().max()
    assert fast.bn_error > 0 and exact.bn_error == stale.bn_error == 0
    assert_same(state(model), before)
    whole = run(bn_batches=FastRefresh(batches, tolerance=0.0))
    assert torch.equal(whole.probs, exact.probs) and whole.bn_error == 0


def test_predict_over_a_mixture_and_over_points() -> None:
    one, two = convolutional(), near(convolutional(), 3.0)
    model, batches, inputs = convolutional(), many(20), many(2)
    mixture = Mixture([posterior(one, 1), posterior(two, 2)])
    for source, bound in ((mixture, 0.03), (Mixture([swa_of(one), swa_of(two)]), 1e-6), (swa_of(one), 1e-6)):
        found = []
        for bn_batches in (batches, FastRefresh(batches)):
            generator = torch.Generator().manual_seed(0)
            found.append(predict(model, source, inputs, bn_batches=bn_batches, generator=generator))
        assert (found[0].probs - found[1].probs).abs().max() < bound


def test_predict_refuses() -> None:
    model = convolutional()
    with pytest.raises(ValueError, match="tolerance must be at least 0, or None for two batches, got -1"):
        FastRefresh(many(1), tolerance=-1.0)
    with pytest.raises(ValueError, match="bn_batches can be read only once, got a list_iterator"):
        predict(model, posterior(model), many(1), bn_batches=FastRefresh(iter(many(2))))
