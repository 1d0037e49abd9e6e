"""Sharded models: `sharded_run.py` under torchrun on two ranks, its checkpoints on three and on one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import lowland
from lowland import SWAG, load
from lowland.integrations.distributed import export, load_sharded, save_sharded

from ..problems import walk
from .sharded_run import METHODS, Net, path, plain, same_state

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


def torchrun(ranks: int, *arguments: str) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    script = Path(__file__).with_name("sharded_run.py")
    # Loopback and one thread a rank, whatever the machine's network and cores are.
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(script), *arguments], capture_output=True, text=True, timeout=900, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)  # about 20 s on two idle cores
def test_two_ranks_and_their_checkpoints_on_three_and_one(tmp_path: Path) -> None:
    assert "checkpoints_are_written" in torchrun(2, str(tmp_path))
    assert "checkpoints_load" in torchrun(3, str(tmp_path), "load")
    model = Net()
    for name, make in METHODS.items():
        average = load_sharded(make(), model, tmp_path / name)
        same_state(average, plain(make, path(model)[:4]))
        for weights in path(model)[4:]:
            average.update(weights)
        same_state(average, plain(make, path(model)))
    same_state(load(tmp_path / "state.safetensors"), plain(METHODS["Snapshots"], path(model)))


def filled(rank: int = 3) -> SWAG:
    swag = SWAG(rank=rank)
    for weights in walk(5):
        swag.update(weights)
    return swag


def like() -> dict[str, Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in walk(1)[0].items()}


def test_one_process_without_a_group(tmp_path: Path) -> None:
    save_sharded(filled(), tmp_path / "folder")
    lowland.save(filled(), tmp_path / "file")
    for source in ("folder", "file"):
        average = load_sharded(SWAG(rank=3), like(), tmp_path / source)
        same_state(average, filled())
        average.update(walk(6)[-1])
        assert average.count == 6


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    lowland.save(filled(), tmp_path / "file")
    with pytest.raises(ValueError, match="made under other hyper-parameters: rank"):
        load_sharded(SWAG(rank=4), like(), tmp_path / "file")
    with pytest.raises(ValueError, match=r"tensors are named differently: missing \['other'\], unexpected"):
        load_sharded(SWAG(rank=3), {"other": torch.zeros(2)}, tmp_path / "file")
    with pytest.raises(ValueError, match=r"mean/scale is F32 of shape \(\) in file, got F32 of shape \(2,\)"):
        load_sharded(SWAG(rank=3), {**like(), "scale": torch.zeros(2)}, tmp_path / "file")
    with pytest.raises(RuntimeError, match="already holds 5 updates"):
        load_sharded(filled(), like(), tmp_path / "file")
    with pytest.raises(RuntimeError, match=r"SWAG has no tensors to read into: call allocate\(model\) first"):
        lowland.files.load_into(SWAG(rank=3), tmp_path / "file")


def test_export_keeps_what_is_not_floating(tmp_path: Path) -> None:
    export({"w": torch.ones(2), "steps": torch.tensor(3)}, tmp_path / "m", dtype=torch.float16, metadata={"a": "b"})
    with lowland.files.tensorfile.File(tmp_path / "m") as file:
        assert file.read("w").dtype == torch.float16 and file.read("steps").item() == 3
        assert file.metadata == {"a": "b"}
