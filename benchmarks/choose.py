"""Claim: choosing the average to ship asks a twentieth of all scores, and loses next to nothing of the gain.

    python benchmarks/choose.py            under a minute
    python benchmarks/choose.py --quick

Three parts. (1) Twenty random problems of forty checkpoints, a drift and a rattle around a minimum: scores asked by the
search and by the exhaustive oracle, and the share of the oracle's gain on the last checkpoint that the search loses.
(2) The same with a score for each of some validation examples: what the table's best score, the expected score that is
told (cross-fitted), and the last checkpoint promise, beside what the winner scores on a thousand fresh examples.
(3) A folder of forty checkpoints of 4 MB and the command line with a score command: time, scores asked, and the same
after SIGKILL at random moments, until it ends: the same table, the same winner's bytes, nothing left beside it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import harness
import numpy as np
import torch
from safetensors.torch import save_file
from tests.faults.processes import command, contents, forked, leftovers
from tests.retroactive.test_choice import Walk

from lowland.retroactive import Candidate, choose

CHECKPOINTS = 40
SCORE = """
import json, os, struct, sys
from pathlib import Path
path = Path(sys.argv[1]) / "model.safetensors"
with path.open("rb") as file:
    size = struct.unpack("<Q", file.read(8))[0]
    begin, end = json.loads(file.read(size))["w"]["data_offsets"]
    file.seek(8 + size + begin)
    w = struct.unpack(f"<{(end - begin) // 4}f", file.read(end - begin))
with open(os.environ["ASKED"], "a") as log:
    log.write("x")
print(-sum(x * x for x in w))
"""


def problems(count: int) -> list[dict[str, float]]:
    """What the search asks and loses."""
    rows = []
    for seed in range(count):
        quick, full = Walk(seed, CHECKPOINTS), Walk(seed, CHECKPOINTS)
        begun = time.perf_counter()
        found = choose(quick.steps, quick.score).winner
        seconds = time.perf_counter() - begun
        oracle = choose(full.steps, full.score, exhaustive=True)
        last, single = quick.score(Candidate("checkpoint", 1)), oracle.single()
        assert single is not None
        rows.append(
            {
                **{"seed": seed, "asked": len(quick.asked) - 1, "exhaustive": len(full.asked), "seconds": seconds},
                **{"last": last, "single": single.score, "chosen": found.score, "oracle": oracle.winner.score},
                "lost": (oracle.winner.score - found.score) / (oracle.winner.score - last),
            }
        )
    return rows


def promises(count: int, examples: int) -> list[dict[str, float]]:
    """What the scores promise beside what fresh examples give, relative to the last checkpoint on the same examples."""
    rows = []
    for seed in range(count):
        walk = Walk(seed, CHECKPOINTS, examples=examples)
        fresh = np.random.default_rng(10_000 + seed).normal(size=(1000, 24)) * 2
        found = choose(walk.steps, walk.score)
        assert found.expected is not None
        at = walk.mean(found.winner.candidate)
        rows.append(
            {
                "examples": examples,
                "table": found.winner.score,
                "expected": found.expected,
                "fresh": float(-((at - fresh) ** 2).sum(axis=1).mean()),
                # The same validation examples are easier or harder than fresh ones for any weights, by this much.
                "luck": float(-((walk.targets**2).sum(axis=1)).mean() + (fresh**2).sum(axis=1).mean()),
            }
        )
    return rows


def folder(home: Path) -> Path:
    walk = Walk(1, CHECKPOINTS)
    g = torch.Generator().manual_seed(0)
    for step, row in zip(walk.steps, walk.iterates, strict=True):
        place = home / "run" / f"checkpoint-{step}"
        place.mkdir(parents=True)
        rest = torch.randn(1_000_000, generator=g)
        save_file({"w": torch.tensor(row, dtype=torch.float32), "rest": rest}, place / "model.safetensors")
    (home / "score.py").write_text(SCORE)
    return home / "run"


def on_disk(kills: int) -> dict[str, object]:
    """The command line, undisturbed and killed."""
    chance = random.Random(0)
    with tempfile.TemporaryDirectory(prefix="lowland-choose-") as name:
        home = Path(name)
        run, log, asked = folder(home), home / "log", home / "asked"

        def job(out: Path) -> object:
            os.environ["ASKED"] = str(asked)
            score = f"{sys.executable} -S {home / 'score.py'} {{}}"
            return command(["choose", run, "--score", score, "--out", out, "--card"])()

        def kept(out: Path) -> dict[str, bytes]:
            return contents(out)

        straight, out = home / "straight" / "out", home / "killed" / "out"
        straight.parent.mkdir()
        out.parent.mkdir()
        harness.realtime()
        begun = time.perf_counter()
        ended = forked(lambda: job(straight), log)
        seconds = time.perf_counter() - begun
        plainly()
        if ended.code:
            raise SystemExit(ended.output)
        alone, wanted = len(asked.read_text()), kept(straight)
        asked.unlink()
        done = merges = 0
        same = True
        while done < kills:
            before = done
            while not out.exists():
                after = chance.uniform(0, 0.6 * seconds) if done < kills else None
                ended = forked(lambda: job(out), log, kill_after=after)
                done += ended.code < 0 and not out.exists()
                if ended.code > 0:
                    raise SystemExit(ended.output)
            merges += done > before
            forked(lambda: job(out), log)  # "is there already": it sweeps what a kill at its very end has left
            same &= kept(out) == wanted and not leftovers(out.parent)
            shutil.rmtree(out.parent)
            out.parent.mkdir()
        again = len(asked.read_text())
        choice = json.loads((straight / "lowland_choice.json").read_text())
    return {
        "seconds": seconds,
        "scores asked": alone,
        "candidates": len(choice["tried"]),
        "chosen": choice["winner"]["average"],
        "kills": done,
        "of runs": merges,
        "scores asked by a killed run": again / max(1, merges),
        "same": same,
    }


def plainly() -> None:
    """Give the real-time priority back: only the command's own time is measured with it."""
    for thread in os.listdir("/proc/self/task"):
        os.sched_setscheduler(int(thread), os.SCHED_OTHER, os.sched_param(0))


