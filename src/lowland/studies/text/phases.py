"""The two phases of a text study: AdamW whose rate falls to zero, then SGD at a constant rate."""

from __future__ import annotations

from typing import Any

from torch import nn

from lowland.weights import Weights

from ..adapters.member import Member, Phase
from ..adapters.training import adamw, sgd
from ..runs.randomness import stream
from .config import TextStudy


def phases(study: TextStudy) -> tuple[Phase, Phase]:
    """Return the AdamW phase, from random adapters, and the SGD phase, from the weights of epoch `swag.start`."""
    training, swag = study.training, study.swag

    def fresh(member: Member) -> None:
        member.shared.adapted.reset(stream(member.seed, "initial weights"))

    def first(model: nn.Module, steps: int) -> tuple[Any, Any]:
        return adamw(model, training.learning_rate, training.weight_decay, training.epochs * steps)

    def from_start(member: Member) -> Weights:
        return member.epoch(swag.start)

    def second(model: nn.Module, steps: int) -> tuple[Any, Any]:
        return sgd(model, swag.learning_rate, swag.momentum)

    return Phase(training.epochs, fresh, first), Phase(training.epochs - swag.start, from_start, second)
