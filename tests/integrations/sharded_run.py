"""What must hold of averages of sharded models, run by `test_distributed.py` under torchrun.

    torchrun --nproc-per-node 2 tests/integrations/sharded_run.py FOLDER        everything; leaves checkpoints in FOLDER
    torchrun --nproc-per-node 3 tests/integrations/sharded_run.py FOLDER load   loads them on as many ranks as there are

Every rank computes the same iterates. Beside the sharded averages run plain ones of the whole tensors in the same
process: what one process would have computed.
"""

from __future__ import annotations

import copy
import faulthandler
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import lowland
from lowland import ASWA, EMA, SWA, SWAG, Snapshots, applied, copy_to, refresh_bn, weights_of
from lowland.averager import Averager
from lowland.averager import averager as seam
from lowland.integrations.distributed import export, load_sharded, save_sharded
from lowland.teacher import Teacher
from lowland.weights.named import Weights

STEPS = 6


class Net(nn.Module):
    """Rows that two and three ranks cannot share evenly, a single row, one number, and BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 7)
        self.norm = nn.BatchNorm1d(7)
        self.second = nn.Linear(7, 3)
        self.last = nn.Linear(3, 1)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.second(torch.relu(self.norm(self.first(x)))))) * self.scale


class Pair(nn.Module):
    """What tensor parallelism splits by columns and rows."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 10), nn.Linear(10, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))


def path(model: nn.Module, steps: int = STEPS) -> list[dict[str, Tensor]]:
    """A random walk of whole weights, the same on every rank."""
    generator = torch.Generator().manual_seed(0)
    position = {name: torch.randn(tuple(t.shape), generator=generator) for name, t in weights_of(model).items()}
    found = []
    for _ in range(steps):
        position = {n: w + 0.1 * torch.randn(w.shape, generator=generator) for n, w in position.items()}
        found.append(position)
    return found


def sharded(kind: type[nn.Module] = Net) -> nn.Module:
    torch.manual_seed(0)
    model = kind()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    if isinstance(model, Net):
        fully_shard(model.second, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def total(weights: Weights) -> float:
    return sum(float(whole(tensor).abs().sum()) for tensor in weights.values())


METHODS: dict[str, Callable[..., Averager]] = {
    "SWA": SWA,
    "EMA": lambda **k: EMA(0.9, **k),
    "SWAG": lambda **k: SWAG(rank=3, **k),
    "SWAG, not yet full": lambda **k: SWAG(rank=20, **k),
    "SWAG-diagonal": lambda **k: SWAG(rank=0, **k),
    "SWAG-bfloat16": lambda **k: SWAG(rank=3, deviations_dtype=torch.bfloat16, **k),
    "Snapshots": lambda **k: Snapshots(3, **k),
    "ASWA": lambda **k: ASWA(total, **k),
}


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def same(got: Weights, expected: Weights) -> None:
    assert list(got) == list(expected), (list(got), list(expected))
    for name, tensor in expected.items():
        assert whole(got[name]).dtype == tensor.dtype
        assert torch.equal(whole(got[name]), tensor), name


def same_state(got: Averager, expected: Averager) -> None:
    one, two = got.state_dict(), expected.state_dict()
    assert {**one, "slots": None} == {**two, "slots": None}
    for slot, named in two["slots"].items():
        same(one["slots"][slot], named)


def filled(make: Callable[..., Averager], model: nn.Module, steps: list[dict[str, Tensor]]) -> Averager:
    """Averaged from the model, whose shards go through `steps`."""
    average = make()
    for weights in steps:
        copy_to(model, weights)
        average.update(model)
    return average


def plain(make: Callable[..., Averager], steps: list[dict[str, Tensor]]) -> Averager:
    average = make()
    for weights in steps:
        average.update(weights)
    return average


def refused(call: Callable[[], object], kind: type[Exception], text: str) -> None:
    try:
        call()
    except kind as error:
        assert text in str(error), error
    else:
        raise AssertionError(f"nobody raised {text!r}")


def averages_are_those_of_one_process(folder: Path) -> None:
    model = sharded()
    steps = path(model)
    for name, make in METHODS.items():
        got, expected = filled(make, model, steps), plain(make, steps)
        same_state(got, expected)
        # pytorch/pytorch#144289: "Should EMA store DTensor or Tensor?"
        for key, tensor in got.mean().items():
            like = weights_of(model)[key]
            assert isinstance(tensor, DTensor) and isinstance(like, DTensor), key
            assert tensor.placements == like.placements and tensor.device_mesh == like.device_mesh
        same(got.mean(), expected.mean())
        if isinstance(got, SWAG) and isinstance(expected, SWAG):
            same(got.variance(), expected.variance())
            columns = got.state_dict()["slots"].get("deviations", {})
            assert all(isinstance(t, DTensor) and t.placements[0].is_shard(1) for t in columns.values()), name


def training_is_followed(folder: Path) -> None:
    """Real steps: pytorch/pytorch#149138, "FSDP with AveragedModel", where a deepcopy of the model fails."""
    model, average, seen = sharded(), SWAG(rank=3), []
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(4):
        batch = torch.randn(8, 5, generator=torch.Generator().manual_seed(step))
        model(batch).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
        average.update(model)
        seen.append({name: whole(t).clone() for name, t in weights_of(model).items()})
    assert not torch.equal(seen[0]["first.weight"], seen[-1]["first.weight"])
    same_state(average, plain(lambda: SWAG(rank=3), seen))


def a_teacher_is_asked_between_forward_and_backward(folder: Path) -> None:
    """Shards gathered by the student's forward are not those that the teacher's pass or the backward pass uses."""
    torch.manual_seed(0)
    alone = Net()
    model = sharded()
    generator = torch.Generator().manual_seed(3)
    begin = {name: torch.randn(tuple(t.shape), generator=generator) for name, t in weights_of(alone).items()}
    found = []
    for student in (alone, model):
        copy_to(student, begin)
        student.eval()  # BatchNorm of a batch, and of shares of it, differ
        teacher = Teacher(EMA(0.5), student)
        optimizer = torch.optim.SGD(student.parameters(), lr=0.05)
        outputs = []
        for step in range(3):
            x = torch.randn(8, 5, generator=torch.Generator().manual_seed(step))
            out = student(x)
            with teacher.weights():
                target = student(x)
            outputs.append(target.clone())
            optimizer.zero_grad()
            ((out - target).square().mean() + out.square().mean()).backward()
            optimizer.step()
            teacher.update()
        found.append((outputs, teacher.averager.mean(), weights_of(student)))
    (outputs, mean, weights), (sharded_outputs, sharded_mean, sharded_weights) = found
    for one, other in zip(outputs, sharded_outputs, strict=True):
        torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-5)
    for one, other in ((mean, sharded_mean), (weights, sharded_weights)):
        for name, tensor in one.items():
            torch.testing.assert_close(whole(other[name]).float(), tensor, atol=1e-5, rtol=1e-5)
    assert any(isinstance(tensor, DTensor) for tensor in sharded_mean.values())


