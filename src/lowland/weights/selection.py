"""Names of tensors, and predicates that choose among them; `lowland.weights` offers all of this under its own name."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Weights = Mapping[str, Tensor]
Select = Callable[[str, Tensor], bool]
Score = Callable[[Weights], float]

_WRAPPER_PREFIXES = frozenset({"module", "_orig_mod"})
# What torch.compile, activation checkpointing and FSDP1 insert at any depth; no names that a user gives.
TRANSPARENT = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})


def parameters(name: str, tensor: Tensor) -> bool:
    """Select every parameter, and no buffer.

    >>> import torch
    >>> parameters("weight", nn.Parameter(torch.zeros(2)))
    True
    >>> parameters("running_mean", torch.zeros(2))
    False
    """
    return isinstance(tensor, nn.Parameter)


def trainable(name: str, tensor: Tensor) -> bool:
    """Select the parameters that take gradients: on a PEFT model, the adapter and what is saved with it.

    >>> import torch
    >>> trainable("weight", nn.Parameter(torch.zeros(2), requires_grad=False))
    False
    """
    return isinstance(tensor, nn.Parameter) and tensor.requires_grad


def floating(name: str, tensor: Tensor) -> bool:
    """Select every floating-point tensor: parameters and buffers such as BatchNorm's running statistics.

    >>> import torch
    >>> floating("running_mean", torch.zeros(2)), floating("num_batches_tracked", torch.tensor(0))
    (True, False)
    """
    return tensor.is_floating_point()


@dataclass(frozen=True)
class _Matching:
    pattern: str

    def __call__(self, name: str, tensor: Tensor) -> bool:
        return re.search(self.pattern, name) is not None

    def __repr__(self) -> str:
        return f"matching({self.pattern!r})"


def matching(pattern: str) -> Select:
    """Select the tensors in whose name the regular expression `pattern` is found (`re.search`).

    Raises:
        ValueError: the pattern is not a regular expression.

    >>> import torch
    >>> matching(r"^head\\.")("head.weight", torch.zeros(1))
    True
    """
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"matching wants a regular expression, got {pattern!r} ({error})") from None
    return _Matching(pattern)


@dataclass(frozen=True)
class _Listed:
    names: frozenset[str]

    def __call__(self, name: str, tensor: Tensor) -> bool:
        return bare_name(name) in self.names

    def __repr__(self) -> str:
        return f"{len(self.names)} listed names"


def select_from(name: object, tensors: Weights) -> Select:
    """Return the predicate that a state file calls `name`; an unknown one selects exactly the names of `tensors`.

    >>> import torch
    >>> select_from("trainable", {}) is trainable
    True
    >>> select_from("my_own_function", {"w": torch.zeros(1)})("w", torch.zeros(1))
    True
    """
    if not isinstance(name, str):
        raise ValueError(f"a selection is called by a text, got {name!r}")
    known: dict[str, Select] = {"parameters": parameters, "trainable": trainable, "floating": floating}
    if name in known:
        return known[name]
    if name.startswith("matching(") and name.endswith(")"):
        try:
            pattern = ast.literal_eval(name.removeprefix("matching(").removesuffix(")"))
        except (SyntaxError, RecursionError, MemoryError, ValueError):
            pattern = None
        if not isinstance(pattern, str):
            raise ValueError(f"a selection is written as matching('a regular expression'), got {name[:80]}")
        return matching(pattern)
    return _Listed(frozenset(tensors))


def constrained(names: Iterable[str]) -> list[str]:
    """Return those of a model's names that hold the unit vectors of spectral norm: an average of such has no meaning.

    The vectors estimate a singular pair of the weight beside them, and follow from it.

    >>> constrained(["0.weight_orig", "0.weight_u", "0.weight_v", "1.weight_u"])
    ['0.weight_u', '0.weight_v']
    """
    known = set(names)
    return [name for name in names if (match := _VECTOR.fullmatch(name)) and _is_vector(match, known)]


_VECTOR = re.compile(r"(?P<new>(?:.*\.)?parametrizations\..+)\.\d+\._[uv]|(?P<old>.*)_[uv]", re.DOTALL)


def _is_vector(match: re.Match[str], known: set[str]) -> bool:
    wanted = f"{match['new']}.original" if match["new"] else f"{match['old']}_orig"
    return wanted in known


_WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel)
# Wrappers of other packages that call the model `module`, and torch's own that need not be imported.
_WRAPPER_NAMES = {
    "AveragedModel",
    "DeepSpeedEngine",
    "DistributedDataParallel",
    "Float16Module",
    "FullyShardedDataParallel",
    "PipelineEngine",
    "ShardedDataParallel",
}


def wrapped_as(module: nn.Module) -> str | None:
    """Return under which name a wrapper holds the model, or None for a module that is no wrapper.

    A wrapper is one of the known types, or has nothing but its `module`: then no name can meet another.

    >>> wrapped_as(nn.Linear(1, 1)), wrapped_as(nn.DataParallel(nn.Linear(1, 1)))
    (None, 'module')
    """
    if isinstance(module, torch.jit.ScriptModule) or not isinstance(module._modules.get("module"), nn.Module):
        return None
    alone = len(module._modules) == 1 and not module._parameters and not module._buffers
    known = isinstance(module, _WRAPPERS) or any(kind.__name__ in _WRAPPER_NAMES for kind in type(module).__mro__)
    return "module" if (alone and not isinstance(module, nn.ModuleDict)) or known else None


def bare_name(name: str) -> str:
    """Strip the path components that wrappers add.

    >>> bare_name("module._orig_mod.fc.weight"), bare_name("layer._checkpoint_wrapped_module.fc.weight")
    ('fc.weight', 'layer.fc.weight')
    """
    if not name.startswith("module.") and "_orig_mod" not in name and "_wrapped_module" not in name:
        return name
    # Only leading components: a user's own submodule may be called `module` further down.
    parts = name.split(".")
    while len(parts) > 1 and parts[0] in _WRAPPER_PREFIXES:
        parts = parts[1:]
    return ".".join(part for part in parts if part not in TRANSPARENT)


def select_name(select: Select) -> str:
    """Return what a predicate is called in messages and in state files."""
    known = isinstance(select, _Matching | _Listed)
    return repr(select) if known else str(getattr(select, "__name__", repr(select)))
