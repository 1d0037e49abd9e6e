"""Model averaging with everything in memory: one deep copy of the model per draw, all probabilities stacked."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


@torch.no_grad()
def naive_probabilities(model: nn.Module, points: Sequence[Mapping[str, Tensor]], batches: Sequence[Tensor]) -> Tensor:
    """(S, N, C) in float64."""
    stacked = []
    for point in points:
        twin = copy.deepcopy(model).eval()
        for name, tensor in twin.named_parameters():
            if name in point:
                tensor.copy_(point[name])
        stacked.append(torch.softmax(torch.cat([twin(batch) for batch in batches]).double(), -1))
    return torch.stack(stacked)


def naive_uncertainty(probs: Tensor) -> dict[str, Tensor]:
    """From (S, N, C), by the definitions."""
    mean = probs.mean(0)
    total = -(mean * mean.log()).sum(-1)
    expected = -(probs * probs.log()).sum(-1).mean(0)
    return {
        "probs": mean,
        "entropy": total,
        "expected_entropy": expected,
        "mutual_information": total - expected,
        "variance": (probs - mean).square().mean(0),
    }
