"""Distributed checkpoints out: the keys, shapes and pieces that came in, loaded at any number of ranks, and resumed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lowland import SWA
from lowland.checkpoints import average, open_checkpoint, plan_average, through

from .layouts import dcp, full, moments, safe


def loaded(folder: Path, like: dict[str, Any]) -> dict[str, Any]:
    import torch.distributed.checkpoint as checkpoint

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpoint.load(like, checkpoint_id=folder, no_dist=True)
    return like


def merged(inputs: list[Path], out: Path) -> Path:
    return plan_average(inputs, out, through(SWA), form="dcp").run()


def metadata(folder: Path) -> Any:
    from torch.distributed.checkpoint import FileSystemReader

    return FileSystemReader(folder).read_metadata()


@pytest.mark.parametrize("keys", [("model",), ("app", "model"), ()], ids=["model", "app.model", "flat"])
def test_the_keys_that_came_in_go_out_without_the_optimiser(keys: tuple[str, ...], tmp_path: Path) -> None:
    def nested(value: dict[str, Any], beside: dict[str, Any]) -> dict[str, Any]:
        for depth, key in enumerate(reversed(keys)):
            value = {key: value, **(beside if depth == 0 else {})}
        return value if keys else {**value, **beside}

    inputs = []
    for step in (0, 1):
        model = {"layer.weight": full(step), "steps": torch.tensor([step]), "layer._extra_state": {"amax": [step]}}
        dcp(tmp_path / str(step), nested(model, {"optim": moments(step)}))
        inputs.append(tmp_path / str(step))
    out = merged(inputs, tmp_path / "out")
    like = nested({"layer.weight": full(9), "steps": torch.tensor([9]), "layer._extra_state": {"amax": [9]}}, {})
    got = loaded(out, like)
    for key in keys:
        got = got[key]
    assert got["layer.weight"].unique().tolist() == [0.5] and got["steps"].tolist() == [1]
    assert got["layer._extra_state"] == {"amax": [1]}
    held, was = metadata(out), metadata(inputs[0])
    assert not any("optim" in name for name in held.state_dict_metadata)
    assert {name: entry for name, entry in was.planner_data.items() if "optim" not in name} == held.planner_data
    assert {p.name for p in out.iterdir()} == {".metadata", "__0_0.distcp", "lowland_merge.json"}
    account = json.loads((out / "lowland_merge.json").read_text())["account"]
    assert account["averaged"] == ["layer.weight"] and len(account["carried"]) == 2
    again = average([out, out.parent / "0"], tmp_path / "again", through(SWA))
    assert open_checkpoint(again).tensors.keys() == {"layer.weight", "steps"}


def test_other_inputs_become_distributed_too_with_the_same_bytes_each_time(tmp_path: Path) -> None:
    for step in (0, 1):
        safe(tmp_path / str(step) / "model.safetensors", {"a.w": full(step), "scale": torch.tensor(float(step))})
    inputs = [tmp_path / "0", tmp_path / "1"]
    got = loaded(merged(inputs, tmp_path / "out"), {"a.w": full(9), "scale": torch.tensor(9.0)})
    assert got["a.w"].unique().tolist() == [0.5] and got["scale"].item() == 0.5
    (tmp_path / "other").mkdir()
    for file in merged(inputs, tmp_path / "other" / "out").iterdir():
        assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes(), file.name
    with pytest.raises(ValueError, match="a distributed checkpoint is a folder"):
        plan_average(inputs, tmp_path / "out.pt", through(SWA), form="dcp")


def test_a_merge_that_was_stopped_while_it_was_written_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (0, 1):
        dcp(tmp_path / str(step), {"model": {"w": full(step)}})
    inputs = [tmp_path / "0", tmp_path / "1"]

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lowland.checkpoints.distributed_out.save", stop)
    with pytest.raises(KeyboardInterrupt):
        merged(inputs, tmp_path / "out")
    assert (tmp_path / ".out.part").is_dir() and not (tmp_path / "out").exists()
    monkeypatch.undo()
    assert loaded(merged(inputs, tmp_path / "out"), {"model": {"w": full(9)}})["model"]["w"][0, 0] == 0.5
    assert not list(tmp_path.glob(".*"))


SHARDED = """
    import sys
    from pathlib import Path
    import torch
    import torch.distributed as dist
    import torch.distributed.checkpoint as checkpoint
    from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor, zeros

    dist.init_process_group("gloo")
    world = dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,))
    mode, folder = sys.argv[1], Path(sys.argv[2])
    if mode == "save":
        for step in (0, 1):
            whole = torch.arange(35.0).view(7, 5) + step
            placed = distribute_tensor(whole, mesh, [Shard(0)])
            across = distribute_tensor(whole, mesh, [Shard(1)])
            state = {"model": {"w": placed, "x": across}, "optim": {"exp_avg": placed}}
            checkpoint.save(state, checkpoint_id=folder / str(step))
    else:
        for count in (1, 2, 3):
            group = dist.new_group(list(range(count)))
            if dist.get_rank() < count:
                part = DeviceMesh.from_group(group, "cpu")
                state = {"model": {name: zeros(7, 5, device_mesh=part, placements=[Shard(0)]) for name in "wx"}}
                checkpoint.load(state, checkpoint_id=folder, process_group=group)
                for tensor in state["model"].values():
                    assert torch.equal(tensor.full_tensor(), torch.arange(35.0).view(7, 5) + 0.5)
    dist.destroy_process_group()
"""


def torchrun(ranks: int, *arguments: str) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    port = 20_000 + os.getpid() % 20_000 + ranks
    done = subprocess.run(
        [*command, "--master-port", str(port), *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_saved_by_two_ranks_merged_by_two_loaded_by_one_two_and_three(tmp_path: Path) -> None:
    script = tmp_path / "sharded.py"
    script.write_text(textwrap.dedent(SHARDED))
    torchrun(2, str(script), "save", str(tmp_path))
    inputs = [tmp_path / "0", tmp_path / "1"]
    alone = merged(inputs, tmp_path / "alone")
    held, was = metadata(alone), metadata(inputs[0])
    for name in ("model.w", "model.x"):
        assert held.state_dict_metadata[name] == was.state_dict_metadata[name]
        assert len(held.state_dict_metadata[name].chunks) == 2
    options = ["--as", "dcp", "--out", str(tmp_path / "together")]
    torchrun(2, "-m", "lowland", "average", *map(str, inputs), *options)
    for file in alone.iterdir():
        assert file.read_bytes() == (tmp_path / "together" / file.name).read_bytes(), file.name
    torchrun(3, str(script), "load", str(alone))


@pytest.mark.slow
def test_two_processes_write_what_one_writes(tmp_path: Path) -> None:
    weights: dict[str, Tensor] = {}
    for step in (0, 1):
        g = torch.Generator().manual_seed(step)
        weights = {f"w{n}": torch.randn(1 << 19, generator=g) for n in range(5)}
        safe(tmp_path / str(step) / "model.safetensors", {**weights, "n": torch.tensor([step])})
    inputs = [tmp_path / "0", tmp_path / "1"]
    average(inputs, tmp_path / "one", through(SWA))
    torchrun(2, "-m", "lowland", "average", *map(str, inputs), "--out", str(tmp_path / "two"))
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name
    assert not list(tmp_path.glob(".*"))
