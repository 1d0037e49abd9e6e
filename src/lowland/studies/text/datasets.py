"""Texts and labels for a study: the user's CSV, Parquet or JSONL, or a packaged set, checked and split."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..packaged import Labelled, load_packaged
from ..tables import Table, Written, looked_at, read_table
from .config import Data
from .remarks import remarks

# Words that stand for a missing label, as other programs write it.
_MISSING = {"nan", "<na>", "#n/a", "null"}


@dataclass(frozen=True)
class Split:
    """Texts with their class indices."""

    texts: list[str]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Splits:
    """What a study trains on, chooses by and is judged by."""

    train: Split
    validation: Split
    test: Split
    names: list[str]  # of the classes
    hash: str  # SHA-256 over all texts and labels, in order
    notes: tuple[str, ...] = ()  # what a reader of the numbers must know of the data, a sentence each


def load_splits(data: Data) -> Splits:
    """Read, check and split; the same configuration gives the same splits.

    Without a validation file the validation texts are a stratified share of the training file, disjoint from the
    training texts; texts that occur twice in it are used once. How a file is written is found out; that, doubles and
    classes of few texts are told in `notes`.

    Raises:
        ValueError: a column is missing, a file is empty or damaged, a text is empty, a label is missing, unknown or of
            a wrong kind, a text has two labels, there is one class only, or fewer texts than asked for.
        FileNotFoundError: a file is missing.
    """
    notes: list[str] = []
    if data.name:
        source, test = load_packaged(data.name)
        validation = None
        tables: dict[str, Table] = {}
    else:
        tables = {name: _own(Path(name), data, notes) for name in (data.train, data.validation, data.test) if name}
        own = {name: labelled_of(table, data.text, data.label) for name, table in tables.items()}
        source, validation, test = own[data.train], own.get(data.validation), own.get(data.test)
    names = _class_names(source[1], data.train or data.name)
    pool = _indexed(_without_doubles(source, data, notes), names, data.train or data.name)
    rest = pool
    if test is None:
        rest, tested = _cut(pool, max(len(names), round(data.test_share * len(pool))), 2, data.seed)
    else:
        # The texts of the table stay the same whatever the seed of the split.
        tested = _limit(
            _indexed(test, names, data.test or data.name, tables.get(data.test)), data.test_texts, 0, "data.test_texts"
        )
    if validation is not None:
        checked = _indexed(validation, names, data.validation, tables.get(data.validation))
        chosen = _limit(checked, data.validation_texts, data.seed, "data.validation_texts")
        train = _limit(rest, data.train_texts, data.seed, "data.train_texts")
    elif data.train_texts:
        train, left = _take(rest, data.train_texts, data.seed, "data.train_texts")
        chosen = _limit(left, data.validation_texts, data.seed + 1, "data.validation_texts")
    else:
        count = data.validation_texts or max(len(names), round(data.validation_share * len(rest)))
        train, chosen = _cut(rest, count, 1, data.seed)
    if test is None and data.test_texts:
        tested = _limit(tested, data.test_texts, 0, "data.test_texts")
    for what, split in (("training", train), ("validation", chosen), ("test", tested)):
        if not len(split):
            raise ValueError(f"no {what} texts are left: give more texts, or take fewer for the other splits")
    if len(set(train.labels)) < len(names):
        absent = sorted({names[i] for i in range(len(names))} - {names[i] for i in train.labels})
        raise ValueError(f"no training text is left of {absent}: give more texts of these classes or drop them")
    parts = {"training": train, "validation": chosen, "test": tested}
    notes += remarks({what: (part.texts, part.labels) for what, part in parts.items()}, names)
    return Splits(train, chosen, tested, names, _hash((train, chosen, tested), names), tuple(notes))


def read_labelled(path: Path, text: str, label: str, written: Written | None = None) -> Labelled:
    """Read two columns of a CSV, Parquet or JSONL file that is written as told; left out: UTF-8, with commas.

    Raises:
        ValueError: as `load_splits`.
        FileNotFoundError: there is no such file.
    """
    return labelled_of(read_table(path, [text, label], written), text, label)


def labelled_of(table: Table, text: str, label: str) -> Labelled:
    """Return the texts and the labels of a table.

    Raises:
        ValueError: a text is empty or none, or a label is missing or of a wrong kind; all such rows are named.
    """
    labels, texts = _labels(table, label), texts_of(table, text)
    empty = [row for row, one in enumerate(texts) if not one.strip()]
    if empty:
        verb = "texts are" if len(empty) > 1 else "text is"
        raise ValueError(f"{table.path}: {len(empty)} {verb} empty, in {table.where(empty)}: drop these rows")
    return texts, labels


def texts_of(table: Table, column: str) -> list[str]:
    """Return a column of texts.

    Raises:
        ValueError: rows hold something else; the message names them.
    """
    values = table.columns[column]
    bad = [row for row, value in enumerate(values) if not isinstance(value, str)]
    if bad:
        raise ValueError(
            f"{table.path}: column {column!r} must hold texts, got {values[bad[0]]!r} in {table.where(bad)}"
        )
    return values


def _own(path: Path, data: Data, notes: list[str]) -> Table:
    written = looked_at(path)
    try:
        table = read_table(path, [data.text, data.label], written)
    except ValueError as error:
        hint = "; a study takes it from text = and label = under [data]" if "has no column" in str(error) else ""
        raise ValueError(f"{error}{hint}") from None
    if str(written):
        notes.append(f"the file {path.name} was read with {written}")
    return table


def _labels(table: Table, column: str) -> list[str]:
    """The labels as class names: whole numbers without a decimal point, truth values in small letters."""
    named = [_label(value) for value in table.columns[column]]
    bad = [row for row, name in enumerate(named) if name is None]
    if bad:
        got = table.columns[column][bad[0]]
        missing = all(_is_missing(table.columns[column][row]) for row in bad)
        what = f"{len(bad)} rows have no label" if len(bad) > 1 else "a row has no label"
        what = what if missing else f"column {column!r} must hold class names or whole numbers, got {got!r}"
        raise ValueError(
            f"{table.path}: {what} in {table.where(bad)} (column {column!r}): fill them in or drop these rows"
        )
    return [name for name in named if name is not None]


def _is_missing(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip() or value.strip().lower() in _MISSING
    return value is None or (isinstance(value, float) and math.isnan(value))


def _label(value: Any) -> str | None:
    if _is_missing(value):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return str(int(value))
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        return None
    name = value.strip()
    whole = re.fullmatch(r"([+-]?\d+)\.0+", name)
    return whole[1] if whole else name.lower() if name.lower() in ("true", "false") else name


def _class_names(labels: Sequence[str], source: str) -> list[str]:
    found = set(labels)
    names = sorted(found, key=lambda name: (0, int(name), "") if _whole(name) else (1, 0, name))
    if len(names) < 2:
        raise ValueError(f"{source} holds one class only ({names}): a classifier needs at least two")
    if len(names) > max(50, len(labels) // 2):
        raise ValueError(
            f"{source} holds {len(names)} different labels in {len(labels)} rows: is the label column the right one?"
        )
    return names


def _whole(name: str) -> bool:
    try:
        int(name)
    except ValueError:
        return False
    return True


def _indexed(source: Labelled, names: Sequence[str], where: str, table: Table | None = None) -> Split:
    index = {name: i for i, name in enumerate(names)}
    strange = [row for row, label in enumerate(source[1]) if label not in index]
    if strange:
        known, label = ", ".join(names[:8]), source[1][strange[0]]
        place = table.where(strange) if table is not None else f"row {strange[0] + 1}"
        raise ValueError(f"{where}: label {label!r} in {place} is none of the training file's classes ({known})")
    return Split(list(source[0]), [index[label] for label in source[1]])


def _without_doubles(source: Labelled, data: Data, notes: list[str]) -> Labelled:
    """Each text once. A text under two labels is refused, or left out where the data section says so."""
    texts, labels = source
    first = {text: row for row, text in reversed(list(enumerate(texts)))}
    torn = {text for text, label in zip(texts, labels, strict=True) if labels[first[text]] != label}
    torn_said = f"{len(torn)} text{' occurs' if len(torn) == 1 else 's occur'} under two labels"
    if torn and not data.name and data.two_labels == "refuse":
        shown = next(text for text in texts if text in torn)
        both = sorted({label for text, label in zip(texts, labels, strict=True) if text == shown})
        short = shown if len(shown) <= 40 else f"{shown[:40]}..."
        raise ValueError(
            f"{data.train}: {torn_said}, such as {short!r} under {' and '.join(map(repr, both))}: decide on one label, "
            'or leave such texts out by data.two_labels = "drop"'
        )
    if torn:
        left = "are left out" if data.two_labels == "drop" else "count under their first"
        notes.append(f"{torn_said} and {left}")
    kept = sorted(first.values())
    if data.two_labels == "drop":
        kept = [row for row in kept if texts[row] not in torn]
    if len(first) < len(texts):
        notes.append(
            f"of {len(texts)} rows of {Path(data.train).name or data.name} {len(texts) - len(first)} repeat a text: "
            f"{len(first)} texts are used"
        )
    return [texts[row] for row in kept], [labels[row] for row in kept]


def _take(split: Split, count: int, seed: int, key: str) -> tuple[Split, Split]:
    """A stratified random choice of `count` texts, in random order, and the rest."""
    if count > len(split):
        raise ValueError(f"{key} asks for {count} texts, there are {len(split)}: lower it, or give 0 for all")
    order = np.random.default_rng(seed).permutation(len(split))
    labels = np.asarray(split.labels)[order]
    # Largest remainder: each class gets its share, rounded so that the sum is right.
    classes, sizes = np.unique(labels, return_counts=True)
    shares = sizes * count / len(split)
    quota = np.floor(shares).astype(int)
    for i in np.argsort(-(shares - quota), kind="stable")[: count - int(quota.sum())]:
        quota[i] += 1
    chosen = np.zeros(len(split), dtype=bool)
    for label, size in zip(classes, quota, strict=True):
        chosen[np.flatnonzero(labels == label)[:size]] = True
    return _pick(split, order[chosen]), _pick(split, order[~chosen])


def _limit(split: Split, count: int, seed: int, key: str) -> Split:
    return _take(split, count, seed, key)[0] if count else split


def _cut(split: Split, count: int, stream: int, seed: int) -> tuple[Split, Split]:
    if count >= len(split):
        raise ValueError(
            f"there are {len(split)} texts, of which {count} are to be held out, one of each class at least: give more "
            "texts, or files for validation and test"
        )
    taken, rest = _take(split, count, 1_000_003 * stream + seed, "the share held out")
    return rest, taken


def _pick(split: Split, rows: Any) -> Split:
    return Split([split.texts[i] for i in rows], [split.labels[i] for i in rows])


def _hash(splits: Sequence[Split], names: Sequence[str]) -> str:
    content = json.dumps([list(names), *([s.texts, s.labels] for s in splits)], ensure_ascii=True)
    return hashlib.sha256(content.encode()).hexdigest()
