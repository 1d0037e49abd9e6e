"""What BatchNorm layers see: sums of their batch statistics, gathered by hooks while a model runs.

InstanceNorm that tracks running statistics is measured alike: what torch keeps is the mean over a batch of each
example's own mean and variance.

Shared by `refresh` (all batches) and `reference` (a few of them).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from ..weights.running import evaluating

Batch = TypeVar("Batch")


class Sums:
    """Weighted sums of the batch means and variances of one layer, (C,) each, in float64 where the device has it."""

    def __init__(self, layer: _NormBase) -> None:
        like, _ = statistics_of(layer)
        wide = torch.float32 if like.device.type == "mps" else torch.float64
        self.mean = torch.zeros_like(like, dtype=wide)
        self.var = torch.zeros_like(like, dtype=wide)
        self.weight = 0.0
        self.calls = 0

    def copy(self) -> Sums:
        """Sums that later batches leave alone."""
        other = copy(self)
        other.mean, other.var = self.mean.clone(), self.var.clone()
        return other

    def add_(self, other: Sums) -> None:
        """Add another's sums to these."""
        self.mean += other.mean
        self.var += other.var
        self.weight += other.weight
        self.calls += other.calls


class Gathering:
    """The sums of all layers, `sums`, filling while the block of `gathering` runs; others may be put in their place."""

    def __init__(self, layers: Mapping[str, _NormBase]) -> None:
        self._layers = layers
        self.sums = zeros(layers)

    def take(self) -> dict[str, Sums]:
        """Hand over the sums so far and begin anew."""
        taken, self.sums = self.sums, zeros(self._layers)
        return taken


def zeros(layers: Mapping[str, _NormBase]) -> dict[str, Sums]:
    """Sums of no batch, by layer."""
    return {name: Sums(layer) for name, layer in layers.items()}


def check_arguments(weighting: str, max_batches: int | None) -> None:
    """Refuse what neither `refresh_bn` nor `bn_reference` can mean."""
    if weighting not in ("samples", "batches"):
        raise ValueError(f'weighting must be "samples" or "batches", got {weighting!r}')
    if max_batches is not None and max_batches < 1:
        raise ValueError(f"max_batches must be at least 1 or None, got {max_batches}")


def layers_of(model: nn.Module) -> dict[str, _NormBase]:
    """Every layer with running statistics, once, by name.

    Raises:
        ValueError: a layer is lazy and has no shape yet.

    >>> list(layers_of(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))))
    ['1']
    """
    layers = {}
    for name, module in model.named_modules():
        if not isinstance(module, _NormBase) or module.running_mean is None or not module.track_running_stats:
            continue
        if nn.parameter.is_lazy(module.running_mean):
            raise ValueError(
                f"{name or type(module).__name__} is lazy and has no shape yet: run one forward pass first"
            )
        layers[name or type(module).__name__] = module
    return layers


def measured_layers(model: nn.Module) -> dict[str, _NormBase]:
    """Every layer with running statistics that is not frozen, once, by name.

    Frozen are layers in eval mode in a model that is in training mode, layers with momentum 0, and, in a model that is
    in eval mode as a whole, layers whose weight and bias take no gradients where other parameters do.

    >>> model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    >>> _ = model[0].eval()
    >>> list(measured_layers(model))
    ['1']
    """
    trains = any(parameter.requires_grad for parameter in model.parameters())

    def frozen(layer: _NormBase) -> bool:
        if layer.training or layer.momentum == 0:
            return layer.momentum == 0
        own = [parameter for parameter in (layer.weight, layer.bias) if parameter is not None]
        return model.training or (trains and bool(own) and not any(parameter.requires_grad for parameter in own))

    return {name: layer for name, layer in layers_of(model).items() if not frozen(layer)}


