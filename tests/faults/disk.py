"""A disk that fills up at every point of a write: the old file stays whole, and one line says what is missing.

The disk is a tmpfs of its own, which wants root on Linux.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .kills import Writer
from .processes import contents, forked

WORDS = re.compile(r"space|needed|free|full|room", re.IGNORECASE)


@dataclass(frozen=True)
class Filled:
    """What came of one writer on a full disk: how often it wrote, how often it refused, and what was wrong."""

    name: str
    written: int
    refused: int
    faults: list[str]


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[Path]:
    """Mount a file system of `size` bytes at `place`. Raises `PermissionError` where that is not allowed."""
    place.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        raise PermissionError(mounted.stderr.decode())
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def fill(writer: Writer, home: Path, levels: int = 20) -> Filled:
    """Let `writer` run on a disk with room for a share of what it writes, from nothing to more than all."""
    straight, log = home / "whole" / f"out{writer.suffix}", home / "log"
    shutil.rmtree(straight.parent, ignore_errors=True)
    straight.parent.mkdir()
    ended = forked(writer.job(straight), log)
    if ended.code:
        return Filled(writer.name, 0, 0, [f"undisturbed it ended with {ended.code}: {ended.output[-500:]}"])
    need = sum(len(content) for content in contents(straight).values())
    wanted = writer.compare(straight)
    written, refused, faults = 0, 0, []
    most = int(2.2 * need) + writer.room  # the old beside the new, with something to spare
    size = 2 * need + most + (4 << 20)
    for level in range(levels):
        with small_disk(home / "disk", size) as disk:
            kept = disk / "kept.txt"
            kept.write_text("what was there")
            room = int(most * level / (levels - 1))
            _occupy(disk, room)
            out = disk / f"out{writer.suffix}"
            ended = forked(writer.job(out), log)
            where = f"with room for {room} of {need} bytes"
            if kept.read_text() != "what was there":
                faults.append(f"{where} it damaged another file")
            if ended.code == 0:
                written += 1
                if writer.compare(out) != wanted:
                    faults.append(f"{where} it ended well with other bytes")
                continue
            refused += 1
            errors = [line for line in ended.output.splitlines() if "error" in line.lower()]
            if ended.code < 0 or "Traceback" in ended.output:
                faults.append(f"{where} it ended with {ended.code}: {ended.output[-300:]}")
            elif not errors or not WORDS.search(" ".join(errors)):
                faults.append(f"{where} it did not say that the disk is full: {ended.output[-300:]}")
            if out.is_file() and not writer.whole(out):
                faults.append(f"{where} it left a half-written {out.name}")
    return Filled(writer.name, written, refused, faults)


def _occupy(disk: Path, room: int) -> None:
    """Fill `disk` until `room` bytes are left."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - room
    with (disk / "filler").open("wb") as file:
        file.write(b"\0" * max(0, free))
