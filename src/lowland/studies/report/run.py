"""What the report reads: the files of a run folder, checked, so that a broken one is named before anything is drawn."""

import csv
import json
import re
import struct
import sys
import tomllib
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

METHODS = (
    "base",
    "base, tuned rate",
    "early-stopped base",
    "temperature-scaled base",
    "MC dropout",
    "SWA",
    "SWAG",
    "deep ensemble",
    "deep ensemble, tuned rate",
    "MultiSWA",
    "MultiSWAG",
)
# Of choice studies, or of text studies that train the base model at a rate of its own.
OPTIONAL = ("MC dropout", "base, tuned rate", "deep ensemble, tuned rate")
METRICS = ("precision", "recall", "f1", "accuracy", "nll", "ece", "brier", "mcc")
# What reading a damaged file raises, whatever its format.
BROKEN = (
    *(ValueError, TypeError, IndexError, AttributeError, OSError, EOFError, MemoryError, NotImplementedError),
    *(RuntimeError, ArithmeticError, SyntaxError, csv.Error, struct.error, zipfile.BadZipFile, zlib.error),
)
REMEDY = "run the study again with --resume"
# An apostrophe that keeps a spreadsheet from computing a text; it is no part of the text.
_FORMULA = re.compile(r"^'(?='*[=+\-@\t\r])")
Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Text:
    """One test text with its true label, the predicted one, their uncertainty and what made it up."""

    index: str
    label: str
    prediction: str
    confidence: float
    entropy: float
    mutual_information: float
    text: str


@dataclass(frozen=True)
class Run:
    """A finished run in memory.

    `labels: (N,)`; `probs[method]: (M, N, C)`, one for each member, (1, N, C) where a method combines them;
    `samples: (M, S, 2)`, `means: (M, 2)`.
    """

    name: str
    config: str
    settings: Mapping[str, Any]
    versions: Mapping[str, Any]
    metrics: Mapping[str, Any]
    timings: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    labels: NDArray[np.integer[Any]]
    probs: Mapping[str, Floats]
    weight_names: tuple[str, str]
    samples: Floats
    means: Floats
    texts: Sequence[Text]

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods of the run, in the order of every table."""
        return tuple(self.probs)


def read(folder: Path) -> Run:
    """Read and check a run folder.

    Raises `FileNotFoundError` for a missing file and `ValueError` for one that is truncated or lacks what the report
    needs; the message names the file.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a run folder: got no such directory, wanted one that a study wrote")
    metrics, timings = _json(folder / "metrics.json"), _json(folder / "timings.json")
    history, versions = _json(folder / "history.json"), _json(folder / "versions.json")
    with _blaming(folder / "metrics.json"):
        methods = tuple(m for m in METHODS if m in metrics["methods"] or m not in OPTIONAL)
        for method in methods:
            for metric in METRICS:
                cell = metrics["methods"][method][metric]
                for bound in ("value", "low", "high"):
                    _number(cell[bound], f"methods.{method}.{metric}.{bound}")
        for method, gaps in metrics["differences"]["minus"].items():
            for metric in METRICS:
                for bound in ("value", "low", "high"):
                    _number(gaps[metric][bound], f"differences.minus.{method}.{metric}.{bound}")
        for key, kind in (("verdict", str), ("labels", list), ("n_test", int), ("n_train", int), ("n_validation", int)):
            _kind(metrics[key], kind, key)
        if "shipped" in metrics:
            shipped = _kind(metrics["shipped"], dict, "shipped")
            _kind(shipped["method"], str, "shipped.method")
            _kind(shipped["certain"], bool, "shipped.certain")
            for i, row in enumerate(_kind(shipped["rows"], list, "shipped.rows")):
                _kind(row["method"], str, f"shipped.rows[{i}].method")
                _kind(row["tied"], bool, f"shipped.rows[{i}].tied")
                for key in ("passes", "nll", "behind", "behind_error"):
                    _number(row[key], f"shipped.rows[{i}].{key}")
            _number(metrics["optimism"], "optimism")
            for i, one in enumerate(_kind(metrics["tried"], list, "tried")):
                for key in ("start", "learning_rate", "scale", "nll"):
                    _number(one[key], f"tried[{i}].{key}")
            for key in ("start", "learning_rate", "scale"):
                _number(metrics["chosen"][key], f"chosen.{key}")
    with _blaming(folder / "timings.json"):
        for i, phase in enumerate(_kind(timings["phases"], list, "phases")):
            _kind(phase["phase"], str, f"phases[{i}].phase")
            _number(phase["seconds"], f"phases[{i}].seconds")
        for key in ("draws", "seconds", "seconds_per_draw_per_1000"):
            _number(timings["sampling"][key], f"sampling.{key}")
        _number(timings["total_seconds"], "total_seconds")
        _number(timings["peak_memory_mb"], "peak_memory_mb")
    with _blaming(folder / "history.json"):
        for i, member in enumerate(_kind(history["members"], list, "members")):
            for phase in ("adamw", "swag"):
                steps, losses = member[phase]["step"], member[phase]["loss"]
                if len(steps) != len(losses):
                    raise ValueError(f"members[{i}].{phase} has {len(steps)} steps but {len(losses)} losses")
                for point in member[phase]["validation"]:
                    _number(point["epoch"], f"members[{i}].{phase}.validation.epoch")
                    _number(point["nll"], f"members[{i}].{phase}.validation.nll")
    config, settings = _config(folder / "config.toml")
    labels, probs = _probabilities(folder / "probabilities.npz", methods)
    weight_names, samples, means = _head(folder / "head_samples.npz")
    return Run(
        name=folder.resolve().name,
        config=config,
        settings=settings,
        versions=versions,
        metrics=metrics,
        timings=timings,
        history=history["members"],
        labels=labels,
        probs=probs,
        weight_names=weight_names,
        samples=samples,
        means=means,
        texts=_texts(folder / "predictions.csv", len(labels)),
    )


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong while a file is read or taken apart into one error that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing: the report needs it; {REMEDY}") from None
    except KeyError as error:
        raise ValueError(f"{path} has no {error}: it is cut off or of another version; {REMEDY}") from None
    except BROKEN as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} cannot be read ({reason}): it is cut off or no file of a run; {REMEDY}") from None


