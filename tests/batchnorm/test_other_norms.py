"""Layers beside torch's BatchNorm that keep running statistics: measured as torch measures them, or named."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from lowland import predict, refresh_bn

BATCHES = [torch.randn(n, 3, 6, 5, generator=torch.Generator().manual_seed(n)) * 3 + 2 for n in (8, 8, 4)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_instance_norm_with_running_statistics(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4, track_running_stats=True)).to(dtype)
    refresh_bn(model, [batch.to(dtype) for batch in BATCHES])
    seen = [model[0](batch.to(dtype)).float() for batch in BATCHES]
    each = [torch.var_mean(x, (2, 3)) for x in seen]  # of every example alone, (N, C)
    mean, var = (torch.cat([pair[place] for pair in each]).mean(0) for place in (1, 0))
    close = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 2e-2}
    torch.testing.assert_close(model[1].running_mean.float(), mean.detach(), **close)
    torch.testing.assert_close(model[1].running_var.float(), var.detach(), **close)


def test_instance_norm_is_stale_like_batch_norm() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4, track_running_stats=True), nn.Flatten(), nn.Linear(120, 2)
    )
    weights = {name: tensor.detach() + 1 for name, tensor in model.named_parameters()}
    with pytest.warns(UserWarning, match="running statistics of the BatchNorm layer 1 belong to other weights"):
        predict(model, weights, BATCHES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predict(model, weights, BATCHES, bn_batches=BATCHES)


class Own(nn.Module):
    """A norm of one's own, with statistics that only it knows to measure."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(4))
        self.register_buffer("running_var", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return x - self.running_mean[:, None, None]


class FrozenNorm(Own):
    """Which keeps its statistics on purpose."""


def test_norms_of_ones_own_are_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Own(), nn.BatchNorm2d(4))
    with pytest.warns(UserWarning, match=r"1 \(Own\) keep running statistics and are no BatchNorm of torch"):
        refresh_bn(model, BATCHES)
    assert not model[1].running_mean.any() and model[2].running_mean.any()
    model[1] = FrozenNorm()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refresh_bn(model, BATCHES)


def test_lazy_layers_are_told_by_name() -> None:
    from lowland import applied, copy_to

    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"0\.weight is a lazy parameter without a shape: run one forward pass"):
        copy_to(model, {"0.weight": torch.ones(3, 4)})
    with applied(model, {"1.bias": torch.ones(2)}):
        assert model[1].bias.tolist() == [1, 1]
    model(torch.ones(1, 4))
    copy_to(model, {"0.weight": torch.ones(3, 4)})