def nothing_is_communicated(folder: Path) -> None:
    model = sharded()
    for name, make in METHODS.items():
        if name == "ASWA":
            continue  # its score is the user's, who sums over shards
        with CommDebugMode() as mode:
            average = filled(lambda make=make: make(check_finite=False), model, path(model))
            state = average.state_dict()
            again = make(check_finite=False)
            again.load_state_dict(state)
            again.mean()
            if isinstance(average, SWAG):
                average.variance()
                average.sample(generator=torch.Generator().manual_seed(0))
                average.sample(2, generator=torch.Generator().manual_seed(0))
            copy.deepcopy(average.settings)
        assert mode.get_total_counts() == 0, (name, dict(mode.get_comm_counts()))


def all_ranks_refuse_what_one_cannot_take(folder: Path) -> None:
    model = sharded()
    steps, pays = path(model), seam.pays
    for beside in (False, True):
        average = filled(SWA, model, steps[:2])
        seam.pays = (lambda device, weights: True) if beside else pays
        with torch.no_grad():
            parameter = weights_of(model)["first.weight"]
            kept = parameter.to_local().clone()
            if dist.get_rank() == 1:
                parameter.to_local()[0, 0] = torch.inf
        who = "first.weight" if dist.get_rank() == 1 else "on another rank"
        refused(lambda average=average: average.update(model), ValueError, who)
        with torch.no_grad():
            parameter.to_local().copy_(kept)
        same_state(average, plain(SWA, steps[:2]))
        copy_to(model, steps[2])
        average.update(model)
        same_state(average, plain(SWA, steps[:3]))
    seam.pays = pays


