"""The phases of a choice study: AdamW with warm-up and linear decay, AdamW that anneals to its own rate, and the first
anew at a rate of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lowland.weights import Weights

from ..adapters.member import Member, Phase
from ..runs.randomness import stream
from .config import ChoiceStudy


def phases(study: ChoiceStudy, head: Weights) -> tuple[Phase, ...]:
    """Return the phases; the first starts from random adapters and `head`, the second from the best epoch so far.

    The third, where `training.base_rate` asks for it, is the first anew at that rate.
    """
    training, swag = study.training, study.swag

    def adamw(model: nn.Module, rate: float, shape: Callable[[int], float]) -> tuple[Any, Any]:
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=training.weight_decay)
        return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, shape)

    def fresh(member: Member) -> None:
        member.shared.adapted.reset(stream(member.seed, "initial weights"), head)

    def decaying(model: nn.Module, steps: int, rate: float) -> tuple[Any, Any]:
        total = training.epochs * steps
        warm = max(1, round(training.warmup * total))

        def shape(step: int) -> float:
            return min(1.0, (step + 1) / warm) * min(1.0, max(0.0, (total - step) / max(1, total - warm)))

        return adamw(model, rate, shape)

    def first(model: nn.Module, steps: int) -> tuple[Any, Any]:
        return decaying(model, steps, training.learning_rate)

    def tuned(model: nn.Module, steps: int) -> tuple[Any, Any]:
        return decaying(model, steps, training.base_rate)

    def from_best(member: Member) -> Weights:
        return member.epoch(member.early_epoch(swag.start))

    def second(model: nn.Module, steps: int) -> tuple[Any, Any]:
        down = round(swag.anneal * steps)

        def shape(step: int) -> float:  # torch's SWALR: linear, then constant
            done = 1.0 if down == 0 else min(1.0, step / down)
            return ((1 - done) * training.learning_rate + done * swag.learning_rate) / swag.learning_rate

        return adamw(model, swag.learning_rate, shape)

    two = Phase(training.epochs, fresh, first), Phase(training.epochs - swag.start, from_best, second)
    return (*two, Phase(training.epochs, fresh, tuned)) if training.base_rate else two