def _json(path: Path) -> dict[str, Any]:
    with _blaming(path):
        value: dict[str, Any] = _kind(json.loads(path.read_text(encoding="utf-8")), dict, "the file")
    return value


def _config(path: Path) -> tuple[str, dict[str, Any]]:
    with _blaming(path):
        text = path.read_text(encoding="utf-8")
        settings = tomllib.loads(text)
    return text, settings


def _kind(value: Any, kind: type, what: str) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{what} is of type {type(value).__name__}, wanted {kind.__name__}")
    return value


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{what} is {value!r}, wanted a number")
    return float(value)


def _probabilities(path: Path, methods: Sequence[str]) -> tuple[NDArray[np.integer[Any]], dict[str, Floats]]:
    with _blaming(path), path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        labels = arrays["test_labels"]
        probs: dict[str, Floats] = {}
        for method in methods:
            name = method.lower().replace(",", "").replace("-", "_").replace(" ", "_")
            key = f"test_members_{name}" if f"test_members_{name}" in arrays else f"test_{name}"
            probs[method] = arrays[key] if arrays[key].ndim == 3 else arrays[key][None]
            if probs[method].ndim != 3 or probs[method].shape[1] != len(labels):
                raise ValueError(f"{key} has shape {arrays[key].shape}, wanted ([members,] {len(labels)}, classes)")
    return labels, probs


def _head(path: Path) -> tuple[tuple[str, str], Floats, Floats]:
    with _blaming(path), path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        first, second = (str(name) for name in arrays["names"])
        samples, means = arrays["samples"], arrays["means"]
        if samples.ndim != 3 or samples.shape[2] != 2 or means.shape != (samples.shape[0], 2):
            raise ValueError(f"samples {samples.shape} and means {means.shape}, wanted (M, S, 2) and (M, 2)")
    return (first, second), samples, means


def _texts(path: Path, wanted: int) -> list[Text]:
    texts: list[Text] = []
    limit = csv.field_size_limit(sys.maxsize)  # a document may be longer than the 128 KiB that csv takes as it comes
    try:
        with _blaming(path), path.open(newline="", encoding="utf-8", errors="surrogatepass") as file:
            for row in csv.DictReader(file):
                probs = [float(value) for key, value in row.items() if key and key.startswith("p_")]
                if row["text"] is None:
                    raise ValueError(f"row {len(texts) + 1} ends early")
                texts.append(
                    Text(
                        index=row["index"],
                        label=_FORMULA.sub("", row["label"]),
                        prediction=_FORMULA.sub("", row["prediction"]),
                        confidence=max(probs),
                        entropy=float(row["entropy"]),
                        mutual_information=float(row["mutual_information"]),
                        text=_FORMULA.sub("", row["text"]),
                    )
                )
            if len(texts) != wanted:
                raise ValueError(f"it holds {len(texts)} predictions, wanted {wanted}")
    finally:
        csv.field_size_limit(limit)
    return texts
