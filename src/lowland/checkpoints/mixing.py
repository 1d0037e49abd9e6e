"""What an average may not mix: tensors that mean something only together with others, or that are no plain numbers.

Codes of quantised weights times a scale are a product; the mean of products is not the product of means. Each rule
finds such a thing in the names and types of one checkpoint, or in what differs between two.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..weights.codes import codes_of, is_code
from .adapters import differences
from .layout import Checkpoint, Stored
from .manifold import strange_groups
from .streaming import Reader


@dataclass(frozen=True)
class Obstacle:
    """Why checkpoints cannot be averaged: in a word, in a sentence, and what to do. `places` are theirs among all."""

    check: str
    says: str
    do: str
    places: tuple[int, ...]


def obstacles(checkpoints: Sequence[Checkpoint], *, posterior: bool = False) -> list[Obstacle]:
    """Return all that forbids an average, or a posterior, of checkpoints."""
    found = []
    for place, checkpoint in enumerate(checkpoints):
        found += [
            Obstacle(c, f"{checkpoint.path} {says}", do, (place,)) for c, says, do in _alone(checkpoint, posterior)
        ]
    for place, other in enumerate(checkpoints[1:], start=1):
        told = differences(checkpoints[0].path, other.path, checkpoints[0].folders)
        if told:
            says = (
                f"the adapter {other.path} is scaled otherwise than {checkpoints[0].path}, or shaped: {', '.join(told)}"
            )
            do = "average adapters of one configuration; products of LoRA's are averaged by average_adapters"
            found.append(Obstacle("adapter", says, do, (0, place)))
    return found


def _alone(checkpoint: Checkpoint, posterior: bool) -> list[tuple[str, str, str]]:
    found = []
    types = [
        f"{name} ({stored.dtype})"
        for name, stored in checkpoint.tensors.items()
        if stored.dtype.is_complex or (stored.dtype.is_floating_point and stored.dtype.itemsize < 2)
    ]
    if types:
        do = "convert quantised weights to bfloat16 and complex ones to two real parts first"
        found.append(("quantised", f"holds tensors of types that cannot be averaged: {types[:5]}", do))
    codes = quantised(checkpoint)
    if codes:
        says = (
            f"holds quantised weights: {', '.join(codes[:4])}; codes and scales are a product, whose average is not "
            "that of its factors"
        )
        found.append(
            ("quantised", says, "dequantise the weights to bfloat16 or float32 first, and quantise the average")
        )
    bent = strange_groups(checkpoint.tensors, posterior=posterior)
    if bent:
        says = f"holds weights that are a function of others: {', '.join(bent[:4])}"
        do = "remove the parametrisation (torch.nn.utils.parametrize.remove_parametrizations) before saving"
        found.append(("parametrisation", says, do))
    return found


def quantised(checkpoint: Checkpoint) -> list[str]:
    """Return the names of codes of quantised weights, by their types, names and companions and by `config.json`."""
    types = {name: (stored.dtype, stored.numel) for name, stored in checkpoint.tensors.items()}
    told = _told(checkpoint.path)
    if told:
        return [f"{name} ({told} by config.json)" for name in types if is_code(name, *types[name])]
    return codes_of(types)


def _told(path: Path) -> str | None:
    """The quantisation that a configuration beside the weights names."""
    file = (path if path.is_dir() else path.parent) / "config.json"
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    for key in ("quantization_config", "compression_config"):
        own = content.get(key) if isinstance(content, dict) else None
        if isinstance(own, dict):
            return str(own.get("quant_method", "quantised"))
    return None


def differing_codes(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Return the integer tensors of more than a few elements that differ between checkpoints: they carry weights.

    Counters, masks, tables of positions and 64-bit integers are not looked at.
    """
    first = checkpoints[0]
    found = []
    with Reader() as reader:
        for name, stored in first.tensors.items():
            if not is_code(name, stored.dtype, stored.numel) or stored.dtype == torch.int64:
                continue
            wanted = tensor_of(reader, stored)
            if any(not torch.equal(wanted, tensor_of(reader, other.tensors[name])) for other in checkpoints[1:]):
                found.append(name)
    return found


def differing_masks(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Return the masks of pruned weights (`weight_orig` times `weight_mask`) that differ between checkpoints."""
    first = checkpoints[0]
    found = []
    with Reader() as reader:
        for name, stored in first.tensors.items():
            if not name.endswith("_mask") or f"{name.removesuffix('_mask')}_orig" not in first.tensors:
                continue
            wanted = tensor_of(reader, stored)
            if any(not torch.equal(wanted, tensor_of(reader, other.tensors[name])) for other in checkpoints[1:]):
                found.append(name)
    return found


def tensor_of(reader: Reader, stored: Stored) -> Tensor:
    """Read a whole tensor."""
    tensor = torch.empty(stored.numel, dtype=stored.dtype)
    reader.read(stored, 0, stored.numel, tensor)
    return tensor.view(stored.shape)
