"""What the names of a model's parameters follow from, kept from one look to the next and compared with the model.

Every look asks all modules, as there is no other way to see each change: an entry of a dictionary can be replaced
without a hook. It walks none of them, though: the modules of last time are asked side by side, question by question.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from itertools import chain
from operator import attrgetter, is_
from typing import Any

from torch import Tensor, nn

_parameters: Callable[[Any], dict[str, Any]] = attrgetter("_parameters")
_buffers: Callable[[Any], dict[str, Any]] = attrgetter("_buffers")
_children: Callable[[Any], dict[str, Any]] = attrgetter("_modules")
_KINDS = {nn.Parameter, type(None)}


class Structure:
    """The modules of one model and what they held: their classes, their children and their parameters, all by name.

    The model itself is not kept alive. Its parts are, until it is gone: a part that refers to the whole, as a hook may,
    keeps both until this object is dropped.

    >>> model = nn.Sequential(nn.Linear(1, 1), nn.ReLU())
    >>> structure = Structure.of(model)
    >>> structure.held(model) == [model[0].weight, model[0].bias]
    True
    >>> model[1] = nn.Tanh()
    >>> structure.held(model) is None
    True
    """

    def __init__(self, modules: list[nn.Module]) -> None:
        model, *below = modules
        own, children = list(map(_parameters, modules)), list(map(_children, modules))
        self._classes = list(map(type, modules))
        self._sizes = list(map(len, own))
        self._keys = list(chain.from_iterable(chain(own, children)))
        # What holds a `module` is called a wrapper or not by its buffers too.
        wrappers = [number for number, held in enumerate(children) if "module" in held]
        self._wrappers = [(number, bool(_buffers(modules[number]))) for number in wrappers]
        self._below, self._held = below, list(map(dict, children))
        self._tensors = list(chain.from_iterable(map(dict.values, own)))
        parts: tuple[list[Any], ...] = (self._below, self._held, self._tensors)

        def let_go(_: object) -> None:
            for part in parts:
                part.clear()

        self._model = weakref.ref(model, let_go)

    @classmethod
    def of(cls, model: nn.Module) -> Structure | None:
        """Return the structure, or None of a model that must be looked at anew each time.

        That is one with a module met twice, with lazy parameters or others of a kind of their own, with modules that
        compare in a way of their own, compiled by TorchScript, or under FSDP, whose parameters are whole at times.
        """
        modules, met = [model], {id(model)}
        for module in modules:
            plain = isinstance(module._parameters, dict) and isinstance(module._modules, dict)
            if not plain or not _KINDS.issuperset(map(type, module._parameters.values())):
                return None
            children = [child for child in module._modules.values() if child is not None]
            modules += children
            met.update(map(id, children))
            if len(met) < len(modules):
                return None
        by_identity = all(vars(each).get("__eq__") is None for kind in set(map(type, modules)) for each in _bases(kind))
        return cls(modules) if by_identity and not _gathers(modules) else None

    def held(self, model: nn.Module) -> list[Tensor] | None:
        """Return the parameters, module by module, or None if anything is not as it was."""
        if self._model() is not model:
            return None
        modules = [model, *self._below]
        own, children = list(map(_parameters, modules)), list(map(_children, modules))
        if children != self._held or list(map(type, modules)) != self._classes or list(map(len, own)) != self._sizes:
            return None
        own, children = list(filter(None, own)), list(filter(None, children))  # most are empty
        if list(chain.from_iterable(chain(own, children))) != self._keys:
            return None
        found = list(chain.from_iterable(map(dict.values, own)))
        if not all(map(is_, found, self._tensors)) or not _KINDS.issuperset(map(type, found)):
            return None
        if any(bool(_buffers(modules[number])) != before for number, before in self._wrappers):
            return None
        return found


def _bases(kind: type) -> tuple[type, ...]:
    return kind.__mro__[:-1]  # all but object


def _gathers(modules: list[nn.Module]) -> bool:
    package = sys.modules.get("torch.distributed.fsdp")
    kinds = (getattr(package, "FSDPModule", ()), getattr(package, "FullyShardedDataParallel", ()))
    return package is not None and any(isinstance(module, kinds) for module in modules)
