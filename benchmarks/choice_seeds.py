"""The choice study over seeds: MiniLM on two sets of questions, one of them with a shifted set.

Measured: mean and standard deviation over seeds of accuracy, NLL, ECE (20 bins of equal width), Brier and MCC of nine
methods; the paired differences of SWAG and MultiSWAG minus the base model (MAP) with 95 % t-intervals over seeds; and
how well uncertainty tells OpenBookQA from CommonsenseQA. A seed has its own training and validation questions and its
own members; the test questions stay. Rates were chosen by choice_tune.py on another seed's validation questions.
Run: python benchmarks/choice_seeds.py [SET-SEED ...]; all of them by default. Finished runs are not repeated
(runs/choice-SET-SEED), and the page is written from what is there. Results: benchmarks/results/choice_seeds.json, .md.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the list of peers lies among the tests
import torch
from pages import machine, versions

from lowland.calibration.probabilities import entropy
from lowland.studies.choice import ChoiceStudy, run_choice_study
from lowland.studies.choice.config import Data, Evaluation, Model, Swag, Training
from lowland.studies.runs.folder import read_arrays
from lowland.studies.text import Lora

SETS = {"commonsenseqa": ("openbookqa",), "siqa": ()}
SEEDS = (0, 1, 2, 3, 4)
MEMBERS = 2
RATES = (3e-4, 3e-4)  # of the two phases: the pair with the lowest validation NLL of the base model in choice_tune.md
RESULTS = Path(__file__).parent / "results"
METRICS = {"accuracy": "accuracy", "nll": "NLL", "ece": "ECE", "brier": "Brier", "mcc": "MCC"}
CLAIMS = (("SWAG", "base"), ("MultiSWAG", "base"), ("MultiSWAG", "deep ensemble"), ("SWAG", "temperature-scaled base"))
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # two-sided 95 % quantiles of Student's t with n - 1 degrees


def configured(name: str, seed: int, rates: tuple[float, float] = RATES, members: int = MEMBERS) -> ChoiceStudy:
    """The study of one set and seed; rates of the two phases."""
    return ChoiceStudy(
        data=Data(
            name=name,
            shifted=SETS[name],
            train_questions=300,
            validation_questions=120,
            test_questions=300,
            shifted_questions=200,
            seed=seed,
        ),
        model=Model(scale=10.0),
        lora=Lora(dropout=0.1, layers=(4, 5)),
        training=Training(seeds=tuple(100 * seed + 1 + m for m in range(members)), epochs=5, learning_rate=rates[0]),
        swag=Swag(start=2, learning_rate=rates[1], every="5 steps"),
        evaluation=Evaluation(samples=6, dropout_samples=4),
    )


def drawn(folder: Path) -> dict[str, float]:
    """How far SWAG's draws lie apart on the test questions, mean over members: nats, and share of other answers."""
    apart, other = [], []
    for path in sorted(folder.glob("stages/*/predictions-swag.npz")):
        arrays = read_arrays(path)
        probs, expected, votes = (torch.from_numpy(arrays[f"test{part}"]) for part in ("", "_entropy", "_votes"))
        apart.append((entropy(probs) - expected).mean().item())
        other.append(1 - votes.gather(1, probs.argmax(1, keepdim=True)).mean().item())
    return {"mutual information": statistics.fmean(apart), "disagreement": statistics.fmean(other)}


def spread(values: list[float]) -> dict[str, Any]:
    return {
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "n": len(values),
        "values": values,
    }


