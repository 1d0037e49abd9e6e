"""Reading the weights of one model again and again, as every update does: names are worked out once.

`read` gives the weights and says whether they are as last time: the same names for tensors of the same kind in the same
memory. What was checked then needs no second check, and a table of addresses still holds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from operator import attrgetter
from typing import Any

from torch import Tensor, nn

from ..weights.named import Select, Weights, check_same, parameters, selected, trainable
from ..weights.selection import constrained

_PLAIN = {Tensor, nn.Parameter}
_Look = tuple[list[str], list[int], list[Any], list[Any], list[Any]]
_size: Callable[[Tensor], Any] = Tensor.size
_stride: Callable[[Tensor], Any] = Tensor.stride
_parameters: Callable[[Any], dict[str, Tensor]] = attrgetter("_parameters")
_children: Callable[[Any], dict[str, nn.Module]] = attrgetter("_modules")
_dtype: Callable[[Any], Any] = attrgetter("dtype")
_takes_gradients: Callable[[Any], bool] = attrgetter("requires_grad")


class Reader:
    """Reads the selected tensors of a model, or a mapping of named tensors, again and again.

    Names are kept only while they follow from the model's structure, which every call looks at: the classes of all
    modules and the names of their children and parameters. No reference to the model is kept.

    >>> import torch
    >>> reader, weights = Reader(), {"w": torch.zeros(1)}
    >>> reader.read(weights)
    ({'w': tensor([0.])}, False)
    >>> reader.accept()
    >>> reader.read(weights)
    ({'w': tensor([0.])}, True)
    """

    def __init__(self) -> None:
        self._modules = 0  # how many modules a walk meets at most; another number is another structure
        self._structure: list[object] = []
        self._unlike: list[int] = []  # the ids of parameters that were seen to be distinct
        self._names: list[str] = []
        self._order: list[int] = []
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

    def selected(self, model: nn.Module, select: Select = parameters) -> dict[str, Tensor]:
        """Return what `selected` returns, but for vectors that a constraint keeps, which have no average."""
        names, tensors, _ = self._of(model, select)
        return dict(zip(names, tensors, strict=True))

    def _of(self, model: nn.Module, select: Select) -> tuple[list[str], list[Tensor], bool]:
        """Names, tensors, and whether all of them are plain parameters."""
        if select is not parameters and select is not trainable:
            return _slowly(model, select)
        structure, found = _walk(model, self._modules)
        if structure != self._structure:
            self._modules = 1 + sum(len(module._modules) for module in model.modules())
            structure, found = _walk(model, self._modules)
        ids = list(map(id, found))
        # Tied tensors, modules met twice and parameters of other kinds take the long way.
        if not found or set(map(type, found)) != {nn.Parameter}:
            return _slowly(model, select)
        if ids != self._unlike:
            if len(set(ids)) < len(ids):
                return _slowly(model, select)
            self._unlike = ids
        if structure != self._structure:
            named = selected(model, parameters)
            places = dict(zip(ids, range(len(ids)), strict=True))
            # Nor where what is read must be put back into shards first.
            if len(named) != len(found) or _gathers(model):
                return _slowly(model, select)
            self._names, self._order = list(named), [places[id(tensor)] for tensor in named.values()]
            self._structure = structure
        tensors = [found[place] for place in self._order]
        if select is parameters:
            return self._names, tensors, True
        takes = list(map(_takes_gradients, tensors))
        if all(takes):
            return self._names, tensors, True
        if not any(takes):
            return _slowly(model, select)  # which says that nothing is selected
        chosen = [place for place, taken in enumerate(takes) if taken]
        return [self._names[place] for place in chosen], [tensors[place] for place in chosen], True


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


def _gathers(model: nn.Module) -> bool:
    """Whether a module is under FSDP, whose parameters are whole copies at times."""
    package = sys.modules.get("torch.distributed.fsdp")
    kinds = (getattr(package, "FSDPModule", ()), getattr(package, "FullyShardedDataParallel", ()))
    return package is not None and any(isinstance(module, kinds) for module in model.modules())


def _walk(model: nn.Module, most: int) -> tuple[list[object], list[Tensor]]:
    """Return what the names of the parameters follow from, and the parameters; stop after `most` modules.

    Generation by generation, so that each step is one call over all its modules. What is touched of a module is what
    this costs, as little of it is in a core's own cache during training.
    """
    level: list[Any] = [model]
    structure: list[object] = []
    found: list[Any] = []
    met = 0
    while level and met <= most:
        kinds = list(map(type, level))
        structure += kinds  # as `fully_shard` changes the class
        if type(None) in set(kinds):
            level = [module for module in level if module is not None]
        met += len(level)
        own, children = list(map(_parameters, level)), list(map(_children, level))
        structure += map(len, own)
        structure += map(len, children)
        own, children = list(filter(None, own)), list(filter(None, children))  # most are empty
        structure += chain.from_iterable(own)
        structure += chain.from_iterable(children)
        found += chain.from_iterable(map(dict.values, own))
        level = list(chain.from_iterable(map(dict.values, children)))
    if type(None) not in set(map(type, found)):
        return structure, found
    structure += [tensor is None for tensor in found]
    return structure, [tensor for tensor in found if tensor is not None]
