"""Reading the weights of one model again and again, as every update does: names are worked out once."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from itertools import islice

from torch import Tensor, nn

from ..weights.named import Select, Weights, parameters, selected, trainable


def named_tensors(model_or_weights: nn.Module | Weights, reader: Reader, select: Select) -> dict[str, Tensor]:
    """Return what `select` chooses of a model, read by `reader`, or the named tensors of a mapping as they are.

    Raises:
        ValueError: it is neither, or there is nothing in it.

    >>> import torch
    >>> named_tensors({"w": torch.zeros(1)}, Reader(), parameters)
    {'w': tensor([0.])}
    """
    if isinstance(model_or_weights, nn.Module):
        # Its own tensors: under no_grad they need no detaching, which costs more than a small update.
        return reader.selected(model_or_weights, select)
    if not isinstance(model_or_weights, Mapping):
        raise ValueError(
            f"update wants a torch Module or a mapping from names to tensors, got {type(model_or_weights).__name__}"
        )
    if not model_or_weights:
        raise ValueError("update got an empty mapping: pass at least one named tensor")
    strangers = [name for name, tensor in model_or_weights.items() if not isinstance(tensor, Tensor)]
    if strangers:
        raise ValueError(f"update wants tensors, got something else under {strangers[:5]}")
    return dict(model_or_weights)


class Reader:
    """Reads the selected tensors of one model again and again: `selected`, with the names kept from call to call.

    Names are kept only while they follow from the model's structure, which every call looks at: the classes of all
    modules and the names of their children and parameters. No reference to the model is kept.

    >>> reader, model = Reader(), nn.Linear(2, 1)
    >>> list(reader.selected(model)) == list(reader.selected(model)) == ["weight", "bias"]
    True
    """

    def __init__(self) -> None:
        self._modules = 0  # how many modules a walk meets at most; another number is another structure
        self._structure: list[object] = []
        self._unlike: list[int] = []  # the ids of parameters that were seen to be distinct
        self._names: list[str] = []
        self._order: list[int] = []

    def selected(self, model: nn.Module, select: Select = parameters) -> dict[str, Tensor]:
        """Return what `selected` returns."""
        if select is not parameters and select is not trainable:
            return selected(model, select)
        structure, found = _walk(model, self._modules)
        if structure != self._structure:
            self._modules = 1 + sum(len(module._modules) for module in model.modules())
            structure, found = _walk(model, self._modules)
        ids = list(map(id, found))
        # Tied tensors, modules met twice and parameters of other kinds take the long way.
        if not found or set(map(type, found)) != {nn.Parameter}:
            return selected(model, select)
        if ids != self._unlike:
            if len(set(ids)) < len(ids):
                return selected(model, select)
            self._unlike = ids
        if structure != self._structure:
            named = selected(model, parameters)
            places = dict(zip(ids, range(len(ids)), strict=True))
            # Not with two tensors of one bare name, nor where what is read must be put back into shards first.
            if len(named) != len(found) or _gathers(model):
                return selected(model, select)
            self._names, self._order = list(named), [places[id(tensor)] for tensor in named.values()]
            self._structure = structure
        tensors = [found[place] for place in self._order]
        if select is trainable:
            chosen: dict[str, Tensor] = {n: t for n, t in zip(self._names, tensors, strict=True) if t.requires_grad}
            return chosen or selected(model, select)
        return dict(zip(self._names, tensors, strict=True))


def _gathers(model: nn.Module) -> bool:
    """Whether a module is under FSDP, whose parameters are whole copies at times."""
    package = sys.modules.get("torch.distributed.fsdp")
    kinds = (getattr(package, "FSDPModule", ()), getattr(package, "FullyShardedDataParallel", ()))
    return package is not None and any(isinstance(module, kinds) for module in model.modules())


def _walk(model: nn.Module, most: int) -> tuple[list[object], list[Tensor]]:
    """Return what the names of the parameters follow from, and the parameters; stop after `most` modules.

    What is touched of a module is what this costs, as little of it is in a core's own cache during training.
    """
    modules: list[nn.Module | None] = [model]
    structure: list[object] = []
    found: list[Tensor | None] = []
    for module in islice(modules, most):  # which grows as it is walked
        if module is None:
            structure.append(None)
            continue
        children, own = module._modules, module._parameters
        structure.append(len(children))
        if children:
            structure += children
            modules += children.values()
        structure.append(len(own))
        if own:
            structure += own
            found += own.values()
    structure.append(len(modules))
    structure += map(type, modules)  # as `fully_shard` changes the class
    if type(None) not in set(map(type, found)):
        return structure, found  # type: ignore[return-value]
    structure += [tensor is None for tensor in found]
    return structure, [tensor for tensor in found if tensor is not None]
