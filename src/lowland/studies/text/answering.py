"""Which models answer new texts: those of the method that a study ships, or of another row of its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowland import SWAG, load
from lowland.averager import Drawable

from ..adapters.comparison import COMBINED, METHODS, TUNED, with_tuned
from ..adapters.outputs import key_of
from ..adapters.shipping import SCALED
from .config import TextStudy

USUAL = "MultiSWAG"  # of run folders from before methods were chosen
FILES = {"base": "base", SCALED: "base", "early-stopped base": "early", TUNED: "tuned"}


@dataclass(frozen=True)
class Part:
    """Weights, or a Gaussian of them that is drawn from `samples` times."""

    posterior: Drawable
    samples: int | None
    seed: int
    temperature: float | None = None

    @property
    def passes(self) -> int:
        """Passes of a text through a model."""
        return self.samples or 1


@dataclass(frozen=True)
class Answering:
    """A method with its models, and why it is that one where this needs a word."""

    method: str
    parts: Sequence[Part]
    member: int | None  # of a method of one model
    why: str


def answering_of(folder: Path, study: TextStudy, metrics: Mapping[str, Any], wanted: str | None) -> Answering:
    """Return the models of the method that a run ships, or of the one that is wanted.

    Raises:
        ValueError: the run has no such method, or lacks the files of it.
    """
    shipped, why = metrics.get("shipped"), ""
    rows: list[str] = [method for method in with_tuned(METHODS) if method in metrics["methods"]]
    if wanted is not None:
        method = next((row for row in rows if key_of(row) == key_of(wanted)), "")
        if not method:
            raise ValueError(f"the run has no method {wanted!r}: name one of {', '.join(rows)}")
    elif isinstance(shipped, dict) and shipped.get("method") in rows:
        method = shipped["method"]
    else:
        method = USUAL
        why = (
            f"the run is older than the choice of a method on its validation texts, so {USUAL} answers: run the study "
            "anew to have it chosen, or name one with --method"
        )
    members = range(len(study.training.seeds))
    part = COMBINED.get(method, method)
    member = None
    if method == part:  # of one model
        member = int(shipped.get("members", {}).get(method, 0)) if isinstance(shipped, dict) else 0
        members = range(member, member + 1)
    return Answering(method, [_part(folder, study, metrics, part, index) for index in members], member, why)


def checked_on(known: Mapping[str, Any], answering: Answering) -> Any:
    """Return the validation probabilities (N, C) of the models that answer."""
    key = key_of(answering.method)
    several = known.get(f"validation_members_{key}")
    if answering.member is None or several is None:  # older runs hold those of the first member only
        return known[f"validation_{key}"]
    return several[answering.member]


def _part(folder: Path, study: TextStudy, metrics: Mapping[str, Any], method: str, index: int) -> Part:
    seed = study.training.seeds[index]
    if method in FILES:
        path = folder / "weights" / f"member-{index}-{FILES[method]}.safetensors"
        if not path.is_file():
            raise ValueError(
                f"{path} is missing, so {method} cannot answer: run the study anew, or name another method"
            )
        temperature = float(metrics["temperature"][index]) if method == SCALED else None
        return Part(load(path), None, seed, temperature)
    gaussian: SWAG = load(folder / "posterior.safetensors").components[index]
    if method == "SWA":
        return Part(gaussian.mean(), None, seed)
    scale = float(metrics.get("chosen", {}).get("scale", study.evaluation.scale))
    return Part(gaussian.tempered(scale), study.evaluation.samples, seed)
