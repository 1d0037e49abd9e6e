"""Merges that are killed time and again: what they leave, and with which bytes they end."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from lowland import soup
from lowland.checkpoints import output, plan_average
from lowland.checkpoints.ranks import of_torchrun

from ..faults.processes import Ended, contents, forked, leftovers
from .layouts import dcp, safe

SYNC_BYTES = 1 << 20  # in place of 1 GB: what a kill can cost of these small merges
FORMS = ("safetensors", "shards", "torch file", "dcp")


@dataclass
class Chain:
    """What came of merges of one form that were killed.

    Args:
        found: at what a kill found the merge, and how often.
        merges: that were killed at least once and ended. longest: the most kills of one of them.
    """

    form: str
    seconds: float
    found: Counter[str] = field(default_factory=Counter)
    merges: int = 0
    longest: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        """How many kills found a merge at work."""
        return sum(self.found.values())


def inputs(home: Path, form: str, megabytes: float) -> list[Path]:
    """Three checkpoints of six tensors."""
    count = int(megabytes * 1e6 / 4 / 6)
    found = []
    for step in (1, 2, 3):
        g = torch.Generator().manual_seed(step)
        weights = {f"layers.{n}.w": torch.randn(count, generator=g) for n in range(6)}
        folder = home / form.replace(" ", "-") / f"step-{step}"
        if form == "dcp":
            dcp(folder, {"model": {**weights, "n": torch.tensor([step])}, "optim": {"m": torch.ones(2)}})
        elif form == "shards":
            files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
            names = list(weights)
            safe(folder / files[0], {name: weights[name] for name in names[:3]})
            safe(folder / files[1], {**{name: weights[name] for name in names[3:]}, "n": torch.tensor([step])})
            places = {name: files[place // 3] for place, name in enumerate(names)}
            index = {"metadata": {}, "weight_map": {**places, "n": files[1]}}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        else:
            safe(folder / "model.safetensors", {**weights, "n": torch.tensor([step])})
            (folder / "config.json").write_text("{}")
        found.append(folder)
    return found


def merge(paths: list[Path], out: Path, form: str, ranks: int = 1) -> None:
    """The merge that is killed: coefficients of a decay, journalled every megabyte; by several processes if asked."""
    output.SYNC_BYTES = SYNC_BYTES
    weights = partial(soup.combined, coefficients=[0.5, 0.3, 0.2])
    plan = plan_average(paths, out, weights, form="dcp" if form == "dcp" else "files")
    if ranks > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, WORLD_SIZE=str(ranks))
        rank = next((rank for rank in range(1, ranks) if not os.fork()), 0)
        os.environ["RANK"] = str(rank)
        plan = replace(plan, ranks=of_torchrun())
    plan.run()


def killed(paths: list[Path], out: Path, form: str, log: Path, after: float | None, ranks: int) -> Ended:
    """Let a merge run, or kill it with all of its processes some seconds `after` its start."""
    group: list[int] = []

    def job() -> None:
        log.with_suffix(".group").write_text(str(os.getpgid(0)))
        merge(paths, out, form, ranks)

    ended = forked(job, log, kill_after=after)
    with suppress(FileNotFoundError, ValueError):
        group = [int(log.with_suffix(".group").read_text())]
    while group:  # the other ranks, which wait for the one that is gone
        try:
            os.killpg(group[0], signal.SIGKILL)
        except ProcessLookupError:
            break
        time.sleep(0.002)
    return ended


def chain(
    form: str,
    home: Path,
    kills: int,
    *,
    early: float = 1.1,
    megabytes: float = 24.0,
    ranks: int = 1,
    seed: int = 0,
) -> Chain:
    """Kill merges of one form until `kills` kills found one at work; each is given again until it ends.

    Args:
        early: a kill comes at a random moment before this share of the time that an undisturbed merge takes. A small
            one kills the same merge over and over, 1.1 finds every phase.
        megabytes: of each of the three checkpoints. ranks: processes that share the merge.
    """
    rng = random.Random(f"{form} {seed} {early}")
    paths = inputs(home, form, megabytes)
    suffix = ".pt" if form == "torch file" else ".safetensors" if form == "safetensors" else ""
    room = home / f"out-{form.replace(' ', '-')}"
    shutil.rmtree(room, ignore_errors=True)
    straight, out, log = room / "straight" / f"out{suffix}", room / "killed" / f"out{suffix}", room / "log"
    straight.parent.mkdir(parents=True)
    out.parent.mkdir()
    took = []
    for _ in range(2):  # the first finds nothing in the system's memory
        shutil.rmtree(straight.parent)
        straight.parent.mkdir()
        began = time.monotonic()
        ended = killed(paths, straight, form, log, None, ranks)
        took.append(time.monotonic() - began)
        if ended.code:
            raise RuntimeError(f"an undisturbed merge ended with {ended.code}: {ended.output[-500:]}")
    wanted, made = contents(straight), Chain(form, min(took))
    while made.kills < kills:
        before = made.kills
        while not out.exists():
            after = rng.uniform(0, early * made.seconds) if made.kills < kills else None
            ended = killed(paths, out, form, log, after, ranks)
            if ended.code == -signal.SIGKILL and not out.exists():
                made.found[_phase(out)] += 1
            elif ended.code == -signal.SIGKILL:
                made.found["ended, not yet gone"] += 1
                killed(paths, out, form, log, None, ranks)  # it is told that the output is there, and sweeps
            elif ended.code:
                made.faults.append(f"given again it ended with {ended.code}: {ended.output[-300:]}")
                break
        if made.kills > before:
            made.merges += 1
            made.longest = max(made.longest, made.kills - before)
        got = contents(out) if out.exists() else {}
        if got != wanted:
            made.faults.append(f"other bytes: {sorted(n for n in {*got, *wanted} if got.get(n) != wanted.get(n))}")
        made.faults += [f"it left {left}" for left in leftovers(out.parent)]
        shutil.rmtree(out.parent)
        out.parent.mkdir()
    return made


def _phase(out: Path) -> str:
    """What lies there after a kill."""
    part = out.parent / f".{out.name}.part"
    if not (part / "lowland-plan.json").exists():
        return "before the first byte, or as it was renamed"
    if list(part.glob("*.distcp*")):
        return "as the distributed checkpoint was written"
    if (part / "lowland_merge.json").exists():
        return "as small files were written"
    journals = [path.read_text() for path in part.glob("lowland-journal*")]
    return "with stretches in the journal" if any(journals) else "before a stretch was in the journal"
