"""Which tensors are codes of quantised weights: integers that mean something only together with their scales."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

_FEW = 16  # elements of a counter or a small table
_COMPANION = re.compile(
    r".*scales?(_inv)?|.*scale_.*|scb|absmax|.*qzeros?|.*zero_?points?|.*quant_(map|state).*|codebooks?|lut|.*_zp", re.I
)
_CODES = re.compile(r".*(qweight|weight_packed|_packed|qdata|quantized|codes)|scb|qzeros|weight_format", re.I)
# Integers that may differ from step to step and carry no weights.
_STATE = re.compile(
    r".*(_extra_state|mask|rng|seed|step|count|num_batches|position|index|indices|histogram|age).*", re.I
)


def is_code(name: str, dtype: torch.dtype, numel: int) -> bool:
    """Return whether a tensor may be codes: integers, more than a few, and by name no counter, mask or position table.

    >>> is_code("layer.weight", torch.int8, 64), is_code("embed.position_ids", torch.int64, 64)
    (True, False)
    """
    plain = dtype.is_floating_point or dtype.is_complex or dtype == torch.bool
    return not plain and numel > _FEW and not _STATE.fullmatch(name.rpartition(".")[2])


def codes_of(types: Mapping[str, tuple[torch.dtype, int]]) -> list[str]:
    """Return the names of codes among tensors of these types and numbers of elements.

    A code has a telling name (`qweight`, `weight`), or beside it lies what scales it (`scales`, `SCB`, `absmax`).

    >>> codes_of({"fc.weight": (torch.int8, 64), "fc.SCB": (torch.float32, 8), "steps": (torch.int64, 1)})
    ['fc.weight']
    """
    found = []
    homes: dict[str, list[str]] = {}
    for name in types:
        homes.setdefault(name.rpartition(".")[0], []).append(name)
    for name, (dtype, numel) in types.items():
        if not is_code(name, dtype, numel):
            continue
        home, _, leaf = name.rpartition(".")
        beside = [own.rpartition(".")[2] for own in (*homes[home], *homes.get(name, ())) if own != name]
        telling = _CODES.fullmatch(leaf) is not None or "weight" in leaf.lower()
        if telling or (dtype != torch.int64 and any(map(_COMPANION.fullmatch, beside))):
            found.append(name)
    return found
