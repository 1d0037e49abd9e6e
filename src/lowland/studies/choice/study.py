"""The choice study: from a configuration to a run folder with nine methods on the test questions and on shifted ones.

Every stage leaves files in RUN/stages and is not repeated, as in the text study; the run folder holds the same files,
and `shifted.json` beside them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowland import weights_of
from lowland.files.replacing import alone
from lowland.weights import clone_of

from ..adapters.classifier import need_extra
from ..adapters.comparison import METHODS, TRAINED, TUNED, Compared, Predictions, compare, with_tuned
from ..adapters.config import check_snapshots
from ..adapters.ending import Shown, choose_shipped, expected_entropy, write_run, write_times
from ..adapters.member import Material, Member, Voted
from ..adapters.settling import Settled, run_members
from ..adapters.tokens import cut_sentence
from ..runs.folder import write_json
from ..runs.opening import begin, finished, read_configured
from ..runs.progress import Progress, Silent
from ..runs.randomness import own_randomness, quiet
from .config import ChoiceStudy, from_mapping
from .phases import phases
from .questions import LETTERS, Question, as_questions, load_splits
from .rivals import beside
from .scorers import PairScorer, adapt_scorer, load_scorer, set_scale, words_of
from .shifted import SCORES, detection, uncertainty

MC_DROPOUT = "MC dropout"
# The methods of every run; `with_tuned` adds those of `training.base_rate`.
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
    if (there := finished(study, folder, resume, from_mapping)) is not None:
        return there
    need_extra("choice")
    with quiet(), own_randomness():
        begun = time.perf_counter()
        splits = load_splits(study.data)
        asked = {"validation": splits.validation, "test": splits.test, **splits.shifted}
        every = [question for part in (splits.train, *asked.values()) for question in part]
        width = max(len(question.options) for question in every)
        words = words_of(every) if study.model.kind == "words" else ()
        scorer, tokenizer, home = load_scorer(study.model, width, words)
        head = clone_of(weights_of(scorer.get_submodule("head"), lambda name, tensor: True))
        kind, longest = study.model.kind, study.model.max_length
        train = as_questions(splits.train, tokenizer, kind, longest, width)
        sets = {name: as_questions(part, tokenizer, kind, longest, width) for name, part in asked.items()}
        check_snapshots(study, len(train))
        shortened = {
            {"train": "training"}.get(name, name): (len(part.shortened), len(part))
            for name, part in {"train": train, **sets}.items()
        }
        notes = [*filter(None, [cut_sentence(shortened, longest, "questions")])]
        for note in notes:
            progress.say(note)
        questions = {"train": splits.train, **asked}
        labels = {name: [question.answer for question in part] for name, part in questions.items()}
        scaled = {}
        if isinstance(scorer, PairScorer):
            own = study.model.scale or set_scale(scorer, train, labels["train"], study.evaluation.batch_size)
            scaled = {"cosine_scale": own}
        adapted = adapt_scorer(scorer, study.lora, [train, *sets.values()], study.evaluation.batch_size)
        if torch.cuda.is_available():
            adapted.to(torch.device("cuda"))
        with alone(folder, folder):
            begin(study, folder, splits.hash, home)
            shared = Material(
                study,
                adapted,
                train,
                sets,
                sets["validation"],
                labels,
                lambda one: phases(one, head),
                variants_of(study),
                progress,
            )
            prepared = time.perf_counter() - begun
            members, settled = run_members(shared, folder / "stages")
            read = {"notes": notes, **scaled}
            return _finish(Asked(settled.shared, questions), folder, members, settled, prepared, read)


def variants_of(study: ChoiceStudy) -> dict[str, str]:
    """Return what a member predicts with, and how the study calls it."""
    return {**VARIANT_METHODS, "tuned": TUNED} if study.training.base_rate else dict(VARIANT_METHODS)


def read_choice_study(folder: Path) -> ChoiceStudy:
    """Read the configuration of a run folder.

    Raises:
        ValueError: it holds none.
    """
    study: ChoiceStudy = read_configured(folder, from_mapping)
    return study


@dataclass(frozen=True)
class Asked:
    """What the members were trained on and asked, with the questions themselves, of "train" and of every set."""

    shared: Material
    questions: Mapping[str, Sequence[Question]]

    @property
    def study(self) -> ChoiceStudy:
        """The configuration."""
        study: ChoiceStudy = self.shared.study
        return study

    def labels(self, name: str) -> list[int]:
        """Return the right answers of a set."""
        return list(self.shared.labels[name])


def _finish(
    asked: Asked, folder: Path, members: list[Member], settled: Settled, prepared: float, read: dict[str, Any]
) -> dict[str, Any]:
    begun = time.perf_counter()
    study = asked.study
    variants = variants_of(study)
    found = [{key: member.predictions(key) for key in variants} for member in members]
    voted = [{key: parts for key, (parts, _) in one.items()} for one in found]
    seconds = [{key: taken for key, (_, taken) in one.items()} for one in found]
    compared = _compared(asked, voted, "test")
    outside = [name for name in asked.shared.sets if name not in ("validation", "test")]
    shifted = {name: _shifted(asked, voted, name) for name in outside}
    names = list(LETTERS[: _width(asked, "test")])
    entropies = [{key: parts["test_entropy"] for key, parts in one.items()} for one in voted]
    shipped, said = choose_shipped(study, compared, asked.labels("validation"), settled, "questions")
    held = beside(members, [one["swag"] for one in voted], compared.metrics["temperature"])
    metrics = {
        **compared.metrics,
        **said,
        "verdict": " ".join([said["verdict"], *held["regime"]["says"]]),
        "rivals": held["rivals"],
        "regime": held["regime"],
        "shifted": shifted,
        "chosen": {"early_stop_epoch": [member.early_epoch() for member in members], **said["chosen"]},
        "n_test": len(asked.shared.sets["test"]),
        "n_validation": len(asked.shared.sets["validation"]),
        "n_train": len(asked.shared.train),
        "labels": names,
        "chance": statistics.fmean(1 / len(question.options) for question in asked.questions["test"]),
        **read,
        "notes": [*read["notes"], *held["notes"]],
    }
    shown = Shown(
        [f"{q.text} ({'; '.join(q.options)})" for q in asked.questions["test"]],
        asked.labels("test"),
        asked.labels("validation"),
        names,
        "last",
        expected_entropy(entropies, variants, compared, shipped),
    )
    histories = write_run(study, folder, members, asked.shared.adapted, compared, shown, shipped)
    write_times(
        study, folder, histories, seconds, sum(map(len, asked.shared.sets.values())), prepared, settled.seconds, begun
    )
    write_json(folder / "metrics.json", metrics)
    return metrics


def _methods(study: ChoiceStudy) -> tuple[str, ...]:
    return with_tuned(NINE) if study.training.base_rate else NINE


def _width(asked: Asked, name: str) -> int:
    return max(len(question.options) for question in asked.questions[name])


def _compared(asked: Asked, voted: Sequence[Mapping[str, Voted]], name: str) -> Compared:
    """All methods on one set; the temperature is always that of the validation questions."""
    most, usual = _width(asked, name), max(_width(asked, "validation"), _width(asked, "train"))
    members = [
        {
            key: Predictions(parts["validation"][:, :usual], parts[name][:, :most], parts[f"{name}_entropy"])
            for key, parts in one.items()
        }
        for one in voted
    ]
    study = asked.study
    return compare(
        members,
        asked.labels("validation"),
        asked.labels(name),
        study.evaluation,
        study.data.seed,
        trained=variants_of(study),
        methods=_methods(study),
        things="questions",
    )


def _shifted(asked: Asked, voted: Sequence[Mapping[str, Voted]], name: str) -> dict[str, Any]:
    """What changes on questions of another kind: the table, and how well uncertainty tells them from the test ones."""
    metrics = _compared(asked, voted, name).metrics
    told: dict[str, Any] = {}
    variants = variants_of(asked.study)
    for method in _methods(asked.study):
        key = SEVERAL.get(method, {v: k for k, v in variants.items()}.get(method, ""))
        if not key:
            continue  # a temperature changes no order of entropies worth a row of its own
        groups = [voted] if method in OVER_MEMBERS else [[one] for one in voted]
        usable = SCORES if method in SEVERAL else SCORES[:1]  # one model agrees with itself
        each = [_detections(asked, [one[key] for one in group], name, usable) for group in groups]
        told[method] = {
            score: {metric: sum(one[score][metric] for one in each) / len(each) for metric in each[0][score]}
            for score in usable
        }
    return {
        "n": len(asked.shared.sets[name]),
        "methods": metrics["methods"],
        "differences": metrics["differences"],
        "detection": told,
    }


def _detections(asked: Asked, group: Sequence[Voted], name: str, usable: Sequence[str]) -> dict[str, Any]:
    """Detection by models averaged over a group of members."""
    scores: dict[str, dict[str, Tensor]] = {}
    for part in ("test", name):
        probs, expected, votes = (
            torch.stack([one[f"{part}{suffix}"] for one in group]).mean(0) for suffix in ("", "_entropy", "_votes")
        )
        scores[part] = uncertainty(probs, expected, votes, [len(q.options) for q in asked.questions[part]])
    return {score: detection(scores["test"][score], scores[name][score]) for score in usable}
