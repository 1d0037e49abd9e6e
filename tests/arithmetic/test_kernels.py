"""Compiled updates against their twin in plain torch, and how work is shared between threads."""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from lowland import EMA, SWA, SWAG
from lowland.arithmetic import kernels
from lowland.arithmetic.moments import first_nonfinite
from lowland.averager import Averager
from lowland.weights.named import trainable

needs_numba = pytest.mark.skipif(not kernels.available(), reason="numba is not installed")
SIZES = (0, 1, 15, 16, 17, 63, 64, 200, 1000, 70_001)
METHODS: dict[str, Callable[[], Averager]] = {
    "SWA": SWA,
    "EMA": lambda: EMA(0.9),
    "EMA-fast": lambda: EMA(0.3),
    "SWAG": lambda: SWAG(rank=3),
    "SWAG-diagonal": lambda: SWAG(rank=0),
    "SWAG-bfloat16": lambda: SWAG(rank=3, deviations_dtype="bfloat16"),
}


def path(steps: int, dtype: torch.dtype, seed: int = 0) -> Iterator[dict[str, Tensor]]:
    """Iterates of many sizes, none of which lies at a multiple of 64 bytes."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randn(sum(SIZES) + len(SIZES), generator=generator)
    for _ in range(steps):
        whole = whole + 0.1 * torch.randn(len(whole), generator=generator)
        cast, weights, at = whole.to(dtype), {}, 1
        for size in SIZES:
            weights[f"w{size}"] = cast[at : at + size].view(1, size)
            at += size + 1
        yield weights


def slots(averager: Averager) -> dict[str, Tensor]:
    state = averager.state_dict()["slots"]
    return {f"{slot}.{name}": tensor for slot, own in state.items() for name, tensor in own.items()}


def ulps(one: Tensor, two: Tensor) -> float:
    """The largest distance in units of the last digit of the larger tensor entry, at least that of 1e-3."""
    if not one.numel():
        return 0.0
    size = torch.maximum(one.abs(), two.abs()).double().clamp_min(1e-3)
    unit = torch.exp2(torch.floor(torch.log2(size)) - (7 if one.dtype == torch.bfloat16 else 23))
    return float(((one.double() - two.double()).abs() / unit).max())


@needs_numba
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_the_twin_gives_the_same(method: str, dtype: torch.dtype) -> None:
    fast, plain = METHODS[method](), METHODS[method]()
    for weights in path(7, dtype):
        fast.update(weights)
        with kernels.disabled():
            plain.update(weights)
    for name, tensor in slots(plain).items():
        # One rounding apart where the processor has no fused multiplication and addition.
        assert ulps(slots(fast)[name], tensor) <= 1, name


@needs_numba
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("method", ["SWA", "SWAG", "SWAG-bfloat16"])
def test_a_refused_iterate_leaves_every_bit(method: str, dtype: torch.dtype, bad: float) -> None:
    averager = METHODS[method]()
    weights: dict[str, Tensor] = {}
    for weights in path(5, dtype):
        averager.update(weights)
    before = slots(averager)
    for size in SIZES[1:]:
        for place in {0, size // 2, size - 1}:
            damaged = {name: tensor.clone() for name, tensor in weights.items()}
            damaged[f"w{size}"][0, place] = bad
            damaged["w70001"][0, 70_000] = bad
            with pytest.raises(ValueError, match=f"^w{size} holds a value that is not finite"):
                averager.update(damaged)
    assert averager.count == 5
    assert all(torch.equal(tensor, before[name]) for name, tensor in slots(averager).items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_plain_torch_names_the_first_tensor_that_is_not_finite(dtype: torch.dtype) -> None:
    # Small tensors are looked at together: some batches, with tensors that are looked at alone between them.
    sizes = [*SIZES, *([9000] * 40), 0, 20_000, 3]
    for place in [1, 2, 9, 10, 25, 49, 51, 52]:
        for bad in (math.nan, math.inf, -math.inf):
            weights = {f"w{number}": torch.zeros(size, dtype=dtype) for number, size in enumerate(sizes)}
            weights["whole"] = torch.tensor([1, 2])
            weights["strided"] = torch.zeros(6, 4, dtype=dtype).T
            assert first_nonfinite(weights) is None
            weights["w52"][1] = bad
            weights[f"w{place}"][sizes[place] // 2] = bad
            assert first_nonfinite(weights) == f"w{place}"


@needs_numba
def test_the_largest_and_smallest_numbers_are_finite() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        edge = torch.finfo(dtype)
        SWA().update({"w": torch.tensor([edge.max, edge.min, edge.tiny, edge.smallest_normal / 4, 0.0, -0.0] * 50)})


@needs_numba
def test_results_do_not_depend_on_threads() -> None:
    threads = torch.get_num_threads()
    found = []
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            swag = SWAG(rank=3)
            for weights in path(6, torch.float32):
                swag.update(weights)
            found.append(slots(swag))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(other[name], tensor) for other in found[1:] for name, tensor in found[0].items())


@pytest.mark.parametrize("method", METHODS)
def test_tensors_that_move_change_dtype_or_layout(method: str) -> None:
    # The same name in another place, order and dtype at each update; the naive mean says what must come out.
    averager, seen = METHODS[method](), []
    generator = torch.Generator().manual_seed(0)
    for turn in range(8):
        w = torch.randn(3, 4, 5, 6, generator=generator)
        w = w.to((torch.float32, torch.float64, torch.bfloat16, torch.float16)[turn % 4])
        if turn % 3 == 1:
            w = w.contiguous(memory_format=torch.channels_last)
        if turn % 3 == 2:
            w = w.transpose(0, 3).contiguous().transpose(0, 3)
        averager.update({"w": w, "b": w[0, 0, 0]})
        seen.append(w.double())
    if method in ("EMA", "EMA-fast"):
        decay, expected = (0.9 if method == "EMA" else 0.3), seen[0]
        for w in seen[1:]:
            expected = decay * expected + (1 - decay) * w
    else:
        expected = torch.stack(seen).mean(0)
    assert torch.allclose(averager.mean()["w"].double(), expected, atol=1e-6)
    assert torch.allclose(averager.mean()["b"].double(), expected[0, 0, 0], atol=1e-6)
    if isinstance(averager, SWAG):
        means = [torch.stack(seen[: n + 1]).mean(0) for n in range(8)]
        diagonal = torch.stack(seen).var(0, correction=0)
        columns = [w - m for w, m in zip(seen, means, strict=True)][-averager.rank :] if averager.rank else []
        low = sum(c**2 for c in columns) / max(1, len(columns) - 1)
        whole = (diagonal + low) / 2 if averager.rank else diagonal
        tolerance = 2e-2 if averager.deviations_dtype == torch.bfloat16 else 1e-5
        assert torch.allclose(averager.variance()["w"].double(), whole, rtol=tolerance)


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_numba), False])
def test_an_update_sees_what_became_of_a_model(compiled: bool) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
    average = SWAG(rank=2, select=trainable)
    seen: list[dict[str, Tensor]] = []

    def update() -> None:
        with nullcontext() if compiled else kernels.disabled():
            average.update(model)
        seen.append({name: parameter.detach().clone() for name, parameter in model.named_parameters()})

    def right() -> None:
        for name, mean in average.mean().items():
            assert torch.allclose(mean, torch.stack([weights[name] for weights in seen]).mean(0), atol=1e-6)

    for _ in range(2):
        update()
    model[0].weight = nn.Parameter(torch.randn(2, 2))  # another parameter
    update()
    model[1][0] = nn.Linear(2, 2)  # another module
    update()
    model[0].bias.data = torch.randn(2)  # other memory of the same parameter
    update()
    model[0].weight, model[1][0].weight = model[1][0].weight, model[0].weight
    update()
    right()
    first, bias = model[0].weight, model[0].bias
    bias.requires_grad_(False)  # what was chosen at the first update is averaged on
    update()
    update()
    right()
    bias.requires_grad_(True)
    model[0].weight = model[1][0].weight  # tied
    with pytest.raises(ValueError, match=r"missing \['1.0.weight'\]"):
        average.update(model)
    model[0].weight = first
    model.append(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"unexpected \['2.weight', '2.bias'\]"):
        average.update(model)
    del model[2]
    bias.data = torch.randn(4)[::2]  # other strides
    update()
    bias.data = torch.randn(3)
    with pytest.raises(ValueError, match="0.bias"):
        average.update(model)
    bias.data = torch.randn(2)
    update()
    right()
    assert average.count == len(seen)


def test_channels_last_weights_keep_their_kernel_for_means() -> None:
    w = torch.randn(8, 4, 3, 3).contiguous(memory_format=torch.channels_last)
    average = SWA()
    for turn in range(3):
        average.update({"w": w + turn})
    assert torch.allclose(average.mean()["w"], w + 1, atol=1e-6)


def test_a_copy_of_an_averager_goes_its_own_way() -> None:
    first = SWAG(rank=2)
    for weights in path(4, torch.float32):
        first.update(weights)
    second = copy.deepcopy(first)
    for weights in path(3, torch.float32, seed=1):
        second.update(weights)
    third = SWAG(rank=2)
    for seed, steps in ((0, 4), (1, 3)):
        for weights in path(steps, torch.float32, seed):
            third.update(weights)
    assert all(torch.equal(slots(third)[name], tensor) for name, tensor in slots(second).items())


def test_run_returns_in_order_and_raises() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert kernels.run(lambda n: n * n, [(n,) for n in range(50)]) == [n * n for n in range(50)]
        with pytest.raises(ZeroDivisionError):
            kernels.run(lambda n: 1 // n, [(n,) for n in (3, 2, 1, 0, 5, 0)])
        # From several threads at once.
        found: list[list[int]] = []
        callers = [
            threading.Thread(target=lambda: found.append(kernels.run(lambda n: n + 1, [(n,) for n in range(200)])))
            for _ in range(4)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert found == [list(range(1, 201))] * 4
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
def test_a_forked_child_has_threads_of_its_own() -> None:
    script = (
        "import os, torch, lowland; from lowland import kernels; torch.set_num_threads(2)\n"
        "work = lambda: kernels.run(lambda n: n, [(n,) for n in range(9)])\n"
        "assert work() == list(range(9))\n"
        "child = os.fork()\n"
        "if child == 0: os._exit(0 if work() == list(range(9)) else 1)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=900)


def test_disabled_is_for_the_block_alone() -> None:
    before = kernels.available()
    with kernels.disabled(), kernels.disabled():
        assert not kernels.available()
    assert kernels.available() == before
