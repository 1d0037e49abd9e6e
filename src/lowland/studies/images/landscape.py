"""The line from SWA to SGD, beyond both ends: where train loss and test error are lowest on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lowland.batchnorm.statistics import layers_of
from lowland.landscape import classification, fast, frozen, line, measured

from .config import ImagesStudy
from .evaluation import Candidate, Judge

PIECES = 6  # between the ends
BEYOND = 0.5  # of the line, on each side


def between(study: ImagesStudy, judge: Judge, swa: Candidate, sgd: Candidate) -> dict[str, Any] | None:
    """Return what is measured on the line as plain data, or None where the study asks for no images.

    BatchNorm is refreshed at every place, from two batches and a control variate.
    """
    count = study.evaluation.landscape_images
    if not count:
        return None
    model = judge.model
    a, b = _parameters(judge, swa), _parameters(judge, sgd)
    middle = {name: (tensor + b[name]) / 2 for name, tensor in a.items()}
    refresh = fast(model, middle, judge.statistics) if layers_of(model) else frozen()
    parts = {part: judge.parts[part] for part in ("train", "test")}
    size = study.evaluation.batch_size
    batches = {
        part: list(zip(torch.split(x[:count], size), torch.split(y[:count], size), strict=True))
        for part, (x, y) in parts.items()
    }
    walk = line(a, b, measured(model, batches, classification, refresh=refresh), points=PIECES + 1, beyond=BEYOND)
    return {
        "t": list(walk.t),
        "values": {name: list(values) for name, values in walk.values.items()},
        "length": sum(walk.pieces) / (walk.t[-1] - walk.t[0]),
        "lowest": {name: walk.lowest(name)[0] for name in walk.values},
        "ends": ["SWA 1.5", "SGD"],
    }


def _parameters(judge: Judge, candidate: Candidate) -> dict[str, Tensor]:
    found: Any = candidate.posterior if isinstance(candidate.posterior, Mapping) else candidate.posterior.mean()  # type: ignore[union-attr]
    return {name: found[name] for name, _ in judge.model.named_parameters()}
