"""The sets of the linear study: packaged texts as hashed n-grams, and rows that a known sparse model drew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack

from ..packaged import Labelled, load_packaged

_POSITIVE: dict[str, Callable[[str], bool]] = {
    "newsgroups": lambda label: label.startswith(("comp.", "sci.")),
    "r8": "earn".__eq__,
    "insults": "insulting".__eq__,
    "sms": "spam".__eq__,
    **dict.fromkeys(("movies", "products", "tweets"), "positive".__eq__),
}
PACKAGED = (*_POSITIVE, "synthetic")
_NAMES = {  # what packages call them
    "newsgroups": "20newsgroups",
    "sms": "sms-spam",
    **{kind: f"hutto-{kind}" for kind in ("movies", "products", "tweets")},
}
_HELD = 0.3  # share of the rows that test, of sets without test rows of their own


@dataclass(frozen=True)
class Rows:
    """Rows and labels, 0 and 1."""

    X: csr_matrix
    y: NDArray[np.int64]


@dataclass(frozen=True)
class Set:
    """A training part and a test part."""

    train: Rows
    test: Rows


def load_set(name: str, *, bits: int = 20, path: str | None = None) -> Set:
    """Return a set; texts become tf-idf of hashed words and pairs of words, or of letters for insults.

    Args:
        bits: columns are 2 to the power of this.
        path: a folder of shards; its last shard is the test part.

    Raises:
        ValueError: there is no such set, or its package is not installed.

    >>> found = load_set("synthetic", bits=10)
    >>> found.train.X.shape, found.test.X.shape
    ((6000, 1024), (3000, 1024))
    """
    if path is not None:
        return _shards(Path(path))
    if name == "synthetic":
        return synthetic(1 << bits)
    if name not in PACKAGED:
        raise ValueError(f"there is no packaged set {name!r}: take {', '.join(PACKAGED)}, or give it a path")
    train, test = load_packaged(_NAMES.get(name, name))
    if test is None:
        train, test = _divided(train)
    labels = [np.array([int(_POSITIVE[name](label)) for label in side[1]]) for side in (train, test)]
    return Set(*_hashed(train[0], test[0], labels, bits, letters=name == "insults"))


def synthetic(columns: int, rows: int = 9000, per_row: int = 40, true: int = 100, seed: int = 0) -> Set:
    """Return rows of a known model: columns as frequent as words, `true` of the 2,000 most frequent with a weight."""
    rng = np.random.default_rng(seed)
    places = (columns * rng.random((rows, per_row)) ** 3).astype(np.int64)
    ends = np.arange(rows + 1) * per_row
    X = csr_matrix((np.ones(places.size), places.ravel(), ends), shape=(rows, columns))
    X.sum_duplicates()
    X.data[:] = 1.0
    weights = np.zeros(columns)
    weights[rng.choice(min(2000, columns), true, replace=False)] = 2.0 * rng.standard_normal(true)
    scores = X @ weights
    y = (rng.random(rows) < 1 / (1 + np.exp(-(scores - np.median(scores))))).astype(np.int64)
    cut = rows * 2 // 3
    return Set(Rows(X[:cut], y[:cut]), Rows(X[cut:], y[cut:]))


def _divided(whole: Labelled) -> tuple[Labelled, Labelled]:
    """The same rows test in every study."""
    order = np.random.default_rng(0).permutation(len(whole[1]))
    cut = int(_HELD * len(order))
    test, train = np.sort(order[:cut]).tolist(), np.sort(order[cut:]).tolist()
    return tuple(([whole[0][k] for k in rows], [whole[1][k] for k in rows]) for rows in (train, test))  # type: ignore[return-value]


def _hashed(train: list[str], test: list[str], labels: list[Any], bits: int, letters: bool) -> tuple[Rows, Rows]:
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

    count = partial(HashingVectorizer, n_features=1 << bits, alternate_sign=False, norm=None)
    hashing = count(analyzer="char_wb", ngram_range=(2, 5)) if letters else count(ngram_range=(1, 2))
    frequencies = TfidfTransformer(sublinear_tf=True)
    first = frequencies.fit_transform(hashing.transform(train))
    second = frequencies.transform(hashing.transform(test))
    return Rows(csr_matrix(first), labels[0]), Rows(csr_matrix(second), labels[1])


def _shards(folder: Path) -> Set:
    from lowland.linear import shards_in

    found = [shard()[:2] for shard in shards_in(folder)]
    if len(found) < 2:
        raise ValueError(f"{folder} holds one shard: the last is the test part, so two are needed")
    y = [np.asarray(labels) for _, labels in found]
    classes = np.unique(np.concatenate(y))
    if len(classes) != 2:
        raise ValueError(f"{folder} has {len(classes)} classes: the study compares two")
    codes = [np.searchsorted(classes, labels) for labels in y]
    first = csr_matrix(vstack([X for X, _ in found[:-1]]))
    return Set(Rows(first, np.concatenate(codes[:-1])), Rows(found[-1][0], codes[-1]))
