"""Tensors nested in tuples, lists, mappings and dataclasses, as models take and return them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import torch
from torch import Tensor

PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)


class Opaque(Exception):
    """A value holds something that is neither tensor nor plain data: nothing is known of what it does."""


def tensors(value: object) -> Iterator[Tensor]:
    """Yield the tensors in a value, in a fixed order.

    Raises:
        Opaque: the value holds an object of another kind.

    >>> [t.item() for t in tensors({"a": torch.tensor(1), "b": [torch.tensor(2), "text"]})]
    [1, 2]
    """
    if isinstance(value, Tensor):
        yield value
    elif not isinstance(value, PLAIN):
        for _, part in _parts(value):
            yield from tensors(part)


def mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return the value with every tensor replaced; containers are new ones of the same kind.

    >>> mapped((torch.tensor([1.0]), {"n": 3}), lambda t: t + 1)
    (tensor([2.]), {'n': 3})
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, PLAIN):
        return value
    parts = [(key, mapped(part, function)) for key, part in _parts(value)]
    if isinstance(value, tuple):
        items = [part for _, part in parts]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, list):
        return [part for _, part in parts]
    twin = copy.copy(value)
    for key, part in parts:
        if isinstance(value, MutableMapping):
            twin[key] = part
        else:
            object.__setattr__(twin, key, part)
    return twin


def alike(one: Any, other: Any, equal: Callable[[Tensor, Tensor], bool]) -> bool:
    """Say whether two values have the same structure and plain data, and tensors that are `equal`.

    >>> alike([torch.ones(1), 2], [torch.ones(1), 2], torch.equal)
    True
    """
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return equal(one, other)
    if isinstance(one, PLAIN):
        return bool(one == other)
    first, second = _parts(one), _parts(other)
    return len(first) == len(second) and all(
        key == name and alike(part, twin, equal) for (key, part), (name, twin) in zip(first, second, strict=True)
    )


def _parts(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, MutableMapping):
        return list(value.items())
    if isinstance(value, torch.Size):
        return list(enumerate(int(n) for n in value))
    if isinstance(value, tuple) or type(value) is list:
        return list(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    raise Opaque(type(value).__name__)
