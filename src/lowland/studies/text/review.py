"""New texts through a finished study: MultiSWAG probabilities, uncertainties, and which texts a person should see."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lowland import Mixture, load
from lowland.averager import draws
from lowland.calibration import entropy, risk_threshold

from ..adapters.classifier import adapt, load_encoder
from ..adapters.tokens import tokenise
from ..adapters.training import class_probabilities
from ..runs.folder import read_arrays, read_json, write_rows
from ..runs.progress import Progress, Silent
from ..runs.randomness import own_randomness, quiet, stream
from .study import read_study


@dataclass(frozen=True)
class Reviewed:
    """Predictions for N texts, in their order."""

    names: list[str]  # of the classes
    probs: Tensor  # (N, C)
    entropy: Tensor  # (N,) in nats
    expected_entropy: Tensor  # (N,)
    threshold: float  # of the largest probability; inf: no threshold keeps the risk
    risk: float

    @property
    def mutual_information(self) -> Tensor:
        """What of the entropy is due to not knowing the weights, (N,)."""
        return (self.entropy - self.expected_entropy).clamp_min(0.0)

    @property
    def review(self) -> Tensor:
        """Whether a text is to be seen by a person, (N,)."""
        return self.probs.amax(1) < self.threshold


def review_texts(folder: Path, texts: Sequence[str], risk: float = 0.05, progress: Progress | None = None) -> Reviewed:
    """Classify texts by the MultiSWAG of a run folder.

    The threshold is the lowest confidence from which on at most a share `risk` of the study's validation texts was
    classified wrongly; below it a text is sent to a person.

    Raises:
        ValueError: the folder holds no finished study, there are no texts, or risk is not in [0, 1).
    """
    progress = Silent() if progress is None else progress
    if not 0 <= risk < 1:
        raise ValueError(f"risk is a share of wrong answers and must lie in [0, 1), got {risk}")
    if not texts:
        raise ValueError("there are no texts to classify")
    study = read_study(folder)
    names: list[str] = read_json(folder / "metrics.json")["labels"]
    known = read_arrays(folder / "probabilities.npz")
    threshold = risk_threshold(known["validation_multiswag"], known["validation_labels"], risk)
    mixture: Mixture = load(folder / "posterior.safetensors")
    with quiet(), own_randomness():
        encoder, tokenizer, _ = load_encoder(study.model)
        tokens = tokenise(tokenizer, texts, study.model.max_length)
        size = study.evaluation.batch_size
        classifier = adapt(encoder, study.model, study.lora, len(names), [tokens], size)
        if torch.cuda.is_available():
            classifier.to(torch.device("cuda"))
        members = [component.tempered(study.evaluation.scale) for component in mixture.components]  # type: ignore[union-attr]
        count = study.evaluation.samples * len(members)
        progress.plan(count * len(tokens))
        progress.begin("predictions of MultiSWAG", count * len(tokens))
        total = expected = torch.zeros(())
        for member, seed in zip(members, study.training.seeds, strict=True):
            for weights in draws(member, study.evaluation.samples, stream(seed, "draws")):
                classifier.write(weights)
                probs = class_probabilities(classifier.merged, tokens, size, progress.advance)
                total, expected = total + probs / count, expected + entropy(probs) / count
        progress.end("")
    return Reviewed(names, total, entropy(total), expected, threshold, risk)


def write_reviewed(path: Path, reviewed: Reviewed, texts: Sequence[str]) -> None:
    """Write one row a text: its class, probabilities, uncertainties and whether a person should see it."""
    header = ["index", "prediction", *(f"p_{name}" for name in reviewed.names), "confidence"]
    header += ["entropy", "expected_entropy", "mutual_information", "review", "text"]
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
        ]
        for index, text in enumerate(texts)
    )
    write_rows(path, header, rows)


def sentence(reviewed: Reviewed) -> str:
    """Say how many texts go to a person, and why."""
    flagged, count = int(reviewed.review.sum()), len(reviewed.probs)
    if math.isinf(reviewed.threshold):
        return (
            f"no confidence kept the risk at {reviewed.risk:.1%} on the validation texts: all {count} texts go to a "
            "person; allow a higher risk"
        )
    return (
        f"{flagged} of {count} texts go to a person: their confidence is below {reviewed.threshold:.3f}, from which on "
        f"at most {reviewed.risk:.1%} of the validation texts were classified wrongly"
    )
