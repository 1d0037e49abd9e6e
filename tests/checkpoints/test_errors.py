"""What checkpoints must not do: mix architectures, take damaged or hostile files, lose what was written."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lowland import EMA, SWA, SWAG, checkpoints
from lowland.checkpoints import Plan, average, open_checkpoint, plan_average, plan_posterior, through

from .checkpoint_kinds import distributed, nested, sharded, sharded_bin, single, weights_at


def refused(inputs: list[Path], out: Path, message: str, **more: Any) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        average(inputs, out, through(SWA), **more)
    assert not out.exists()


def test_other_architectures_are_refused_by_name_and_shape(tmp_path: Path) -> None:
    weights = weights_at(0)
    first = single(tmp_path / "first", weights)
    fewer = single(tmp_path / "fewer", {name: t for name, t in weights.items() if name != "scale"})
    refused([first, fewer], tmp_path / "out", r"fewer beside .*first: .* missing \['scale'\], unexpected \[\]")
    more = single(tmp_path / "more", {**weights, "extra": torch.ones(1)})
    refused([first, more], tmp_path / "out", r"missing \[\], unexpected \['extra'\]")
    shaped = single(tmp_path / "shaped", {**weights, "layer.bias": torch.ones(32)})
    refused([first, shaped], tmp_path / "out", r"layer.bias \(32,\) instead of \(33,\)")
    kinds = single(tmp_path / "kinds", {**weights, "steps": torch.ones(2)})
    refused([first, kinds], tmp_path / "out", "steps torch.float32 instead of torch.int64")
    quantised = single(tmp_path / "quantised", {"w": torch.ones(2).to(torch.float8_e4m3fn)})
    refused([quantised], tmp_path / "out", r"cannot be averaged: \['w \(torch.float8_e4m3fn\)'\]")
    refused([first], tmp_path / "out", "dtype must be float64", dtype=torch.int8)
    refused([], tmp_path / "out", "at least one checkpoint is wanted")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_told_by_file_and_tensor(bad: float, tmp_path: Path) -> None:
    broken = weights_at(1)
    broken["layer.weight"][3, 4] = bad
    inputs = [
        single(tmp_path / "0", weights_at(0)),
        single(tmp_path / "1", broken),
        single(tmp_path / "2", weights_at(2)),
    ]
    refused(
        inputs, tmp_path / "out", "layer.weight in .*/1 holds a value that is not finite: leave this checkpoint out"
    )
    with pytest.raises(ValueError, match="layer.weight in .*/1 holds a value that is not finite"):
        checkpoints.posterior(inputs, tmp_path / "p.safetensors", SWA)
    average(inputs, tmp_path / "out", through(SWA), check_finite=False, restart=True)
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_overflow_of_float16_is_an_error(tmp_path: Path) -> None:
    inputs = [single(tmp_path / "a", {"w": torch.tensor([70000.0])})]
    refused(inputs, tmp_path / "out", "w does not fit into float16: pass --dtype", dtype=torch.float16)


def cut_short(path: Path, keep: float) -> None:
    os.truncate(path, int(path.stat().st_size * keep))


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9, 0.999])
def test_truncated_files_are_refused(keep: float, tmp_path: Path) -> None:
    plain = single(tmp_path / "plain", weights_at(0))
    cut_short(plain / "model.safetensors", keep)
    with pytest.raises(ValueError, match="model.safetensors is no whole safetensors file"):
        open_checkpoint(plain)
    torch_file = nested(tmp_path / "torch", weights_at(0))
    cut_short(torch_file, keep)
    with pytest.raises(ValueError, match="last.pt cannot be read as plain tensors"):
        open_checkpoint(torch_file)
    folder = distributed(tmp_path / "dcp", weights_at(0))
    whole = folder / "__0_0.distcp"
    cut_short(whole, keep)
    with pytest.raises(ValueError, match="__0_0.distcp is cut short"):
        open_checkpoint(folder)
    if keep < 0.9:
        cut_short(folder / ".metadata", keep)
        with pytest.raises(ValueError, match="cannot be read as metadata"):
            open_checkpoint(folder)


class Hostile:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.system, ("touch owned",)


def test_nothing_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"w": torch.ones(1)}, "evil": Hostile()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="evil.pt cannot be read as plain tensors"):
        open_checkpoint(tmp_path / "evil.pt")
    folder = distributed(tmp_path / "dcp", weights_at(0))
    (folder / ".metadata").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(ValueError, match="it wants posix.system"):
        open_checkpoint(folder)
    assert not (tmp_path / "owned").exists()


def changed(path: Path, **change: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


def test_indices_that_lie(tmp_path: Path) -> None:
    for name, maker in (("a", sharded), ("b", sharded_bin)):
        folder = maker(tmp_path / name, weights_at(0))
        index = next(folder.glob("*.index.json"))
        honest = json.loads(index.read_text())["weight_map"]
        file = next(iter(honest.values()))
        for weight_map, message in (
            ({**honest, "ghost": file}, r"disagree on where \['ghost'\] lie"),
            ({k: v for k, v in honest.items() if k != "scale"}, r"disagree on where \['scale'\] lie"),
            ({**honest, "scale": "../outside"}, "names files outside its folder"),
            ({**honest, "scale": "[" * 50_000}, "is damaged, it names a file of 50000 letters"),
            ({**honest, "scale": "gone.safetensors"}, "names shards that are not there"),
            ([], "names no shards|is no shard index"),
        ):
            changed(index, weight_map=weight_map)
            with pytest.raises((ValueError, OSError), match=message):
                open_checkpoint(folder)
        index.write_text("{")
        with pytest.raises(ValueError, match="is no shard index"):
            open_checkpoint(folder)


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        open_checkpoint(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no checkpoint: wanted"):
        open_checkpoint(tmp_path / "empty")
    (tmp_path / "text.csv").write_text("a,b")
    with pytest.raises(ValueError, match="text.csv is no checkpoint"):
        open_checkpoint(tmp_path / "text.csv")
    torch.save({"epoch": 3, "history": [1, 2]}, tmp_path / "log.pt")
    with pytest.raises(ValueError, match="holds no mapping of names to tensors.*got \\['epoch', 'history'\\]"):
        open_checkpoint(tmp_path / "log.pt")
    torch.save({"w": torch.ones(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="old.pt"):
        open_checkpoint(tmp_path / "old.pt")
    (tmp_path / "two").mkdir()
    for name in ("a", "b"):
        save_file({"w": torch.ones(1)}, tmp_path / "two" / f"{name}.safetensors")
    with pytest.raises(ValueError, match="several files with weights and no index"):
        open_checkpoint(tmp_path / "two")


def test_outputs_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [single(tmp_path / str(step), weights_at(step)) for step in range(2)]
    with pytest.raises(OSError, match="is there already: name another output"):
        average(inputs, inputs[0], through(SWA))
    (tmp_path / "file").touch()
    refused(inputs, tmp_path / "file" / "out", "file is no folder; name another output")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10})())
    refused(inputs, tmp_path / "out", "0.00 GB are needed, 0.00 GB are free; make room")
    assert not list(tmp_path.glob(".*"))


def test_an_unfinished_run_is_not_mixed_with_another(tmp_path: Path) -> None:
    inputs = [single(tmp_path / str(step), weights_at(step)) for step in range(3)]

    def fail(nbytes: int) -> None:
        raise RuntimeError("stopped")

    out = tmp_path / "out"
    plan = plan_average(inputs, out, through(SWA))
    with pytest.raises(RuntimeError, match="stopped"):
        plan.run(fail)
    assert (tmp_path / ".out.part").is_dir() and not out.exists()
    refused(inputs[:2], out, "holds an unfinished run with other inputs or settings: pass --restart")
    with (tmp_path / ".out.part" / "lowland-journal").open() as held:
        import fcntl

        fcntl.flock(held, fcntl.LOCK_EX)
        refused(inputs, out, "another process is writing")
    average(inputs[:2], out, through(SWA), restart=True)
    assert not (tmp_path / ".out.part").exists()


KILLED = """
    import sys, time
    from functools import partial
    from pathlib import Path
    import torch
    from lowland import SWAG, EMA, checkpoints
    from lowland.checkpoints import output, streaming

    torch.set_num_threads(1)
    output.SYNC_BYTES, streaming._LONGEST = 20_000, 5_000
    home, out = Path(sys.argv[1]), Path(sys.argv[2])
    inputs = sorted(home.glob("[0-9]*"))
    if out.name == "posterior.safetensors":
        plan = checkpoints.plan_posterior(inputs, out, partial(SWAG, rank=2))
    else:
        plan = checkpoints.plan_average(inputs, out, checkpoints.through(partial(EMA, decay=0.5)))
    print("ready", flush=True)
    plan.run(lambda nbytes: time.sleep(0.001))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kills"), [("average", 2), ("average.pt", 1), ("posterior.safetensors", 1)])
