"""Draws: against the formula in float64, and the same bits whatever the chunks, threads, shards and code."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

import lowland.arithmetic.gaussian
from lowland import SWAG, Mixture
from lowland.arithmetic import kernels
from lowland.arithmetic.gaussian import Gaussian, draw, stream
from lowland.averager import draws as draws_of

from ..problems import walk
from ..reference.gaussian import reference_draw

needs_numba = pytest.mark.skipif(not kernels.available(), reason="numba is not installed")
SHAPES = {"a": (3, 5), "b": (1000,), "c": (70, 31), "scalar": (), "empty": (0, 3), "odd": (17, 3, 11)}
KEY = 0xFEDCBA9876543210


def gaussian(
    k: int,
    columns: torch.dtype = torch.float32,
    dtype: torch.dtype = torch.float32,
    shapes: dict[str, tuple[int, ...]] = SHAPES,
    block: bool = False,
) -> Gaussian:
    g = torch.Generator().manual_seed(k)
    return Gaussian(
        {name: torch.randn(shape, generator=g, dtype=dtype) for name, shape in shapes.items()},
        {name: torch.rand(shape, generator=g, dtype=dtype) for name, shape in shapes.items()},
        {name: torch.randn((k + 2, *shape), generator=g).to(columns) for name, shape in shapes.items()} if k else None,
        tuple(0.1 * c for c in range(k)),
        0.37,
        0.11,
        block,
    )


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("k", [0, 3, 20])
@pytest.mark.parametrize("columns", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("block", [False, True])
def test_against_the_formula(k: int, columns: torch.dtype, dtype: torch.dtype, block: bool) -> None:
    one = gaussian(k, columns, dtype, block=block)
    got, twin = draw(one, KEY, range(2, 6)), reference_draw(one, KEY, range(2, 6))
    for name, expected in twin.items():
        assert got[name].dtype == dtype and got[name].shape == expected.shape
        tolerance = 1e-5 if dtype == torch.float32 else 1e-6
        assert torch.allclose(got[name].double(), expected, rtol=tolerance, atol=tolerance)


@needs_numba
@pytest.mark.parametrize("k", [0, 2, 20])
@pytest.mark.parametrize("columns", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("target", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("block", [False, True])
def test_kernel_and_torch_agree_bit_for_bit(k: int, columns: torch.dtype, target: torch.dtype, block: bool) -> None:
    one = gaussian(k, columns, block=block)
    fast, plain = ({name: torch.empty(4, *shape, dtype=target) for name, shape in SHAPES.items()} for _ in range(2))
    draw(one, KEY, range(2, 6), fast)
    with kernels.disabled():
        draw(one, KEY, range(2, 6), plain)
    assert same(fast, plain)


@needs_numba
def test_not_a_number_stays_one_in_bfloat16() -> None:
    one = Gaussian({"w": torch.tensor([float("nan"), float("inf"), 3.4e38, 1.0])}, {"w": torch.zeros(4)})
    out = {"w": torch.empty(1, 4, dtype=torch.bfloat16)}
    draw(one, 1, range(1), out)
    assert out["w"].isnan().tolist() == [[True, False, False, False]]
    assert torch.equal(out["w"][0, 1:], one.mean["w"][1:].bfloat16())


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    for one in (gaussian(3), gaussian(3, dtype=torch.float64)):
        whole = draw(one, KEY, range(70))
        with monkeypatch.context() as patch:
            patch.setattr(lowland.arithmetic.gaussian, "PIECE", 192)
            patch.setattr(lowland.arithmetic.gaussian, "WORK", 4096)
            assert same(draw(one, KEY, range(70)), whole)
            with kernels.disabled():
                assert same(draw(one, KEY, range(70)), whole)


def test_threads_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    one, before = gaussian(3), torch.get_num_threads()
    whole = draw(one, KEY, range(8))
    monkeypatch.setattr(lowland.arithmetic.gaussian, "PIECE", 256)
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            assert same(draw(one, KEY, range(8)), whole)
    finally:
        torch.set_num_threads(before)


def test_a_draw_does_not_depend_on_the_others() -> None:
    one = gaussian(3)
    whole = draw(one, KEY, range(9))
    assert same(draw(one, KEY, range(4, 6)), {name: tensor[4:6] for name, tensor in whole.items()})
    size = sum(mean.numel() for mean in one.mean.values()) * 4
    for most in (0, 2 * size, 1 << 26):
        drawn = list(stream(one, KEY, 9, most=most))
        assert same({name: torch.stack([w[name] for w in drawn]) for name in whole}, whole)
    # Nor on the order of the names, nor on which memory format holds the statistics.
    turned = dataclasses.replace(one, mean=dict(reversed(one.mean.items())))
    assert all(torch.equal(tensor, whole[name]) for name, tensor in draw(turned, KEY, range(9)).items())
    strided = dataclasses.replace(
        one,
        mean={**one.mean, "c": one.mean["c"].T.contiguous().T},
        base={**one.base, "odd": one.base["odd"].transpose(0, 2).contiguous().transpose(0, 2)},
    )
    assert same(draw(strided, KEY, range(9)), whole)


@pytest.mark.parametrize("ranks", [1, 2, 8])
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("compiled", [True, False])
def test_shards_do_not_matter(ranks: int, dim: int, compiled: bool) -> None:
    shapes = {"even": (16, 24), "uneven": (11, 13), "few": (3, 2), "deep": (5, 7, 6)}
    whole = gaussian(3, shapes=shapes)
    with kernels.disabled() if not compiled else torch.no_grad():
        expected = draw(whole, KEY, range(3))
        for rank in range(ranks):
            dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
            try:
                mesh = init_device_mesh("cpu", (ranks,))
                assert whole.columns is not None
                part = dataclasses.replace(
                    whole,
                    mean=_sharded(whole.mean, mesh, dim),
                    base=_sharded(whole.base, mesh, dim),
                    columns=_sharded(whole.columns, mesh, dim + 1),
                )
                got = draw(part, KEY, range(3))
                for name, tensor in got.items():
                    assert isinstance(tensor, DTensor) and tensor.shape == expected[name].shape
                    placed = distribute_tensor(expected[name], mesh, [Shard(dim + 1)], src_data_rank=None)
                    assert torch.equal(tensor.to_local(), placed.to_local()), (name, rank)
            finally:
                dist.destroy_process_group()


def _sharded(weights: object, mesh: object, dim: int) -> dict[str, Tensor]:
    assert isinstance(weights, dict)
    return {name: distribute_tensor(t, mesh, [Shard(dim)], src_data_rank=None) for name, t in weights.items()}  # type: ignore[arg-type]


RANK = """
import sys, torch, torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from lowland import SWAG
dist.init_process_group("gloo")
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(7, 9), nn.Linear(9, 5, bias=False), nn.Linear(5, 3))
for layer in model:
    fully_shard(layer)
