"""State files: round trips, atomic writes, and every way in which a file can be bad."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import lowland
from lowland import SWA, SWAG, Mixture
from lowland.weights.named import matching, parameters, trainable

from ..problems import walk


def filled(seed: int = 0, rank: int = 3) -> SWAG:
    swag = SWAG(rank=rank, select=trainable)
    for weights in walk(5, seed):
        swag.update(weights)
    return swag


def test_mixture_round_trip_draws_the_same(tmp_path: Path) -> None:
    average = SWA()
    average.update(walk(1)[0])
    mixture = Mixture([filled(0), filled(1), average, walk(1, 5)[0], Mixture([filled(2)])])
    lowland.save(mixture, tmp_path / "posterior.safetensors")
    read = lowland.load(tmp_path / "posterior.safetensors")
    assert [type(part).__name__ for part in read.components] == ["SWAG", "SWAG", "SWA", "dict", "Mixture"]
    one = mixture.sample(7, generator=torch.Generator().manual_seed(0))
    two = read.sample(7, generator=torch.Generator().manual_seed(0))
    assert list(one) == list(two)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_header_says_what_the_file_is(tmp_path: Path) -> None:
    path = tmp_path / "swag.safetensors"
    lowland.save(filled(), path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["lowland"])
        assert "mean/first.weight" in set(file.keys())
    assert header["class"] == "SWAG" and header["count"] == 5 and header["select"] == "trainable"
    assert header["settings"] == {"rank": 3, "deviations_dtype": "float32"}
    assert lowland.load(path).select is trainable
    assert lowland.load(path, select=parameters).select is parameters
    assert str(lowland.load(path, device="meta").device) == "meta"


def test_views_and_odd_names_survive(tmp_path: Path) -> None:
    base = torch.arange(6.0).reshape(2, 3)
    weights = {"a/b": base.T, "c": base[0], "": torch.tensor(1, dtype=torch.int64), "bf": base.bfloat16()}
    lowland.save(weights, tmp_path / "w.safetensors")
    read = lowland.load(tmp_path / "w.safetensors")
    assert list(read) == list(weights)
    assert all(torch.equal(read[name], weights[name]) and read[name].dtype == weights[name].dtype for name in read)
    lowland.save(SWA(select=matching("x")), tmp_path / "empty.safetensors")
    assert lowland.load(tmp_path / "empty.safetensors").count == 0


def test_files_that_are_not_ours(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    with pytest.raises(FileNotFoundError, match="there is no file"):
        lowland.load(path)
    for content in (b"", b"hello", b"\xff" * 64, b"\x80\x04\x95cos\nsystem\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is no whole safetensors file"):
            lowland.load(path)
    lowland.save(filled(), path)
    whole = path.read_bytes()
    for cut in (4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="is no whole safetensors file"):
            lowland.load(path)
    save_file({"w": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="not one of lowland.save; read it with safetensors.torch.load_file"):
        lowland.load(path)
    with pytest.raises(ValueError, match="is no whole safetensors file"):
        lowland.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class": "os.system"}, "it holds a 'os.system', known are"),
        ({"class": ["SWAG"]}, "cannot be read"),
        ({"settings": {"rank": -4}}, "rank must be 0"),
        ({"settings": {"evil": 1}}, "evil"),
        ({"names": ["stranger"]}, "stranger"),
        ({"count": -1}, "count must be a whole number"),
        ({"format": 99}, "its format is 99, this version reads 1"),
        ({"select": "matching(__import__('os'))"}, "cannot be read"),
    ],
)
def test_hostile_headers(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    lowland.save(filled(), path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["lowland"])
    save_file(load_file(path), path, metadata={"lowland": json.dumps({**header, **change})})
    with pytest.raises(ValueError, match="cannot be read as a lowland state") as error:
        lowland.load(path)
    assert message in str(error.value)
    for header in ("[]", "3", "null", "{"):
        save_file({"w": torch.ones(1)}, path, metadata={"lowland": header})
        with pytest.raises(ValueError, match="lowland"):
            lowland.load(path)


@pytest.mark.parametrize("name", ["s.pt", "s.pth", "s.bin", "s.ckpt", "s.pkl"])
def test_a_suffix_of_pickles_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="safetensors"):
        lowland.save(filled(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="save takes an averager, a Mixture of such, or a mapping"):
        lowland.save(3, tmp_path / "x")  # type: ignore[arg-type]
    with pytest.raises(OSError, match="the folder .* does not exist; make it first"):
        lowland.save(filled(), tmp_path / "none" / "x")
    with pytest.raises(OSError, match="it is a folder; name a file in it"):
        lowland.save(filled(), tmp_path)
    path = tmp_path / "kept"
    lowland.save(filled(), path)
    before = path.read_bytes()
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(OSError, match="MB are needed, 0.0 MB are free; make room or choose another disk"):
        lowland.save(filled(1), path)
    monkeypatch.undo()

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lowland.files.tensorfile._put", fail)
    with pytest.raises(OSError, match="No space left"):
        lowland.save(filled(1), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_killed_while_writing_leaves_the_old_or_the_new_file(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    script = textwrap.dedent(
        f"""
        import torch, lowland
        print("ready", flush=True)
        value = 0
        while True:
            value += 1
            lowland.save({{"w": torch.full((200_000,), float(value))}}, {str(path)!r})
        """
    )
    for delay in (0.02, 0.05):
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        deadline = time.monotonic() + 20
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        read = lowland.load(path)["w"]
        assert len(read.unique()) == 1