def test_killed_at_any_moment_it_ends_with_the_same_bytes(
    name: str, kills: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lowland.checkpoints.streaming._LONGEST", 5_000)
    home, out = tmp_path / "home", tmp_path / name
    home.mkdir()
    for step in range(3):
        g = torch.Generator().manual_seed(step)
        weights = {key: torch.randn(200_000, generator=g).bfloat16() for key in "abcd"}
        if name == "average.pt":
            torch.save({"state_dict": weights}, home / f"{step}.pt")
        else:
            sharded(home / str(step), {**weights, "n": torch.tensor(step)})
    inputs = sorted(home.iterdir())

    def plan(target: Path) -> Plan:
        if name == "posterior.safetensors":
            return plan_posterior(inputs, target, partial(SWAG, rank=2))
        return plan_average(inputs, target, through(partial(EMA, decay=0.5)))

    journal = tmp_path / f".{name}.part" / "lowland-journal"
    entered = 0
    for _ in range(kills):
        command = [sys.executable, "-c", textwrap.dedent(KILLED), str(home), str(out)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        deadline = time.monotonic() + 20
        while (not journal.exists() or len(journal.read_text().split()) <= entered) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
        now = len(journal.read_text().split())
        assert now > entered, "it did not go on where it stopped"
        entered = now
    moved: list[int] = []
    again = plan(out)
    again.run(moved.append)
    assert moved[0] > 0  # told at once: what an earlier run had done
    (tmp_path / "straight").mkdir()
    plan(tmp_path / "straight" / name).run()
    one, two = (contents(path) for path in (out, tmp_path / "straight" / name))
    assert one and one == two
    assert not list(tmp_path.glob(".*"))


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (path.iterdir() if path.is_dir() else [path])}
