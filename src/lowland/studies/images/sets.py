"""Small image sets: read, split without overlap, standardised and augmented."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .reading import Raw, read

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
    pool, tests, names = read(name, Path(path) if path else None)
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


def _distinct(pool: Raw, tests: Raw | None) -> Raw:
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


def _pick(raw: Raw, rows: Any) -> Raw:
    return Raw(raw.pixels[rows], raw.labels[rows], raw.largest)


def _tensors(raw: Raw) -> Labelled:
    pixels = torch.from_numpy(np.ascontiguousarray(raw.pixels.transpose(0, 3, 1, 2))).float() / raw.largest
    return pixels, torch.from_numpy(raw.labels.copy())
