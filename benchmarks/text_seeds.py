"""The demo over several seeds: each with its own training texts, validation texts and members; the test texts stay.

Measured: mean and standard deviation over seeds of every metric of the eight methods, each seed's value, and the paired
differences MultiSWAG minus each baseline with the number of seeds in which MultiSWAG is better.
Run: python benchmarks/text_seeds.py [SEED ...]; default 0 1 2 3 4. Finished seeds are not repeated (runs/demo-seed-N).
With --base-rate 0.0005 (the best one for the base model in text_tune.md) two rows more, the base model and the deep
ensemble at that rate: a third phase for each member (runs/demo-tuned-seed-N, results in text_seeds_tuned.*).
Results: benchmarks/results/text_seeds.json and .md. Losing results stay in.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lowland.studies.text import demo, run_text_study

RESULTS = Path(__file__).parent / "results"
METRICS = ("accuracy", "precision", "recall", "f1", "nll", "ece", "brier", "mcc")
LOWER_IS_BETTER = {"nll", "ece", "brier"}
SHOWN = ("precision", "recall", "f1", "accuracy", "nll", "ece", "brier")
HEADS = {"precision": "macro P", "recall": "macro R", "f1": "macro F1", "accuracy": "accuracy"}
HEADS |= {"nll": "NLL", "ece": "ECE", "brier": "Brier"}


def run(seed: int, base_rate: float) -> dict[str, Any]:
    folder = Path("runs") / (f"demo-tuned-seed-{seed}" if base_rate else f"demo-seed-{seed}")
    if base_rate:
        study = demo(seed=seed)
        training = dataclasses.replace(study.training, base_rate=base_rate)
        run_text_study(dataclasses.replace(study, training=training), folder, resume=True)
    elif not (folder / "metrics.json").exists():
        command = [sys.executable, "-m", "lowland.cli", "demo", "--seed", str(seed), "--out", str(folder), "--resume"]
        subprocess.run(command, check=True)
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    metrics["threads"] = json.loads((folder / "versions.json").read_text(encoding="utf-8"))["threads"]
    metrics["seconds"] = json.loads((folder / "timings.json").read_text(encoding="utf-8"))["total_seconds"]
    return metrics


def spread(values: list[float]) -> dict[str, Any]:
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": sd, "n": len(values), "values": values}


def gathered(runs: dict[int, dict[str, Any]], base_rate: float = 0.0) -> dict[str, Any]:
    methods = list(next(iter(runs.values()))["methods"])
    value = {
        method: {metric: [one["methods"][method][metric]["value"] for one in runs.values()] for metric in METRICS}
        for method in methods
    }
    differences: dict[str, Any] = {}
    for method in methods:
        if method == "MultiSWAG":
            continue
        differences[method] = {}
        for metric in METRICS:
            gaps = [
                ours - theirs for ours, theirs in zip(value["MultiSWAG"][metric], value[method][metric], strict=True)
            ]
            sign = -1 if metric in LOWER_IS_BETTER else 1
            differences[method][metric] = {**spread(gaps), "wins": sum(sign * gap > 0 for gap in gaps)}
    return {
        "seeds": list(runs),
        "methods": {m: {metric: spread(values) for metric, values in own.items()} for m, own in value.items()},
        "multiswag_minus": differences,
        "seconds": {str(seed): round(one["seconds"], 1) for seed, one in runs.items()},
        "threads": {str(seed): one["threads"] for seed, one in runs.items()},
        "texts": {key: next(iter(runs.values()))[key] for key in ("n_train", "n_validation", "n_test")},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("lowland", "torch", "transformers", "peft")},
        "date": date.today().isoformat(),
        "command": " ".join(["python benchmarks/text_seeds.py", *map(str, runs)])
        + (f" --base-rate {base_rate:g}" if base_rate else ""),
    }


def page(found: dict[str, Any]) -> str:
    def cell(entry: dict[str, Any], sign: str = "") -> str:
        sd = "" if entry["sd"] is None else f" ± {entry['sd']:.3f}"
        return f"{entry['mean']:{sign}.3f}{sd}"

    texts = found["texts"]
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    lines = [
        f"# The demo over {len(found['seeds'])} seeds",
        "",
        f"Mean ± standard deviation over n = {len(found['seeds'])} seeds ({', '.join(map(str, found['seeds']))}); "
        f"{texts['n_train']} training, {texts['n_validation']} validation, {texts['n_test']} test texts, "
        "the same test texts for every seed.",
        f"{found['machine']}; {versions}; {found['date']}; `{found['command']}`.",
        "",
        "| method | " + " | ".join(HEADS[m] for m in SHOWN) + " |",
        "|---|" + "---|" * len(SHOWN),
    ]
    for method, own in found["methods"].items():
        lines.append(f"| {method} | " + " | ".join(cell(own[metric]) for metric in SHOWN) + " |")
    lines += [
        "",
        "MultiSWAG minus the method, paired by seed; in brackets the seeds in which MultiSWAG is better.",
        "",
        "| minus | " + " | ".join(HEADS[m] for m in SHOWN) + " |",
        "|---|" + "---|" * len(SHOWN),
    ]
    for method, own in found["multiswag_minus"].items():
        cells = (f"{cell(own[m], '+')} ({own[m]['wins']} of {own[m]['n']})" for m in SHOWN)
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "MultiSWAG by seed; minutes and threads of the whole run, as they came on a machine with other work.",
        "",
    ]
    lines += ["| seed | " + " | ".join(HEADS[m] for m in SHOWN) + " | minutes | threads |"]
    lines += ["|---|" + "---|" * (len(SHOWN) + 2)]
    ours = found["methods"]["MultiSWAG"]
    for index, seed in enumerate(found["seeds"]):
        values = " | ".join(f"{ours[metric]['values'][index]:.3f}" for metric in SHOWN)
        lines.append(f"| {seed} | {values} | {found['seconds'][str(seed)] / 60:.1f} | {found['threads'][str(seed)]} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("seeds", nargs="*", type=int)
    asked.add_argument("--base-rate", type=float, default=0.0)
    options = asked.parse_args()
    runs: dict[int, dict[str, Any]] = {}
    name = "text_seeds_tuned" if options.base_rate else "text_seeds"
    RESULTS.mkdir(exist_ok=True)
    for seed in options.seeds or [0, 1, 2, 3, 4]:
        runs[seed] = run(seed, options.base_rate)
        found = gathered(runs, options.base_rate)
        (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (RESULTS / f"{name}.md").write_text(page(found), encoding="utf-8")
    print(page(found))


if __name__ == "__main__":
    main()
