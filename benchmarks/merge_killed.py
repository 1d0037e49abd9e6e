"""A merge is killed (SIGKILL) at random moments, twenty times and more, and given again until it ends.

Measured: whether it ends with the bytes of a merge that was never killed, and what it leaves beside the output; what
each kill found there. Three checkpoints of 24 MB, four kinds of output, by one process and by two that share the
merge. "anywhere": kills fall evenly on the time of a merge and a little beyond. "early": kills fall on its first third,
so that one merge is killed many times before it ends. The merge enters its stretches into the journal every megabyte
here and every gigabyte elsewhere, or nothing of these small ones would ever be in it.
Run: python benchmarks/merge_killed.py [KILLS]   Results: benchmarks/results/merge_killed.md and .json
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from datetime import date
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pages import machine, table, versions
from tests.checkpoints.killed import FORMS, Chain, chain

RESULTS = Path(__file__).parent / "results"
WHERE = {"anywhere": 1.1, "early": 0.33}


def main() -> None:
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    torch.set_num_threads(1)
    jobs = [(form, where, 1) for form in FORMS for where in WHERE] + [("dcp", "anywhere", 2)]
    found: list[tuple[str, int, Chain]] = []
    with tempfile.TemporaryDirectory(prefix="lowland-killed-") as name:
        for form, where, ranks in jobs:
            some = kills if ranks == 1 else -(-kills // 3)  # each of these starts several processes
            made = chain(form, Path(name), some, early=WHERE[where], ranks=ranks)
            found.append((where, ranks, made))
            print(form, where, ranks, f"{made.kills} kills of {made.merges} merges", made.faults, flush=True)
    rows = [
        {
            "output": made.form,
            "processes": ranks,
            "kills fall": where,
            "kills": made.kills,
            "of merges": made.merges,
            "most of one": made.longest,
            "the same bytes, nothing left": "yes" if not made.faults else "**no**",
        }
        for where, ranks, made in found
    ]
    phases: dict[str, int] = {}
    for _, _, made in found:
        for phase, count in made.found.items():
            phases[phase] = phases.get(phase, 0) + count
    about, faults = machine(), sum(len(made.faults) for _, _, made in found)
    known = {"date": date.today().isoformat(), "command": f"python benchmarks/merge_killed.py {kills}"}
    lines = [
        "# A merge that is killed, and given again",
        "",
        f"{known['date']}, {about['cpu']}, {os.cpu_count()} cores, with other work beside. "
        f"torch {torch.__version__}. Command: `{known['command']}`.",
        f"{sum(made.kills for _, _, made in found)} kills of {sum(made.merges for _, _, made in found)} merges, "
        f"{faults} of which ended with other bytes, an error, or something left beside the output.",
        "",
        *table(rows),
        "",
        "What the kills found:",
        "",
        *table([{"moment": phase, "kills": count} for phase, count in sorted(phases.items())]),
    ]
    (RESULTS / "merge_killed.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    raw = [
        {"form": made.form, "where": where, "ranks": ranks, "seconds": made.seconds, "kills": made.kills}
        | {"merges": made.merges, "longest": made.longest, "found": dict(made.found), "faults": made.faults}
        for where, ranks, made in found
    ]
    result = {**known, "machine": about, "versions": versions(()), "runs": raw}
    (RESULTS / "merge_killed.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