fully_shard(model)
swag = SWAG(rank=3)
for step in range(6):
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.mul_(1 + 0.1 * torch.sin(torch.tensor(step + number)).item())
    swag.update(model)
made = swag.sample(4, generator=torch.Generator().manual_seed(1))
full = {name: tensor.full_tensor() for name, tensor in made.items()}
one = [w for w in swag.draws(4, generator=torch.Generator().manual_seed(1))][2]
assert all(torch.equal(one[name].full_tensor(), full[name][2]) for name in full)
try:
    swag.sample(4)
except ValueError as error:
    assert "same seed on every rank" in str(error)
else:
    raise AssertionError("no generator was accepted")
if dist.get_rank() == 0:
    torch.save(full, sys.argv[1])
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 8])
def test_fsdp2_draws_the_same_weights_on_any_number_of_ranks(ranks: int, tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    found = []
    for number in (1, ranks):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(number)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        path = tmp_path / f"{number}.pt"
        subprocess.run([*command, str(script), str(path)], check=True, timeout=900, env=environment)
        found.append(torch.load(path, weights_only=True))
    assert same(*found)


def test_targets() -> None:
    one = gaussian(2, shapes={"a": (3, 5), "b": (70,)})
    expected = draw(one, KEY, range(4))
    flat = torch.zeros(4, 90)  # rows that lie apart, as of one buffer for a model
    out = {"a": flat[:, :15].view(4, 3, 5), "b": flat[:, 15:85]}
    assert draw(one, KEY, range(4), out)["a"] is out["a"]
    assert same(out, expected) and not flat[:, 85:].any()
    with pytest.raises(ValueError, match=r"out has no target for \['b'\]"):
        draw(one, KEY, range(4), {"a": out["a"]})
    with pytest.raises(ValueError, match=r"out\['b'\] must be a floating-point tensor of shape \(4, 70\), got"):
        draw(one, KEY, range(4), {**out, "b": torch.zeros(3, 70)})
    with pytest.raises(ValueError, match=r"every draw in out\['b'\] must be contiguous"):
        draw(one, KEY, range(4), {**out, "b": torch.zeros(70, 4).T})
    with pytest.raises(ValueError, match=r"out\['b'\] must be on cpu, where the statistics are, got meta"):
        draw(one, KEY, range(4), {**out, "b": torch.zeros(4, 70, device="meta")})


def collected(rank: int, steps: int = 6, seed: int = 0) -> SWAG:
    swag = SWAG(rank=rank)
    for weights in walk(steps, seed):
        swag.update(weights)
    return swag


@pytest.mark.parametrize(
    "make",
    [
        lambda: collected(3),
        lambda: collected(0),
        lambda: collected(20, steps=1),
        lambda: collected(3).tempered(0.3, block=True),
        lambda: Mixture([collected(3), collected(3, seed=1), walk(1)[0]]),
        lambda: Mixture([walk(1, dtype=torch.bfloat16)[0], collected(3), collected(3).tempered(2.0)]),
    ],
)
def test_draws_one_by_one_are_those_of_one_call(make: object) -> None:
    assert callable(make)
    posterior = make()
    whole = posterior.sample(5, generator=torch.Generator().manual_seed(2))
    single = list(draws_of(posterior, 5, torch.Generator().manual_seed(2)))
    assert len(single) == 5
    for name, tensor in whole.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, torch.stack([weights[name].float() for weights in single]))


