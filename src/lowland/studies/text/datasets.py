"""Texts and labels for a study: the user's CSV, Parquet or JSONL, or a packaged set, checked and split."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..packaged import Labelled, load_packaged
from .config import Data

LIMIT = 1 << 27  # characters of one CSV cell


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


def load_splits(data: Data) -> Splits:
    """Read, check and split; the same configuration gives the same splits.

    Without a validation file the validation texts are a stratified share of the training file, disjoint from the
    training texts; texts that occur twice in it are used once.

    Raises:
        ValueError: a column is missing, a file is empty or damaged, a label is missing, unknown or of a wrong kind,
            there is one class only, or fewer texts than asked for.
        FileNotFoundError: a file is missing.
    """
    if data.name:
        source, test = load_packaged(data.name)
        validation = None
    else:
        source = read_labelled(Path(data.train), data.text, data.label)
        validation, test = (
            read_labelled(Path(name), data.text, data.label) if name else None for name in (data.validation, data.test)
        )
    names = _class_names(source[1], data.train or data.name)
    pool = _indexed(_without_doubles(source), names, data.train or data.name)
    rest = pool
    if test is None:
        rest, tested = _cut(pool, max(len(names), round(data.test_share * len(pool))), 2, data.seed)
    else:
        # The texts of the table stay the same whatever the seed of the split.
        tested = _limit(_indexed(test, names, data.test or data.name), data.test_texts, 0, "data.test_texts")
    if validation is not None:
        checked = _indexed(validation, names, data.validation)
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
    return Splits(train, chosen, tested, names, _hash((train, chosen, tested), names))


def read_labelled(path: Path, text: str, label: str) -> Labelled:
    """Read two columns of a CSV, Parquet or JSONL file.

    Raises:
        ValueError: as `load_splits`.
        FileNotFoundError: there is no such file.
    """
    columns = read_columns(path, [text, label])
    labels = [_label(value, path, row, label) for row, value in enumerate(columns[label], 1)]
    return _texts(columns[text], path, text), labels


def read_texts(path: Path, column: str) -> list[str]:
    """Read one column of texts."""
    return _texts(read_columns(path, [column])[column], path, column)


def read_columns(path: Path, wanted: Sequence[str]) -> dict[str, list[Any]]:
    """Read columns by name; the suffix of the file says what it is."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: name a CSV, Parquet or JSONL file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty: it needs the columns {', '.join(wanted)}")
    readers = {".csv": _csv, ".tsv": _csv, ".jsonl": _jsonl, ".ndjson": _jsonl, ".parquet": _parquet}
    if path.suffix.lower() not in readers:
        raise ValueError(
            f"{path} must end in .csv, .tsv, .jsonl or .parquet, got {path.suffix!r}: convert or rename it"
        )
    try:
        columns = readers[path.suffix.lower()](path)
    except (UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read as {path.suffix[1:]} in UTF-8: {error}") from None
    for name in wanted:
        if name not in columns:
            raise ValueError(
                f"{path} has no column {name!r}, it has {', '.join(map(repr, columns)) or 'none'}: name one of them"
            )
    if not columns[wanted[0]]:
        raise ValueError(f"{path} has no rows: it needs at least one text")
    return {name: columns[name] for name in wanted}


def _csv(path: Path) -> dict[str, list[Any]]:
    csv.field_size_limit(LIMIT)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        rows = list(reader)
        names = list(reader.fieldnames or [])
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise ValueError(f"{path}: row {number} has other than {len(names)} cells: quote cells that hold commas")
    return {name: [row[name] for row in rows] for name in names}


def _jsonl(path: Path) -> dict[str, list[Any]]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"{path}: line {number} must be an object like {{...}}, got {type(row).__name__}")
            rows.append(row)
    return {name: [row.get(name) for row in rows] for name in (rows[0] if rows else {})}


def _parquet(path: Path) -> dict[str, list[Any]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ImportError("reading Parquet needs pyarrow: pip install 'lowland[text]'") from None
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no whole Parquet file: {error}") from None
    columns: dict[str, list[Any]] = table.to_pydict()
    return columns


def _texts(values: list[Any], path: Path, column: str) -> list[str]:
    for row, value in enumerate(values, 1):
        if not isinstance(value, str):
            raise ValueError(f"{path}: column {column!r} must hold texts, got {value!r} in row {row}")
    return values


def _label(value: Any, path: Path, row: int, column: str) -> str:
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)
    if isinstance(value, bool | int) or (isinstance(value, str) and value.strip()):
        return str(value).strip()
    raise ValueError(
        f"{path}: column {column!r} must hold class names or whole numbers, got {value!r} in row {row}: "
        "fill it in or drop the row"
    )


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


def _indexed(source: Labelled, names: Sequence[str], where: str) -> Split:
    index = {name: i for i, name in enumerate(names)}
    for row, label in enumerate(source[1], 1):
        if label not in index:
            known = ", ".join(names[:8])
            raise ValueError(f"{where}: label {label!r} in row {row} is none of the training file's classes ({known})")
    return Split(list(source[0]), [index[label] for label in source[1]])


def _without_doubles(source: Labelled) -> Labelled:
    first = {text: row for row, text in reversed(list(enumerate(source[0])))}
    rows = sorted(first.values())
    return [source[0][row] for row in rows], [source[1][row] for row in rows]


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
    taken, rest = _take(split, count, 1_000_003 * stream + seed, "the share held out")
    return rest, taken


def _pick(split: Split, rows: Any) -> Split:
    return Split([split.texts[i] for i in rows], [split.labels[i] for i in rows])


def _hash(splits: Sequence[Split], names: Sequence[str]) -> str:
    content = json.dumps([list(names), *([s.texts, s.labels] for s in splits)], ensure_ascii=True)
    return hashlib.sha256(content.encode()).hexdigest()
