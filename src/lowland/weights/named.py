"""Named weights: read them from a model, write them into one, and pair them by name.

The currency of the library is a mapping from names to detached tensors. Names are those of
`Module.named_parameters` without the prefixes that wrappers add (`module.` of DistributedDataParallel, `_orig_mod.`
of `torch.compile`), so that an average taken inside a wrapper fits the bare model. A tensor that a model holds under
two names (tied weights) is listed once, under the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .kinds import check_tensors, check_writable
from .running import Buffers
from .selection import TRANSPARENT, wrapped_as
from .selection import Score as Score
from .selection import Select as Select
from .selection import Weights as Weights
from .selection import bare_name as bare_name
from .selection import floating as floating
from .selection import matching as matching
from .selection import parameters as parameters
from .selection import select_from as select_from
from .selection import select_name as select_name
from .selection import trainable as trainable
from .shards import check_same_placements, is_sharded, local, part_of, reshard


def _modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every module once, under the path to it without what wrappers add, which ends with a point."""
    # As named_modules, which costs more than a small update.
    found: list[tuple[str, nn.Module]] = []
    waiting: list[tuple[str, nn.Module, bool]] = [("", model, True)]
    met: set[int] = set()
    while waiting:
        prefix, module, outside = waiting.pop()
        if id(module) in met:
            continue
        met.add(id(module))
        found.append((prefix, module))
        # By the wrapper's type, as a user's own attribute may have such a name.
        adds = wrapped_as(module) if outside else None
        children = [
            (prefix if key == adds or key in TRANSPARENT else f"{prefix}{key}.", child, key == adds)
            for key, child in module._modules.items()
            if child is not None
        ]
        waiting.extend(reversed(children))
    return found


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and persistent buffer once, by identity, under its first bare name."""
    modules = _modules(model)
    # Else the root's parameters are whole copies after a forward, and what is written into them is lost.
    reshard(module for _, module in modules)
    seen: set[int] = set()
    for prefix, module in modules:
        for key, tensor in module._parameters.items():
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield prefix + key, tensor
    for prefix, module in modules:
        for key, buffer in module._buffers.items():
            if buffer is None or id(buffer) in seen:
                continue
            seen.add(id(buffer))
            if key not in module._non_persistent_buffers_set:
                yield prefix + key, buffer


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
        if name in chosen:
            raise ValueError(f"{type(model).__name__} has two tensors that are called {name}: rename one of them")
        chosen[name] = tensor
    if not chosen:
        raise ValueError(
            f"{select_name(select)} selects no tensor of {type(model).__name__}: "
            "choose another predicate, or unfreeze what you want to average"
        )
    return chosen


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
    given, taker = weights, model  # type: object, object
    if isinstance(given, nn.Module) and not isinstance(taker, nn.Module):
        raise ValueError("the model comes first: copy_to(model, weights), applied(model, weights)")
    if not isinstance(given, Mapping):
        has_mean = callable(getattr(given, "mean", None)) and not isinstance(given, Tensor)
        advice = "pass its .mean(), or .sample() of a posterior" if has_mean else "such as weights_of(model) returns"
        raise ValueError(
            f"writing into {type(model).__name__}: weights must be a mapping from names to tensors, got "
            f"{type(given).__name__}: {advice}"
        )
    what = f"writing into {type(model).__name__}"
    check_tensors(weights, what)
    own = {name: tensor.detach() for name, tensor in _named_tensors(model) if _has_shape(name, tensor, weights)}
    aliases = _aliases(model)
    found = {name: own.get(name, aliases.get(name)) for name in weights}
    unknown = [name for name, tensor in found.items() if tensor is None]
    if unknown:
        raise ValueError(
            f"{type(model).__name__} has no tensor named {_short(unknown)}; "
            f"it has {_short(list(own))}: pass weights of this architecture"
        )
    targets = {name: tensor for name, tensor in found.items() if tensor is not None}
    check_tensors(targets, what)
    check_same(targets, weights, what=what)
    check_writable(targets, weights, what)
    # Whole tensors may be written into shards, of which each rank takes its part.
    alike = {name: t for name, t in targets.items() if is_sharded(weights[name]) or not is_sharded(t)}
    check_same_placements(alike, weights, what=what)
    return targets


def _aliases(model: nn.Module) -> dict[str, Tensor]:
    """Every name of every tensor, so that a state dict with both names of tied tensors can be written."""
    found: dict[str, Tensor] = {}
    paths = {id(module): prefix for prefix, module in _modules(model)}
    for name, module in model.named_modules(remove_duplicate=False):
        for prefix in {paths[id(module)], f"{bare_name(name)}." if bare_name(name) else ""}:
            for key, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None and not nn.parameter.is_lazy(tensor):
                    found.setdefault(prefix + key, tensor.detach())
    return found


def _has_shape(name: str, tensor: Tensor, wanted: Weights) -> bool:
    if nn.parameter.is_lazy(tensor) and name in wanted:
        raise ValueError(f"{name} is a lazy parameter without a shape: run one forward pass first")
    return not nn.parameter.is_lazy(tensor)


@torch.no_grad()
def copy_to(model: nn.Module, weights: Weights) -> None:
    """Write `weights` into the model's own tensors, in place, cast to their dtype and device.

    Tensors that `weights` does not name stay as they are. Nothing is written unless every name and shape fits.
    Writing in place keeps optimisers, compiled graphs and tied weights valid. Into the shards of a model under
    `fully_shard` or tensor parallelism go shards placed alike, or whole tensors, of which each rank takes its part.
    The two arguments are told apart by what they are: "copy these weights to that model" works as well.

    Raises:
        ValueError: the model has no such tensor, or its shape differs.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> copy_to(model, {"weight": torch.tensor([[3.0]])})
    >>> model.weight.item()
    3.0
    """
    given: tuple[Any, Any] = (model, weights)
    model, weights = given[::-1] if isinstance(weights, nn.Module) else given
    for name, target in _targets(weights, model).items():
        local(target).copy_(local(part_of(weights[name], target) if not is_sharded(weights[name]) else weights[name]))
    # Inside an autocast block parameters cast to a lower precision are kept by their identity.
    torch.clear_autocast_cache()


@contextmanager
def applied(model: nn.Module, weights: Weights) -> Iterator[nn.Module]:
    """Run a block with `weights` in the model; put everything back bit for bit afterwards, also on an exception.

    Saved and restored are the tensors that `weights` names and all buffers, so that `refresh_bn` inside the block
    leaves no trace; buffers that a forward pass assigns anew are there again too. What else the block does to the model
    (training other tensors, moving it) stays.

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
    buffers = Buffers(model)
    with torch.no_grad():
        saved = [(tensor, tensor.clone()) for tensor in {id(tensor): tensor for tensor in targets.values()}.values()]
    try:
        copy_to(model, weights)
        yield model
    finally:
        reshard(model.modules())  # a forward in the block may have left the root with whole copies of `weights`
        with torch.no_grad():
            for tensor, original in saved:
                local(tensor).copy_(local(original))
        torch.clear_autocast_cache()
        buffers.restore()
