"""Who is right: averages and Gaussian posteriors of released packages and of this one, on the same iterates.

    make peers                                   installs the packages under .peers/ the first time
    make peers ARGS='--only swa-gaussian torch'  some of them, without writing the results

Prints five tables and writes them to benchmarks/results/peers.md and peers.json. Every implementation runs in a process
of its own (adapters.py) and within a time limit; one that cannot be had or run gets a row that says why.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from known import (
    DECAY,
    DRAWS,
    DRIFTS,
    EMA_TARGET,
    ITERATES,
    SPREAD_ITERATES,
    SPREAD_WEIGHTS,
    SPREADS,
    TEACHER_RATES,
    TEACHER_STEPS,
    TOLERANCE,
    UPDATES,
    judge,
    standard_errors,
    two_weights,
)
from loading import PEERS, install

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS = ROOT / "benchmarks" / "results"
RUN_SECONDS = 180
COMMAND = "make peers"

Answer = dict[str, Any]
Table = list[Sequence[str]]


def ask(name: str, offline: bool = False) -> Answer:
    """Install a peer, run its adapter, return its answer; {"error": why} if there is none."""
    if problem := install(name, offline):
        return {"error": problem}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src"), "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(
            [sys.executable, str(HERE / "adapters.py"), name],
            env=environment,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
            cwd=ROOT,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"could not run: not finished after {RUN_SECONDS} s"}
    if done.returncode or not done.stdout.strip():
        return {"error": f"could not run: {(done.stderr.strip().splitlines() or ['no message'])[-1][:200]}"}
    # Errors may quote where a file lies; the page should not depend on that.
    answer: Answer = json.loads(done.stdout.splitlines()[-1].replace(f"{ROOT}/", ""))
    return answer


def each(answers: dict[str, Answer], kind: str) -> Iterable[tuple[str, Any]]:
    """Yield (name with version, row) of one table; the row is a sentence where there is no result."""
    for name, answer in answers.items():
        label = f"{name} {answer['version']}" if "version" in answer else name
        if kind not in PEERS[name].asks:
            continue
        got = answer.get("error", answer.get(kind, "could not run: no answer"))
        for row in [got] if isinstance(got, str) else got:
            yield label, row


def gaussians(answers: dict[str, Answer]) -> tuple[Table, str]:
    """The posterior of the same ten iterates: moments of many draws against the closed form; and notes on causes."""
    mean, want = two_weights()
    mean_error, error = standard_errors(want, DRAWS)
    table: Table = [("implementation", "setting", "mean", "variance", "covariance", "verdict", "why")]
    table.append(("the paper", "closed form", f"{mean[0]:.3f}", f"{want[0, 0]:.3f}", f"{want[0, 1]:.3f}", "", ""))
    spread = (f"±{mean_error[0]:.3f}", f"±{error[0, 0]:.3f}", f"±{error[0, 1]:.3f}")
    table.append(("", f"one standard error, n={DRAWS}", *spread, "", ""))
    causes: list[str] = []
    for label, row in each(answers, "swag"):
        if isinstance(row, str):
            table.append((label, "", "", "", "", row, ""))
            continue
        verdict = judge(np.array(row["mean"]), np.array(row["covariance"]), row["n"], row["block"])
        numbers = (f"{row['mean'][0]:.3f}", f"{row['covariance'][0][0]:.3f}", f"{row['covariance'][0][1]:.3f}")
        why = [] if verdict.right else row["causes"]
        causes += [cause for cause in why if cause not in causes]
        words = f"right (within {verdict.worst:.1f} s.e.)" if verdict.right else f"wrong: {', '.join(verdict.faults)}"
        marks = ", ".join(str(1 + causes.index(cause)) for cause in why)
        table.append((label, row["setting"], *numbers, words, marks))
    notes = ["Covariance: between the two tensors; with block=True it is zero by design and judged as such."]
    if causes:
        notes += ["", *(f"{i}. {cause}" for i, cause in enumerate(causes, start=1))]
    return table, "\n".join(notes)


def plain_averages(answers: dict[str, Answer]) -> Table:
    """The equal average of 1, 2, 3, 4."""
    table: Table = [("implementation", "class", "mean of 1, 2, 3, 4", "counted", "loads its own state", "verdict")]
    for label, row in each(answers, "swa"):
        if isinstance(row, str):
            table.append((label, "", "", "", "", row))
            continue
        right = abs(row["mean"] - 2.5) < 1e-6 and row["count"] == 4 and row["reload"] == "yes"
        table.append(
            (label, row["setting"], f"{row['mean']:g}", str(row["count"]), row["reload"], "right" if right else "wrong")
        )
    return table


def bf16_averages(answers: dict[str, Answer]) -> Table:
    """How far an EMA of a bf16 model goes towards weights that moved by one and stayed there."""
    table: Table = [("implementation", "class", "stored in", "share of the way", "verdict")]
    table.append(("the recursion", f"1 - {DECAY:g}^{UPDATES}", "", f"{100 * EMA_TARGET:.1f} %", ""))
    for label, row in each(answers, "ema"):
        if isinstance(row, str):
            table.append((label, "", "", "", row))
            continue
        # Half a percent: many times what float32, or bf16 rounded at random, can err in the mean of 4096 weights.
        right = abs(row["share"] - EMA_TARGET) < 0.005
        words = "right" if right else "wrong: updates smaller than half a bf16 step are lost"
        table.append((label, row["setting"], row["dtype"], f"{100 * row['share']:.1f} %", words))
    return table


def bf16_teachers(answers: dict[str, Answer]) -> Table:
    """How far teachers of drifting bf16 students go, of the way that they should."""
    cases = [f"drift {drift:g}, rate {rate:g}" for drift in DRIFTS for rate in TEACHER_RATES]
    table: Table = [("implementation", "class", "stored in", *cases, "verdict")]
    for name, answer in answers.items():
        rows = answer.get("teacher", answer.get("error"))
        if rows is None or "teacher" not in PEERS[name].asks:
            continue
        label = f"{name} {answer.get('version', '')}".strip()
        if isinstance(rows, str):
            table.append((label, "", "", *[""] * len(cases), rows))
            continue
        right = all(abs(row["share"] - 1) < 0.005 for row in rows)
        words = "right" if right else "wrong: updates smaller than half a bf16 step are lost"
        shares = [f"{100 * row['share']:.1f} %" for row in rows]
        table.append((label, rows[0]["setting"], rows[0]["dtype"], *shares, words))
    return table


def fp32_variances(answers: dict[str, Answer]) -> Table:
    """The variance held after iterates of a given mean and spread, against the same in float64."""
    cases = [f"mean {mean:g}, std {std:g}" for mean, std in SPREADS]
    table: Table = [("implementation", *cases, "verdict")]
    rows: dict[str, list[Any]] = {}
    for label, row in each(answers, "variance"):
        rows.setdefault(label, []).append(row)
    for label, found in rows.items():
        if isinstance(found[0], str):
            table.append((label, *[""] * len(cases), found[0]))
            continue
        cells = [f"{row['error']:.1e}, {100 * row['negative']:.0f} % negative" for row in found]
        worst = max(row["error"] for row in found)
        table.append((label, *cells, "right" if worst < 0.01 else f"wrong: off by {worst:.2g} times itself"))
    return table


def render(table: Table) -> str:
    """A Markdown table with aligned columns."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in table]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def machine() -> dict[str, str]:
    """What the numbers depend on."""
    import torch

    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [line.split(":")[1].strip() for line in information.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "command": COMMAND,
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": f"{platform.system()} {platform.machine()}, {model}, {os.cpu_count()} cores, one used",
    }


