"""An averager's state: slots of named tensors, made like the weights, placed like them, and checked when loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..weights.named import check_same
from ..weights.shards import check_placements, check_same_placements, is_sharded, like, local, part_of

Slot = dict[str, Tensor]
Settings = dict[str, Any]


def check_real(weights: Slot) -> None:
    """Refuse complex tensors, shards that are partial sums, and names that are no texts.

    Raises:
        ValueError: there are some; the message names them.
    """
    unnamed = [name for name in weights if not isinstance(name, str)]
    if unnamed:
        raise ValueError(f"names of tensors must be texts, got {unnamed[:5]}: pass model.state_dict() or the like")
    check_placements(weights)
    complex_ones = [name for name, tensor in weights.items() if tensor.is_complex()]
    if complex_ones:
        raise ValueError(f"{complex_ones[:5]} are complex: pass torch.view_as_real of them, or leave them out")


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


def check_state(state: Mapping[str, Any], kind: str, settings: Settings) -> None:
    """Refuse a state of another class or made under other hyper-parameters; its tensors are not looked at.

    Raises:
        ValueError: it is no averager's state, or another's; the message names what differs.

    >>> check_state({"class": "SWA", "count": 0, "settings": {}, "slots": {}}, "EMA", {})
    Traceback (most recent call last):
    ...
    ValueError: the state is of a SWA, got a EMA to load it
    """
    missing = [key for key in ("class", "count", "settings", "slots") if key not in state]
    if missing:
        raise ValueError(f"this is no averager's state: it lacks {missing}; pass what state_dict() returned")
    if state["class"] != kind:
        raise ValueError(f"the state is of a {state['class']}, got a {kind} to load it")
    saved = state["settings"]
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
