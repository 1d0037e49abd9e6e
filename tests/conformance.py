"""The lists that a new method joins; `test_conformance.py` runs every law on every entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowland import ASWA, BEMA, EMA, SWA, SWAG, Mixture, Snapshots
from lowland.averager import Averager, Drawable
from lowland.ema import Power, Warmup
from lowland.population import DART, IMWA, PAPA, PAPA2, WASH, DiLoCo, Independent, LocalSGD, PAPAAll, Rule
from lowland.weights.named import Weights

from .problems import walk


@dataclass(frozen=True)
class Method:
    """How to make an averager. `given` are the arguments that no state file holds."""

    make: Callable[..., Averager]
    given: tuple[tuple[str, Any], ...] = ()
    other: Callable[..., Averager] | None = None  # the same class under other hyper-parameters

    def __call__(self, **arguments: Any) -> Averager:
        return self.make(**dict(self.given), **arguments)


def fading(count: int) -> float:
    """A decay of a user's own."""
    return 1 - 0.5 / count


def small(weights: Weights) -> float:
    """A score that likes small weights."""
    return -sum(float(tensor.abs().sum()) for tensor in weights.values())


def large(weights: Weights) -> float:
    """Another score."""
    return -small(weights)


AVERAGERS: dict[str, Method] = {
    "SWA": Method(SWA),
    "SWAG": Method(lambda **k: SWAG(rank=3, **k), other=lambda **k: SWAG(rank=4, **k)),
    "SWAG-diagonal": Method(lambda **k: SWAG(rank=0, **k), other=lambda **k: SWAG(rank=2, **k)),
    "SWAG-bfloat16": Method(lambda **k: SWAG(rank=3, deviations_dtype=torch.bfloat16, **k)),
    "EMA": Method(lambda **k: EMA(0.9, **k), other=lambda **k: EMA(0.99, **k)),
    "EMA-warmup": Method(lambda **k: EMA(Warmup(0.9), **k), other=lambda **k: EMA(Warmup(0.9, power=0.75), **k)),
    "EMA-power": Method(lambda **k: EMA(Power(6.94), **k), other=lambda **k: EMA(Power(16.97), **k)),
    "EMA-own": Method(EMA, (("decay", fading),), other=lambda **k: EMA(0.9, **k)),
    "BEMA": Method(BEMA, other=lambda **k: BEMA(0.6, **k)),
    "BEMA-older": Method(lambda **k: BEMA(0.7, 0.2, lag=2, multiplier=4, least=0.1, **k), other=lambda **k: BEMA(**k)),
    "Snapshots": Method(lambda **k: Snapshots(3, **k), other=lambda **k: Snapshots(4, **k)),
    "ASWA": Method(ASWA, (("score", small),), other=lambda **k: ASWA(large, **k)),
}


def _filled(averager: Averager, seed: int = 0, steps: int = 6) -> Any:
    for weights in walk(steps, seed):
        averager.update(weights)
    return averager


def _flat_points(points: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    flat = torch.stack([torch.cat([w[name].flatten().double() for name in sorted(w)]) for w in points])
    return flat.mean(0), torch.cov(flat.T, correction=0)


def swag_moments(path: list[dict[str, Tensor]], rank: int) -> tuple[Tensor, Tensor]:
    """The paper's mean and covariance, naively in float64, tensors in sorted order."""
    flat = torch.stack([torch.cat([w[name].flatten().double() for name in sorted(w)]) for w in path])
    means = flat.cumsum(0) / torch.arange(1, len(flat) + 1)[:, None]
    mean, v = flat.mean(0), flat.var(0, correction=0)
    if rank == 0:
        return mean, torch.diag(v)
    held = (flat - means)[-rank:]
    return mean, 0.5 * (torch.diag(v) + held.T @ held / (len(held) - 1))


def mixture_moments(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean and covariance of an equal mixture."""
    means = torch.stack([mean for mean, _ in parts])
    between = torch.cov(means.T, correction=0)
    return means.mean(0), torch.stack([covariance for _, covariance in parts]).mean(0) + between


@dataclass(frozen=True)
class Known:
    """A posterior and the closed form of its mean and covariance."""

    make: Callable[[], Drawable]
    moments: Callable[[], tuple[Tensor, Tensor]]


POSTERIORS: dict[str, Known] = {
    "SWAG": Known(lambda: _filled(SWAG(rank=3)), lambda: swag_moments(walk(6), 3)),
    "SWAG-diagonal": Known(lambda: _filled(SWAG(rank=0)), lambda: swag_moments(walk(6), 0)),
    "SWAG-partly-filled": Known(lambda: _filled(SWAG(rank=20)), lambda: swag_moments(walk(6), 20)),
    "MultiSWAG": Known(
        lambda: Mixture([_filled(SWAG(rank=3), seed) for seed in (0, 1)]),
        lambda: mixture_moments([swag_moments(walk(6, seed), 3) for seed in (0, 1)]),
    ),
    "MultiSWA": Known(
        lambda: Mixture([_filled(SWA(), seed) for seed in (0, 1)]),
        lambda: _flat_points([_filled(SWA(), seed).mean() for seed in (0, 1)]),
    ),
    "Snapshots": Known(lambda: _filled(Snapshots(4)), lambda: _flat_points(walk(6)[-4:])),
    "Snapshots-partly-filled": Known(lambda: _filled(Snapshots(9)), lambda: _flat_points(walk(6))),
    "Mixture of Snapshots": Known(
        lambda: Mixture([_filled(Snapshots(4), seed) for seed in (0, 1)]),
        lambda: _flat_points([*walk(6, 0)[-4:], *walk(6, 1)[-4:]]),
    ),
    "deep ensemble": Known(
        lambda: Mixture([walk(1, seed)[0] for seed in (0, 1, 2)]),
        lambda: _flat_points([walk(1, seed)[0] for seed in (0, 1, 2)]),
    ),
}


POPULATIONS: dict[str, Rule] = {
    "Independent": Independent(),
    "local SGD": LocalSGD(every=3),
    "PAPA": PAPA(every=3, alpha=0.7),
    "PAPA of one strength": PAPA(every=2, alpha=0.7, follow="nothing", epoch=5),
    "PAPA-all": PAPAAll(every=3, until=12),
    "PAPA-all with REPAIR": PAPAAll(every=3, repair=1),
    "PAPA-2": PAPA2(every=3),
    "DART": DART(every=3, rounds=3),
    "DART from one model": DART(every=3, pretrain=2),
    "WASH": WASH(p=0.2),
    "WASH without norms": WASH(p=0.2, every=2, depth="flat", norms=False),
    "WASH+Opt": WASH(p=0.2, depth="tensor", optimizer_state=True),
    "IMWA": IMWA(every=3),
    "IMWA that keeps momenta": IMWA(every=3, momentum="keep", ema=0.9, ema_of="averages"),
    "IMWA with teachers": IMWA(every=3, momentum="average", ema=0.9),
    "DiLoCo": DiLoCo(every=3),
}
# Every other rule keeps the mean of the members' parameters.
MOVES_THE_MEAN = {
    "PAPA-all with REPAIR": "the repair moves it",
    "PAPA-2": "kept in expectation over the pairs only",
    "DART from one model": "when branches part, all become the first member",
    "DiLoCo": "an outer step goes beyond it",
}
