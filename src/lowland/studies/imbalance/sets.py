"""The examples of a cell: images cut to a long tail, or news wires; parts to train on, to choose on, to judge by."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..grid.cells import Cell
from ..grid.configured import path_of
from ..images.reading import check_data as check_images
from ..images.sets import Images, load_images, standardised
from ..packaged import by_name as packaged_set
from ..packaged import find_file, load_packaged
from ..runs.randomness import derived_seed
from .config import ImbalanceStudy, counts_of, source_of
from .tails import counts, kept

Labelled = tuple[Tensor, Tensor]  # examples (N, ...), classes (N,) int64


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """What a cell is trained on and judged by; images as pixels, texts as the rows that the network takes."""

    train: Labelled
    unlabelled: Tensor  # (N, ...), without one where all have labels
    validation: Labelled
    test: Labelled
    sizes: list[int]  # training examples of each class, with and without labels
    images: Images | None  # what transforms and standardisation want; None for texts

    def ready(self, x: Tensor) -> Tensor:
        """Return examples as the network takes them."""
        return x if self.images is None else standardised(x, self.images)


def load(study: ImbalanceStudy, cell: Cell) -> Examples:
    """Return a cell's examples; its seed says which of each class.

    Raises:
        ValueError: the set is not installed, damaged or too small.
        FileNotFoundError: there is no such file.
    """
    return _images(study, cell) if source_of(cell).ratio else _texts(source_of(cell).name, study.data.bits, cell.seed)


def check_data(study: Any) -> None:
    """See that every set is there, before anything is begun.

    Raises:
        ValueError, FileNotFoundError: one is not; the message says how to get it.
    """
    renamed = SimpleNamespace(sets=(*study.data.images, *study.semi.images), paths=study.data.paths)
    check_images(SimpleNamespace(data=renamed))
    for name in study.data.texts:
        find_file(packaged_set(name).train, packaged_set(name).package)


def _images(study: ImbalanceStudy, cell: Cell) -> Examples:
    source = source_of(cell)
    largest, validation, test = counts_of(study, source.name)
    path = path_of(study.data.paths, source.name)
    whole = load_images(source.name, path=path, validation=validation, test=test, seed=cell.seed)
    sizes = counts(largest, source.ratio, whole.classes)
    rows = kept(whole.train[1], sizes)
    x, y = whole.train[0][rows], whole.train[1][rows]
    pixels = x.double()
    mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3), correction=0)
    images = dataclasses.replace(whole, train=(x, y), mean=mean.float(), std=std.clamp_min(1e-6).float())
    labelled = torch.arange(len(y))
    if source.semi:
        labelled = kept(y, [max(1, round(study.semi.share * size)) for size in sizes])
    others = torch.ones(len(y), dtype=torch.bool)
    others[labelled] = False
    return Examples((x[labelled], y[labelled]), x[others], whole.validation, whole.test, sizes, images)


def _texts(name: str, bits: int, seed: int) -> Examples:
    """News wires as tf-idf of hashed words; of each class a tenth, rounded down, is for validation."""
    train, test = load_packaged(name)
    if test is None:
        raise ValueError(f"{name} has no test part")
    names = sorted(set(train[1]))
    code = {label: place for place, label in enumerate(names)}
    labels = [np.array([code.get(label, -1) for label in part[1]]) for part in (train, test)]
    first, second = _weighted(train[0], test[0], bits)
    random = np.random.default_rng(derived_seed(seed, "validation"))
    order = random.permutation(len(labels[0]))
    held = np.zeros(len(order), dtype=bool)
    for label in range(len(names)):
        own = order[labels[0][order] == label]
        # Of five to nine one: choices should see rare classes too.
        held[own[: max(len(own) // 10, int(len(own) >= 5))]] = True
    parts = [
        (first[torch.from_numpy(~held)], torch.from_numpy(labels[0][~held])),
        (first[torch.from_numpy(held)], torch.from_numpy(labels[0][held])),
        (second[torch.from_numpy(labels[1] >= 0)], torch.from_numpy(labels[1][labels[1] >= 0])),
    ]
    sizes = torch.bincount(parts[0][1], minlength=len(names)).tolist()
    return Examples(parts[0], first[:0], parts[1], parts[2], sizes, None)


def _weighted(train: list[str], test: list[str], bits: int) -> tuple[Tensor, Tensor]:
    try:
        from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
    except ImportError as error:
        raise ImportError("texts are hashed by scikit-learn: pip install scikit-learn") from error
    hashing = HashingVectorizer(n_features=1 << bits, alternate_sign=False, norm=None)
    frequencies = TfidfTransformer(sublinear_tf=True)
    made: list[Callable[[Any], Any]] = [frequencies.fit_transform, frequencies.transform]
    rows = [of(hashing.transform(texts)) for of, texts in zip(made, (train, test), strict=True)]
    return tuple(torch.from_numpy(each.toarray().astype(np.float32)) for each in rows)  # type: ignore[return-value]
