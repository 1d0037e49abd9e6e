"""Files that other tools wrote, that are damaged or mean harm: read right or refused by name, and nothing is run."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import pickle
import struct
import time
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import lowland
from lowland import SWA, SWAG
from lowland.checkpoints import average, describe, open_checkpoint, plan_average, sample, through
from lowland.checkpoints.pickles import loads

from .layouts import dcp, full


def repacked(source: Path, target: Path, change: Callable[[str, bytes], bytes | None], how: int = 0) -> Path:
    """The archive packed anew by another tool, its records changed; None leaves one out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", how) as new:
        for name in old.namelist():
            content = change(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
    return target


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.save({f"l{n}": torch.full((300,), float(n + 1)) for n in range(4)}, tmp_path / "a.pt")
    return tmp_path / "a.pt"


def test_an_archive_packed_again_gives_the_numbers_that_torch_reads(file: Path, tmp_path: Path) -> None:
    again = repacked(file, tmp_path / "b.pt", lambda name, content: content)
    aligned = tmp_path / "c.pt"  # records that begin elsewhere than torch's own would
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(aligned, "w") as new:
        for place, info in enumerate(reversed(old.infolist())):
            other = zipfile.ZipInfo(info.filename)
            other.extra = struct.pack("<HH", 0x4246, 8 * place) + b"\0" * 8 * place
            new.writestr(other, old.read(info))
    for path in (again, aligned):
        got = load_file(average([path], tmp_path / f"{path.stem}.safetensors", through(SWA)))
        for name, wanted in torch.load(path, weights_only=True).items():
            assert torch.equal(got[name], wanted)


@pytest.mark.parametrize(
    ("change", "how", "message"),
    [
        (lambda n, c: c, zipfile.ZIP_DEFLATED, "packed again with compression"),
        (lambda n, c: b"big" if n.endswith("byteorder") else c, 0, "byte order is b'big'"),
        (lambda n, c: b"\0\xff" if n.endswith("byteorder") else c, 0, "byte order is"),
        (lambda n, c: None if n.endswith("data/1") else c, 0, "the record of storage '1' is missing"),
        (lambda n, c: c[:-8] if n.endswith("data/1") else c, 0, "has 1192 bytes, wanted 1200"),
        (lambda n, c: c + c if n.endswith("data/1") else c, 0, "has 2400 bytes, wanted 1200"),
        (lambda n, c: None if n.endswith("data.pkl") else c, 0, "no archive of torch.save"),
        (lambda n, c: c[:40] if n.endswith("data.pkl") else c, 0, "cannot be read as plain tensors"),
        (lambda n, c: pickle.dumps([1] * 3) if n.endswith("data.pkl") else c, 0, "no mapping of names"),
    ],
    ids=["deflated", "big", "noise", "missing", "short", "long", "no structure", "cut structure", "a list"],
)
def test_changed_archives_are_refused(
    change: Callable[[str, bytes], bytes | None], how: int, message: str, file: Path, tmp_path: Path
) -> None:
    path = repacked(file, tmp_path / "b.pt", change, how)
    with pytest.raises(ValueError, match=f"b.pt .*{message}"):
        open_checkpoint(path)


def test_small_archives_that_claim_to_be_large_cost_nothing(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1).expand(1 << 40)}, tmp_path / "wide.pt")
    with pytest.raises(ValueError, match="save it as a tensor of its own"):
        open_checkpoint(tmp_path / "wide.pt")
    torch.save({"w": torch.zeros(1 << 20)}, tmp_path / "zeros.pt")
    bomb = repacked(tmp_path / "zeros.pt", tmp_path / "bomb.pt", lambda n, c: c, zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 1 << 16
    with pytest.raises(ValueError, match="packed again with compression"):
        open_checkpoint(bomb)


def test_a_record_twice_is_refused(file: Path) -> None:
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("a/data/0", b"\0" * 1200)
    with pytest.raises(ValueError, match="holds the record 'a/data/0' twice"):
        open_checkpoint(file)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".pth.tar", ".safetensors"])