def forwards_do_not_hide_the_shards(folder: Path) -> None:
    """After a forward without a backward the root's parameters are whole, plain ones until it is resharded."""
    model = sharded()
    steps = path(model)
    average = filled(SWA, model, steps)
    batch = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    model.eval()
    model(batch)
    assert not isinstance(model.scale, DTensor), "torch reshards by itself now: the trap is gone"
    average.update(model)
    same_state(average, plain(SWA, [*steps, steps[-1]]))
    # What is written after a forward goes into the shards, and is what the next forward uses.
    model(batch)
    twin = Net().eval()
    copy_to(twin, {name: whole(t) for name, t in average.mean().items()})
    before = model(batch)
    with applied(model, average.mean()):
        assert torch.equal(model(batch), twin(batch))
    # And what is put back after a forward within the block (the compiled forward of wandb/senpai#3303 saw none of it).
    assert torch.equal(model(batch), before) and not torch.equal(before, twin(batch))
    same(weights_of(model), steps[-1])
    try:
        with applied(model, steps[0]):  # whole tensors: every rank takes its part
            model(batch)
            same(weights_of(model), steps[0])
            raise KeyError
    except KeyError:
        pass
    same(weights_of(model), steps[-1])
    compiled = torch.compile(model, backend="eager")
    average.update(compiled)  # wandb/senpai#2899: `_orig_mod.` in the names, and the EMA never updated
    assert average.count == STEPS + 2
    refused(lambda: copy_to(twin, average.mean()), ValueError, "was expected")


def bad_placements_are_refused(folder: Path) -> None:
    model = sharded()
    average = filled(SWA, model, path(model)[:1])
    refused(lambda: average.update(path(model)[0]), ValueError, "is a plain tensor where a DTensor placed")
    weights = weights_of(model)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    partial = {**weights, "scale": DTensor.from_local(torch.ones(1), mesh, [Partial()])}
    refused(lambda: average.update(partial), ValueError, "scale: it is placed as")
    refused(lambda: SWA().update(partial), ValueError, "no rank knows its values alone")
    assert average.count == 1


