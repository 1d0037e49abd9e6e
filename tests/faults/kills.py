"""Kills at random moments of everything that writes files.

What stood there before is whole afterwards, and the same command, given again, ends with the bytes of one that was
never killed, and leaves nothing beside them.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

import lowland
from lowland import SWAG
from lowland.files import SnapshotFiles

from ..studies import tiny_study, toy_grid
from .processes import command, contents, forked, leftovers

# Files of a run folder that hold times of day, and so differ between two runs that did the same.
TIMED = {"timings.json", "versions.json", "report.html"}


@dataclass
class Writer:
    """Something that writes `out` when it is called, and goes on or starts anew when it is called again."""

    name: str
    job: Callable[[Path], Callable[[], object]]  # of the output
    suffix: str = ""
    compare: Callable[[Path], dict[str, bytes]] = contents
    whole: Callable[[Path], bool] = lambda out: False  # whether what a refused write left there is of use
    room: int = 0  # bytes that it wants free beside its output
    seconds: float = field(default=0.0)  # of an undisturbed run, measured


@dataclass(frozen=True)
class Killed:
    """What came of one writer: kills that found it at work, and everything that was wrong."""

    name: str
    kills: int
    faults: list[str]


def inputs(home: Path) -> Path:
    """Checkpoints, a posterior, a tiny study and what scores ask, for all writers."""
    for step in range(4):
        g = torch.Generator().manual_seed(step)
        folder = home / "run" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        weights = {name: torch.randn(200_000, generator=g) for name in "abc"}
        save_file({**weights, "n": torch.tensor([7])}, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text("{}")
    average = SWAG(rank=3)
    for step in range(4):
        g = torch.Generator().manual_seed(step)
        average.update({name: torch.randn(200_000, generator=g) for name in "abc"})
    lowland.save(average, home / "swag.safetensors")
    score = home / "score.sh"
    score.write_text("#!/bin/sh\necho 0.5\n")
    score.chmod(0o755)
    tiny_study.prepare(home)
    return home


def writers(home: Path) -> list[Writer]:
    """Every file-writing command, and the library's own writers."""
    checkpoints = [home / "run" / f"checkpoint-{step}" for step in range(4)]

    def cli(*arguments: str | Path) -> Callable[[Path], Callable[[], object]]:
        return lambda out: command([*arguments, "--out", out])

    def state(out: Path) -> Callable[[], object]:
        def job() -> None:
            for value in range(20):
                lowland.save({"w": torch.full((100_000,), float(value))}, out)

        return told(job)

    def some_version(out: Path) -> bool:
        return len(lowland.load(out)["w"].unique()) == 1

    def snapshots(out: Path) -> Callable[[], object]:
        def job() -> None:
            files = SnapshotFiles(out, 3)
            for step in range((files.steps or [-1])[-1] + 1, 6):
                g = torch.Generator().manual_seed(step)
                files.update({"w": torch.randn(100_000, generator=g)}, step)

        return told(job)

    def members(out: Path) -> dict[str, bytes]:
        # One that was killed before it removed the oldest member leaves that to the next update.
        return {
            str(step): out.joinpath(f"member-{step:09d}.safetensors").read_bytes()
            for step in SnapshotFiles(out).steps[-3:]
        }

    def grid(out: Path) -> Callable[[], object]:
        study, kind, cells = toy_grid.ToyStudy(), toy_grid.KIND, toy_grid.cells()
        return told(
            lambda: toy_grid.run_grid(study, kind, cells, toy_grid.run_cell, out, build=toy_grid.build, resume=True)
        )

    return [
        Writer("average", cli("average", *checkpoints, "--half-life", "2")),
        Writer("average .pt", cli("average", *checkpoints), ".pt"),
        Writer("posterior", cli("posterior", *checkpoints, "--rank", "2"), ".safetensors"),
        Writer("soup", cli("soup", *checkpoints, "--score", f"{home / 'score.sh'} {{}}")),
        Writer("sample", cli("sample", home / "swag.safetensors", "--like", checkpoints[0], "-n", "2")),
        Writer("save", state, ".safetensors", whole=some_version),
        Writer("SnapshotFiles", snapshots, "", members),
        Writer("a grid study", grid, "", results, room=40 << 20),
        Writer("study text", cli("study", "text", "--config", home / "study.toml", "--resume"), "", results),
    ]


def told(job: Callable[[], object]) -> Callable[[], None]:
    """A job of the library whose error is told in one line, as the command line does."""

    def one_line() -> None:
        try:
            job()
        except (ValueError, OSError, RuntimeError) as error:
            print(f"error: {error}")
            sys.exit(2)

    return one_line


def results(out: Path) -> dict[str, bytes]:
    """The files of a run folder without the times of day in them."""
    found = {}
    for path in sorted(out.rglob("*")):
        if not path.is_file() or path.name in TIMED or path.name.endswith(".log"):
            continue
        content = path.read_bytes()
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                content = b"".join(arrays[key].tobytes() for key in sorted(arrays.files) if "seconds" not in key)
        if path.suffix == ".json":
            content = json.dumps(_untimed(json.loads(content)), sort_keys=True).encode()
        found[path.relative_to(out).as_posix()] = content
    return found


def _untimed(value: object) -> object:
    if isinstance(value, dict):
        return {key: _untimed(inner) for key, inner in value.items() if "seconds" not in key}
    return [_untimed(inner) for inner in value] if isinstance(value, list) else value


def kill(writer: Writer, home: Path, kills: int, seed: int = 0) -> Killed:
    """Kill `writer` until `kills` of them found it at work, then let it end, time and again."""
    rng = random.Random(f"{writer.name} {seed}")
    room = home / f"out-{writer.name.replace(' ', '-')}"
    shutil.rmtree(room, ignore_errors=True)
    room.mkdir()
    # Under the same name in another folder: a torch file holds its own name.
    straight, out, log = (
        room / "straight" / f"out{writer.suffix}",
        room / "killed" / f"out{writer.suffix}",
        home / "log",
    )
    straight.parent.mkdir()
    out.parent.mkdir()
    began = time.monotonic()
    ended = forked(writer.job(straight), log)
    writer.seconds = time.monotonic() - began
    if ended.code:
        return Killed(writer.name, 0, [f"undisturbed it ended with {ended.code}: {ended.output[-500:]}"])
    wanted = writer.compare(straight)
    done, faults, tries = 0, [], 0
    while done < kills and tries < 6 * kills:
        tries += 1
        # Several kills before it may end, as each start finds more of the work done.
        for _ in range(rng.randint(1, 4)):
            ended = forked(writer.job(out), log, kill_after=rng.uniform(0, 1.1 * writer.seconds))
            if ended.code >= 0:
                break
            done += 1
        if ended.code < 0:
            ended = forked(writer.job(out), log)
        finished = "is there already" in ended.output and writer.compare(out) == wanted  # it was killed as it ended
        if ended.code and not finished:
            faults.append(f"after kills it ended with {ended.code}: {ended.output[-500:]}")
        elif (got := writer.compare(out)) != wanted:
            other = sorted(name for name in {*got, *wanted} if got.get(name) != wanted.get(name))
            faults.append(f"after kills it wrote other bytes: {other}")
        elif left := leftovers(out.parent):
            faults.append(f"after kills it left {left}")
        shutil.rmtree(out.parent)
        out.parent.mkdir()
    return Killed(writer.name, done, faults)
