"""The report's numbers as its template shows them: strings, marks and the sentences that follow from them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .run import METRICS, Run, Text

TITLES = {
    "precision": "Precision", "recall": "Recall", "f1": "F1", "accuracy": "Accuracy",
    "nll": "NLL", "ece": "ECE", "brier": "Brier", "mcc": "MCC",
}  # fmt: skip
PHASES = {
    "prepare": "reading", "adamw": "AdamW phase", "swag": "SWAG phase", "tuned": "AdamW phase, tuned rate",
    "search": "search of the SWAG phase", "predict": "predictions", "compare": "comparison",
}  # fmt: skip
PAIRED = ("f1", "accuracy", "nll", "ece", "brier")
LOWER = ("nll", "ece", "brier")  # better when lower
MEANINGS = {
    "base": "Fine-tuned with AdamW for the whole budget, the weights of the last step: what most people would deploy.",
    "base, tuned rate": "The same training at a rate of its own, the one that suits the base model best.",
    "early-stopped base": "The same training, stopped at the epoch with the lowest validation NLL. It costs nothing.",
    "temperature-scaled base": (
        "The base model with its logits divided by one number, fitted on the validation texts. The predicted class "
        "stays, how sure it is changes. It costs nothing either."
    ),
    "MC dropout": "The base model with its dropout left on, its probabilities averaged over passes.",
    "SWA": "The mean of the weights that a second phase passes through after a short first one: one model again.",
    "SWAG": (
        "A Gaussian around that mean, its covariance from the same weights. Models are drawn from it and their "
        "probabilities averaged."
    ),
    "deep ensemble": "The probabilities of all members' base models, averaged: the rival at the same cost of training.",
    "deep ensemble, tuned rate": "The probabilities of all members' base models of the tuned rate, averaged.",
    "MultiSWA": "The probabilities of all members' SWA models, averaged.",
    "MultiSWAG": "The probabilities of models drawn from all members' Gaussians, averaged.",
}
METRIC_MEANINGS = {
    "precision": "of the texts given a class, the share that belongs there; mean over classes",
    "recall": "of the texts of a class, the share that was found; mean over classes",
    "f1": "harmonic mean of the two, per class; mean over classes",
    "accuracy": "share of texts classified rightly",
    "nll": "mean of −log of the probability given to the true class: being sure and wrong is expensive",
    "ece": "mean gap between confidence and accuracy, over bins of equal width",
    "brier": "mean squared distance of the probabilities from the truth",
    "mcc": "correlation of predicted and true class; 0 is chance",
}


def things(run: Run) -> str:
    """What the run's models were asked: a choice study has shifted sets, if only none of them."""
    return "questions" if "shifted" in run.metrics else "texts"


def guessing(run: Run) -> str:
    """How often a guess is right, and whether any method is told apart from that; empty where the run does not say."""
    chance = run.metrics.get("chance")
    if chance is None:
        return ""
    above = any(run.metrics["methods"][method]["accuracy"]["low"] > chance for method in run.methods)
    told = "" if above else "; no method is better by more than its interval, so their differences say little"
    return f"A guess is right in {chance:.1%} of them{told}."


def spoken(meanings: Mapping[str, str], things: str) -> dict[str, str]:
    """The meanings in the study's own word for a text.

    >>> spoken({"accuracy": "share of texts classified rightly"}, "questions")
    {'accuracy': 'share of questions classified rightly'}
    """
    return {name: meaning.replace("texts", things) for name, meaning in meanings.items()}


@dataclass(frozen=True)
class Cell:
    """One number of the results with its interval."""

    value: str
    low: str
    high: str
    best: bool = False
    overlaps: bool = False


@dataclass(frozen=True)
class Difference:
    """One difference with its interval, and what that says."""

    value: str
    low: str
    high: str
    word: str  # "better", "worse" or "undecided"


