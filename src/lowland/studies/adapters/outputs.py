"""The files of a run folder that studies have in common, apart from their stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowland import SWAG
from lowland.calibration import entropy
from lowland.files.replacing import replacing_folder

from ..runs.folder import write_json, write_rows
from ..runs.randomness import stream
from ..runs.versions import peak_memory
from .classifier import AdaptedClassifier
from .comparison import COMBINED, Compared

POINTS = 300  # draws of two weights of the head, for the scatter plot


def probability_arrays(
    compared: Compared, test_labels: Sequence[int], validation_labels: Sequence[int]
) -> dict[str, Any]:
    """Return what probabilities.npz holds: labels, and every method's probabilities on both splits."""
    arrays = {"test_labels": np.asarray(test_labels), "validation_labels": np.asarray(validation_labels)}
    for name, split in (("test", compared.test), ("validation", compared.validation)):
        for method, each in split.items():
            arrays[f"{name}_{key_of(method)}"] = each[0].numpy()
            if method not in COMBINED:
                arrays[f"{name}_members_{key_of(method)}"] = torch.stack(each).numpy()
    return arrays


def head_samples(posteriors: Sequence[SWAG], seeds: Sequence[int], scale: float, row: str) -> dict[str, Any]:
    """Draw the two weights of the head's last row whose posterior variance is largest, over all members.

    `row` is what the last row is called in the figure.
    """
    tensor = next(name for name in posteriors[0].mean() if name.endswith("head.modules_to_save.default.weight"))
    heads = [_only(posterior, tensor) for posterior in posteriors]
    variance = torch.stack([head.variance()[tensor][-1] for head in heads]).mean(0)
    columns = sorted(variance.topk(2).indices.tolist())
    drawn = [
        head.tempered(scale).sample(POINTS, generator=stream(seed, "scatter"))[tensor][:, -1, columns]
        for head, seed in zip(heads, seeds, strict=True)
    ]
    return {
        "names": np.asarray([f"head.weight[{row}, {column}]" for column in columns]),
        "samples": torch.stack(drawn).numpy(),
        "means": torch.stack([head.mean()[tensor][-1, columns] for head in heads]).numpy(),
    }


def _only(posterior: SWAG, tensor: str) -> SWAG:
    """The marginal of one tensor: the joint Gaussian without the others."""
    state = posterior.state_dict()
    alone = SWAG(**state["settings"])
    alone.load_state_dict({**state, "slots": {slot: {tensor: t[tensor]} for slot, t in state["slots"].items()}})
    return alone


def write_predictions(
    path: Path, texts: Sequence[str], labels: Sequence[int], names: Sequence[str], probs: Tensor, expected: Tensor
) -> None:
    """Write predictions.csv: of each text its label, the probabilities (N, C), and the three uncertainties.

    `expected` (N,) is the mean over draws of the entropy of each.
    """
    total = entropy(probs)
    rows = (
        [
            index,
            names[label],
            names[int(probs[index].argmax())],
            *(f"{p:.6f}" for p in probs[index].tolist()),
            f"{total[index]:.6f}",
            f"{expected[index]:.6f}",
            f"{max(0.0, float(total[index] - expected[index])):.6f}",
            text,
        ]
        for index, (text, label) in enumerate(zip(texts, labels, strict=True))
    )
    header = ["index", "label", "prediction", *(f"p_{name}" for name in names)]
    header += ["entropy", "expected_entropy", "mutual_information", "text"]
    write_rows(path, header, rows)


def save_adapter(classifier: AdaptedClassifier, target: Path) -> None:
    """Write the adapter that the model holds as a folder that PEFT loads, atomically."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing_folder(target) as part:
        classifier.model.save_pretrained(str(part))  # type: ignore[operator]


def write_histories(path: Path, histories: Sequence[Mapping[str, Mapping[str, Any]]]) -> None:
    """Write history.json from the members' phases."""
    members = [
        {
            "member": index,
            **{phase: {k: v for k, v in stage.items() if k != "seconds"} for phase, stage in one.items()},
        }
        for index, one in enumerate(histories)
    ]
    write_json(path, {"members": members})


def write_timings(path: Path, rows: list[dict[str, Any]], draws: int, seconds: float, texts: int) -> None:
    """Write timings.json: the phases, and what `draws` predictions of `texts` texts each took."""
    sampling = {"draws": draws, "seconds": seconds, "seconds_per_draw_per_1000": seconds / draws / texts * 1000}
    total = sum(row["seconds"] for row in rows)
    write_json(path, {"phases": rows, "sampling": sampling, "total_seconds": total, "peak_memory_mb": peak_memory()})


def key_of(method: str) -> str:
    """Return a method's name as it stands in the keys of arrays.

    >>> key_of("early-stopped base"), key_of("base, tuned rate")
    ('early_stopped_base', 'base_tuned_rate')
    """
    return method.lower().replace(",", "").replace("-", "_").replace(" ", "_")
