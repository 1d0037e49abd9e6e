"""What the second phase is like: its rate, its start and the covariance's scale, chosen on validation examples.

The first member tries them, one after the other, from its one first phase: rates at the configured start, starts at the
best rate, then scales. The others follow it. What a choice among several promises is too much by chance: `optimism` is
by how much, as far as the examples tell (the cross-fitted estimate of `lowland.retroactive`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lowland.calibration.sums import nll_of
from lowland.retroactive.sweep import best_of, cross_fitted

from .member import Material, Member

FOLDS = 5


@dataclass(frozen=True)
class Try:
    """One setting of the second phase; `nll` (N,) of validation examples, scale 0 being the mean."""

    start: int
    rate: float
    scale: float
    nll: Any
    seconds: float  # that its predictions took


@dataclass(frozen=True)
class Settled:
    """What was chosen; `shared` is the material with the chosen settings."""

    shared: Material
    tries: tuple[Try, ...]
    optimism: float  # nats by which the chosen one's validation NLL is expected to be too low
    seconds: float  # that the search took beside what is trained without it

    def rows(self) -> list[dict[str, float]]:
        """Return the tries as metrics.json holds them."""
        return [
            {"start": one.start, "learning_rate": one.rate, "scale": one.scale, "nll": float(one.nll.mean())}
            for one in self.tries
        ]


def run_members(shared: Material, stages: Path) -> tuple[list[Member], Settled]:
    """Run whatever has not been run of all members, the choice of the second phase first."""
    folders = [stages / f"member-{index}" for index in range(len(shared.study.training.seeds))]
    planned = [Member(index, shared, folder) for index, folder in enumerate(folders)]
    shared.progress.plan(sum(member.work() for member in planned) + work(shared, planned[0]))
    settled = settle(shared, folders[0])
    members = [Member(index, settled.shared, folder) for index, folder in enumerate(folders)]
    for member in members:
        member.run()
    return members, settled


def settle(shared: Material, folder: Path) -> Settled:
    """Choose the second phase's settings; where there is one of each, nothing is run."""
    swag, evaluation = shared.study.swag, shared.study.evaluation
    tries: list[Try] = []
    rates, starts = (swag.learning_rate, *swag.other_rates), (swag.start, *swag.other_starts)
    scales = [one for one in (evaluation.scale, *evaluation.other_scales) if one > 0]  # 0 is the row SWA
    truth = torch.tensor(list(shared.labels["validation"]))

    def tried(start: int, rate: float, scale: float = 0.0) -> Try:
        found = next((one for one in tries if (one.start, one.rate, one.scale) == (start, rate, scale)), None)
        if found is None:
            member = Member(0, at(shared, start, rate), folder)
            member.first()
            member.second()
            probs, seconds = member.tried(scale)
            found = Try(start, rate, scale, nll_of(probs, truth).numpy(), seconds)
            tries.append(found)
        return found

    start, rate, scale = swag.start, swag.learning_rate, evaluation.scale
    if len(rates) > 1:
        rate = _best([tried(start, one) for one in rates]).rate
    if len(starts) > 1:
        start = _best([tried(one, rate) for one in starts]).start
    if len(scales) > 1:
        scale = _best([tried(start, rate, one) for one in scales]).scale
    chosen = at(shared, start, rate)
    chosen = dataclasses.replace(
        chosen, study=dataclasses.replace(chosen.study, evaluation=dataclasses.replace(evaluation, scale=scale))
    )
    others = {(one.start, one.rate) for one in tries} - {(start, rate)}
    trained = sum(Member(0, at(shared, *one), folder).history("swag")["seconds"] for one in others)
    return Settled(
        chosen,
        tuple(tries),
        optimism([one.nll for one in tries], shared.study.data.seed),
        trained + sum(one.seconds for one in tries),
    )


def at(shared: Material, start: int, rate: float) -> Material:
    """Return the material of a study with another second phase."""
    swag = shared.study.swag
    if (start, rate) == (swag.start, swag.learning_rate):
        return shared
    study = dataclasses.replace(shared.study, swag=dataclasses.replace(swag, start=start, learning_rate=rate))
    return dataclasses.replace(shared, study=study, second=f"swag-{start}-{rate:g}")


def work(shared: Material, member: Member) -> float:
    """Return about what the tries cost, in passes of an example through the model."""
    study = shared.study
    epochs = [study.training.epochs - study.swag.start] * len(study.swag.other_rates)
    epochs += [study.training.epochs - start for start in study.swag.other_starts]
    tried = len(epochs) + 1 if epochs else 0
    looks = sum(member.trying(scale) for scale in (study.evaluation.scale, *study.evaluation.other_scales))
    looks = looks if study.evaluation.other_scales else 0.0
    return sum(map(member.training, epochs)) + tried * member.trying(0.0) + looks


def optimism(scores: list[Any], seed: int) -> float:
    """Return how much lower the best mean is than what choosing the best is worth on examples that did not choose.

    >>> optimism([np.zeros(10), np.ones(10)], 0)
    0.0
    """
    if len(scores) < 2:
        return 0.0
    table = -np.stack(scores)
    expected = cross_fitted(table, [0.0] * len(scores), FOLDS, seed)
    if expected is None:
        return 0.0
    best = table.mean(axis=1)[best_of(table.mean(axis=1), [0.0] * len(scores))]
    return max(0.0, float(best - expected))


def _best(tries: list[Try]) -> Try:
    """The lowest mean; of equals the first, which is the configured one."""
    return min(tries, key=lambda one: float(one.nll.mean()))