@dataclass(frozen=True)
class Shifted:
    """One set of shifted questions: metrics by method, and how well an uncertainty tells them from the test set."""

    name: str
    n: int
    rows: Sequence[tuple[str, list[str]]]
    detection: Sequence[tuple[str, str, list[str]]]


def bins(run: Run) -> int:
    """Bins of the ECE in metrics.json: the diagrams must show the bins that the number is made of."""
    return int(run.settings.get("evaluation", {}).get("bins", 20))


def level(run: Run) -> float:
    """Level of the intervals in metrics.json."""
    return float(run.settings.get("evaluation", {}).get("level", 0.95))


def results(run: Run) -> list[tuple[str, list[Cell]]]:
    """One row per method: the value of each metric, its interval, and whether it is the best or overlaps with it."""
    methods = run.metrics["methods"]
    best = {metric: _best(methods, metric) for metric in METRICS}
    return [
        (
            method,
            [
                Cell(
                    number(cell["value"]),
                    number(cell["low"]),
                    number(cell["high"]),
                    best=method in best[metric],
                    overlaps=method not in best[metric] and _overlap(cell, methods[best[metric][0]][metric]),
                )
                for metric, cell in ((metric, methods[method][metric]) for metric in METRICS)
            ],
        )
        for method in run.methods
    ]


def overlap_sentences(run: Run) -> list[str]:
    """Which columns tell methods apart at all, said in words."""
    methods = run.metrics["methods"]
    undecided, decided = [], []
    for metric in METRICS:
        first = _best(methods, metric)[0]
        apart = [m for m in run.methods if m != first and not _overlap(methods[m][metric], methods[first][metric])]
        if apart:
            decided.append(f"In {TITLES[metric]} the interval of {first} (best) leaves out that of {listed(apart)}.")
        else:
            undecided.append(TITLES[metric])
    if undecided:
        decided.insert(
            0, f"In {listed(undecided)} every interval overlaps with the best one's: the order there may be chance."
        )
    return decided


def differences(run: Run) -> list[tuple[str, list[Difference]]]:
    """MultiSWAG minus each rival, both resampled together: sharper than two intervals side by side."""
    rows = []
    for rival, gaps in run.metrics["differences"]["minus"].items():
        cells = []
        for metric in PAIRED:
            low, high = gaps[metric]["low"], gaps[metric]["high"]
            if metric in LOWER:
                word = "better" if high < 0 else "worse" if low > 0 else "undecided"
            else:
                word = "better" if low > 0 else "worse" if high < 0 else "undecided"
            cells.append(Difference(signed(gaps[metric]["value"]), signed(low), signed(high), word))
        rows.append((rival, cells))
    return rows


def spread(run: Run) -> list[tuple[str, str, list[str]]]:
    """Per kind of single model: its mean and standard deviation over the members, then each member's NLL."""
    rows = []
    for kind, members in run.metrics.get("members", {}).items():
        values = [float(member["nll"]) for member in members]
        if values:
            mean = sum(values) / len(values)
            deviation = (sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1)) ** 0.5
            rows.append((kind, f"{number(mean)} ± {number(deviation)}", [number(v) for v in values]))
    return rows


def uncertain(texts: Sequence[Text], n: int = 10) -> list[Text]:
    """The n texts of highest entropy."""
    return sorted(texts, key=lambda t: -t.entropy)[:n]


def confidently_wrong(texts: Sequence[Text], n: int = 10) -> list[Text]:
    """The n wrongly classified texts of highest confidence."""
    return sorted((t for t in texts if t.prediction != t.label), key=lambda t: -t.confidence)[:n]


def shortened(text: str, limit: int = 700) -> str:
    """The text as it can be shown: control characters as pictures, no lone surrogates, at most `limit` of it."""
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # halves of pairs cannot be written
    shown = "".join(chr(0x2400 + ord(c)) if ord(c) < 32 and c not in "\n\t" else c for c in text.replace("\r\n", "\n"))
    shown = shown.replace("\x7f", "\u2421")
    return shown if len(shown) <= limit else f"{shown[:limit]}… ({len(text) - limit} more characters)"