def write_up(answers: dict[str, Answer], facts: dict[str, str]) -> str:
    """The whole page."""
    table, notes = gaussians(answers)
    parts = [
        "# Released averagers and posteriors on the same iterates",
        f"`{facts['command']}`, {facts['date']}. {facts['machine']}. Python {facts['python']}, torch {facts['torch']}, "
        f"numpy {facts['numpy']}.\nReleased code, unmodified, each in a folder and a process of its own.",
        "## SWAG: moments of the posterior\n\n"
        f"Two layers of one weight each follow the same {len(ITERATES)} iterates. {DRAWS} draws each. Right: both\n"
        f"means, both variances and the covariance lie within {TOLERANCE:g} standard errors (those of {DRAWS} draws\n"
        "from the paper's Gaussian) of the closed form 1/2 (diag(v) + D D^T/(K-1)).",
        render(table),
        notes,
        "## SWA: a plain average",
        render(plain_averages(answers)),
        f"## EMA of a bf16 model\n\nDecay {DECAY:g}; 4096 weights N(0, 1), then all moved by one, then {UPDATES} "
        "updates. Warm-ups\nswitched off.",
        render(bf16_averages(answers)),
        "## Teachers of bf16 students\n\n65536 weights N(0, 1) that drift by normal steps of so many standard "
        f"deviations in all, over\n{TEACHER_STEPS} updates at the teacher's rate: the share of the way that the same "
        "recursion in float64 goes.",
        render(bf16_teachers(answers)),
        f"## Variance in float32\n\n{SPREAD_ITERATES} iterates of {SPREAD_WEIGHTS} weights: median relative error of "
        "the variance held,\nagainst float64, and the share of weights where it is negative, before any clamp. Right: "
        "a median error under 1 %.",
        render(fp32_variances(answers)),
        "## How each was loaded",
        render(
            [
                ("implementation", "version", "loaded"),
                *[(name, a.get("version", ""), a.get("error", PEERS[name].manner)) for name, a in answers.items()],
            ]
        ),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(PEERS), metavar="NAME", help="ask these, write nothing")
    chosen = parser.parse_args().only or list(PEERS)
    answers: dict[str, Answer] = {}
    for name in chosen:
        print(f"asking {name} ...", file=sys.stderr, flush=True)
        answers[name] = ask(name)
    facts = machine()
    page = write_up(answers, facts)
    print(page)
    if len(chosen) == len(PEERS):
        RESULTS.mkdir(parents=True, exist_ok=True)
        pins = {name: peer.pins for name, peer in PEERS.items() if peer.pins}
        record = {**facts, "draws": DRAWS, "iterates": ITERATES, "pins": pins, "answers": answers}
        (RESULTS / "peers.md").write_text(page)
        (RESULTS / "peers.json").write_text(json.dumps(record, indent=1) + "\n")
        print("written to benchmarks/results/peers.md and peers.json", file=sys.stderr)


if __name__ == "__main__":
    main()