def tensor_parallel(folder: Path) -> None:
    torch.manual_seed(0)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = parallelize_module(Pair(), mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    steps = path(model)
    for make in (SWA, METHODS["SWAG"]):
        average = filled(make, model, steps)
        placed = {name: t.placements[0] for name, t in average.mean().items() if isinstance(t, DTensor)}
        assert placed["down.weight"].is_shard(1) and placed["down.bias"].is_replicate()
        same_state(average, plain(make, steps))
    # Columns of a matrix are many short runs of the file.
    lowland.save(average, folder / "parallel.safetensors")
    same_state(lowland.load(folder / "parallel.safetensors"), plain(make, steps))
    same_state(load_sharded(make(), model, folder / "parallel.safetensors"), plain(make, steps))
    # Two axes: replicated over the first, and sharded as FSDP2 shards tensor-parallel weights.
    both = init_device_mesh("cpu", (1, dist.get_world_size()), mesh_dim_names=("data", "model"))
    torch.manual_seed(0)
    model = parallelize_module(Pair(), both["model"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    model = fully_shard(model, mesh=both["data"])
    average = filled(METHODS["SWAG"], model, steps)
    assert all(len(t.placements) == 2 for t in average.mean().values() if isinstance(t, DTensor))
    same_state(average, plain(METHODS["SWAG"], steps))


def ddp(folder: Path) -> None:
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(Net())
    steps = path(model)
    assert "first.weight" in steps[0]  # sming256/OpenTAD#44: the prefix `module.` in the names
    same_state(filled(METHODS["SWAG"], model, steps), plain(METHODS["SWAG"], steps))


def batch_norm_sees_all_batches(folder: Path) -> None:
    """timgaripov/swa#22: with several ranks, which statistics?"""
    model, twin = sharded(), Net()
    weights = path(model)[0]
    copy_to(twin, weights)
    ranks = dist.get_world_size()
    batches = [torch.randn(6, 5, generator=torch.Generator().manual_seed(i)) for i in range(2 * ranks)]
    with applied(model, weights):
        refresh_bn(model, batches[dist.get_rank() :: ranks])
        got = model.norm.running_mean.clone(), model.norm.running_var.clone()
    refresh_bn(twin, batches, synchronise=False)
    assert torch.allclose(got[0], twin.norm.running_mean, atol=1e-6)
    assert torch.allclose(got[1], twin.norm.running_var, atol=1e-6)
    assert not model.norm.running_mean.any(), "put back with the weights"


def draws_are_those_of_one_process(folder: Path) -> None:
    model = sharded()
    steps = path(model)
    for name in ("SWAG", "SWAG, not yet full", "SWAG-diagonal", "SWAG-bfloat16"):
        got, expected = filled(METHODS[name], model, steps), plain(METHODS[name], steps)
        for n in (None, 3):
            for block in (False, True):
                one, two = (
                    posterior.tempered(1.0, block=block).sample(n, generator=torch.Generator().manual_seed(7))
                    for posterior in (got, expected)
                )
                same(one, two)
                assert all(isinstance(t, DTensor) for t in one.values())


def one_file_without_gathering(folder: Path) -> None:
    model = sharded()
    steps = path(model)
    for make in (METHODS["SWAG"], METHODS["Snapshots"]):
        average = filled(make, model, steps)
        lowland.save(average, folder / "state.safetensors")
        same_state(lowland.load(folder / "state.safetensors"), plain(make, steps))
        same_state(load_sharded(make(), model, folder / "state.safetensors"), plain(make, steps))
    import lowland.files.tensorfile as tensorfile

    chunk, tensorfile.CHUNK = tensorfile.CHUNK, 32  # so that these small tensors come in many pieces
    export(average.mean(), folder / "model.safetensors", dtype=torch.bfloat16)
    tensorfile.CHUNK = chunk
    mean = plain(make, steps).mean()
    read = load_file(folder / "model.safetensors")
    assert all(torch.equal(read[name], tensor.bfloat16()) for name, tensor in mean.items())
    refused(lambda: lowland.save(average, folder / "none" / "x"), OSError, "does not exist; make it first")
    refused(lambda: load_sharded(SWA(), model, folder / "state.safetensors"), ValueError, "got a SWA to load it")
    refused(lambda: load_sharded(SWA(), model, folder / "none"), FileNotFoundError, "there is no folder or file")
    refused(lambda: save_sharded(SWA(), folder / "x"), RuntimeError, "call update(model) before")


def _write(handle: object, *_: object) -> None:
    raise OSError(28, "No space left on device")


def a_full_disk_is_known_to_all(folder: Path) -> None:
    import lowland.files.tensorfile as tensorfile

    model = sharded()
    average = filled(METHODS["SWAG"], model, path(model))
    put, tensorfile._put = tensorfile._put, _write
    refused(lambda: lowland.save(average, folder / "full.safetensors"), OSError, "No space left")
    tensorfile._put = put
    assert not list(folder.glob("*full*"))


def whole_states_go_into_shards(folder: Path) -> None:
    model = sharded()
    steps = path(model)
    for name in ("SWAG", "EMA"):
        average = METHODS[name]()
        average.allocate(model)
        average.load_state_dict(plain(METHODS[name], steps[:3]).state_dict())
        for weights in steps[3:]:
            copy_to(model, weights)
            average.update(model)
        same_state(average, plain(METHODS[name], steps))


def checkpoints_are_written(folder: Path) -> None:
    model = sharded()
    for name, make in METHODS.items():
        save_sharded(filled(make, model, path(model)[:4]), folder / name)


def checkpoints_load(folder: Path) -> None:
    """mosaicml/composer#2016: resuming SWA on two GPUs, "known issue that we won't fix"; here on any number."""
    model = sharded()
    steps = path(model)
    for name, make in METHODS.items():
        average = load_sharded(make(), model, folder / name)
        same_state(average, plain(make, steps[:4]))
        assert all(isinstance(tensor, DTensor) for tensor in average.mean().values())
        for weights in steps[4:]:
            copy_to(model, weights)
            average.update(model)
        same_state(average, plain(make, steps))
    same_state(load_sharded(Snapshots(3), model, folder / "state.safetensors"), plain(METHODS["Snapshots"], steps))


CHECKS: dict[str, list[Callable[[Path], None]]] = {
    "all": [
        averages_are_those_of_one_process,
        training_is_followed,
        a_teacher_is_asked_between_forward_and_backward,
        nothing_is_communicated,
        all_ranks_refuse_what_one_cannot_take,
        forwards_do_not_hide_the_shards,
        bad_placements_are_refused,
        tensor_parallel,
        ddp,
        batch_norm_sees_all_batches,
        draws_are_those_of_one_process,
        one_file_without_gathering,
        a_full_disk_is_known_to_all,
        whole_states_go_into_shards,
        checkpoints_are_written,
    ],
    "load": [checkpoints_load],
    "teacher": [a_teacher_is_asked_between_forward_and_backward],
}


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # torch's own, about gloo and its checkpoints
    faulthandler.dump_traceback_later(240, exit=True)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for check in CHECKS[sys.argv[2] if len(sys.argv) > 2 else "all"]:
        begin = time.perf_counter()
        check(Path(sys.argv[1]))
        if dist.get_rank() == 0:
            print(f"{check.__name__}: {time.perf_counter() - begin:.2f} s", flush=True)
    dist.barrier()
    dist.destroy_process_group()
    faulthandler.cancel_dump_traceback_later()
