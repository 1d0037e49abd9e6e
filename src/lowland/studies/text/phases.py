"""The phases of a text study: AdamW whose rate falls to zero, SGD at a constant rate, AdamW at a rate of its own."""

from __future__ import annotations

from typing import Any

from torch import nn

from lowland.weights import Weights

from ..adapters.member import Member, Phase
from ..adapters.training import adamw, sgd
from ..runs.randomness import stream
from .config import TextStudy


def phases(study: TextStudy) -> tuple[Phase, ...]:
    """Return the AdamW phase, from random adapters, and the SGD phase, from the weights of epoch `swag.start`.

    The third, where `training.base_rate` asks for it, is the first anew at that rate.
    """
    training, swag = study.training, study.swag

    def fresh(member: Member) -> None:
        member.shared.adapted.reset(stream(member.seed, "initial weights"))

    def first(model: nn.Module, steps: int) -> tuple[Any, Any]:
        return adamw(model, training.learning_rate, training.weight_decay, training.epochs * steps)

    def from_start(member: Member) -> Weights:
        return member.epoch(swag.start)

    def second(model: nn.Module, steps: int) -> tuple[Any, Any]:
        return sgd(model, swag.learning_rate, swag.momentum)

    def tuned(model: nn.Module, steps: int) -> tuple[Any, Any]:
        return adamw(model, training.base_rate, training.weight_decay, training.epochs * steps)

    two = Phase(training.epochs, fresh, first), Phase(training.epochs - swag.start, from_start, second)
    return (*two, Phase(training.epochs, fresh, tuned)) if training.base_rate else two