def test_one_draw_and_its_target() -> None:
    swag = collected(3)
    whole = swag.sample(3, generator=torch.Generator().manual_seed(2))
    one = swag.sample(generator=torch.Generator().manual_seed(2))
    assert same(one, {name: tensor[0] for name, tensor in whole.items()})
    rows = {name: torch.zeros(3, *tensor.shape) for name, tensor in one.items()}
    swag.draws_into(rows, generator=torch.Generator().manual_seed(2))
    assert same(rows, whole)


def test_draws_are_refused_at_the_call() -> None:
    with pytest.raises(ValueError, match="samples must be a whole number of at least 1, got 0"):
        collected(3).draws(0)
    with pytest.raises(RuntimeError, match="SWAG has no weights yet"):
        SWAG().draws(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("place", [0, 70_000, 200_000])
@pytest.mark.parametrize("part", ["mean", "base", "columns"])
def test_one_number_that_is_not_finite_is_found_wherever_it_lies(dtype: torch.dtype, place: int, part: str) -> None:
    sizes = {"a": 3, "large": 200_001, "z": 64}
    statistics = {
        "mean": {name: torch.zeros(size) for name, size in sizes.items()},
        "base": {name: torch.ones(size) for name, size in sizes.items()},
        "columns": {name: torch.zeros(2, size) for name, size in sizes.items()},
    }
    gaussian = Gaussian(**statistics, terms=(0.0, 1.0))
    out = {name: torch.zeros(2, size, dtype=dtype) for name, size in sizes.items()}
    draw(gaussian, 5, range(2), out, finite=True)
    statistics[part]["large"].view(-1, sizes["large"])[-1, place] = float("inf")
    with pytest.raises(ValueError, match="draws of large are not finite"):
        draw(gaussian, 5, range(2), out, finite=True)
    draw(gaussian, 5, range(2), out)
    assert not out["large"][0, place].isfinite() and out["z"].isfinite().all()
