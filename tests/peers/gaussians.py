"""Adapters of the SWAGs: moments of their draws, and the variance that each holds.

A row names the causes of what it gets wrong, as read in the released source.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from known import DRAWS, ITERATES
from torch import Tensor, nn

from problems import Row, iterates, moments, put, row, section, two_layers, variances, wide

K = len(ITERATES)
DIVISOR = "the low-rank part is divided by max_num_models - 1, not by the number of deviations held - 1"
TWICE = "scale=1 is twice the paper's covariance"


@section("lowland", "swag")
def _() -> list[Row]:
    from lowland import SWAG

    rows = []
    for setting, rank, block in ((f"rank={K}", K, False), ("defaults", 20, False), ("block=True", 20, True)):
        swag = SWAG(rank=rank)
        for model in iterates():
            swag.update(model)
        drawn = swag.tempered(1.0, block=block).sample(DRAWS, generator=torch.Generator().manual_seed(0))
        pairs = torch.stack([tensor.flatten() for tensor in drawn.values()], dim=1)
        rows.append({"setting": setting, **moments(pairs), "causes": [], "block": block})
    return rows


@section("lowland", "variance")
def _() -> list[Row]:
    from lowland import SWAG

    def collect(models: Iterator[nn.Module]) -> Tensor:
        swag = SWAG(rank=0)
        for model in models:
            swag.update(model)
        return swag.variance()["weight"]

    return variances(collect)


@section("swa-gaussian", "swag")
def _() -> list[Row]:
    from swag.posteriors import SWAG

    rows = []
    block_spread = "block=True multiplies the spread by scale, block=False by sqrt(scale)"
    for most, scale, block, causes in (
        (K, 0.5, False, ()),
        (20, 0.5, False, (DIVISOR,)),
        (20, 1.0, False, (TWICE, DIVISOR)),
        (K, 0.5, True, (block_spread,)),
        (K, 1.0, True, (TWICE, block_spread)),
    ):
        swag = SWAG(two_layers, no_cov_mat=False, max_num_models=most)
        for model in iterates():
            swag.collect_model(model)

        def draw(swag: Any = swag, scale: float = scale, block: bool = block) -> nn.Module:
            swag.sample(scale=scale, cov=True, block=block)
            return swag.base

        setting = f"scale={scale:g}, max_num_models={most}" + (", block=True" if block else "")
        rows.append(row(setting, draw, causes, block))
    return rows


@section("swa-gaussian", "variance")
def _() -> list[Row]:
    from swag.posteriors import SWAG

    def collect(models: Iterator[nn.Module]) -> Tensor:
        swag = SWAG(wide, no_cov_mat=True)
        for model in models:
            swag.collect_model(model)
        return swag.base.weight_sq_mean - swag.base.weight_mean**2

    return variances(collect)


@section("torch-uncertainty", "swag")
def _() -> list[Row]:
    from torch_uncertainty.methods import SWAG

    rows = []
    tensors = "the low-rank noise is drawn anew for each tensor"
    for most, scale, causes in ((20, 1.0, (tensors, TWICE, DIVISOR)), (K, 0.5, (tensors,))):
        model = two_layers()
        swag = SWAG(model, cycle_start=0, cycle_length=1, scale=scale, max_num_models=most, num_estimators=1)
        for epoch, value in enumerate(ITERATES, start=1):
            put(model, value)
            swag.update_wrapper(epoch)
        draw = lambda swag=swag, scale=scale: swag.sample(scale)  # noqa: E731
        rows.append(row(f"scale={scale:g}, max_num_models={most}" + (" (defaults)" * (most == 20)), draw, causes))
    return rows


@section("torch-uncertainty", "variance")
def _() -> list[Row]:
    from torch_uncertainty.methods import SWAG

    def collect(models: Iterator[nn.Module]) -> Tensor:
        held = wide()
        swag = SWAG(held, cycle_start=0, cycle_length=1, diag_covariance=True, num_estimators=1)
        for epoch, model in enumerate(models, start=1):
            put(held, model.weight.detach())
            swag.update_wrapper(epoch)
        return swag.swag_stats[swag.prfx + "weight_sq_mean"] - swag.swag_stats[swag.prfx + "weight_mean"] ** 2

    return variances(collect)


def _uq_box(model: nn.Module) -> Any:
    from lightning_uq_box.uq_methods.swag import SWAGRegression

    return SWAGRegression(
        model, max_swag_snapshots=K, snapshot_freq=1, num_mc_samples=1, swag_lr=0.1, loss_fn=nn.MSELoss()
    )


@section("lightning-uq-box", "swag")
def _() -> list[Row]:
    rows = []
    counted = "the weights at construction enter the mean and are not counted"
    old = "deviations are from the mean before the iterate, and the first iterate leaves none"
    for at, causes in ((5.0, (counted, old)), (0.0, (old,))):
        model = two_layers(at)
        swag = _uq_box(model)
        for value in ITERATES:
            put(model, value)
            swag.update_uncertainty_buffers()

        def draw(swag: Any = swag) -> nn.Module:
            swag.sample_state()
            return swag.model

        rows.append(row(f"max_swag_snapshots={K}, constructed at weights {at:g}", draw, causes))
    return rows


@section("lightning-uq-box", "variance")
def _() -> list[Row]:
    def collect(models: Iterator[nn.Module]) -> Tensor:
        held = put(nn.Sequential(wide()), 0.0)  # at zero the error of the mean does not show
        swag = _uq_box(held)
        for model in models:
            put(held, model.weight.detach())
            swag.update_uncertainty_buffers()
        buffers = dict(swag.model.named_buffers())
        return buffers["0_weight_squared_mean"] - buffers["0_weight_mean"] ** 2

    return variances(collect)


def _dicee(models: Iterator[nn.Module]) -> Any:
    from dicee.weight_averaging import SWAG

    swag = SWAG(swa_start_epoch=0, max_epochs=1_000)
    for epoch, model in enumerate(models):
        trainer = SimpleNamespace(current_epoch=epoch)
        swag.on_train_epoch_start(trainer, model)
        swag.on_train_epoch_end(trainer, model)
    return swag


@section("dicee", "swag")
def _() -> list[Row]:
    swag, model = _dicee(iterates()), two_layers()
    cause = "scale multiplies the diagonal spread (the paper's is its square root) and leaves the low-rank part whole"
    return [row("scale=0.5 (default)", lambda: swag.sample(model, scale=0.5), (cause,))]


@section("dicee", "variance")
def _() -> list[Row]:
    def collect(models: Iterator[nn.Module]) -> Tensor:
        swag = _dicee(models)
        return swag.sq_mean - swag.mean**2

    return variances(collect)