def test_pointers_of_git_lfs_are_told(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12\n")
    with pytest.raises(ValueError, match="a pointer of Git LFS"):
        open_checkpoint(path)


class Net(nn.Linear):
    pass


def test_other_contents_of_torch_files_are_told(tmp_path: Path) -> None:
    torch.save(Net(2, 2), tmp_path / "model.pt")
    with pytest.raises(
        ValueError, match=r"a pickled .*test_hostile.Net; load it in the code that it comes from"
    ) as told:
        open_checkpoint(tmp_path / "model.pt")
    assert "\x1b" not in str(told.value)
    torch.save({"w": torch.ones(3).to_sparse()}, tmp_path / "sparse.pt")
    with pytest.raises(ValueError, match="w in .*sparse.pt is a tensor of the kind 'sparse tensor'"):
        open_checkpoint(tmp_path / "sparse.pt")
    torch.save({"w": torch.empty(3, device="meta")}, tmp_path / "meta.pt")
    with pytest.raises(ValueError, match="of the kind 'meta tensor'"):
        open_checkpoint(tmp_path / "meta.pt")
    torch.save({3: torch.ones(1), "3": torch.ones(1)}, tmp_path / "twice.pt")
    with pytest.raises(ValueError, match="two tensors by the name 3"):
        open_checkpoint(tmp_path / "twice.pt")
    scripted = tmp_path / "scripted.pt"
    with zipfile.ZipFile(scripted, "w") as archive:
        archive.writestr("s/data.pkl", pickle.dumps({}))
        archive.writestr("s/constants.pkl", b"")
    with pytest.raises(ValueError, match="a TorchScript program"):
        open_checkpoint(scripted)
    content = {"w": nn.Parameter(torch.ones(2)), "u": torch.ones(2, dtype=torch.uint16), "c": torch.ones(1).cfloat()}
    torch.save(OrderedDict(content), tmp_path / "kinds.pt")
    kinds = {name: t.dtype for name, t in open_checkpoint(tmp_path / "kinds.pt").tensors.items()}
    assert kinds == {"w": torch.float32, "u": torch.uint16, "c": torch.complex64}


def test_plain_data_comes_as_it_is_and_classes_as_their_names() -> None:
    plain = {
        **{"a": [1, 2.5, None, True, b"x", "y" * 300, (1, 2), {3, 4}, frozenset([5]), -(1 << 70)], "d": {"k": {1: 2}}},
        "o": OrderedDict(x=1),
    }
    for protocol in range(6):
        assert loads(pickle.dumps(plain, protocol)) == plain, protocol
        held = loads(pickle.dumps([argparse.Namespace(lr=1), pathlib.PurePosixPath("a"), defaultdict(int)], protocol))
        assert held[0].name == "argparse.Namespace" and held[0].get("lr") == 1 and held[2] == {}
        assert held[1].name.endswith("PurePosixPath")
    again = ["x"]
    again.append(again)  # type: ignore[arg-type]
    assert loads(pickle.dumps(again))[1][1][0] == "x"


def evil(call: bytes) -> bytes:
    return b"c" + call + b"\n(X\x05\x00\x00\x00touchtR."


@pytest.mark.parametrize("call", [b"os\nsystem", b"posix\nsystem", b"builtins\neval", b"nt\nsystem"])
def test_what_runs_commands_is_refused(call: bytes) -> None:
    with pytest.raises(ValueError, match="it would run commands when loaded"):
        loads(evil(call))


def nested_keys(depth: int) -> bytes:
    """A dict whose key is a tuple of two equal tuples of two equal tuples ...: 2 ** depth steps to hash."""
    return b"\x80\x02}K\x01K\x02\x86" + b"2\x86" * depth + b"K\x01s."


@pytest.mark.parametrize(
    "content",
    [
        *(
            b"",
            b".",
            b"\x80\x02",
            b"garbage",
            b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
            b"(((((.",
            b"0.",
            b"R.",
        ),
        b"\x80\x02r\xff\xff\xff\x7f.",  # a memo entry far away, with nothing to put there
        b"\x80\x02X\xff\xff\xff\x7f.",  # a text of two gigabytes that is not there
        b"\x80\x02Nr\xff\xff\xff\x7f}N]s.",  # a list as a key
        b"\x80\x02cpathlib\nPosixPath\n(N}U\x06unlinkcbuiltins\nset\nstb.",
        *(b"\x80\x02\x82\x01.", b"\x80\x02]\x8f.", b"Pother\n.", b"\x80\x02Q.", b"\x80\x05\x97.", nested_keys(60)),
    ],
)
def test_broken_and_hostile_pickles_end_at_once(content: bytes, tmp_path: Path) -> None:
    begin, before = time.perf_counter(), dict(vars(pathlib.PosixPath))
    try:
        loads(content)
    except ValueError:
        pass
    folder = tmp_path / "dcp"
    folder.mkdir()
    (folder / ".metadata").write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as metadata of torch.distributed.checkpoint"):
        open_checkpoint(folder)
    assert time.perf_counter() - begin < 1
    assert dict(vars(pathlib.PosixPath)) == before


def test_metadata_that_lies(tmp_path: Path) -> None:
    dcp(tmp_path / "good", {"model": {"w": full(1)}})
    content = (tmp_path / "good" / ".metadata").read_bytes()
    rng = torch.Generator().manual_seed(0)
    for number in range(150):
        changed = bytearray(content)
        for _ in range(1 + number % 3):
            place = int(torch.randint(len(changed), (1,), generator=rng))
            changed[place] = int(torch.randint(256, (1,), generator=rng))
        (tmp_path / "good" / ".metadata").write_bytes(bytes(changed))
        try:
            opened = open_checkpoint(tmp_path / "good")
            assert all(stored.numel <= 12 for stored in opened.tensors.values())
        except ValueError:
            pass


def test_mutated_torch_files_are_read_or_refused(file: Path, tmp_path: Path) -> None:
    content = file.read_bytes()
    rng = torch.Generator().manual_seed(1)
    structure = content.index(b"data.pkl")
    for number in range(300):
        changed = bytearray(content)
        place = structure + int(torch.randint(400, (1,), generator=rng)) if number % 2 else len(content) - 1 - number
        changed[place] = int(torch.randint(256, (1,), generator=rng))
        path = tmp_path / "mutated.pt"
        path.write_bytes(bytes(changed))
        try:
            open_checkpoint(path)
        except ValueError as error:
            assert "mutated.pt" in str(error)


def test_deep_json_is_refused(tmp_path: Path) -> None:
    for step, text in enumerate(("{}", "[" * 100_000 + "]" * 100_000)):
        folder = tmp_path / str(step)
        folder.mkdir()
        save_file({"w": torch.ones(2)}, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(text)
    with pytest.raises(ValueError, match="adapter_config.json is no adapter configuration"):
        plan_average([tmp_path / "0", tmp_path / "1"], tmp_path / "out", through(SWA))
    (tmp_path / "1" / "adapter_config.json").write_text("[1]")
    with pytest.raises(ValueError, match="it holds a list"):
        plan_average([tmp_path / "0", tmp_path / "1"], tmp_path / "out", through(SWA))


def state(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A state file of SWAG whose header was changed."""
    swag = SWAG(rank=2)
    for step in range(4):
        swag.update({"w": full(step)})
    path = folder / "state.safetensors"
    lowland.save(swag, path)
    from safetensors import safe_open

    with safe_open(path, "pt") as opened:
        header = json.loads(opened.metadata()["lowland"])
    change(header)
    save_file(load_file(path), path, metadata={"lowland": json.dumps(header)})
    return path


@pytest.mark.parametrize(
    "change",
    [
        *(lambda h, k=key: h.pop(k) for key in ("count", "settings", "scalars", "slots", "names", "class")),
        *(lambda h, k=key: h.update({k: 5}) for key in ("settings", "slots", "names", "class", "scalars")),
        lambda h: h["settings"].update(zzz=1),
        lambda h: h.update(slots=["mean", "x"]),
        lambda h: h.update(count="many"),
    ],
)
def test_draws_from_damaged_states_are_refused(change: Callable[[dict[str, Any]], object], tmp_path: Path) -> None:
    save_file({"w": full(0)}, tmp_path / "like.safetensors")
    with pytest.raises(ValueError, match="state.safetensors"):
        sample(state(tmp_path, change), tmp_path / "like.safetensors", 1, tmp_path / "draws")
    assert not (tmp_path / "draws").exists() and not list(tmp_path.glob(".*"))


def test_draws_leave_an_unfinished_average_alone(tmp_path: Path) -> None:
    save_file({"w": full(0)}, tmp_path / "like.safetensors")
    part = tmp_path / ".out.part"
    part.mkdir()
    (part / "model.safetensors").write_text("hours of work")
    sample(state(tmp_path, lambda header: None), tmp_path / "like.safetensors", 1, tmp_path / "out")
    assert (part / "model.safetensors").read_text() == "hours of work"


def test_links_are_found_out_before_the_work(tmp_path: Path) -> None:
    save_file({"w": full(0)}, tmp_path / "a.safetensors")
    (tmp_path / "real").mkdir()
    for name, to in (("link", "real"), ("dangling", "nowhere")):
        os.symlink(to, tmp_path / name)
        with pytest.raises(OSError, match=f"is a link: name the place that it stands for, {to}"):
            plan_average([tmp_path / "a.safetensors"], tmp_path / name, through(SWA))
    assert not list(tmp_path.glob(".*"))


def test_a_refusal_keeps_nothing_and_a_full_disk_says_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (0, 1):
        save_file({"w": full(step)}, tmp_path / f"{step}.safetensors")
    inputs = [tmp_path / "0.safetensors", tmp_path / "1.safetensors"]

    def refuse(ingredients: Any) -> Any:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        average(inputs, tmp_path / "out", refuse)
    assert not list(tmp_path.glob(".*"))

    def full_disk(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full_disk)
    with pytest.raises(OSError, match=r"the disk is full: .*out is not finished; what is done lies in .*\.out\.part"):
        average(inputs, tmp_path / "out", through(SWA))
    monkeypatch.undo()
    assert load_file(average(inputs, tmp_path / "out", through(SWA)) / "0.safetensors")["w"][0, 0] == 0.5


def test_names_hold_nothing_that_a_pattern_would_miss(tmp_path: Path) -> None:
    from lowland.checkpoints import expand

    run = tmp_path / "lr[3e-4]"
    run.mkdir()
    for step in (2, 10):
        save_file({"w": full(step)}, run / f"checkpoint-{step}.safetensors")
    assert [path.stem for path in expand([f"{run}/checkpoint-*"])] == ["checkpoint-2", "checkpoint-10"]
    assert [path.stem for path in expand([run])] == ["checkpoint-2", "checkpoint-10"]


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(ValueError, match="holds no tensors"):
        open_checkpoint(tmp_path / "empty.safetensors")


def test_described_files_are_those_that_are_there(tmp_path: Path) -> None:
    dcp(tmp_path / "run", {"model": {"w": full(1)}})
    (part,) = describe(tmp_path / "run")["parts"]
    assert part == {"file": "__0_0.distcp", "tensors": 1, "bytes": 48}


def test_what_differs_between_adapters_is_told_in_bounded_words() -> None:
    from lowland.checkpoints.adapters import compared

    one = {"r": 2, "base_model_name_or_path": "a" * 9000}
    (key, base) = compared(one, {**one, "x" * 9000: [1] * 9000, "base_model_name_or_path": "b" * 9000})
    assert len(key) < 200 and len(base) < 200