def gap(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    found = spread([a - b for a, b in zip(ours, theirs, strict=True)])
    half = T95[found["n"]] * found["sd"] / found["n"] ** 0.5 if found["n"] in T95 else None
    return {**found, "low": found["mean"] - half if half is not None else None,
            "high": found["mean"] + half if half is not None else None}  # fmt: skip


def gathered(runs: dict[int, dict[str, Any]]) -> dict[str, Any]:
    several = list(runs.values())

    def values(method: str, metric: str, part: str | None = None) -> list[float]:
        tables = [one["shifted"][part] if part else one for one in several]
        return [table["methods"][method][metric]["value"] for table in tables]

    methods = list(several[0]["methods"])
    found: dict[str, Any] = {
        "seeds": list(runs),
        "methods": {m: {k: spread(values(m, k)) for k in METRICS} for m in methods},
        "gaps": {f"{a} - {b}": {k: gap(values(a, k), values(b, k)) for k in METRICS} for a, b in CLAIMS},
        "temperature": spread([statistics.fmean(one["temperature"]) for one in several]),
        "draws": {k: spread([one["draws"][k] for one in several]) for k in several[0]["draws"]},
        "minutes": spread([one["seconds"] / 60 for one in several]),
        "shifted": {},
    }
    for part in several[0]["shifted"]:
        told = several[0]["shifted"][part]["detection"]
        found["shifted"][part] = {
            "methods": {m: {k: spread(values(m, k, part)) for k in METRICS} for m in methods},
            "gaps": {
                f"{a} - {b}": {k: gap(values(a, k, part), values(b, k, part)) for k in METRICS} for a, b in CLAIMS
            },
            "auroc": {
                f"{m}, {score}": spread([one["shifted"][part]["detection"][m][score]["auroc"] for one in several])
                for m in told
                for score in told[m]
            },
        }
    return found


def cell(one: dict[str, Any], digits: int = 3) -> str:
    return f"{one['mean']:.{digits}f}" + ("" if one["sd"] is None else f" ± {one['sd']:.{digits}f}")


def tables(found: dict[str, Any]) -> list[str]:
    lines = ["| method | " + " | ".join(METRICS.values()) + " |", "|---" * (1 + len(METRICS)) + "|"]
    for method, own in found["methods"].items():
        lines.append(f"| {method} | " + " | ".join(cell(own[k]) for k in METRICS) + " |")
    lines += ["", "Paired differences over seeds, mean and 95 % t-interval:", ""]
    lines += ["| difference | " + " | ".join(METRICS.values()) + " |", "|---" * (1 + len(METRICS)) + "|"]
    for name, own in found["gaps"].items():
        cells = [f"{g['mean']:+.3f}" + (f" [{g['low']:+.3f}, {g['high']:+.3f}]" if g["low"] is not None else "")
                 for g in (own[k] for k in METRICS)]  # fmt: skip
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def page(content: dict[str, Any], title: str, about: str) -> str:
    on = content["machine"]
    lines = [
        f"# {title}",
        "",
        f"{about} {content['date']}, {on['cpu']}, "
        f"{on['cores']} cores, one thread a run, other work beside it. "
        f"Versions: {', '.join(f'{k} {v}' for k, v in content['versions'].items())}. "
        f"Command: `{content['command']}`.",
        "",
    ]
    for name, found in content["sets"].items():
        lines += [f"## {name}, n = {len(found['seeds'])} seeds ({', '.join(map(str, found['seeds']))})", ""]
        minutes = ", ".join(f"{value:.1f}" for value in found["minutes"]["values"])
        lines += [f"Minutes by the clock, seed by seed: {minutes}."]
        heat, draws = (", ".join(f"{v:.2f}" for v in found["temperature"]["values"]), found["draws"])
        lines += [f"Temperature that the validation questions want of the base model, seed by seed: {heat}."]
        lines += [
            f"SWAG's draws on test questions: mutual information {cell(draws['mutual information'], 4)} nats, "
            f"{100 * draws['disagreement']['mean']:.1f} % of answers differ from those of their average."
        ]
        lines += ["Mean ± standard deviation over seeds.", ""]
        lines += tables(found)
        for part, own in found["shifted"].items():
            lines += [f"### The same models on {part}", "", *tables(own)]
            lines += [f"AUROC of telling {part} from the test questions (0.5 is chance):", ""]
            lines += ["| method, score | AUROC |", "|---|---|"]
            lines += [f"| {key} | {cell(value)} |" for key, value in own["auroc"].items()] + [""]
    return "\n".join(lines)


def finished(prefix: str, seeds: Sequence[int]) -> dict[int, dict[str, Any]]:
    """The metrics of the runs that are there, by seed, with the seconds they took."""
    runs = {}
    for seed in seeds:
        folder = Path("runs") / f"{prefix}-{seed}"
        if (folder / "metrics.json").exists():
            runs[seed] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
            timings = json.loads((folder / "timings.json").read_text(encoding="utf-8"))
            runs[seed]["seconds"] = timings["total_seconds"]
            runs[seed]["draws"] = drawn(folder)
    return runs


def write_results(script: str, sets: dict[str, Any], title: str, about: str) -> None:
    content = {
        "date": date.today().isoformat(),
        "command": f"python benchmarks/{script}.py",
        "machine": machine(),
        "versions": versions(["transformers", "peft"]),
        "sets": sets,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{script}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (RESULTS / f"{script}.md").write_text(page(content, title, about), encoding="utf-8")


def main() -> None:
    wanted = sys.argv[1:] or [f"{name}-{seed}" for seed in SEEDS for name in SETS]
    for one in wanted:
        name, seed = one.rsplit("-", 1)
        run_choice_study(configured(name, int(seed)), Path("runs") / f"choice-{one}", resume=True)
    there = {name: finished(f"choice-{name}", SEEDS) for name in SETS}
    write_results(
        "choice_seeds",
        {name: gathered(runs) for name, runs in there.items() if runs},
        "The choice study over seeds",
        f"MiniLM on question-option pairs, {MEMBERS} members a seed.",
    )


if __name__ == "__main__":
    main()
