"""BatchNorm statistics for weights that no training step has seen (Izmailov et al., 2018, arXiv:1803.05407).

    mean = sum_b w_b mean_b / sum_b w_b        var = sum_b w_b var_b / sum_b w_b

over batches b, with their means and unbiased variances, and w_b the examples in the batch (`"samples"`, as SWA and SWAG
were published) or 1 (`"batches"`, as torch.optim.swa_utils.update_bn). They differ where batches differ in size. Both
average variances within batches; the variance between the batches' means is no part of either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .batches import call, evaluating, unwrapped

Batch = TypeVar("Batch")


@torch.no_grad()
def refresh_bn(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    weighting: Literal["samples", "batches"] = "samples",
    forward: Callable[[nn.Module, Batch], object] | None = None,
    max_batches: int | None = None,
    synchronise: bool = True,
) -> None:
    """Replace the running statistics of every BatchNorm layer by averages over `batches` under the present weights.

    Use training batches, with the transforms of training. Only BatchNorm layers are in training mode meanwhile: dropout
    is off. A model without running statistics is left alone and `batches` is not even opened. Sums are kept in
    float64, whatever the dtype of the model. A layer that no batch reaches keeps its statistics.

    Afterwards, and also after an exception, momenta, training modes and (after an exception) all statistics are what
    they were, bit for bit; `num_batches_tracked` is the number of batches seen.

    Under an initialised torch.distributed every rank must call this, each with its own share of the batches, and all
    get the statistics of all of them. `synchronise=False` keeps each rank's own: for populations whose ranks hold
    different models, or a call on one rank only.

    Args:
        forward: runs the model on one batch; by default a batch is a tensor, a tuple that starts with one, or a mapping
            of keyword arguments. It is given the model without its DistributedDataParallel or torch.compile wrapper.
        max_batches: stop after so many; a tenth of the training set served for ImageNet in the SWAG paper.

    Raises:
        ValueError: there is no batch, a batch holds one value per channel, statistics come out not finite, a layer is
            lazy and has no shape yet, or an argument is none of those above. Nothing is changed then.

    >>> model = nn.BatchNorm1d(1)
    >>> refresh_bn(model, [torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([[10.0], [14.0]])])
    >>> round(model.running_mean.item(), 6), round(model.running_var.item(), 6)
    (5.0, 3.777778)
    """
    if weighting not in ("samples", "batches"):
        raise ValueError(f'weighting must be "samples" or "batches", got {weighting!r}')
    if max_batches is not None and max_batches < 1:
        raise ValueError(f"max_batches must be at least 1 or None, got {max_batches}")
    model = unwrapped(model, compiled=True)  # hooks and momenta changed after compilation may go unnoticed
    layers = _layers(model)
    if not layers:
        return
    run = call if forward is None else forward
    saved = {name: [buffer.clone() for buffer in layer.buffers(recurse=False)] for name, layer in layers.items()}
    try:
        with evaluating(model), _gathering(layers, weighting) as sums:
            seen = 0
            for batch in islice(batches, max_batches):
                run(model, batch)
                seen += 1
        if synchronise and dist.is_available() and dist.is_initialized():
            seen = _reduce(sums, seen)
        if not seen:
            raise ValueError("refresh_bn got no batches: pass a loader that is neither empty nor used up")
        if not any(total.calls for total in sums.values()):
            raise ValueError(f"no batch reached a BatchNorm layer of {type(model).__name__}: forward= must call it")
        for name, layer in layers.items():
            if sums[name].calls:
                _write(layer, sums[name], name)
            else:
                _restore(layer, saved[name])
    except BaseException:
        for name, layer in layers.items():
            _restore(layer, saved[name])
        raise


class _Sums:
    """Weighted sums of the statistics that one layer sees, batch by batch."""

    def __init__(self, layer: _BatchNorm) -> None:
        like, _ = _statistics(layer)
        wide = torch.float32 if like.device.type == "mps" else torch.float64
        self.mean = torch.zeros_like(like, dtype=wide)
        self.var = torch.zeros_like(like, dtype=wide)
        self.weight = 0.0
        self.calls = 0


def _layers(model: nn.Module) -> dict[str, _BatchNorm]:
    """Every layer with running statistics, once, by name."""
    layers = {}
    for name, module in model.named_modules():
        if not isinstance(module, _BatchNorm) or module.running_mean is None or not module.track_running_stats:
            continue
        if nn.parameter.is_lazy(module.running_mean):
            raise ValueError(
                f"{name or type(module).__name__} is lazy and has no shape yet: run one forward pass first"
            )
        layers[name or type(module).__name__] = module
    return layers


@contextmanager
def _gathering(layers: dict[str, _BatchNorm], weighting: str) -> Iterator[dict[str, _Sums]]:
    """Sum up the statistics of each batch as the layers see it; the yielded sums fill while the block runs."""
    sums = {name: _Sums(layer) for name, layer in layers.items()}
    momenta = [(layer, layer.momentum) for layer in layers.values()]
    hooks = []
    try:
        for name, layer in layers.items():
            layer.reset_running_stats()  # momentum 1 keeps 0 times the old ones, and those may be NaN
            layer.momentum = 1.0  # after each pass the buffers hold that batch's own statistics
            layer.training = True
            hooks.append(layer.register_forward_pre_hook(partial(_check_input, name)))
            hooks.append(layer.register_forward_hook(partial(_add, sums[name], weighting)))
        yield sums
    finally:
        for handle in hooks:
            handle.remove()
        for layer, momentum in momenta:
            layer.momentum = momentum


def _check_input(name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    if inputs and inputs[0].numel() == inputs[0].shape[1]:
        raise ValueError(
            f"{name} got one value per channel, shape {tuple(inputs[0].shape)}, which has no variance: use "
            "drop_last=True or another batch size"
        )


def _add(sums: _Sums, weighting: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    if not layer.training:  # forward= has switched to eval mode: nothing was measured
        return
    weight = len(output) if weighting == "samples" else 1
    mean, var = _statistics(layer)
    sums.mean.add_(mean.to(sums.mean.dtype), alpha=weight)
    sums.var.add_(var.to(sums.var.dtype), alpha=weight)
    sums.weight += weight
    sums.calls += 1


def _statistics(layer: nn.Module) -> tuple[Tensor, Tensor]:
    mean, var = layer.running_mean, layer.running_var
    assert isinstance(mean, Tensor) and isinstance(var, Tensor)  # _layers keeps no others
    return mean, var


def _reduce(sums: dict[str, _Sums], seen: int) -> int:
    """Add up every rank's sums, in one collective; returns the number of batches of all ranks."""
    totals = list(sums.values())
    device = totals[0].mean.device
    parts = [torch.cat([t.mean, t.var, t.mean.new_tensor([t.weight, t.calls])]).to(device) for t in totals]
    flat = torch.cat([*parts, parts[0].new_tensor([seen])])
    dist.all_reduce(flat)
    for total, part in zip(totals, torch.split(flat[:-1], [len(p) for p in parts]), strict=True):
        mean, var, rest = torch.split(part.to(total.mean.device), [len(total.mean), len(total.var), 2])
        total.mean, total.var, total.weight, total.calls = mean, var, float(rest[0]), int(rest[1])
    return int(flat[-1])


def _write(layer: _BatchNorm, sums: _Sums, name: str) -> None:
    mean, var = sums.mean / sums.weight, sums.var / sums.weight
    if not bool((torch.isfinite(mean) & torch.isfinite(var)).all()):
        raise ValueError(f"the statistics of {name} are not finite: look for NaN or infinity in the batches or weights")
    for buffer, value in zip(_statistics(layer), (mean, var), strict=True):
        buffer.copy_(value)
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.fill_(sums.calls)


def _restore(layer: _BatchNorm, saved: list[Tensor]) -> None:
    for buffer, original in zip(layer.buffers(recurse=False), saved, strict=True):
        buffer.copy_(original)
