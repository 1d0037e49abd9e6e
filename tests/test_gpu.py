"""What has to hold on a CUDA device; skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from lowland import EMA, SWA, SWAG, Mixture, applied, load, predict, refresh_bn, save
from lowland.averager import Averager

from .problems import Small

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def trained(model: nn.Module, averager: Averager, steps: int = 6) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.device))
        averager.update(model)


@pytest.mark.parametrize("make", [SWA, EMA, lambda **k: SWAG(rank=3, **k)])
@pytest.mark.parametrize("device", [None, "cpu"])
def test_an_average_on_the_device_is_that_of_the_cpu(make: type[Averager], device: str | None) -> None:
    on_cpu, on_gpu = make(), make(device=device)
    trained(Small(), on_cpu)
    trained(Small().cuda(), on_gpu)
    for name, expected in on_cpu.mean().items():
        got = on_gpu.mean()[name]
        assert got.device.type == (device or "cuda")
        assert torch.allclose(got.cpu(), expected, atol=1e-6)


def test_draws_and_predictions_on_the_device() -> None:
    model, swag = Small().cuda(), SWAG(rank=3)
    trained(model, swag)
    generator = torch.Generator("cuda").manual_seed(0)
    draw = swag.sample(4, generator=generator)
    assert all(tensor.is_cuda and tensor.shape[0] == 4 for tensor in draw.values())
    # A CPU generator gives the CPU's draw on any device.
    other = SWAG(rank=3, device="cpu")
    trained(Small().cuda(), other)
    one = swag.sample(generator=torch.Generator().manual_seed(1))
    two = other.sample(generator=torch.Generator().manual_seed(1))
    assert all(torch.allclose(one[name].cpu(), two[name], atol=1e-5) for name in one)
    batches = [torch.randn(8, 4) for _ in range(3)]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prediction = predict(model, Mixture([swag, swag]), batches, samples=4, bn_batches=batches, generator=generator)
    assert prediction.probs.shape == (24, 4) and not prediction.probs.is_cuda
    with applied(model, swag.mean()):
        refresh_bn(model, batches)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_state_file_of_the_device(tmp_path: Path) -> None:
    swag = SWAG(rank=3)
    trained(Small().cuda(), swag)
    save(swag, tmp_path / "swag.safetensors")
    read = load(tmp_path / "swag.safetensors")
    assert all(torch.equal(read.mean()[name], tensor.cpu()) for name, tensor in swag.mean().items())