def phases(run: Run) -> dict[str, float]:
    """Seconds of each phase, summed over the members, in the order of their first appearance."""
    sums: dict[str, float] = {}
    for phase in run.timings["phases"]:
        name = PHASES.get(phase["phase"], phase["phase"])
        sums[name] = sums.get(name, 0.0) + float(phase["seconds"])
    return sums


def flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as (dotted name, text) pairs."""
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from flat(item, f"{prefix}{key}.")
        elif isinstance(item, list | tuple):
            yield f"{prefix}{key}", ", ".join(str(part) for part in item)
        else:
            yield f"{prefix}{key}", str(item)


def number(value: float) -> str:
    """Three decimals, or a dash for NaN.

    >>> number(-0.0714)
    '−0.071'
    """
    return "–" if value != value else f"{value:.3f}".replace("-", "−")


def between(low: str, high: str) -> str:
    """An interval; with "to" where a dash would stand beside a minus.

    >>> between("0.1", "0.2"), between("−0.1", "0.2")
    ('0.1–0.2', '−0.1 to 0.2')
    """
    return f"{low} to {high}" if "−" in low else f"{low}–{high}"


def signed(value: float) -> str:
    """Three decimals with their sign."""
    return f"{value:+.3f}".replace("-", "−")


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _best(methods: Mapping[str, Any], metric: str) -> list[str]:
    """Every method whose value, as it is shown, is the best one; ties are not broken by digits nobody sees."""
    values = {method: round(methods[method][metric]["value"], 3) for method in methods}
    finite = [v for v in values.values() if v == v]
    if not finite:
        return ["base"]
    target = min(finite) if metric in LOWER else max(finite)
    return [method for method, value in values.items() if value == target]


def _overlap(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    return one["low"] <= other["high"] and other["low"] <= one["high"]


def shipped(run: Run) -> str:
    """The method that the run's models are shipped by; of runs from before there was a choice, MultiSWAG."""
    return str(run.metrics["shipped"]["method"]) if "shipped" in run.metrics else "MultiSWAG"


def shipping(run: Run) -> list[tuple[str, list[str]]]:
    """Of each method its passes, its validation NLL, how far that is behind the best, and what was made of it."""
    found = run.metrics.get("shipped", {"method": "", "rows": []})
    rows = []
    for row in found["rows"]:
        word = "shipped" if row["method"] == found["method"] else "tied" if row["tied"] else ""
        behind = f"{row['behind']:.3f} ± {row['behind_error']:.3f}" if row["behind"] else "best"
        rows.append((str(row["method"]), [str(row["passes"]), number(row["nll"]), behind, word]))
    return rows


def tried(run: Run) -> list[list[str]]:
    """The settings of the second phase that were tried, and the validation NLL of each; the chosen ones are marked."""
    chosen = run.metrics.get("chosen", {})
    return [
        [
            f"{one['start']}", f"{one['learning_rate']:g}", f"{one['scale']:g}" if one["scale"] else "0 (SWA)",
            number(one["nll"]),
            "chosen" if all(one[key] == chosen[key] for key in ("start", "learning_rate")) else "",
        ]
        for one in run.metrics.get("tried", [])
    ]  # fmt: skip


def shifted(run: Run) -> list[Shifted]:
    """What the run says of questions of another kind; empty for a run without such."""
    found = []
    for name, part in run.metrics.get("shifted", {}).items():
        rows = [
            (method, [number(part["methods"][method][metric]["value"]) for metric in PAIRED]) for method in run.methods
        ]
        told = [
            (method, score, [number(values[metric]) for metric in ("auroc", "aupr_out", "aupr_in")])
            for method in run.methods
            for score, values in part["detection"].get(method, {}).items()
        ]
        found.append(Shifted(name, int(part["n"]), rows, told))
    return found
