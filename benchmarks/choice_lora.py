"""SWAG-LoRA where its claim is made: adapters that overfit a few questions, rates of MAP and of SWAG chosen apart.

Recipe A: MiniLM on question-option pairs, the cosine's scale from the untrained model. Recipe B ("insults"): SmolLM2 is
asked whether a comment is an insult and answers Yes or No; lower layers are computed once.
Measured: accuracy, NLL, ECE (20 bins of equal width) and the temperature that validation questions want, mean and
standard deviation over seeds, of the study's rows and of its rivals (`evaluation.rivals`); paired differences to MAP
with 95 % t-intervals over seeds; and what each run says of its own regime. A seed has its own training and validation
questions and members; the test questions stay. All rows of a seed are trained for the same number of epochs a member.
Rates: `tune` trains one member on seed 1000 for each rate of the first phase and, from there, each of the second; the
first with the lowest validation NLL of MAP at its end is MAP's; SWAG's is the pair whose second phase has the mean
(SWA) of lowest validation NLL.
Run: python benchmarks/choice_lora.py [tune] SET-SEED ..., such as `tune commonsenseqa commonsenseqa-0`. Finished runs
are not repeated (runs/choice-lora-*), and the page is written from what is there.
Results: benchmarks/results/choice_lora.json, .md.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
from datetime import date
from pathlib import Path
from typing import Any

from choice_seeds import RESULTS, T95
from pages import machine, table, versions

from lowland.studies.choice import ChoiceStudy, run_choice_study
from lowland.studies.choice.config import Data, Evaluation, Model, Swag, Training
from lowland.studies.text import Lora

SETS = {"commonsenseqa": ("openbookqa",), "siqa": ("openbookqa",), "insults": ()}
SEEDS, TUNING_SEED, MEMBERS = (0, 1, 2, 3, 4), 1000, 2
FIRST, SECOND = (3e-4, 1e-3, 3e-3), (0.2, 0.5, 1.0)  # rates; of the second phase as a share of the first's
START, EPOCHS = 5, 10
COLUMNS = {"accuracy": "accuracy", "nll": "NLL", "ece": "ECE"}


def configured(name: str, seed: int, members: int, first: float, second: tuple[float, ...], base: float) -> ChoiceStudy:
    letters = name == "insults"
    return ChoiceStudy(
        data=Data(
            name=name, shifted=SETS[name], train_questions=240 if letters else 200, validation_questions=100,
            test_questions=300 if letters else 250, shifted_questions=150, seed=seed,
        ),
        model=Model(kind="words", max_length=160) if letters else Model(kind="pairs"),
        lora=Lora(dropout=0.1, layers=(27, 28, 29) if letters else (4, 5)),
        training=Training(
            seeds=tuple(100 * seed + 1 + m for m in range(members)), epochs=EPOCHS, learning_rate=first, base_rate=base
        ),
        swag=Swag(start=START, learning_rate=second[0], other_rates=second[1:], every="5 steps", rank=10),
        evaluation=Evaluation(samples=8, dropout_samples=8, rivals=base > 0, resamples=200),
    )  # fmt: skip


def tune(name: str) -> None:
    for first in FIRST:
        study = configured(name, TUNING_SEED, 1, first, tuple(share * first for share in SECOND), 0.0)
        data = dataclasses.replace(study.data, test_questions=2, shifted=())
        run_choice_study(dataclasses.replace(study, data=data), tuned_folder(name, first), resume=True)


def tuned_folder(name: str, first: float) -> Path:
    return Path("runs") / f"choice-lora-tune-{name}-{first:g}"


def tuned(name: str) -> list[dict[str, Any]]:
    """A row a rate of the first phase that was tried: MAP's validation NLL, and the best second rate with SWAG's."""
    rows = []
    for first in FIRST:
        path = tuned_folder(name, first) / "metrics.json"
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            swag = next(row for row in found["shipped"]["rows"] if row["method"] == "SWAG")
            base = next(row for row in found["shipped"]["rows"] if row["method"] == "base")
            second = found["chosen"]["learning_rate"]
            rows.append({"first": first, "MAP": base["nll"], "second": second, "SWAG": swag["nll"]})
    return rows


def rates(name: str) -> tuple[float, float, float]:
    """The first and the second rate of SWAG, and MAP's."""
    rows = tuned(name)
    if len(rows) < len(FIRST):
        raise SystemExit(f"the rates of {name} have not been chosen: run `tune {name}` first")
    best = min(rows, key=lambda row: float(row["SWAG"]))
    return float(best["first"]), float(best["second"]), float(min(rows, key=lambda row: float(row["MAP"]))["first"])


