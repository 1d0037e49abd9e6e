"""An averager's state: slots of named tensors, made like the weights, placed like them, and checked when loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..weights.kinds import is_table, unfit
from ..weights.named import check_same
from ..weights.shards import check_same_placements, is_sharded, like, local, part_of

Slot = dict[str, Tensor]
Settings = dict[str, Any]


def codes_of(weights: Slot) -> list[str]:
    """Return the names of tensors that may be codes of a quantised weight: many small integers.

    >>> codes_of({"w": torch.zeros(64, dtype=torch.int8), "steps": torch.tensor(3), "floats": torch.zeros(64)})
    ['w']
    """
    return [name for name, tensor in weights.items() if is_table(tensor)]


def check_codes(names: list[str], held: Slot, weights: Slot) -> None:
    """Refuse integers that changed since they were taken: beside averaged scales they would mean other weights.

    Raises:
        ValueError: some changed; the message names them.
    """
    changed = [n for n in names if not torch.equal(local(held[n]), local(weights[n]).to(local(held[n]).device))]
    if changed:
        raise ValueError(
            f"{changed[:5]} hold integers that changed since the last update: codes of a quantised weight have no "
            "average; pass dequantised weights, or leave them out with select="
        )


def allocated(
    weights: Slot, allocate: Callable[[Slot], dict[str, Slot]], device: torch.device | None
) -> dict[str, Slot]:
    """Return the slots that `allocate` makes for tensors like these, on `device`.

    Allocated are the shards alone; what comes is placed as the weights are placed.

    >>> allocated({"w": torch.ones(2)}, lambda own: {"mean": {"w": torch.zeros_like(own["w"])}}, None)
    {'mean': {'w': tensor([0., 0.])}}
    """
    shards = {name: _at(device, local(tensor)) for name, tensor in weights.items()}
    return {
        slot: {name: like(t, weights[name], leading=t.shape[: t.ndim - shards[name].ndim]) for name, t in own.items()}
        for slot, own in allocate(shards).items()
    }


def fitting(own: Slot, given: Slot, what: str) -> Slot:
    """Return a slot of a state, in shards where our own is.

    Raises:
        ValueError: names, shapes or placements differ; the message begins with `what`.

    >>> fitting({"w": torch.zeros(2)}, {"w": torch.ones(2)}, "loading")["w"]
    tensor([1., 1.])
    """
    check_same(own, given, what=what)
    parts = {
        name: part_of(given[name], tensor) if is_sharded(tensor) and not is_sharded(given[name]) else given[name]
        for name, tensor in own.items()
    }
    check_same_placements(own, parts, what=what)
    return parts


def kept_on(device: torch.device | None, tensor: Tensor, copy: bool) -> Tensor:
    """Return a tensor on `device`, None being where it is; with `copy` it shares no memory with the one given.

    >>> w = torch.ones(1)
    >>> kept_on(None, w, copy=True).data_ptr() == w.data_ptr()
    False
    """
    shard = _at(device, local(tensor))
    return like(shard.clone() if copy else shard, tensor)


def check_tensors(slots: object) -> None:
    """Refuse what is no mapping from slots to mappings from names to tensors.

    Raises:
        ValueError: so it is; the message names the slot.

    >>> check_tensors({"mean": {"w": torch.zeros(2)}})
    """
    if not isinstance(slots, Mapping):
        raise ValueError(f"the state's slots must be a mapping, got a {type(slots).__name__}")
    for slot, tensors in slots.items():
        if not isinstance(tensors, Mapping) or not tensors:
            raise ValueError(f"the slot {slot!r} must map names to tensors, got {type(tensors).__name__}")


def check_slots(slots: dict[str, Slot], allocate: Callable[[Slot], dict[str, Slot]]) -> None:
    """Refuse slots that are not what `allocate` makes for tensors like those of the first: compiled loops walk them.

    Raises:
        ValueError: a slot, a name, a shape, a dtype or a device differs; the message names the tensor.

    >>> check_slots({"mean": {"w": torch.zeros(2)}}, lambda like: {"mean": like})
    """
    first = next(iter(slots.values()))
    for slot, tensors in slots.items():
        if set(tensors) != set(first):
            raise ValueError(f"the slot {slot!r} names {sorted(tensors)[:5]}, the others {sorted(first)[:5]}")
        for name, tensor in tensors.items():
            own, one = local(tensor), local(first[name])
            if own.layout != torch.strided or own.device != one.device:
                raise ValueError(f"{slot}/{name} is {own.layout} on {own.device}, wanted torch.strided on {one.device}")
        bad = [name for name, tensor in tensors.items() if not tensor.is_meta and unfit(local(tensor))]
        if bad or any(tensor.is_complex() for tensor in tensors.values()):
            raise ValueError(f"the slot {slot!r} holds {bad[:5]}, which cannot be averaged: the state is damaged")
    shapes = {name: torch.empty_like(local(tensor), device="meta") for name, tensor in first.items()}
    try:
        wanted = allocate(shapes)
    except (RuntimeError, TypeError, OverflowError) as error:
        raise ValueError(f"no state has such tensors ({error})") from None
    if set(wanted) != set(slots):
        raise ValueError(f"the state has the slots {sorted(slots)}, wanted {sorted(wanted)}: another version's")
    for slot, tensors in slots.items():
        for name, tensor in tensors.items():
            own, like = local(tensor), wanted[slot][name]
            if own.dtype != like.dtype or own.shape != like.shape:
                raise ValueError(
                    f"{slot}/{name} is {own.dtype} of shape {tuple(own.shape)}, the settings say {like.dtype} of shape "
                    f"{tuple(like.shape)}: the state is damaged"
                )


def check_state(state: Mapping[str, Any], kind: str, settings: Settings) -> None:
    """Refuse a state of another class or made under other hyper-parameters; its tensors are not looked at.

    Raises:
        ValueError: it is no averager's state, or another's; the message names what differs.

    >>> check_state({"class": "SWA", "count": 0, "settings": {}, "slots": {}}, "EMA", {})
    Traceback (most recent call last):
    ...
    ValueError: the state is of a SWA, got a EMA to load it
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"this is no averager's state but a {type(state).__name__}: pass what state_dict() returned")
    missing = [key for key in ("class", "count", "settings", "slots") if key not in state]
    if missing:
        raise ValueError(f"this is no averager's state: it lacks {missing}; pass what state_dict() returned")
    if state["class"] != kind:
        raise ValueError(f"the state is of a {state['class']}, got a {kind} to load it")
    saved = state["settings"]
    if not isinstance(saved, Mapping):
        raise ValueError(f"the state's settings must be a mapping, got {saved!r}: pass what state_dict() returned")
    differ = [
        f"{key} (state {saved.get(key)!r}, here {settings.get(key)!r})"
        for key in {**settings, **saved}
        if saved.get(key) != settings.get(key)
    ]
    if differ:
        raise ValueError(
            f"the state of {kind} was made under other hyper-parameters: {', '.join(differ)}; "
            "build the averager with the state's values"
        )


def _at(device: torch.device | None, tensor: Tensor) -> Tensor:
    return tensor if device is None else tensor.to(device)
