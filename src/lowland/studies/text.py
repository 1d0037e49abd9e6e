"""The text study: from a configuration to a run folder with the numbers of eight methods.

Every stage leaves files in RUN/stages and is not repeated; a killed study goes on with the first stage that is missing
and ends with the same numbers, since every stage takes its randomness from the configuration alone. That holds for one
machine and one number of threads; both stand in versions.json.
"""

from __future__ import annotations

import hashlib
import os
import platform
import resource
import shutil
import sys
import time
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import SWAG, Mixture, copy_to, load, save
from ..probabilities import entropy
from .classifier import AdaptedClassifier, adapt, load_encoder
from .comparison import COMBINED, TRAINED, Compared, Predictions, compare
from .config import TextStudy, differences, from_mapping, to_toml
from .datasets import Splits, load_splits
from .folder import read_json, require_space, write_arrays, write_bytes, write_json, write_rows
from .member import STEP_COST, Corpora, Member
from .progress import Progress, Silent
from .tokens import tokenise
from .training import own_randomness, quiet, stream

POINTS = 300  # draws of two weights of the head, for the scatter plot
PACKAGES = ("lowland", "torch", "transformers", "peft", "accelerate", "tokenizers", "numpy", "safetensors")


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
    _check_folder(study, folder, resume)
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
        for left in list(folder.rglob(".*.part")):  # by a process that was killed while it wrote
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
        write_bytes(folder / "config.toml", to_toml(study).encode())
        write_json(folder / "versions.json", _versions(splits, home))
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
    path = folder / "config.toml"
    if not path.is_file():
        raise ValueError(f"{folder} holds no study (no config.toml): name the folder that a study wrote")
    try:
        return from_mapping(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}): run the study again") from None


def _check_folder(study: TextStudy, folder: Path, resume: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: name a folder for the run")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not resume:
        raise ValueError(f"{folder} is not empty: continue what it holds with --resume, or name another folder")
    there = read_study(folder)
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
    write_arrays(folder / "probabilities.npz", _probabilities(compared, splits))
    write_arrays(folder / "head_samples.npz", _head_samples(posteriors, study, splits.names))
    _write_predictions(folder, splits, compared, predicted)
    phases = ("adamw", "swag")
    histories = [{phase: member.history(phase) for phase in phases} for member in members]
    write_json(
        folder / "history.json",
        {
            "members": [
                {"member": index, **{phase: _without(one[phase], "seconds") for phase in phases}}
                for index, one in enumerate(histories)
            ]
        },
    )
    for member in members:
        for key in ("base", "swa"):
            copy_to(member.weights(key), classifier.model)
            _save_adapter(classifier, folder / "adapters" / f"member-{member.index}" / key)
    rows = [{"member": None, "phase": "prepare", "seconds": prepared}]
    for index, (one, taken) in enumerate(zip(histories, seconds, strict=True)):
        rows += [{"member": index, "phase": phase, "seconds": one[phase]["seconds"]} for phase in phases]
        rows.append({"member": index, "phase": "predict", "seconds": sum(taken.values())})
    rows.append({"member": None, "phase": "compare", "seconds": time.perf_counter() - begun})
    number = study.evaluation.samples * len(members)
    sampling = sum(taken["swag"] for taken in seconds)
    texts = len(splits.validation) + len(splits.test)
    write_json(
        folder / "timings.json",
        {
            "phases": rows,
            "sampling": {
                "draws": number,
                "seconds": sampling,
                "seconds_per_draw_per_1000": sampling / number / texts * 1000,
            },
            "total_seconds": sum(row["seconds"] for row in rows),
            "peak_memory_mb": _peak_memory(),
        },
    )
    write_json(folder / "metrics.json", metrics)
    return metrics


def _probabilities(compared: Compared, splits: Splits) -> dict[str, Any]:
    arrays = {"test_labels": np.asarray(splits.test.labels), "validation_labels": np.asarray(splits.validation.labels)}
    for name, split in (("test", compared.test), ("validation", compared.validation)):
        for method, each in split.items():
            arrays[f"{name}_{_key(method)}"] = each[0].numpy()
            if name == "test" and method not in COMBINED:
                arrays[f"test_members_{_key(method)}"] = torch.stack(each).numpy()
    return arrays


def _head_samples(posteriors: list[SWAG], study: TextStudy, names: list[str]) -> dict[str, Any]:
    """Draws of the two weights of the head's last row whose posterior variance is largest, over all members."""
    tensor = next(name for name in posteriors[0].mean() if name.endswith("head.modules_to_save.default.weight"))
    heads = [_only(posterior, tensor) for posterior in posteriors]
    variance = torch.stack([head.variance()[tensor][-1] for head in heads]).mean(0)
    columns = sorted(variance.topk(2).indices.tolist())
    drawn = [
        head.sample(POINTS, scale=study.evaluation.scale, generator=stream(seed, "scatter"))[tensor][:, -1, columns]
        for head, seed in zip(heads, study.training.seeds, strict=True)
    ]
    return {
        "names": np.asarray([f"head.weight[{names[-1]}, {column}]" for column in columns]),
        "samples": torch.stack(drawn).numpy(),
        "means": torch.stack([head.mean()[tensor][-1, columns] for head in heads]).numpy(),
    }


def _only(posterior: SWAG, tensor: str) -> SWAG:
    """The marginal of one tensor: the joint Gaussian without the others."""
    state = posterior.state_dict()
    alone = SWAG(**state["settings"])
    alone.load_state_dict({**state, "slots": {slot: {tensor: t[tensor]} for slot, t in state["slots"].items()}})
    return alone


def _write_predictions(
    folder: Path, splits: Splits, compared: Compared, predicted: list[dict[str, Predictions]]
) -> None:
    probs = compared.test["MultiSWAG"][0]
    total = entropy(probs)
    expected = torch.stack([one["swag"].test_entropy for one in predicted]).mean(0)
    rows = (
        [
            index,
            splits.names[label],
            splits.names[int(probs[index].argmax())],
            *(f"{p:.6f}" for p in probs[index].tolist()),
            f"{total[index]:.6f}",
            f"{expected[index]:.6f}",
            f"{max(0.0, float(total[index] - expected[index])):.6f}",
            text,
        ]
        for index, (text, label) in enumerate(zip(splits.test.texts, splits.test.labels, strict=True))
    )
    header = ["index", "label", "prediction", *(f"p_{name}" for name in splits.names)]
    header += ["entropy", "expected_entropy", "mutual_information", "text"]
    write_rows(folder / "predictions.csv", header, rows)


def _save_adapter(classifier: AdaptedClassifier, target: Path) -> None:
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    classifier.model.save_pretrained(str(part))  # type: ignore[operator]
    shutil.rmtree(target, ignore_errors=True)
    os.replace(part, target)


def _versions(splits: Splits, home: Path | None) -> dict[str, Any]:
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "unknown"
    return {
        "python": platform.python_version(),
        "packages": packages,
        "machine": {
            "system": platform.system(),
            "processor": platform.machine(),
            "cores": os.cpu_count() or 0,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        },
        "threads": torch.get_num_threads(),
        "dataset_sha256": splits.hash,
        "model_sha256": _folder_hash(home) if home is not None else "not a local folder",
    }


def _folder_hash(home: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(
        p for pattern in ("config.json", "tokenizer.json", "vocab.txt", "*.safetensors") for p in home.glob(pattern)
    ):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _peak_memory() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)


def _key(method: str) -> str:
    return method.lower().replace("-", "_").replace(" ", "_")


def _without(mapping: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in mapping.items() if name != key}