def values_of(metrics: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Every row of one run on the test questions: metrics, and the temperature where the run tells it."""
    found = {
        method: {key: own[key]["value"] for key in COLUMNS} for method, own in metrics["methods"].items()
    }  # fmt: skip
    for name, own in metrics["rivals"].items():
        if "test" in own:
            kept = (*COLUMNS, "mutual_information")
            found[name] = {key: own["test"][key] for key in kept} | {"temperature": own["temperature"]}
    found["base"]["temperature"] = statistics.fmean(metrics["temperature"])
    found["SWAG"]["mutual_information"] = metrics["regime"]["mutual_information"]
    return found


def shown(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def gap(values: list[float]) -> str:
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:+.3f}"
    half = T95[len(values)] * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"


def of_set(name: str) -> dict[str, Any] | None:
    runs = {}
    for seed in SEEDS:
        folder = Path("runs") / f"choice-lora-{name}-{seed}"
        if (folder / "metrics.json").exists():
            runs[seed] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
            timings = json.loads((folder / "timings.json").read_text(encoding="utf-8"))
            runs[seed]["minutes"] = timings["total_seconds"] / 60
    if not runs:
        return None
    each = [values_of(metrics) for metrics in runs.values()]
    rows = []
    for method in each[0]:
        row: dict[str, object] = {"method": method}
        row |= {title: shown([one[method][key] for one in each]) for key, title in COLUMNS.items()}
        for key in ("temperature", "mutual_information"):
            if key in each[0][method]:
                row[key.replace("_", " ")] = shown([one[method][key] for one in each])
        if method != "base":
            row["NLL − MAP's"] = gap([one[method]["nll"] - one["base"]["nll"] for one in each])
            row["NLL − tuned MAP's"] = gap([one[method]["nll"] - one["base, tuned rate"]["nll"] for one in each])
        rows.append(row)
    says = {str(seed): metrics["regime"]["says"] for seed, metrics in runs.items()}
    shifted = {
        part: {method: [run["shifted"][part]["methods"][method]["nll"]["value"] for run in runs.values()]
               for method in own["methods"]}
        for part, own in next(iter(runs.values()))["shifted"].items()
    }  # fmt: skip
    minutes = [metrics["minutes"] for metrics in runs.values()]
    known = {"seeds": list(runs), "rates": tuned(name), "minutes": minutes, "says": says}
    return {**known, "shifted_nll": shifted, "rows": rows, "raw": [dict(one) for one in each]}


def page(content: dict[str, Any]) -> str:
    lines = [
        "# SWAG-LoRA where its claim is made", "",
        f"{MEMBERS} members a seed, {EPOCHS} epochs a member in every row (SWAG's second phase begins at {START}). "
        f"{content['date']}; `{content['command']}`. \"base\" is MAP at SWAG's first rate.", "",
    ]  # fmt: skip
    for name, own in content["sets"].items():
        lines += [f"## {name}, seeds {', '.join(map(str, own['seeds']))}", ""]
        lines += ["Validation NLL by rate, one member of another seed:", "", *table(own["rates"]), ""]
        lines += [*table(own["rows"]), ""]
        for part, found in own["shifted_nll"].items():
            told = ", ".join(f"{method} {shown(values)}" for method, values in found.items())
            lines += [f"NLL on {part}: {told}.", ""]
        lines += [f"- Seed {seed}: {' '.join(said)}" for seed, said in own["says"].items()]
        lines += ["", f"Minutes by the clock: {', '.join(f'{value:.1f}' for value in own['minutes'])}.", ""]
    return "\n".join(lines)


def main() -> None:
    wanted = sys.argv[1:] or [f"{name}-{seed}" for seed in SEEDS for name in SETS]
    tuning = "tune" in wanted
    for one in (one for one in wanted if one != "tune"):
        if tuning and one in SETS:
            tune(one)
            continue
        name, seed = one.rsplit("-", 1)
        first, second, base = rates(name)
        study = configured(name, int(seed), MEMBERS, first, (second,), base)
        run_choice_study(study, Path("runs") / f"choice-lora-{one}", resume=True)
    sets = {name: found for name in SETS if (found := of_set(name)) is not None}
    if sets:
        content = {
            "date": date.today().isoformat(),
            "command": "python benchmarks/choice_lora.py",
            "machine": machine(),
            "versions": versions(["transformers", "peft"]),
            "sets": sets,
        }
        (RESULTS / "choice_lora.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        (RESULTS / "choice_lora.md").write_text(page(content), encoding="utf-8")


if __name__ == "__main__":
    main()
