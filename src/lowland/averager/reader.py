"""Reading the weights of one model again and again, as every update does: names are worked out once.

`read` gives the weights and says whether they are as last time: the same names for tensors of the same kind in the same
memory. What was checked then needs no second check, and a table of addresses still holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import compress
from operator import attrgetter
from typing import Any

from torch import Tensor, nn

from ..weights.named import Select, Weights, check_same, parameters, selected, trainable
from ..weights.selection import constrained
from .structure import Structure

_PLAIN = {Tensor, nn.Parameter}
_Look = tuple[list[str], list[int], list[Any], list[Any], list[Any]]
_size: Callable[[Tensor], Any] = Tensor.size
_stride: Callable[[Tensor], Any] = Tensor.stride
_dtype: Callable[[Any], Any] = attrgetter("dtype")
_takes_gradients: Callable[[Any], bool] = attrgetter("requires_grad")


class Reader:
    """Reads the selected tensors of a model, or a mapping of named tensors, again and again.

    Names are kept only while they follow from the model's structure, which every call looks at.

    >>> import torch
    >>> reader, weights = Reader(), {"w": torch.zeros(1)}
    >>> reader.read(weights)
    ({'w': tensor([0.])}, False)
    >>> reader.accept()
    >>> reader.read(weights)
    ({'w': tensor([0.])}, True)
    """

    def __init__(self) -> None:
        self._structure: Structure | None = None
        self._names: list[str] = []
        self._places: list[int] = []  # of the named tensors among those that the structure holds
        self._latest: _Look | None = None
        self._accepted: _Look | None = None

    def __reduce__(self) -> tuple[Callable[[], Reader], tuple[()]]:
        return Reader, ()

    def read(
        self, model_or_weights: nn.Module | Weights, select: Select = parameters
    ) -> tuple[dict[str, Tensor], bool]:
        """Return the weights by name, and whether they lie as those that were accepted last; never so of shards.

        Raises:
            ValueError: it is neither a model nor a mapping of tensors, or there is nothing in it.
        """
        if isinstance(model_or_weights, nn.Module):
            # Its own tensors: under no_grad they need no detaching, which costs more than a small update.
            names, tensors, plain = self._of(model_or_weights, select)
        else:
            _check_mapping(model_or_weights)
            names, tensors = list(model_or_weights), list(model_or_weights.values())
            plain = set(map(type, tensors)) <= _PLAIN
        self._latest = _look(names, tensors) if plain else None
        same = self._latest is not None and self._latest == self._accepted
        return dict(zip(names, tensors, strict=True)), same

    def accept(self) -> None:
        """Remember how what was read last lies, as it has been checked."""
        self._accepted = self._latest

    def forget(self) -> None:
        """Let nothing be as last time."""
        self._accepted = None

    def release(self) -> None:
        """Refer to no part of a model any more."""
        self._structure = None

    def selected(self, model: nn.Module, select: Select = parameters) -> dict[str, Tensor]:
        """Return what `selected` returns, but for vectors that a constraint keeps, which have no average."""
        names, tensors, _ = self._of(model, select)
        return dict(zip(names, tensors, strict=True))

    def _of(self, model: nn.Module, select: Select) -> tuple[list[str], list[Tensor], bool]:
        """Names, tensors, and whether all of them are plain parameters."""
        if select is not parameters and select is not trainable:
            return _slowly(model, select)
        found = None if self._structure is None else self._structure.held(model)
        found = self._anew(model) if found is None else found
        if found is None:
            return _slowly(model, select)
        tensors = list(map(found.__getitem__, self._places))
        if select is parameters:
            return self._names, tensors, True
        takes = list(map(_takes_gradients, tensors))
        if all(takes):
            return self._names, tensors, True
        if not any(takes):
            return _slowly(model, select)  # which says that nothing is selected
        return list(compress(self._names, takes)), list(compress(tensors, takes)), True

    def _anew(self, model: nn.Module) -> list[Tensor] | None:
        """Work out the names; None if that must be done each time."""
        self._structure = structure = Structure.of(model)
        found = None if structure is None else structure.held(model)
        if found is None:
            return None
        names, named, _ = _slowly(model, parameters)
        places = {id(tensor): place for place, tensor in enumerate(found)}
        if not places.keys() >= set(map(id, named)):  # a parameter that is registered as a buffer
            self.release()
            return None
        self._names, self._places = names, [places[id(tensor)] for tensor in named]
        return found


def since_the_first(model: nn.Module, held: Weights, chosen: dict[str, Tensor], what: str) -> dict[str, Tensor]:
    """Return the tensors of a model that an average holds, of which a predicate now chooses others.

    What is averaged is fixed at the first update: what was frozen since is still read.

    Raises:
        ValueError: the predicate chooses tensors that the average does not hold, or the model lacks one.

    >>> import torch
    >>> model, held = nn.Linear(1, 1), {"weight": torch.zeros(1, 1), "bias": torch.zeros(1)}
    >>> list(since_the_first(model, held, {"bias": model.bias}, "update"))
    ['weight', 'bias']
    """
    every = selected(model, lambda name, tensor: True)
    try:
        check_same(
            {name: every.get(name, tensor) for name, tensor in held.items()}, {**_of_names(every, held), **chosen}
        )
    except ValueError as error:
        raise ValueError(
            f"{what}: {str(error).removeprefix('the weights: ')}; what select= chooses is fixed at the first update: "
            "for what was unfrozen or added since begin another average, or choose it from the start"
        ) from None
    return {name: every[name] for name in held}


def _of_names(every: Weights, names: Iterable[str]) -> dict[str, Tensor]:
    return {name: every[name] for name in names if name in every}


def _slowly(model: nn.Module, select: Select) -> tuple[list[str], list[Tensor], bool]:
    named = selected(model, select)
    for name in constrained(named):
        del named[name]
    return list(named), list(named.values()), set(map(type, named.values())) <= _PLAIN


def _check_mapping(weights: Weights) -> None:
    if not isinstance(weights, Mapping):
        raise ValueError(
            f"update wants a torch Module or a mapping from names to tensors, got {type(weights).__name__}"
        )
    if not weights:
        raise ValueError("update got an empty mapping: pass at least one named tensor")
    strangers = [name for name, tensor in weights.items() if not isinstance(tensor, Tensor)]
    if strangers:
        raise ValueError(f"update wants tensors, got something else under {strangers[:5]}")
    unnamed = [name for name in weights if not isinstance(name, str)]
    if unnamed:
        raise ValueError(f"names of tensors must be texts, got {unnamed[:5]}: pass model.state_dict() or the like")


def _look(names: list[str], tensors: list[Tensor]) -> _Look | None:
    """What a table of addresses depends on, or None where a tensor has no address."""
    try:
        addresses = list(map(Tensor.data_ptr, tensors))
        # An address may come back with another dtype or shape after a free, so it is not enough.
        return names, addresses, list(map(_dtype, tensors)), list(map(_size, tensors)), list(map(_stride, tensors))
    except RuntimeError:  # such as sparse and nested tensors
        return None
