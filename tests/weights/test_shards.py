"""Where shards lie: against torch's own splitting, by hand, and what is refused."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import Placement, _StridedShard
from torch.testing._internal.distributed.fake_pg import FakeStore

from lowland import SWA
from lowland.weights.layout import runs_of
from lowland.weights.shards import check_placements, check_same_placements, is_sharded, like, local, reshard, runs


def twin(
    shape: tuple[int, ...], mesh: tuple[int, ...], coordinate: tuple[int, ...], placements: list[Placement]
) -> Tensor:
    """The global index of every local element, by torch's own splitting of all the indices."""
    held = torch.arange(torch.Size(shape).numel()).reshape(shape)
    for size, index, placement in zip(mesh, coordinate, placements, strict=True):
        if not placement.is_replicate():
            pieces, _ = placement._split_tensor(held, size, with_padding=False)  # type: ignore[attr-defined]
            held = pieces[index]
    return held


CASES = [
    ((7,), (2,), [Shard(0)]),
    ((3, 4), (2,), [Shard(0)]),
    ((3, 4), (3,), [Shard(1)]),
    ((2, 3), (4,), [Shard(0)]),  # more ranks than rows: some hold nothing
    ((5, 6, 7), (2, 3), [Shard(0), Shard(2)]),
    ((5, 6, 7), (2, 3), [Shard(1), Shard(1)]),
    ((9, 2), (2, 2), [_StridedShard(0, split_factor=2), Shard(0)]),  # tensor parallelism under FSDP2
    ((11, 3), (3, 2), [_StridedShard(0, split_factor=2), Shard(0)]),
    ((4, 9), (3, 2), [_StridedShard(1, split_factor=2), Shard(1)]),
    ((5, 6), (2, 2), [Replicate(), Shard(1)]),
    ((), (2,), [Replicate()]),
    ((0, 3), (2,), [Shard(0)]),
    ((1, 1, 4), (2,), [Shard(2)]),
]


@pytest.mark.parametrize(("shape", "mesh", "placements"), CASES)
def test_runs_are_those_of_torch(shape: tuple[int, ...], mesh: tuple[int, ...], placements: list[Placement]) -> None:
    layout = [None if p.is_replicate() else (p.dim, getattr(p, "split_factor", 1)) for p in placements]  # type: ignore[attr-defined]
    for coordinate in itertools.product(*(range(size) for size in mesh)):
        found = runs_of(shape, mesh, coordinate, layout)
        expected = twin(shape, mesh, coordinate, placements).flatten()
        got = torch.cat([torch.arange(start, start + n) for start, _, n in found] or [torch.arange(0)])
        assert torch.equal(got, expected), coordinate
        position = 0
        for _, start, length in found:
            assert start == position and length > 0
            position += length
        joints = zip(found, found[1:], strict=False)
        assert all(one[0] + one[2] != two[0] for one, two in joints), "two runs that are one"


def test_plain_tensors_pass_through() -> None:
    tensor = torch.zeros(2, 3)
    assert local(tensor) is tensor and like(tensor, tensor) is tensor
    assert runs(tensor) == [(0, 0, 6)] and runs(torch.zeros(0)) == [] and runs(torch.zeros(())) == [(0, 0, 1)]
    parameter = nn.Parameter(tensor)
    assert local(parameter) is parameter and not is_sharded(parameter)
    with pytest.raises(ValueError, match=r"must have the shape \(4, 2, 3\), got \(2, 3\)"):
        like(tensor, tensor, leading=(4,))
    reshard(nn.Linear(1, 1).modules())


@pytest.mark.slow
def test_importing_lowland_loads_no_dtensor() -> None:
    script = (
        "import sys, torch, lowland\nfrom lowland.weights.shards import local, runs\n"
        "runs(local(torch.nn.Parameter(torch.zeros(2))))\n"
        "assert 'torch.distributed.tensor' not in sys.modules or 'torch.distributed.tensor' in before"
    )
    before = "import sys, torch\nbefore = set(sys.modules)\n"
    subprocess.run([sys.executable, "-c", before + script], check=True, timeout=900)


@pytest.fixture
def four_ranks() -> Iterator[None]:
    """This process as rank 1 of 4 that do not exist: placements without communication."""
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=4)
    yield
    dist.destroy_process_group()


def whole() -> Tensor:
    return torch.arange(15.0).reshape(5, 3)


