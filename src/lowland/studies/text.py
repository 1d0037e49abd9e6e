"""The text study: from a configuration to a run folder with the numbers of eight methods.

Every stage leaves files in RUN/stages and is not repeated; a killed study goes on with the first stage that is missing
and ends with the same numbers, since every stage takes its randomness from the configuration alone. That holds for one
machine and one number of threads; both stand in versions.json.
"""

from __future__ import annotations

import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .. import Mixture, copy_to, load, save
from .classifier import AdaptedClassifier, adapt, load_encoder
from .comparison import TRAINED, compare
from .config import TextStudy, differences, from_mapping, to_toml
from .datasets import Splits, load_splits
from .folder import read_json, require_space, write_arrays, write_bytes, write_json
from .member import STEP_COST, Corpora, Member
from .outputs import (
    clean,
    head_samples,
    probability_arrays,
    save_adapter,
    versions,
    write_histories,
    write_predictions,
    write_timings,
)
from .progress import Progress, Silent
from .tokens import tokenise
from .training import own_randomness, quiet


def run_text_study(
    study: TextStudy, folder: Path, *, resume: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Run a study, or the rest of it, and return what metrics.json holds.

    Nothing is written before the data and the encoder have been read and found to fit.

    Raises:
        ValueError: bad data, encoder or configuration; or the folder holds another study.
        FileNotFoundError: a file is missing.
        OSError: the disk is full or the folder cannot be written.
        RuntimeError: training diverged.
    """
    progress = Silent() if progress is None else progress
    check_folder(study, folder, resume, from_mapping)
    if (folder / "metrics.json").exists():  # written last
        metrics: dict[str, Any] = read_json(folder / "metrics.json")
        return metrics
    require_space(folder, 50 + 5 * len(study.training.seeds))
    with quiet(), own_randomness():
        begun = time.perf_counter()
        splits = load_splits(study.data)
        encoder, tokenizer, home = load_encoder(study.model)
        cut = [
            tokenise(tokenizer, part.texts, study.model.max_length)
            for part in (splits.train, splits.validation, splits.test)
        ]
        corpora = Corpora(*cut)
        classifier = adapt(encoder, study.model, study.lora, len(splits.names), cut, study.evaluation.batch_size)
        if torch.cuda.is_available():
            classifier.to(torch.device("cuda"))
        folder.mkdir(parents=True, exist_ok=True)
        clean(folder)
        write_bytes(folder / "config.toml", to_toml(study).encode())
        write_json(folder / "versions.json", versions(splits.hash, home))
        members = [
            Member(index, study, classifier, corpora, splits, folder / "stages" / f"member-{index}", progress)
            for index in range(len(study.training.seeds))
        ]
        _plan(progress, study, members[0])
        prepared = time.perf_counter() - begun
        for member in members:
            member.run()
        return _finish(study, folder, splits, members, classifier, prepared)


def read_study(folder: Path) -> TextStudy:
    """Read the configuration of a run folder.

    Raises:
        ValueError: it holds none.
    """
    study: TextStudy = read_configured(folder, from_mapping)
    return study


def read_configured(folder: Path, build: Callable[[dict[str, Any]], Any]) -> Any:
    """Read the configuration of a run folder and build the study from it.

    Raises:
        ValueError: it holds none, or that of another kind of study.
    """
    path = folder / "config.toml"
    if not path.is_file():
        raise ValueError(f"{folder} holds no study (no config.toml): name the folder that a study wrote")
    try:
        return build(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}): run the study again") from None


def check_folder(study: Any, folder: Path, resume: bool, build: Callable[[dict[str, Any]], Any]) -> None:
    """Refuse a folder that holds something else than the beginning of this study.

    Raises:
        ValueError: it is a file, is not empty and is not to be resumed, or holds a study with other settings.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: name a folder for the run")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not resume:
        raise ValueError(f"{folder} is not empty: continue what it holds with --resume, or name another folder")
    there = read_configured(folder, build)
    found = differences(there, study)
    if found:
        raise ValueError(
            f"{folder} holds a study with other settings (there, here): {', '.join(found[:5])}; name another folder"
        )


def _plan(progress: Progress, study: TextStudy, member: Member) -> None:
    steps = -(-len(member.corpora.train) // study.training.batch_size)
    epochs = 2 * study.training.epochs - study.swag.start
    looked_at = min(study.training.monitor_texts, len(member.corpora.validation))
    training = epochs * (steps * study.training.batch_size * STEP_COST + looked_at)
    passes = len(TRAINED) - 1 + study.evaluation.samples
    texts = len(member.corpora.validation) + len(member.corpora.test)
    progress.plan(len(study.training.seeds) * (training + passes * texts))


def _finish(
    study: TextStudy,
    folder: Path,
    splits: Splits,
    members: list[Member],
    classifier: AdaptedClassifier,
    prepared: float,
) -> dict[str, Any]:
    begun = time.perf_counter()
    loaded = [{key: member.predictions(key) for key in TRAINED} for member in members]
    predicted = [{key: found for key, (found, _) in one.items()} for one in loaded]
    seconds = [{key: taken for key, (_, taken) in one.items()} for one in loaded]
    compared = compare(predicted, splits.validation.labels, splits.test.labels, study.evaluation, study.data.seed)
    metrics = {
        **compared.metrics,
        "chosen": {"early_stop_epoch": [member.early_epoch() for member in members]},
        "n_test": len(splits.test),
        "n_validation": len(splits.validation),
        "n_train": len(splits.train),
        "labels": splits.names,
    }
    posteriors = [load(member.folder / "swag.safetensors") for member in members]
    save(Mixture(posteriors), folder / "posterior.safetensors")
    arrays = probability_arrays(compared, splits.test.labels, splits.validation.labels)
    write_arrays(folder / "probabilities.npz", arrays)
    seeds, names = study.training.seeds, splits.names
    write_arrays(folder / "head_samples.npz", head_samples(posteriors, seeds, study.evaluation.scale, names[-1]))
    write_predictions(
        folder / "predictions.csv",
        splits.test.texts,
        splits.test.labels,
        names,
        compared.test["MultiSWAG"][0],
        torch.stack([one["swag"].test_entropy for one in predicted]).mean(0),
    )
    phases = ("adamw", "swag")
    histories = [{phase: member.history(phase) for phase in phases} for member in members]
    write_histories(folder / "history.json", histories)
    for member in members:
        for key in ("base", "swa"):
            copy_to(member.weights(key), classifier.model)
            save_adapter(classifier, folder / "adapters" / f"member-{member.index}" / key)
    rows: list[dict[str, Any]] = [{"member": None, "phase": "prepare", "seconds": prepared}]
    for index, (one, taken) in enumerate(zip(histories, seconds, strict=True)):
        rows += [{"member": index, "phase": phase, "seconds": one[phase]["seconds"]} for phase in phases]
        rows.append({"member": index, "phase": "predict", "seconds": sum(taken.values())})
    rows.append({"member": None, "phase": "compare", "seconds": time.perf_counter() - begun})
    number = study.evaluation.samples * len(members)
    sampling = sum(taken["swag"] for taken in seconds)
    write_timings(folder / "timings.json", rows, number, sampling, len(splits.validation) + len(splits.test))
    write_json(folder / "metrics.json", metrics)
    return metrics