def unknown_layers(model: nn.Module) -> list[str]:
    """Name the modules with running statistics that are no BatchNorm of torch, and so are not measured.

    A module that is called frozen keeps them on purpose.

    >>> unknown_layers(nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2)))
    []
    """
    return [
        name or type(module).__name__
        for name, module in model.named_modules()
        if not isinstance(module, _NormBase)
        and {"running_mean", "running_var"} <= set(module._buffers.keys())
        and getattr(module, "running_mean", None) is not None
        and "frozen" not in type(module).__name__.lower()
    ]


def tell_unknown(model: nn.Module) -> None:
    """Warn of modules that keep running statistics in a way that is not known here."""
    names = unknown_layers(model)
    if names:
        kind = type(dict(model.named_modules()).get(names[0], model)).__name__
        warnings.warn(
            f"{', '.join(names[:3])} ({kind}) keep running statistics and are no BatchNorm of torch: they keep those "
            "that they have; measure them yourself, or derive the class from torch's",
            UserWarning,
            stacklevel=4,
        )


def tell_frozen(model: nn.Module) -> None:
    """Warn where a refresh leaves a model as it is because all its BatchNorm layers are frozen."""
    names = list(layers_of(model))
    if names:
        warnings.warn(
            f"all BatchNorm layers are frozen and keep their statistics ({', '.join(names[:3])}): put the model in "
            "training mode first if they shall be measured",
            UserWarning,
            stacklevel=4,
        )


def statistics_of(layer: _NormBase) -> tuple[Tensor, Tensor]:
    """The running mean and variance, (C,) each: the buffers themselves."""
    mean, var = layer.running_mean, layer.running_var
    assert isinstance(mean, Tensor) and isinstance(var, Tensor)  # layers_of keeps no others
    return mean, var


def refresh_all_(
    model: nn.Module,
    layers: Mapping[str, _NormBase],
    batches: Iterable[Batch],
    run: Callable[[nn.Module, Batch], object],
    weighting: str,
    synchronise: bool,
    keep: int = 0,
) -> tuple[dict[str, Sums], list[tuple[Batch, dict[str, Sums]]], int]:
    """Run all batches and write the averages of their statistics into the layers.

    Returns:
        The sums of all batches of all ranks; the first `keep` batches of this rank, each with the sums of it alone; how
        many batches this rank has run.
    """
    kept: list[tuple[Batch, dict[str, Sums]]] = []
    seen = 0
    with restoring(layers) as saved:
        with evaluating(model), gathering(layers, weighting) as gathered:
            for batch in batches:
                run(model, batch)
                seen += 1
                if len(kept) < keep:
                    kept.append((batch, gathered.take()))
        sums = gathered.sums
        for _, part in kept:
            for name, total in sums.items():
                total.add_(part[name])
        everywhere = seen
        if synchronise and distributed():
            (everywhere,) = reduced(sums.values(), seen)
        if not everywhere:
            raise ValueError("refresh_bn got no batches: pass a loader that is neither empty nor used up")
        if not any(total.calls for total in sums.values()):
            raise ValueError(f"no batch reached a BatchNorm layer of {type(model).__name__}: forward= must call it")
        for name, layer in layers.items():
            total = sums[name]
            if total.calls:
                write_(layer, total.mean / total.weight, total.var / total.weight, total.calls, name)
            else:
                restore_(layer, saved[name])
    return sums, kept, seen


@contextmanager
def gathering(layers: Mapping[str, _NormBase], weighting: str) -> Iterator[Gathering]:
    """Sum up the statistics of each batch as the layers see it; momenta and hooks are put back at the end."""
    gathered = Gathering(layers)
    momenta = [(layer, layer.momentum) for layer in layers.values()]
    hooks = []
    try:
        for name, layer in layers.items():
            layer.reset_running_stats()  # momentum 1 keeps 0 times the old ones, and those may be NaN
            layer.momentum = 1.0  # after each pass the buffers hold that batch's own statistics
            layer.training = True
            hooks.append(layer.register_forward_pre_hook(_checking(name)))
            hooks.append(layer.register_forward_hook(_adding(gathered, name, layer, weighting == "samples")))
        yield gathered
    finally:
        for handle in hooks:
            handle.remove()
        for layer, momentum in momenta:
            layer.momentum = momentum


