"""New texts through a finished study: the shipped method's probabilities, and which texts a person should see."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowland.calibration import entropy, risk_bound, risk_threshold, temper

from ..adapters.classifier import adapt, load_encoder
from ..adapters.predicting import fast_bfloat16, predicted
from ..adapters.tokens import cut_sentence, tokenise
from ..runs.folder import read_arrays, read_json, write_rows
from ..runs.progress import Progress, Silent
from ..runs.randomness import own_randomness, quiet, stream
from .answering import answering_of, checked_on
from .config import TextStudy
from .study import read_study

LEVEL = 0.95  # of the bound on the risk


@dataclass(frozen=True)
class Reviewed:
    """Predictions for N texts, in their order."""

    names: list[str]  # of the classes
    probs: Tensor  # (N, C)
    entropy: Tensor  # (N,) in nats
    expected_entropy: Tensor  # (N,)
    threshold: float  # of the largest probability; inf: no threshold keeps the risk
    risk: float
    empty: Tensor  # (N,) bool: texts of white space only
    checked: tuple[int, int, int]  # validation texts: all, those above the threshold, and the wrong ones of these
    cut: tuple[int, int]  # how many texts were cut, and at how many tokens
    method: str  # that answered
    why: str = ""  # it and no other, where that needs a word

    @property
    def mutual_information(self) -> Tensor:
        """What of the entropy is due to not knowing the weights, (N,)."""
        return (self.entropy - self.expected_entropy).clamp_min(0.0)

    @property
    def review(self) -> Tensor:
        """Whether a text is to be seen by a person, (N,): the doubtful ones and the empty ones."""
        return (self.probs.amax(1) < self.threshold) | self.empty

    @property
    def bound(self) -> float | None:
        """What the validation texts leave possible as the risk, at 95 %; None where none is answered."""
        _, answered, wrong = self.checked
        return risk_bound(wrong, answered, LEVEL) if answered else None

    def notes(self) -> list[str]:
        """Say what happened to the texts on their way in."""
        shortened, length = self.cut
        said = [self.why, cut_sentence({"new": (shortened, len(self.probs))}, length)]
        count = int(self.empty.sum())
        if count == 1:
            said.append("1 text is empty and goes to a person")
        elif count:
            said.append(f"{count} texts are empty and go to a person")
        return [sentence for sentence in said if sentence]


def check_run(folder: Path) -> TextStudy:
    """See that a folder holds a finished text study, and return its settings.

    Raises:
        ValueError: it does not.
    """
    study = read_study(folder)
    metrics = read_json(folder / "metrics.json")
    if not isinstance(metrics, dict) or not isinstance(metrics.get("labels"), list):
        raise ValueError(f"{folder / 'metrics.json'} names no classes: is it of a text study? If so, run it anew")
    return study


def review_texts(
    folder: Path,
    texts: Sequence[str],
    risk: float = 0.05,
    progress: Progress | None = None,
    method: str | None = None,
) -> Reviewed:
    """Classify texts by a method of a run folder: the one that the study chose to ship on its validation texts.

    The threshold is the lowest confidence from which on at most a share `risk` of the study's validation texts was
    classified wrongly; below it a text is sent to a person. Texts are cut where the study cut its own.

    Args:
        method: a row of the study's table instead, such as "MultiSWAG"; capitals and hyphens do not matter.

    Raises:
        ValueError: the folder holds no finished study, or no such method; there are no texts, or risk is not in [0, 1).
    """
    progress = Silent() if progress is None else progress
    if not 0 <= risk < 1:
        raise ValueError(f"risk is a share of wrong answers and must lie in [0, 1), got {risk}")
    if not texts:
        raise ValueError("there are no texts to classify")
    study = check_run(folder)
    metrics = read_json(folder / "metrics.json")
    answering = answering_of(folder, study, metrics, method)
    names: list[str] = metrics["labels"]
    length = int(study.model.max_length or metrics["max_length"])
    known = read_arrays(folder / "probabilities.npz")
    checked = checked_on(known, answering)
    threshold = risk_threshold(checked, known["validation_labels"], risk)
    with quiet(), own_randomness():
        encoder, tokenizer, _ = load_encoder(study.model)
        tokens = tokenise(tokenizer, texts, length)
        size = study.evaluation.batch_size
        classifier = adapt(encoder, study.model, study.lora, len(names), [tokens], size)
        if torch.cuda.is_available():
            classifier.to(torch.device("cuda"))
        # As in the study, if this processor can.
        products = str(metrics.get("products", "float32")) if fast_bfloat16() else "float32"
        count = sum(part.passes for part in answering.parts)
        progress.plan(count * len(tokens))
        progress.begin(f"predictions of {answering.method}", count * len(tokens))
        total = expected = torch.zeros(())
        for part in answering.parts:
            found = predicted(
                classifier,
                part.posterior,
                {"new": tokens},
                size,
                samples=part.samples,
                done=progress.advance,
                generator=stream(part.seed, "draws"),
                products=products,
            )["new"]
            probs, own = found.probs, found.expected_entropy
            if part.temperature is not None:
                probs = temper(probs, part.temperature)
                own = entropy(probs)
            total = total + probs / len(answering.parts)
            expected = expected + own / len(answering.parts)
        progress.end("")
    empty = torch.tensor([not text.strip() for text in texts])
    return Reviewed(
        names,
        total,
        entropy(total),
        expected,
        threshold,
        risk,
        empty,
        _checked(checked, known["validation_labels"], threshold),
        (len(tokens.shortened), length),
        answering.method,
        answering.why,
    )


def _checked(probs: Any, labels: Any, threshold: float) -> tuple[int, int, int]:
    answered = probs.max(1) >= threshold
    wrong = answered & (probs.argmax(1) != labels)
    return len(labels), int(answered.sum()), int(wrong.sum())


def write_reviewed(
    path: Path, reviewed: Reviewed, texts: Sequence[str], kept: Mapping[str, Sequence[Any]] | None = None
) -> None:
    """Write one row a text: its class, probabilities, uncertainties and whether a person should see it.

    `kept` are further columns of the input, an identifier for instance; they stand behind the others.
    """
    header = ["index", "prediction", *(f"p_{name}" for name in reviewed.names), "confidence"]
    header += ["entropy", "expected_entropy", "mutual_information", "review", "text"]
    kept = kept or {}
    others = [name if name not in header else f"input_{name}" for name in kept]
    information, flagged = reviewed.mutual_information, reviewed.review
    rows = (
        [
            index,
            reviewed.names[int(reviewed.probs[index].argmax())],
            *(f"{p:.6f}" for p in reviewed.probs[index].tolist()),
            f"{reviewed.probs[index].max():.6f}",
            f"{reviewed.entropy[index]:.6f}",
            f"{reviewed.expected_entropy[index]:.6f}",
            f"{information[index]:.6f}",
            "yes" if flagged[index] else "no",
            text,
            *(column[index] for column in kept.values()),
        ]
        for index, text in enumerate(texts)
    )
    write_rows(path, [*header, *others], rows)


def sentence(reviewed: Reviewed) -> str:
    """Say how many texts go to a person, why, and how much the validation texts can promise of the rest."""
    flagged, count = int(reviewed.review.sum()), len(reviewed.probs)
    number, answered, wrong = reviewed.checked
    these = "text" if count == 1 else "texts"
    if math.isinf(reviewed.threshold) or reviewed.bound is None:
        alone = "the text goes" if count == 1 else f"all {count} texts go"
        return (
            f"no confidence kept the risk at {reviewed.risk:.1%} on the {number} validation texts: {alone} to a "
            "person; allow a higher risk"
        )
    return (
        f"{flagged} of {count} {these} {'goes' if flagged == 1 else 'go'} to a person: their confidence is below "
        f"{reviewed.threshold:.3f}. From there on {wrong} of {answered} validation texts ({wrong / answered:.1%}) were "
        f"classified wrongly; so few leave a risk of up to {reviewed.bound:.1%} possible ({LEVEL:.0%} bound)"
    )
