"""How every study of adapters ends: what was predicted and trained becomes the files of the run folder."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from lowland import Mixture, copy_to, load, save
from lowland.weights import Weights

from ..runs.folder import write_arrays
from .classifier import AdaptedClassifier
from .comparison import Compared
from .outputs import head_samples, probability_arrays, save_adapter, write_histories, write_predictions, write_timings

PHASES = ("adamw", "swag")


class Trained(Protocol):
    """A member whose stages have all been run."""

    @property
    def folder(self) -> Path: ...
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
    entropy: Tensor  # (N,) mean over all draws of the entropy of each


def write_run(
    study: Any,
    folder: Path,
    members: Sequence[Trained],
    adapted: AdaptedClassifier,
    compared: Compared,
    shown: Shown,
) -> list[dict[str, Any]]:
    """Write everything but timings.json and metrics.json, and return the members' histories, phase by phase.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    posteriors = [load(member.folder / "swag.safetensors") for member in members]
    save(Mixture(posteriors), folder / "posterior.safetensors")
    write_arrays(folder / "probabilities.npz", probability_arrays(compared, shown.labels, shown.validation_labels))
    scatter = head_samples(posteriors, study.training.seeds, study.evaluation.scale, shown.row)
    write_arrays(folder / "head_samples.npz", scatter)
    write_predictions(
        folder / "predictions.csv",
        shown.texts,
        shown.labels,
        shown.names,
        compared.test["MultiSWAG"][0],
        shown.entropy,
    )
    histories = [{phase: member.history(phase) for phase in PHASES} for member in members]
    write_histories(folder / "history.json", histories)
    for index, member in enumerate(members):
        for key in ("base", "swa"):
            copy_to(adapted.model, member.weights(key))
            save_adapter(adapted, folder / "adapters" / f"member-{index}" / key)
    return histories


def write_times(
    study: Any,
    folder: Path,
    histories: Sequence[Mapping[str, Mapping[str, Any]]],
    predicting: Sequence[Mapping[str, float]],
    number: int,
    prepared: float,
    begun: float,
) -> None:
    """Write timings.json.

    Args:
        predicting: of each member, the seconds that each variant's predictions took.
        number: how many examples were predicted in each pass.
        prepared: the seconds before the first member.
        begun: when the comparison began, by `time.perf_counter`.
    """
    rows: list[dict[str, Any]] = [{"member": None, "phase": "prepare", "seconds": prepared}]
    for index, (one, taken) in enumerate(zip(histories, predicting, strict=True)):
        rows += [{"member": index, "phase": phase, "seconds": one[phase]["seconds"]} for phase in PHASES]
        rows.append({"member": index, "phase": "predict", "seconds": sum(taken.values())})
    rows.append({"member": None, "phase": "compare", "seconds": time.perf_counter() - begun})
    draws = study.evaluation.samples * len(histories)
    write_timings(folder / "timings.json", rows, draws, sum(taken["swag"] for taken in predicting), number)