def _checking(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def check(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(layer, _BatchNorm) and inputs and inputs[0].numel() == inputs[0].shape[1]:
            raise ValueError(
                f"{name} got one value per channel, shape {tuple(inputs[0].shape)}, which has no variance: use "
                "drop_last=True or another batch size"
            )

    return check


def _adding(
    gathered: Gathering, name: str, layer: _NormBase, by_samples: bool
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    held = statistics_of(layer)  # looked up once: on small batches nn.Module's look-ups are what a hook costs
    # Buffers of a short type have been rounded; a synchronised layer's alone know what other ranks saw.
    each = not isinstance(layer, _BatchNorm)  # of each example alone
    rounded = held[0].dtype in (torch.bfloat16, torch.float16) and not isinstance(layer, nn.SyncBatchNorm)

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not module.training:  # forward= has switched to eval mode: nothing was measured
            return
        mean, var = _of_batch(inputs[0], each) if rounded and inputs else held
        sums = gathered.sums[name]
        weight = len(output) if by_samples else 1
        sums.mean.add_(mean, alpha=weight)  # computed in the wider type
        sums.var.add_(var, alpha=weight)
        sums.weight += weight
        sums.calls += 1

    return add


def _of_batch(x: Tensor, each: bool) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of each channel, (C,), in float32; with `each` means over those of the examples."""
    var, mean = torch.var_mean(x.float(), [axis for axis in range(x.ndim) if axis != 1 and not (each and axis == 0)])
    return (mean.mean(0), var.mean(0)) if each else (mean, var)


def distributed() -> bool:
    """Whether other processes hold batches too."""
    return dist.is_available() and dist.is_initialized()


def reduced(sums: Iterable[Sums], *counts: int) -> list[int]:
    """Add up every rank's sums in place and its counts, in one collective; returns the counts of all ranks."""
    totals = list(sums)
    device = totals[0].mean.device
    parts = [torch.cat([t.mean, t.var, t.mean.new_tensor([t.weight, t.calls])]).to(device) for t in totals]
    flat = torch.cat([*parts, parts[0].new_tensor(counts)])
    dist.all_reduce(flat)
    sizes = [len(part) for part in parts]
    for total, part in zip(totals, torch.split(flat[: sum(sizes)], sizes), strict=True):
        mean, var, rest = torch.split(part.to(total.mean.device), [len(total.mean), len(total.var), 2])
        total.mean, total.var, total.weight, total.calls = mean, var, float(rest[0]), int(rest[1])
    return [int(count) for count in flat[sum(sizes) :].tolist()]


def write_(layer: _NormBase, mean: Tensor, var: Tensor, calls: int, name: str) -> None:
    """Put statistics (C,) into a layer's buffers, and the number of passes they stand for.

    Raises:
        ValueError: they are not finite; nothing is written.
    """
    if not bool((torch.isfinite(mean) & torch.isfinite(var)).all()):
        raise ValueError(f"the statistics of {name} are not finite: look for NaN or infinity in the batches or weights")
    for buffer, value in zip(statistics_of(layer), (mean, var), strict=True):
        buffer.copy_(value)
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.fill_(calls)


Saved = dict[str, list[Tensor]]


@contextmanager
def restoring(layers: Mapping[str, _NormBase]) -> Iterator[Saved]:
    """Put every buffer of the layers back if the block raises; yields the copies."""
    saved = {name: [buffer.clone() for buffer in layer.buffers(recurse=False)] for name, layer in layers.items()}
    try:
        yield saved
    except BaseException:
        for name, layer in layers.items():
            restore_(layer, saved[name])
        raise


def restore_(layer: _NormBase, saved: Iterable[Tensor]) -> None:
    """Write saved buffers back into a layer."""
    for buffer, original in zip(layer.buffers(recurse=False), saved, strict=True):
        buffer.copy_(original)
