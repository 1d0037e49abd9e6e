"""A synthetic run folder of the text study: every file the report reads, made of seeded numbers and hostile texts."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

METHODS = (
    "base",
    "early-stopped base",
    "temperature-scaled base",
    "SWA",
    "SWAG",
    "deep ensemble",
    "MultiSWA",
    "MultiSWAG",
)
METRICS = ("accuracy", "precision", "recall", "f1", "nll", "ece", "brier", "mcc")
HOSTILE = (
    "<script>console.error('executed'); document.title = 'taken'</script>",
    "</pre></details></main><h1>out of the box</h1><img src=x onerror=alert(1)>",
    "{{ 7 * 7 }} {% raw %} &amp; &#x3c;b&#x3e; \"quoted\" 'single' `tick` </style><style>*{display:none}",
    "w" * 900,
    "https://example.invalid/" + "a/" * 200,
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f3f3\ufe0f\u200d\U0001f308 emoji, joined and plain "
    * 3,
    "\u202eright to left override left open",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd, then English, "
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
    'a line\n\n\nand another,\twith a tab, and a "quote, comma"',
    "",
    "z\u0335\u0321\u0327\u0322a\u0334\u0315\u0350l\u0337\u0351g\u0338\u0344o" * 20,
    "half a pair \ud83d and no more",
    "\x00\x01\x07 control \x1b[31m characters \x7f",
)


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def _metrics(rank: int) -> dict[str, dict[str, float]]:
    """Plausible intervals; NLL, ECE and Brier fall with `rank`, the others hardly rise."""
    falling = {"nll": 0.52 - 0.028 * rank, "ece": 0.105 - 0.009 * rank, "brier": 0.24 - 0.006 * rank}
    values = {metric: falling.get(metric, 0.81 + 0.003 * rank) for metric in METRICS}
    return {
        metric: {"value": value, "low": value - 0.1 * value, "high": value + 0.1 * value}
        for metric, value in values.items()
    }


def _gaps(ahead: int) -> dict[str, dict[str, float]]:
    """MultiSWAG minus a method `ahead` ranks below it; ECE of the nearest is worse, accuracies are undecided."""
    values = {"nll": -0.028 * ahead, "ece": 0.02 - 0.009 * ahead, "brier": -0.006 * ahead}
    return {
        metric: {"value": value, "low": value - 0.01, "high": value + 0.01}
        for metric, value in ((metric, values.get(metric, 0.001 * ahead)) for metric in METRICS)
    }


def _phase(rng: np.random.Generator, steps: int, epochs: int, start: float, end: float) -> dict[str, Any]:
    fall = end + (start - end) * np.exp(-np.linspace(0, 4, steps))
    loss = np.abs(fall + rng.normal(0, 0.06, steps))
    validation = [
        {"epoch": epoch + 1, "nll": float(0.35 + 0.02 * epoch + rng.normal(0, 0.01)), "accuracy": 0.85, "f1": 0.81}
        for epoch in range(epochs)
    ]
    return {
        "step": list(range(1, steps + 1)),
        "loss": loss.tolist(),
        "lr": np.linspace(2e-3, 0, steps).tolist(),
        "validation": validation,
    }


def build(folder: Path, *, members: int = 3, classes: int = 2, texts: int = 300) -> Path:
    """Write the run folder and return it. Same arguments, same bytes."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    names = ["neutral", "insulting", "<b>third & last</b>", "d", "e"][:classes]
    labels = rng.integers(0, classes, texts)
    signal = np.eye(classes)[labels] * 1.6
    logits = signal + rng.normal(0, 1, (texts, classes)) + rng.normal(0, 0.5, (members, texts, classes))
    sharp, mild = softmax(3 * logits), softmax(1.5 * logits)
    arrays: dict[str, np.ndarray] = {"test_labels": labels, "validation_labels": labels[:100]}
    stacks = dict(zip(METHODS, (sharp, mild, mild, mild, mild), strict=False))
    combined = {"deep ensemble": sharp.mean(0), "MultiSWA": mild.mean(0), "MultiSWAG": mild.mean(0)}
    for method in METHODS:
        key = method.lower().replace("-", "_").replace(" ", "_")
        first = stacks[method][0] if method in stacks else combined[method]
        arrays[f"test_{key}"] = first
        arrays[f"validation_{key}"] = first[:100]
        if method in stacks:
            arrays[f"test_members_{key}"] = stacks[method]
    np.savez(folder / "probabilities.npz", **arrays)

    means = rng.normal(0, 0.05, (members, 2))
    mix = np.array([[0.01, 0.004], [0.0, 0.006]])
    samples = means[:, None] + rng.normal(0, 1, (members, 300, 2)) @ mix
    weight_names = np.array(["base_model.model.classifier.weight[0, 17]", "base_model.model.classifier.weight[1, 203]"])
    np.savez(
        folder / "head_samples.npz",
        names=weight_names,
        samples=samples.astype(np.float32),
        means=means.astype(np.float32),
    )

    probs = combined["MultiSWAG"]
    with (folder / "predictions.csv").open("w", newline="", encoding="utf-8", errors="surrogatepass") as file:
        writer = csv.writer(file)
        columns = ["index", "label", "prediction", *(f"p_{name}" for name in names)]
        writer.writerow([*columns, "entropy", "expected_entropy", "mutual_information", "text"])
        for index, (label, row) in enumerate(zip(labels, probs, strict=True)):
            entropy = float(-(row * np.log(row + 1e-12)).sum())
            text = HOSTILE[index % len(HOSTILE)] if index % 3 else f"text {index} of ordinary length and no harm at all"
            numbers = [f"{p:.6f}" for p in row]
            given, predicted = names[label], names[int(row.argmax())]
            writer.writerow(
                [
                    index,
                    given,
                    predicted,
                    *numbers,
                    f"{entropy:.6f}",
                    f"{0.8 * entropy:.6f}",
                    f"{0.2 * entropy:.6f}",
                    text,
                ]
            )

    def dump(name: str, value: object) -> None:
        (folder / name).write_text(json.dumps(value, indent=2), encoding="utf-8")

    dump(
        "metrics.json",
        {
            "methods": {method: _metrics(rank) for rank, method in enumerate(METHODS)},
            "members": {
                key: [
                    {metric: cell["value"] + 0.01 * i for metric, cell in _metrics(rank).items()}
                    for i in range(members)
                ]
                for rank, key in enumerate(METHODS[:5])
            },
            "differences": {"of": "MultiSWAG", "minus": {METHODS[i]: _gaps(7 - i) for i in range(7)}},
            "temperature": [2.1 + 0.1 * i for i in range(members)],
            "chosen": {"early_stop_epoch": [2] * members, "start": 2, "learning_rate": 0.02, "scale": 1.0},
            "shipped": {
                "method": "MultiSWA",
                "certain": False,
                "rows": [
                    {
                        "method": m,
                        "passes": 1 + i,
                        "nll": 0.5 - 0.02 * i,
                        "behind": 0.02 * (7 - i),
                        "behind_error": 0.01,
                        "tied": i >= 6,
                    }
                    for i, m in enumerate(METHODS)
                ],
            },
            "tried": [{"start": 2, "learning_rate": rate, "scale": 0.0, "nll": 0.4 + rate} for rate in (0.02, 0.05)],
            "optimism": 0.001,
            "n_test": texts,
            "n_validation": 100,
            "n_train": 600,
            "labels": names,
            "verdict": "MultiSWAG has the lowest NLL (0.324, base 0.520); the <accuracies> of all methods "
            "overlap. Another sentence says how far that goes.",
        },
    )
    phases: list[dict[str, Any]] = [{"member": None, "phase": "prepare", "seconds": 6.5}]
    for m in range(members):
        for phase, seconds in (("adamw", 40.0), ("swag", 35.5), ("predict", 22.0)):
            phases.append({"member": m, "phase": phase, "seconds": seconds + m})
    phases.append({"member": None, "phase": "compare", "seconds": 5.5})
    dump(
        "timings.json",
        {
            "phases": phases,
            "sampling": {"draws": 10 * members, "seconds": 21.0 * members, "seconds_per_draw_per_1000": 2.625},
            "total_seconds": sum(p["seconds"] for p in phases),
            "peak_memory_mb": 1312.5,
        },
    )
    dump(
        "history.json",
        {
            "members": [
                {"member": m, "adamw": _phase(rng, 152, 8, 0.7, 0.05), "swag": _phase(rng, 114, 6, 0.3, 0.2)}
                for m in range(members)
            ]
        },
    )
    dump(
        "versions.json",
        {
            "python": "3.11.9",
            "packages": {"torch": "2.13.0", "transformers": "5.23.0"},
            "machine": "x86_64, 2 cores",
            "threads": 2,
            "dataset": "sha256:" + "ab" * 32,
            "model": "sha256:" + "cd" * 32,
        },
    )
    (folder / "config.toml").write_text(
        '[data]\nname = "<b>&"\nseed = 0\n\n[training]\nseeds = [1, 2, 3]\nepochs = 8\n\n'
        "[swag]\nstart = 2\n\n[evaluation]\nbins = 20\nresamples = 20\nlevel = 0.95\n",
        encoding="utf-8",
    )
    return folder
