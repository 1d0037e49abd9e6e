"""Named weights: read them from a model, write them into one, and pair them by name.

The currency of the library is a mapping from names to detached tensors. Names are those of
`Module.named_parameters` without the prefixes that wrappers add (`module.` of DistributedDataParallel, `_orig_mod.`
of `torch.compile`), so that an average taken inside a wrapper fits the bare model. A tensor that a model holds under
two names (tied weights) is listed once, under the first.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from .shards import check_same_placements, is_sharded, local, part_of, reshard

Weights = Mapping[str, Tensor]
Select = Callable[[str, Tensor], bool]
Score = Callable[[Weights], float]

_WRAPPER_PREFIXES = frozenset({"module", "_orig_mod"})
# What torch.compile, activation checkpointing and FSDP1 insert at any depth; no names that a user gives.
_TRANSPARENT = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})


def parameters(name: str, tensor: Tensor) -> bool:
    """Select every parameter, and no buffer.

    >>> parameters("weight", nn.Parameter(torch.zeros(2)))
    True
    >>> parameters("running_mean", torch.zeros(2))
    False
    """
    return isinstance(tensor, nn.Parameter)


def trainable(name: str, tensor: Tensor) -> bool:
    """Select the parameters that take gradients: on a PEFT model, the adapter and what is saved with it.

    >>> trainable("weight", nn.Parameter(torch.zeros(2), requires_grad=False))
    False
    """
    return isinstance(tensor, nn.Parameter) and tensor.requires_grad


def floating(name: str, tensor: Tensor) -> bool:
    """Select every floating-point tensor: parameters and buffers such as BatchNorm's running statistics.

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

    >>> matching(r"^head\\.")("head.weight", torch.zeros(1))
    True
    """
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"matching wants a regular expression, got {pattern!r} ({error})") from None
    return _Matching(pattern)


@dataclass(frozen=True)
class _Listed:
    names: frozenset[str]

    def __call__(self, name: str, tensor: Tensor) -> bool:
        return bare_name(name) in self.names

    def __repr__(self) -> str:
        return f"{len(self.names)} listed names"


def select_from(name: str, tensors: Weights) -> Select:
    """Return the predicate that a state file calls `name`; an unknown one selects exactly the names of `tensors`.

    >>> select_from("trainable", {}) is trainable
    True
    >>> select_from("my_own_function", {"w": torch.zeros(1)})("w", torch.zeros(1))
    True
    """
    known: dict[str, Select] = {"parameters": parameters, "trainable": trainable, "floating": floating}
    if name in known:
        return known[name]
    if name.startswith("matching(") and name.endswith(")"):
        return matching(ast.literal_eval(name.removeprefix("matching(").removesuffix(")")))
    return _Listed(frozenset(tensors))


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
    return ".".join(part for part in parts if part not in _TRANSPARENT)


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and persistent buffer once, by identity, under its first bare name."""
    # As named_parameters and named_buffers, which walk the modules once each and cost more than a small update.
    modules: list[tuple[str, nn.Module]] = []
    waiting: list[tuple[str, nn.Module]] = [("", model)]
    met: set[int] = set()
    while waiting:
        prefix, module = waiting.pop()
        if id(module) in met:
            continue
        met.add(id(module))
        modules.append((prefix, module))
        children = [(f"{prefix}{key}.", child) for key, child in module._modules.items() if child is not None]
        waiting.extend(reversed(children))
    # Else the root's parameters are whole copies after a forward, and what is written into them is lost.
    reshard(module for _, module in modules)
    seen: set[int] = set()
    for prefix, module in modules:
        for key, tensor in module._parameters.items():
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield bare_name(prefix + key), tensor
    for prefix, module in modules:
        for key, buffer in module._buffers.items():
            if buffer is None or id(buffer) in seen:
                continue
            seen.add(id(buffer))
            if key not in module._non_persistent_buffers_set:
                yield bare_name(prefix + key), buffer


def weights_of(model: nn.Module, select: Select = parameters) -> dict[str, Tensor]:
    """Return the selected tensors of `model` by name, detached.

    These are **views**: they share memory with the model and change as it trains. It is the one function of this
    library that returns views; `{name: t.clone() for ...}` keeps a copy.

    Raises:
        ValueError: nothing is selected, or the selection holds an uninitialised (lazy) parameter.

    >>> model = nn.Linear(2, 1)
    >>> sorted(weights_of(model))
    ['bias', 'weight']
    >>> weights_of(model)["weight"].data_ptr() == model.weight.data_ptr()
    True
    """
    return {name: tensor.detach() for name, tensor in selected(model, select).items()}


def selected(model: nn.Module, select: Select = parameters) -> dict[str, Tensor]:
    """Return the selected tensors of `model` by name: the model's own, which may require gradients.

    Raises:
        ValueError: as `weights_of`.

    >>> model = nn.Linear(2, 1)
    >>> selected(model)["weight"] is model.weight
    True
    """
    chosen: dict[str, Tensor] = {}
    for name, tensor in _named_tensors(model):
        if not select(name, tensor):
            continue
        if nn.parameter.is_lazy(tensor):
            raise ValueError(f"{name} is a lazy parameter without a shape: run one forward pass first")
        chosen[name] = tensor
    if not chosen:
        raise ValueError(
            f"{select_name(select)} selects no tensor of {type(model).__name__}: "
            "choose another predicate, or unfreeze what you want to average"
        )
    return chosen


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


