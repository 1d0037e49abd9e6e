"""Old or new, never half: files and folders that are replaced, their rights, links, and what killed writers leave."""

from __future__ import annotations

import ast
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lowland
from lowland.files import replacing
from lowland.files.replacing import Replacing, put, replacing_folder, write_bytes

SOURCE = Path(lowland.__file__).parent
pytestmark = pytest.mark.skipif(os.name != "posix", reason="rights and locks of other systems differ")


def listing(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_there_is_one_place_that_renames() -> None:
    found = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Attribute) or node.attr not in ("replace", "rename", "renames"):
                continue
            if getattr(node.value, "id", "") in ("os", "part"):
                found.append(path.relative_to(SOURCE).as_posix())
    # Shards of the linear wing are written by it alone: it stands below the files.
    assert set(found) == {"files/replacing.py", "linear/shards.py"}


def test_a_block_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_bytes(path, b"old")
    for error in (KeyError, KeyboardInterrupt, SystemExit, OSError):
        with pytest.raises(error), Replacing(path) as file:
            file.write(b"half")
            raise error
        with pytest.raises(error), replacing_folder(tmp_path / "folder") as part:
            (part / "half").touch()
            raise error
    assert path.read_bytes() == b"old" and listing(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("at_once", [True, False], ids=["in one step", "in two"])
def test_a_folder_changes_place_with_the_old_one(
    at_once: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not at_once:
        monkeypatch.setattr(replacing, "_exchange", lambda one, two: False)
    target = tmp_path / "folder"
    for turn in range(3):
        with replacing_folder(target) as part:
            (part / "inside").mkdir()
            (part / "inside" / str(turn)).write_text("x")
        assert listing(tmp_path) == ["folder", "folder/inside", f"folder/inside/{turn}"]
    real, calls = os.rename, []

    def failing(one: Path, two: Path) -> None:
        calls.append(one)
        if len(calls) == 2:
            raise OSError(errno.EIO, "broken")
        real(one, two)

    if not at_once:
        monkeypatch.setattr(os, "rename", failing)
        with pytest.raises(OSError, match="broken"), replacing_folder(target) as part:
            (part / "new").touch()
        assert listing(tmp_path) == ["folder", "folder/inside", "folder/inside/2"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o400])
def test_rights_stay_and_new_files_have_those_of_any(mode: int, tmp_path: Path) -> None:
    path, plain = tmp_path / "a", tmp_path / "plain"
    plain.touch()
    write_bytes(path, b"1")
    assert path.stat().st_mode == plain.stat().st_mode
    path.chmod(mode)
    write_bytes(path, b"2")
    assert path.stat().st_mode & 0o777 == mode and path.read_bytes() == b"2"
    average = lowland.SWA()
    average.update({"w": torch.ones(3)})
    lowland.save(average, path)
    assert path.stat().st_mode & 0o777 == mode
    old = os.umask(0o077)
    try:
        write_bytes(tmp_path / "private", b"")
        assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(old)


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    real, link, dangling = tmp_path / "disk" / "real", tmp_path / "link", tmp_path / "dangling"
    real.write_text("old")
    link.symlink_to(real)
    dangling.symlink_to(tmp_path / "disk" / "later")
    write_bytes(link, b"new")
    write_bytes(dangling, b"new")
    assert link.is_symlink() and real.read_text() == "new"
    assert dangling.is_symlink() and (tmp_path / "disk" / "later").read_text() == "new"
    assert listing(tmp_path) == ["dangling", "disk", "disk/later", "disk/real", "link"]


def test_what_killed_writers_left_is_swept_and_what_is_written_is_not(tmp_path: Path) -> None:
    path, script = (
        tmp_path / "x.safetensors",
        (
            "import sys; from lowland.files.replacing import Replacing\n"
            "with Replacing(sys.argv[1]) as file:\n"
            "    file.write(b'half'); print('in', flush=True); sys.stdin.read()\n"
        ),
    )
    killed, alive = (
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(2)
    )
    try:
        for process in (killed, alive):
            assert process.stdout is not None and process.stdout.readline() == b"in\n"
        killed.send_signal(signal.SIGKILL)
        killed.wait(20)
        other = tmp_path / ".x.safetensors.mine.part"
        other.write_text("a user's")
        assert len(listing(tmp_path)) == 3
        write_bytes(path, b"whole")
        left = listing(tmp_path)
        assert len(left) == 3 and other.name in left and path.read_bytes() == b"whole"
        assert alive.stdin is not None
        alive.stdin.close()
        assert alive.wait(20) == 0
        assert path.read_bytes() == b"half" and listing(tmp_path) == [other.name, path.name]
    finally:
        for process in (killed, alive):
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG], ids=errno.errorcode.get)
def test_a_full_disk_says_what_is_kept(code: int, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    for kept in ("nothing is left of it", "the file that was there is as it was"):
        said = f"cannot write .*a.bin: the disk is full .*, and {kept}; make room"
        with pytest.raises(OSError, match=said) as raised, Replacing(path):
            raise OSError(code, os.strerror(code))
        assert raised.value.errno == code
        write_bytes(path, b"old")
    assert path.read_bytes() == b"old" and listing(tmp_path) == ["a.bin"]


def test_what_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="the folder .*nowhere does not exist; make it first"):
        Replacing(tmp_path / "nowhere" / "a")
    with pytest.raises(OSError, match="it is a folder; name a file in it"):
        Replacing(tmp_path)
    with pytest.raises(OSError, match="MB are needed"):
        Replacing(tmp_path / "a", 1 << 60)
    (tmp_path / "part").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        put(tmp_path / "part", tmp_path / "file")
    assert (tmp_path / "file").is_file()
