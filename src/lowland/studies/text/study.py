"""The text study: from a configuration to a run folder with the numbers of eight methods.

Every stage leaves files in RUN/stages and is not repeated; a killed study goes on with the first stage that is missing
and ends with the same numbers, since every stage takes its randomness from the configuration alone. That holds for one
machine and one number of threads; both stand in versions.json.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from lowland.files.replacing import alone

from ..adapters.classifier import adapt, load_encoder, need_extra, positions_of
from ..adapters.comparison import METHODS, TRAINED, TUNED, Predictions, compare, with_tuned
from ..adapters.config import check_snapshots
from ..adapters.ending import Shown, choose_shipped, expected_entropy, write_run, write_times
from ..adapters.member import Material, Member
from ..adapters.settling import Settled, run_members
from ..adapters.tokens import cut_sentence, fitting_length, tokenise, whole_tokens
from ..runs.folder import write_json
from ..runs.opening import begin, finished, read_configured
from ..runs.progress import Progress, Silent
from ..runs.randomness import own_randomness, quiet
from .config import TextStudy, from_mapping
from .datasets import Splits, load_splits
from .phases import phases

LONGEST = 512  # tokens of a text, where the encoder does not say what it can take


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
    if (there := finished(study, folder, resume, from_mapping)) is not None:
        return there
    need_extra("text")
    with quiet(), own_randomness():
        begun = time.perf_counter()
        splits = load_splits(study.data)
        encoder, tokenizer, home = load_encoder(study.model)
        length = study.model.max_length or fitting_length(
            [len(ids) for ids in whole_tokens(tokenizer, splits.train.texts)], positions_of(encoder) or LONGEST
        )
        cut = [tokenise(tokenizer, part.texts, length) for part in (splits.train, splits.validation, splits.test)]
        train, validation, test = cut
        shortened = {
            what: (len(part.shortened), len(part))
            for what, part in zip(("training", "validation", "test"), cut, strict=True)
        }
        notes = [*filter(None, [cut_sentence(shortened, length)]), *splits.notes]
        check_snapshots(study, len(train))
        for note in notes:
            progress.say(note)
        classifier = adapt(encoder, study.model, study.lora, len(splits.names), cut, study.evaluation.batch_size)
        if torch.cuda.is_available():
            classifier.to(torch.device("cuda"))
        with alone(folder, folder):
            begin(study, folder, splits.hash, home)
            shared = Material(
                study,
                classifier,
                train,
                {"validation": validation, "test": test},
                validation.first(study.training.monitor_texts),
                {"train": splits.train.labels, "validation": splits.validation.labels, "test": splits.test.labels},
                phases,
                {**TRAINED, "tuned": TUNED} if study.training.base_rate else TRAINED,
                progress,
            )
            prepared = time.perf_counter() - begun
            members, settled = run_members(shared, folder / "stages")
            read = {"notes": notes, "max_length": length, "cut": {what: list(pair) for what, pair in shortened.items()}}
            return _finish(folder, splits, members, settled, prepared, read)


def read_study(folder: Path) -> TextStudy:
    """Read the configuration of a run folder.

    Raises:
        ValueError: it holds none.
    """
    study: TextStudy = read_configured(folder, from_mapping)
    return study


def _finish(
    folder: Path, splits: Splits, members: list[Member], settled: Settled, prepared: float, read: dict[str, Any]
) -> dict[str, Any]:
    begun = time.perf_counter()
    study, variants = settled.shared.study, settled.shared.variants
    loaded = [{key: member.predictions(key) for key in variants} for member in members]
    predicted = [
        {key: Predictions(parts["validation"], parts["test"], parts["test_entropy"]) for key, (parts, _) in one.items()}
        for one in loaded
    ]
    seconds = [{key: taken for key, (_, taken) in one.items()} for one in loaded]
    compared = compare(
        predicted,
        splits.validation.labels,
        splits.test.labels,
        study.evaluation,
        study.data.seed,
        trained=variants,
        methods=with_tuned(METHODS) if "tuned" in variants else METHODS,
    )
    shipped, said = choose_shipped(study, compared, splits.validation.labels, settled, "texts")
    metrics = {
        **compared.metrics,
        **said,
        "chosen": {"early_stop_epoch": [member.early_epoch() for member in members], **said["chosen"]},
        "n_test": len(splits.test),
        "n_validation": len(splits.validation),
        "n_train": len(splits.train),
        "labels": splits.names,
        "products": members[0].products(),
        **read,
    }
    entropies = [{key: part.test_entropy for key, part in one.items()} for one in predicted]
    shown = Shown(
        splits.test.texts,
        splits.test.labels,
        splits.validation.labels,
        splits.names,
        splits.names[-1],
        expected_entropy(entropies, variants, compared, shipped),
    )
    histories = write_run(study, folder, members, settled.shared.adapted, compared, shown, shipped)
    write_times(
        study, folder, histories, seconds, len(splits.validation) + len(splits.test), prepared, settled.seconds, begun
    )
    write_json(folder / "metrics.json", metrics)
    return metrics