def select_name(select: Select) -> str:
    """Return what a predicate is called in messages and in state files."""
    known = isinstance(select, _Matching | _Listed)
    return repr(select) if known else str(getattr(select, "__name__", repr(select)))


def check_same(expected: Weights, got: Weights, what: str = "the weights") -> None:
    """Refuse `got` unless it has the names and shapes of `expected`.

    Raises:
        ValueError: names are missing or unexpected, or a shape differs; the message lists them.

    >>> check_same({"w": torch.zeros(2)}, {"v": torch.zeros(2)}, what="update")
    Traceback (most recent call last):
    ...
    ValueError: update: tensors are named differently: missing ['w'], unexpected ['v']
    """
    missing = [name for name in expected if name not in got]
    unexpected = [name for name in got if name not in expected]
    if missing or unexpected:
        raise ValueError(
            f"{what}: tensors are named differently: missing {_short(missing)}, unexpected {_short(unexpected)}"
        )
    shapes = [
        f"{name} {tuple(got[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if got[name].shape != expected[name].shape
    ]
    if shapes:
        raise ValueError(f"{what}: tensors have other shapes: {_short(shapes)}")


def _short(names: list[str], most: int = 5) -> list[str]:
    return names if len(names) <= most else [*names[:most], f"... and {len(names) - most} more"]


@torch.no_grad()
def clone_of(weights: Weights) -> dict[str, Tensor]:
    """Return copies that share no memory with `weights` nor with each other.

    >>> w = {"w": torch.zeros(2)}
    >>> clone_of(w)["w"].data_ptr() == w["w"].data_ptr()
    False
    """
    return {name: tensor.detach().clone(memory_format=torch.preserve_format) for name, tensor in weights.items()}


def _targets(weights: Weights, model: nn.Module) -> dict[str, Tensor]:
    """The model's own tensors that `weights` names; refuses unknown names and other shapes."""
    own = {name: tensor.detach() for name, tensor in _named_tensors(model)}
    aliases = _aliases(model)
    found = {name: own.get(name, aliases.get(name)) for name in weights}
    unknown = [name for name, tensor in found.items() if tensor is None]
    if unknown:
        raise ValueError(
            f"{type(model).__name__} has no tensor named {_short(unknown)}; "
            f"it has {_short(list(own))}: pass weights of this architecture"
        )
    targets = {name: tensor for name, tensor in found.items() if tensor is not None}
    what = f"writing into {type(model).__name__}"
    check_same(targets, weights, what=what)
    # Whole tensors may be written into shards, of which each rank takes its part.
    alike = {name: t for name, t in targets.items() if is_sharded(weights[name]) or not is_sharded(t)}
    check_same_placements(alike, weights, what=what)
    return targets


def _aliases(model: nn.Module) -> dict[str, Tensor]:
    """Second names of tied tensors, so that a state dict with both names can be written."""
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return {bare_name(name): tensor.detach() for name, tensor in named}


@torch.no_grad()
def copy_to(weights: Weights, model: nn.Module) -> None:
    """Write `weights` into the model's own tensors, in place, cast to their dtype and device.

    Tensors that `weights` does not name stay as they are. Nothing is written unless every name and shape fits.
    Writing in place keeps optimisers, compiled graphs and tied weights valid. Into the shards of a model under
    `fully_shard` or tensor parallelism go shards placed alike, or whole tensors, of which each rank takes its part.

    Raises:
        ValueError: the model has no such tensor, or its shape differs.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> copy_to({"weight": torch.tensor([[3.0]])}, model)
    >>> model.weight.item()
    3.0
    """
    for name, target in _targets(weights, model).items():
        local(target).copy_(local(part_of(weights[name], target) if not is_sharded(weights[name]) else weights[name]))


@contextmanager
def applied(model: nn.Module, weights: Weights) -> Iterator[nn.Module]:
    """Run a block with `weights` in the model; put everything back bit for bit afterwards, also on an exception.

    Saved and restored are the tensors that `weights` names and all buffers, so that `refresh_bn` inside the block
    leaves no trace. What else the block does to the model (training other tensors, moving it) stays.

    Raises:
        ValueError: as `copy_to`; nothing has been changed then.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> before = model.weight.item()
    >>> with applied(model, {"weight": torch.tensor([[3.0]])}):
    ...     model.weight.item()
    3.0
    >>> model.weight.item() == before
    True
    """
    targets = _targets(weights, model)
    touched = {id(tensor): tensor for tensor in (*targets.values(), *(b.detach() for b in model.buffers()))}
    with torch.no_grad():
        saved = [(tensor, tensor.clone()) for tensor in touched.values()]
    try:
        copy_to(weights, model)
        yield model
    finally:
        reshard(model.modules())  # a forward in the block may have left the root with whole copies of `weights`
        with torch.no_grad():
            for tensor, original in saved:
                local(tensor).copy_(local(original))