def test_local_and_like_share_memory_and_keep_uneven_shapes(four_ranks: None) -> None:
    # NCAR/miles-credit#416: the shape inferred from an uneven shard was wrong, and the ranks waited for ever.
    mesh = init_device_mesh("cpu", (4,))
    sharded = distribute_tensor(whole(), mesh, [Shard(0)], src_data_rank=None)
    assert torch.equal(local(sharded), whole()[2:4])
    assert local(sharded).data_ptr() == sharded.to_local().data_ptr()
    assert type(local(nn.Parameter(sharded))) is Tensor
    assert runs(sharded) == [(6, 0, 6)]
    again = like(local(sharded).double(), sharded)
    assert isinstance(again, DTensor) and again.shape == (5, 3) and again.dtype == torch.float64
    assert again.placements == sharded.placements and again.stride() == sharded.stride()
    columns = torch.zeros(7, 2, 3)
    stacked = like(columns, sharded, leading=(7,))
    assert isinstance(stacked, DTensor) and stacked.shape == (7, 5, 3) and stacked.placements == (Shard(1),)
    assert stacked.to_local().data_ptr() == columns.data_ptr()
    # Row 2 and 3 of each of the seven.
    assert runs(stacked) == [(15 * c + 6, 6 * c, 6) for c in range(7)]
    place = like(torch.empty(2, 3, device="meta"), sharded)
    assert place.is_meta and place.shape == (5, 3)


def test_two_axes_and_strided_shards_shift(four_ranks: None) -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    placements = [_StridedShard(0, split_factor=2), Shard(0)]
    part = twin((5, 3), (2, 2), (0, 1), placements)
    tensor = DTensor.from_local(part, mesh, placements, shape=torch.Size((5, 3)), stride=(3, 1))
    assert runs(tensor) == [(int(part[0, 0]), 0, part.numel())]
    stacked = like(torch.zeros(2, *part.shape), tensor, leading=(2,))
    assert stacked.placements == (_StridedShard(1, split_factor=2), Shard(1))  # type: ignore[attr-defined]


def test_shards_may_lie_on_another_device_than_their_mesh(four_ranks: None) -> None:
    # A mesh of accelerators whose averages are kept on the CPU; the fake group lets it exist without a device.
    mesh = init_device_mesh("cpu", (4,))
    sharded = distribute_tensor(whole(), mesh, [Shard(0)], src_data_rank=None)
    mesh._device_type = "xpu"
    kept = like(local(sharded).clone(), sharded)
    assert isinstance(kept, DTensor) and kept.to_local().device.type == "cpu" and kept.shape == (5, 3)
    assert kept.placements == sharded.placements
    assert torch.equal(local(torch.zeros_like(kept)), torch.zeros(2, 3))


def test_partial_sums_and_empty_partitions_are_refused_by_name(four_ranks: None) -> None:
    mesh = init_device_mesh("cpu", (4,))
    partial = DTensor.from_local(whole(), mesh, [Partial()])
    for function in (local, runs):
        with pytest.raises(ValueError, match=r"no rank knows its values alone: redistribute"):
            function(partial)
    with pytest.raises(ValueError, match=r"fc\.weight: it is placed as"):
        check_placements({"fc.weight": partial})
    # deepspeedai/DeepSpeed#6987, huggingface/transformers#35994
    empty = nn.Parameter(torch.zeros(0))
    empty.ds_numel = 12  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"fc\.bias is partitioned by DeepSpeed ZeRO-3 and empty here"):
        check_placements({"fc.bias": empty})


def test_other_placements_are_refused_by_name(four_ranks: None) -> None:
    mesh = init_device_mesh("cpu", (4,))
    one = distribute_tensor(whole(), mesh, [Shard(0)], src_data_rank=None)
    two = distribute_tensor(whole(), mesh, [Replicate()], src_data_rank=None)
    check_same_placements({"w": one}, {"w": one.clone()}, what="update")
    for other in (two, whole()):
        with pytest.raises(
            ValueError, match=r"update: w is a .* where a DTensor placed .* was expected.*model\.reshard"
        ):
            check_same_placements({"w": one}, {"w": other}, what="update")
        with pytest.raises(ValueError, match=r"update: w is a DTensor placed \(Shard\(dim=0\),\) where"):
            check_same_placements({"w": other}, {"w": one}, what="update")


def test_fsdp1_is_refused_outside_of_its_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """pytorch/pytorch#149138 asked how to average its shards; its modules cannot be made without an accelerator."""
    import torch.distributed.fsdp as fsdp
    from torch.distributed.fsdp._common_utils import TrainingState

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._fsdp_wrapped_module = nn.Linear(2, 1)
            self.training_state = TrainingState.IDLE

    monkeypatch.setattr(fsdp, "FullyShardedDataParallel", Wrapped)
    model = Wrapped()
    with pytest.raises(ValueError, match=r"inside FullyShardedDataParallel\.summon_full_params\(model\)"):
        SWA().update(model)
    model.training_state = TrainingState.SUMMON_FULL_PARAMS
    average = SWA()
    average.update(model)
    assert list(average.mean()) == ["weight", "bias"]