def main() -> None:
    options = harness.arguments(__doc__, problems=20, kills=20)
    plainly()
    count, kills = (5, 3) if options.quick else (options.problems, options.kills)
    rows = problems(count)
    lost = [row["lost"] for row in rows]
    asked = [row["asked"] for row in rows]
    promised = [row for examples in (20, 100) for row in promises(count, examples)]
    told = []
    for examples in (20, 100):
        own = [row for row in promised if row["examples"] == examples]
        line: dict[str, object] = {"examples": examples, "problems": len(own)}
        for key, label in (("table", "best of the table"), ("expected", "expected score told")):
            gaps = [row[key] - row["luck"] - row["fresh"] for row in own]
            error = statistics.stdev(gaps) / len(gaps) ** 0.5
            line[f"{label}, too high by"] = f"{statistics.mean(gaps):+.2f} ± {error:.2f}"
        told.append(line)
    disk = on_disk(kills)
    checks = [
        ("scores asked of " + f"{rows[0]['exhaustive']:.0f}", "< 60", f"{max(asked):.0f}", max(asked) < 60),
        ("mean share of the gain lost", "< 0.03", f"{statistics.mean(lost):.4f}", statistics.mean(lost) < 0.03),
        ("largest share of the gain lost", "< 0.15", f"{max(lost):.4f}", max(lost) < 0.15),
        ("killed and resumed, the same table and bytes", "yes", "yes" if disk["same"] else "no", bool(disk["same"])),
    ]
    tables = {
        f"{count} problems of {CHECKPOINTS} checkpoints, scores (higher is better)": [
            {key: f"{value:.4g}" for key, value in row.items()} for row in rows
        ],
        "What is promised beside 1,000 fresh examples, mean ± standard error over problems": told,
        f"{CHECKPOINTS} checkpoints of 4 MB on the disk": [disk],
    }
    notes = [
        "lost: of what the oracle gains on the last checkpoint, the share that the search does not find.",
        "too high by: the promise, less how much easier the validation examples are than fresh ones for any weights, "
        "less the winner's score on fresh examples. The expected score is of the procedure on other examples, with a "
        "fifth fewer to choose by; it may err low.",
        "A killed run asks again what it was asking when it was killed.",
    ]
    harness.write("choose", "Choosing the average to ship", tables, notes, checks, packages=["safetensors"])


if __name__ == "__main__":
    main()
