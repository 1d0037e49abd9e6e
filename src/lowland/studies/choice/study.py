"""The choice study: from a configuration to a run folder with nine methods on the test questions and on shifted ones.

Every stage leaves files in RUN/stages and is not repeated, as in the text study; the run folder holds the same files,
and `shifted.json` beside them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import Mixture, copy_to, load, save
from ...weights import clone_of, weights_of
from ..comparison import METHODS, TRAINED, Compared, Predictions, compare
from ..config import to_toml
from ..folder import read_json, require_space, write_arrays, write_bytes, write_json
from ..outputs import (
    clean,
    head_samples,
    probability_arrays,
    save_adapter,
    versions,
    write_histories,
    write_predictions,
    write_timings,
)
from ..progress import Progress, Silent
from ..text import check_folder, read_configured
from ..training import own_randomness, quiet
from .config import ChoiceStudy, from_mapping
from .member import Material, Member, Voted
from .questions import LETTERS, as_questions, load_splits
from .scorers import adapt_scorer, load_scorer
from .shifted import SCORES, detection, uncertainty

MC_DROPOUT = "MC dropout"
NINE = (*METHODS[:3], MC_DROPOUT, *METHODS[3:])
VARIANT_METHODS = {**TRAINED, "dropout": MC_DROPOUT}
# Methods with more than one model, by the variant of a member that they average; and whether over members.
SEVERAL = {MC_DROPOUT: "dropout", "SWAG": "swag", "deep ensemble": "base", "MultiSWA": "swa", "MultiSWAG": "swag"}
OVER_MEMBERS = ("deep ensemble", "MultiSWA", "MultiSWAG")


def run_choice_study(
    study: ChoiceStudy, folder: Path, *, resume: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Run a study, or the rest of it, and return what metrics.json holds.

    Nothing is written before the questions and the model have been read and found to fit.

    Raises:
        ValueError: bad data, model or configuration; or the folder holds another study.
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
        asked = {"validation": splits.validation, "test": splits.test, **splits.shifted}
        every = [question for part in (splits.train, *asked.values()) for question in part]
        width = max(len(question.options) for question in every)
        scorer, tokenizer, home = load_scorer(study.model, width)
        head = clone_of(weights_of(scorer.get_submodule("head"), lambda name, tensor: True))
        kind, longest = study.model.kind, study.model.max_length
        train = as_questions(splits.train, tokenizer, kind, longest, width)
        sets = {name: as_questions(part, tokenizer, kind, longest, width) for name, part in asked.items()}
        adapted = adapt_scorer(scorer, study.lora, [train, *sets.values()], study.evaluation.batch_size)
        if torch.cuda.is_available():
            adapted.to(torch.device("cuda"))
        folder.mkdir(parents=True, exist_ok=True)
        clean(folder)
        write_bytes(folder / "config.toml", to_toml(study).encode())
        write_json(folder / "versions.json", versions(splits.hash, home))
        shared = Material(study, adapted, head, train, sets, {"train": splits.train, **asked}, progress)
        stages = folder / "stages"
        members = [Member(i, shared, stages / f"member-{i}") for i in range(len(study.training.seeds))]
        progress.plan(sum(member.work() for member in members))
        prepared = time.perf_counter() - begun
        for member in members:
            member.run()
        return _finish(shared, folder, members, prepared)


def read_choice_study(folder: Path) -> ChoiceStudy:
    """Read the configuration of a run folder.

    Raises:
        ValueError: it holds none.
    """
    study: ChoiceStudy = read_configured(folder, from_mapping)
    return study


def _finish(shared: Material, folder: Path, members: list[Member], prepared: float) -> dict[str, Any]:
    begun = time.perf_counter()
    study = shared.study
    found = [{key: member.predictions(key) for key in VARIANT_METHODS} for member in members]
    voted = [{key: parts for key, (parts, _) in one.items()} for one in found]
    seconds = [{key: taken for key, (_, taken) in one.items()} for one in found]
    compared = _compared(shared, voted, "test")
    outside = [name for name in shared.sets if name not in ("validation", "test")]
    shifted = {name: _shifted(shared, voted, name) for name in outside}
    names = list(LETTERS[: _width(shared, "test")])
    metrics = {
        **compared.metrics,
        "shifted": shifted,
        "chosen": {"early_stop_epoch": [member.best_epoch(study.training.epochs) for member in members]},
        "n_test": len(shared.sets["test"]),
        "n_validation": len(shared.sets["validation"]),
        "n_train": len(shared.train),
        "labels": names,
    }
    posteriors = [load(member.folder / "swag.safetensors") for member in members]
    save(Mixture(posteriors), folder / "posterior.safetensors")
    truth, checked = shared.labels("test"), shared.labels("validation")
    write_arrays(folder / "probabilities.npz", probability_arrays(compared, truth, checked))
    scatter = head_samples(posteriors, study.training.seeds, study.evaluation.scale, "last")
    write_arrays(folder / "head_samples.npz", scatter)
    write_predictions(
        folder / "predictions.csv",
        [f"{q.text} ({'; '.join(q.options)})" for q in shared.asked["test"]],
        truth,
        names,
        compared.test["MultiSWAG"][0],
        torch.stack([one["swag"]["test_entropy"] for one in voted]).mean(0),
    )
    phases = ("adamw", "swag")
    histories = [{phase: member.history(phase) for phase in phases} for member in members]
    write_histories(folder / "history.json", histories)
    for member in members:
        for key in ("base", "swa"):
            copy_to(member.weights(key), shared.adapted.model)
            save_adapter(shared.adapted, folder / "adapters" / f"member-{member.index}" / key)
    rows: list[dict[str, Any]] = [{"member": None, "phase": "prepare", "seconds": prepared}]
    for index, (one, taken) in enumerate(zip(histories, seconds, strict=True)):
        rows += [{"member": index, "phase": phase, "seconds": one[phase]["seconds"]} for phase in phases]
        rows.append({"member": index, "phase": "predict", "seconds": sum(taken.values())})
    rows.append({"member": None, "phase": "compare", "seconds": time.perf_counter() - begun})
    number = study.evaluation.samples * len(members)
    questions = sum(len(each) for each in shared.sets.values())
    write_timings(folder / "timings.json", rows, number, sum(taken["swag"] for taken in seconds), questions)
    write_json(folder / "metrics.json", metrics)
    return metrics


def _width(shared: Material, name: str) -> int:
    return max(len(question.options) for question in shared.asked[name])


def _compared(shared: Material, voted: Sequence[Mapping[str, Voted]], name: str) -> Compared:
    """All methods on one set; the temperature is always that of the validation questions."""
    most, usual = _width(shared, name), max(_width(shared, "validation"), _width(shared, "train"))
    members = [
        {
            key: Predictions(parts["validation"][:, :usual], parts[name][:, :most], parts[f"{name}_entropy"])
            for key, parts in one.items()
        }
        for one in voted
    ]
    study = shared.study
    return compare(
        members,
        shared.labels("validation"),
        shared.labels(name),
        study.evaluation,
        study.data.seed,
        trained=VARIANT_METHODS,
        methods=NINE,
        things="questions",
    )


def _shifted(shared: Material, voted: Sequence[Mapping[str, Voted]], name: str) -> dict[str, Any]:
    """What changes on questions of another kind: the table, and how well uncertainty tells them from the test ones."""
    metrics = _compared(shared, voted, name).metrics
    told: dict[str, Any] = {}
    for method in NINE:
        key = SEVERAL.get(method, {v: k for k, v in VARIANT_METHODS.items()}.get(method, ""))
        if not key:
            continue  # a temperature changes no order of entropies worth a row of its own
        groups = [voted] if method in OVER_MEMBERS else [[one] for one in voted]
        usable = SCORES if method in SEVERAL else SCORES[:1]  # one model agrees with itself
        each = [_detections(shared, [one[key] for one in group], name, usable) for group in groups]
        told[method] = {
            score: {metric: sum(one[score][metric] for one in each) / len(each) for metric in each[0][score]}
            for score in usable
        }
    return {
        "n": len(shared.sets[name]),
        "methods": metrics["methods"],
        "differences": metrics["differences"],
        "detection": told,
    }


def _detections(shared: Material, group: Sequence[Voted], name: str, usable: Sequence[str]) -> dict[str, Any]:
    """Detection by models averaged over a group of members."""
    scores: dict[str, dict[str, Tensor]] = {}
    for part in ("test", name):
        probs, expected, votes = (
            torch.stack([one[f"{part}{suffix}"] for one in group]).mean(0) for suffix in ("", "_entropy", "_votes")
        )
        scores[part] = uncertainty(probs, expected, votes, [len(q.options) for q in shared.asked[part]])
    return {score: detection(scores["test"][score], scores[name][score]) for score in usable}
