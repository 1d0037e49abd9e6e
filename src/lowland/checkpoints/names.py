"""One name for one tensor: prefixes of wrappers, and second names of tied weights, that only some files have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from ..weights.named import bare_name
from .layout import Checkpoint, Left, Stored
from .streaming import Reader

_STRETCH = 1 << 20


def aligned(first: Checkpoint, other: Checkpoint) -> tuple[Checkpoint, list[str]]:
    """Return `other` with its tensors named as the first checkpoint names them, and what was done in words.

    Prefixes that torch.compile, DistributedDataParallel, FSDP and activation checkpointing insert are seen through. A
    name that only one of the two has, of a tensor that equals another of the same file bit for bit, is a tie.
    """
    if first.tensors.keys() == other.tensors.keys():
        return other, []
    said = []
    bare_first, bare_other = _bare(first.tensors), _bare(other.tensors)
    if bare_first is not None and bare_other is not None and len(bare_first.keys() & bare_other.keys()):
        moved = {bare_first.get(bare, own): other.tensors[own] for bare, own in bare_other.items()}
        if moved.keys() != other.tensors.keys() and len(moved) == len(other.tensors):
            one = next(own for bare, own in bare_other.items() if bare_first.get(bare, own) != own)
            said.append(f"{other.path}: {one} is {bare_first[bare_name(one)]} in {first.path}, a wrapper's prefix")
            other = replace(other, tensors=moved)
    return _tied(first, other, said)


def _bare(tensors: Mapping[str, Stored]) -> dict[str, str] | None:
    """The names without wrappers' prefixes; None where two would be one. `module.` is a wrapper's if all have it."""
    wrapped = all(name.startswith(("module.", "_orig_mod.")) for name in tensors)
    bare = {name if name.startswith("module.") and not wrapped else bare_name(name): name for name in tensors}
    return bare if len(bare) == len(tensors) else None


def _tied(first: Checkpoint, other: Checkpoint, said: list[str]) -> tuple[Checkpoint, list[str]]:
    tensors = dict(other.tensors)
    left = list(other.left)
    for name in [name for name in other.tensors if name not in first.tensors]:
        twin = twin_of(other.tensors, name, first.tensors)
        if twin is not None:
            del tensors[name]
            left.append(Left(name, 1, f"equals {twin}, and {first.path.name} has only that name"))
    for name in [name for name in first.tensors if name not in other.tensors]:
        twin = twin_of(first.tensors, name, other.tensors)
        if twin is not None:
            tensors[name] = tensors[twin]
            said.append(f"{name} of {other.path} is its {twin}: tied, as in {first.path}")
    if tensors.keys() == other.tensors.keys():
        return other, said
    return replace(other, tensors=tensors, left=tuple(left)), said


def twin_of(tensors: Mapping[str, Stored], name: str, among: Mapping[str, Stored]) -> str | None:
    """Return the first other name of an equal tensor of at least two axes among those that `among` has too."""
    own = tensors[name]
    if len(own.shape) < 2:
        return None
    for other, stored in tensors.items():
        if other != name and other in among and (stored.shape, stored.dtype) == (own.shape, own.dtype):
            if same(own, stored):
                return other
    return None


def same(one: Stored, two: Stored) -> bool:
    """Return whether two tensors of one shape and type are equal bit for bit."""
    if one.runs and one.runs == two.runs:
        return True
    size = one.dtype.itemsize
    with Reader() as reader:
        step = one.numel if one.whole or two.whole else _STRETCH
        for start in range(0, one.numel, max(step, 1)):
            stop = min(start + step, one.numel)
            parts = []
            for stored in (one, two):
                part = torch.empty(stop - start, dtype=stored.dtype)
                reader.read(stored, start, stop, part)
                parts.append(part.view(torch.uint8) if size > 1 or not part.is_floating_point() else part)
            if not torch.equal(*parts):
                return False
    return True
