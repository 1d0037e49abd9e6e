"""What a study hands to landscapes: its solutions by name, a network to hold them, and what to measure them on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lowland import load, save
from lowland.weights import Weights

from .folder import read_json, write_json


@dataclass(frozen=True)
class Solutions:
    """The solutions of one cell or member.

    Attributes:
        model: holds them.
        weights: by name, the parameters that differ between solutions.
        sets: batches by name, with "train" among them.
        loss: of model and batch, by name, with "loss" among them.
        statistics: training inputs for BatchNorm; empty where the model has none.
        about: what captions say.
        posteriors: Gaussians by name, for planes through their subspace.
    """

    model: nn.Module
    weights: Mapping[str, Weights]
    sets: Mapping[str, list[Any]]
    loss: Callable[[nn.Module, Any], Mapping[str, Tensor]]
    statistics: list[Tensor]
    about: dict[str, str]
    posteriors: Mapping[str, Any] = field(default_factory=dict)


def kept(folder: Path, train: Callable[[], Mapping[str, Weights]]) -> dict[str, Weights]:
    """Return what `train` returns, or what an earlier call left in `folder`.

    >>> import tempfile, torch
    >>> folder = Path(tempfile.mkdtemp()) / "cell"
    >>> list(kept(folder, lambda: {"SWA 1.5": {"w": torch.ones(1)}}))
    ['SWA 1.5']
    >>> kept(folder, dict)
    {'SWA 1.5': {'w': tensor([1.])}}
    """
    index = folder / "solutions.json"
    if not index.exists():
        found = train()
        folder.mkdir(parents=True, exist_ok=True)
        for name, weights in found.items():
            save(dict(weights), folder / f"{name}.safetensors")
        write_json(index, list(found))  # last: a killed call leaves none
    return {name: load(folder / f"{name}.safetensors") for name in read_json(index)}
