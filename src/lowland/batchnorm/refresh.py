"""BatchNorm statistics for weights that no training step has seen (Izmailov et al., 2018, arXiv:1803.05407).

    mean = sum_b w_b mean_b / sum_b w_b        var = sum_b w_b var_b / sum_b w_b

over batches b, with their means and unbiased variances, and w_b the examples in the batch (`"samples"`, as SWA and SWAG
were published) or 1 (`"batches"`, as torch.optim.swa_utils.update_bn). They differ where batches differ in size. Both
average variances within batches; the variance between the batches' means is no part of either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Literal, TypeVar

import torch
from torch import nn

from ..weights.running import call, unwrapped
from .statistics import check_arguments, measured_layers, refresh_all_, tell_frozen, tell_unknown

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

    Use training batches, with the transforms of training. Only BatchNorm layers are in training mode meanwhile, and
    InstanceNorm layers that track running statistics: dropout is off. Layers that are frozen keep their statistics:
    those in eval mode in a model that is in training mode, those with momentum 0, and in a model that is in eval mode
    as a whole those whose weight and bias take no gradients where others do. If that leaves none, a warning says so,
    and one names modules that keep running statistics in a way that is not known here. A model without running
    statistics is left alone and `batches` is not even opened. Sums are kept in float64, from inputs in float32 or
    wider, whatever the dtype of the model. A layer that no batch reaches keeps its statistics.

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
    check_arguments(weighting, max_batches)
    model = unwrapped(model, compiled=True)  # hooks and momenta changed after compilation may go unnoticed
    layers = measured_layers(model)
    tell_unknown(model)
    if not layers:
        tell_frozen(model)
        return
    run = call if forward is None else forward
    refresh_all_(model, layers, islice(batches, max_batches), run, weighting, synchronise)
