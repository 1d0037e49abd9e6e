"""How every study of adapters ends: what was predicted and trained becomes the files of the run folder."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from lowland import SWAG, Mixture, copy_to, save
from lowland.calibration import entropy
from lowland.weights import Weights

from ..runs.folder import write_arrays
from .classifier import AdaptedClassifier
from .comparison import COMBINED, TUNED, Compared
from .outputs import head_samples, probability_arrays, save_adapter, write_histories, write_predictions, write_timings
from .settling import Settled
from .shipping import Shipped, passes_of, sentence, ship

PHASES = ("adamw", "swag")


class Trained(Protocol):
    """A member whose stages have all been run."""

    def posterior(self) -> SWAG: ...
    def history(self, name: str) -> dict[str, Any]: ...
    def weights(self, key: str) -> Weights: ...


@dataclass(frozen=True)
class Shown:
    """The test examples as files and report show them."""

    texts: Sequence[str]
    labels: Sequence[int]
    validation_labels: Sequence[int]
    names: Sequence[str]  # of the classes
    row: str  # what the head's last row is called
    entropy: Tensor  # (N,) mean over the models of what is shipped of the entropy of each


def write_run(
    study: Any,
    folder: Path,
    members: Sequence[Trained],
    adapted: AdaptedClassifier,
    compared: Compared,
    shown: Shown,
    shipped: Shipped,
) -> list[dict[str, Any]]:
    """Write everything but timings.json and metrics.json, and return the members' histories, phase by phase.

    `study` has the second phase and the scale that were chosen. predictions.csv holds what the shipped method says.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    posteriors = [member.posterior() for member in members]
    save(Mixture(posteriors), folder / "posterior.safetensors")
    write_arrays(folder / "probabilities.npz", probability_arrays(compared, shown.labels, shown.validation_labels))
    scatter = head_samples(posteriors, study.training.seeds, study.evaluation.scale, shown.row)
    write_arrays(folder / "head_samples.npz", scatter)
    write_predictions(
        folder / "predictions.csv",
        shown.texts,
        shown.labels,
        shown.names,
        answers(compared.test, shipped),
        shown.entropy,
    )
    tuned = ["tuned"] if TUNED in compared.test else []
    histories = [{phase: member.history(phase) for phase in (*PHASES, *tuned)} for member in members]
    write_histories(folder / "history.json", histories)
    (folder / "weights").mkdir(exist_ok=True)
    for index, member in enumerate(members):
        for key in ("base", "early", *tuned):
            save(member.weights(key), folder / "weights" / f"member-{index}-{key}.safetensors")
        for key in ("base", "swa"):
            copy_to(adapted.model, member.weights(key))
            save_adapter(adapted, folder / "adapters" / f"member-{index}" / key)
    return histories


def answers(split: Mapping[str, Sequence[Tensor]], shipped: Shipped) -> Tensor:
    """Return the probabilities (N, C) of the shipped method; of a method of one model those of the member to ship."""
    each = split[shipped.method]
    return each[shipped.members.get(shipped.method, 0)] if len(each) > 1 else each[0]


def expected_entropy(
    entropies: Sequence[Mapping[str, Tensor]], variants: Mapping[str, str], compared: Compared, shipped: Shipped
) -> Tensor:
    """Return the mean over the models of the shipped method of each one's entropy, (N,).

    `entropies` are those of the members' variants, means over their draws; `variants` says which method each one is.
    """
    keys = {method: key for key, method in variants.items()}
    if shipped.method in COMBINED:
        return torch.stack([one[keys[COMBINED[shipped.method]]] for one in entropies]).mean(0)
    if shipped.method in keys:
        return entropies[shipped.members.get(shipped.method, 0)][keys[shipped.method]]
    return entropy(answers(compared.test, shipped))


def choose_shipped(
    study: Any, compared: Compared, labels: Sequence[int], settled: Settled, things: str
) -> tuple[Shipped, dict[str, Any]]:
    """Choose the method to ship; return it, and what metrics.json says of this and of the second phase's choice."""
    evaluation, swag = settled.shared.study.evaluation, settled.shared.study.swag
    passes = passes_of(len(study.training.seeds), evaluation.samples, getattr(evaluation, "dropout_samples", 0))
    shipped = ship(compared.validation, labels, passes, optimism=settled.optimism, seed=study.data.seed)
    found = {
        "shipped": shipped.plain(),
        "tried": settled.rows(),
        "optimism": settled.optimism,
        "verdict": f"{sentence(shipped, things)} {compared.metrics['verdict']}",
        "chosen": {"start": swag.start, "learning_rate": swag.learning_rate, "scale": evaluation.scale},
    }
    return shipped, found


def write_times(
    study: Any,
    folder: Path,
    histories: Sequence[Mapping[str, Mapping[str, Any]]],
    predicting: Sequence[Mapping[str, float]],
    number: int,
    prepared: float,
    searched: float,
    begun: float,
) -> None:
    """Write timings.json.

    Args:
        predicting: of each member, the seconds that each variant's predictions took.
        number: how many examples were predicted in each pass.
        prepared: the seconds before the first member.
        searched: the seconds of the second phases that were tried and not taken, and of the looks at all of them.
        begun: when the comparison began, by `time.perf_counter`.
    """
    rows: list[dict[str, Any]] = [{"member": None, "phase": "prepare", "seconds": prepared}]
    rows += [{"member": 0, "phase": "search", "seconds": searched}] if searched else []
    for index, (one, taken) in enumerate(zip(histories, predicting, strict=True)):
        rows += [{"member": index, "phase": phase, "seconds": stage["seconds"]} for phase, stage in one.items()]
        rows.append({"member": index, "phase": "predict", "seconds": sum(taken.values())})
    rows.append({"member": None, "phase": "compare", "seconds": time.perf_counter() - begun})
    draws = study.evaluation.samples * len(histories)
    write_timings(folder / "timings.json", rows, draws, sum(taken["swag"] for taken in predicting), number)
