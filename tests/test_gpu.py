"""What has to hold on a CUDA device; skipped where there is none."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from lowland import EMA, SWA, SWAG, Mixture, applied, load, refresh_bn, save
from lowland.averager import Averager
from lowland.predict import predict

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


class Gate:
    """A decay that waits, so that a test can look while an update is under way."""

    def __init__(self) -> None:
        self.entered, self.open = threading.Event(), threading.Event()

    def __call__(self, count: int) -> float:
        self.entered.set()
        assert self.open.wait(30)
        return 0.5


def test_the_next_step_runs_while_the_average_is_updated() -> None:
    gate = Gate()
    average, weights = EMA(gate, device="cpu"), torch.zeros(1 << 22, device="cuda")
    average.update({"w": weights})
    weights.fill_(4.0)
    average.update({"w": weights})
    # The next step, queued behind the snapshot on the training stream, ends while the average is still waiting.
    weights.fill_(100.0)
    product = torch.ones(512, 512, device="cuda") @ torch.ones(512, 512, device="cuda")
    torch.cuda.synchronize()
    assert product[0, 0].item() == 512 and weights[0].item() == 100.0
    assert gate.entered.wait(30) and not gate.open.is_set()
    gate.open.set()
    mean = average.mean()["w"]
    assert mean.device.type == "cpu" and bool((mean == 2.0).all()), "the snapshot saw the next step"


def test_update_does_not_wait_for_the_device() -> None:
    average, weights = SWA(device="cpu"), torch.zeros(1 << 20, device="cuda")
    for _ in range(2):  # the second has its pinned memory
        average.update({"w": weights})
    assert average.count == 2
    torch.cuda._sleep(2_000_000_000)  # clock cycles: about a second of work on the training stream
    busy = torch.cuda.current_stream().record_event()
    weights.fill_(3.0)
    average.update({"w": weights})
    assert not busy.query(), "update waited for the training stream"
    assert torch.allclose(average.mean()["w"], torch.tensor(1.0)) and busy.query()


@pytest.mark.parametrize("make", [SWA, EMA, lambda **k: SWAG(rank=3, **k), lambda **k: SWAG(rank=0, **k)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_beside_the_step_the_numbers_are_those_of_the_cpu(make: type[Averager], dtype: torch.dtype) -> None:
    beside, plain = make(device="cpu"), make()
    generator = torch.Generator("cuda").manual_seed(0)
    weights = {name: torch.zeros(shape, device="cuda", dtype=dtype) for name, shape in SHAPES.items()}
    for _ in range(7):
        for tensor in weights.values():
            tensor.add_(torch.randn(tensor.shape, device="cuda", generator=generator).to(dtype))
        plain.update({name: tensor.cpu() for name, tensor in weights.items()})
        beside.update(weights)
        for tensor in weights.values():
            tensor.mul_(0.9)  # at once, as an optimiser would
    one, two = beside.state_dict(), plain.state_dict()
    assert one["count"] == two["count"] == 7
    for slot, named in two["slots"].items():
        assert all(torch.equal(one["slots"][slot][name], tensor) for name, tensor in named.items()), slot


SHAPES = {"a": (300, 200), "b": (17,), "c": (), "d": (4, 3, 5, 5)}


def test_a_refused_iterate_is_reported_at_the_next_call() -> None:
    average, weights = SWA(device="cpu"), {name: torch.zeros(shape, device="cuda") for name, shape in SHAPES.items()}
    average.update(weights)
    weights["d"][1, 2] = torch.inf
    average.update(weights)
    with pytest.raises(ValueError, match="d holds a value that is not finite"):
        average.state_dict()
    assert average.count == 1 and not any(bool(tensor.any()) for tensor in average.mean().values())


def test_memory_on_the_device_is_given_back() -> None:
    average, weights = SWA(device="cpu"), {"w": torch.zeros(1 << 22, device="cuda")}
    average.update(weights)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        average.update(weights)
    assert average.count == 4
    assert torch.cuda.memory_allocated() <= before + (1 << 20)
    assert average._snapshots is not None and all(t.is_pinned() for t in average._snapshots._pinned.values())
