"""Batches as a network is trained on them: labelled ones, and for FixMatch weak and strong views of the others.

FixMatch: Sohn et al. 2020, arXiv 2001.07685. The strong view follows its recipe, RandAugment and Cutout (DeVries,
Taylor 2017, arXiv 1708.04552), by one affine map, a change of contrast and brightness, and a square that is cut out:
torchvision, which has RandAugment, is no part of a CPU wheel of torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..images.sets import augmented
from ..images.trajectory import parted
from ..runs.randomness import stream
from .config import ImbalanceStudy
from .sets import Examples


class Batch(NamedTuple):
    """One batch: labelled examples first, then weak and as many strong views of examples without labels."""

    x: Tensor  # (labelled + 2 guessed, ...)
    y: Tensor  # (labelled,)


def batches(study: ImbalanceStudy, examples: Examples, seed: int) -> Iterator[Batch]:
    """Return batches without end, epoch after epoch; they follow from the seed alone."""
    x, y = examples.train
    if not len(examples.unlabelled):
        for epoch, rows in _orders(len(y), study.training.batch_size, seed, "order"):
            yield Batch(_weak(study, examples, x[rows], epoch), y[rows])
    others = examples.unlabelled
    labelled = _orders(len(y), study.semi.batch_size, seed, "order")
    guessed = _orders(len(others), study.semi.batch_size * study.semi.times, seed, "order of the others")
    for (of_epoch, rows), (moved, more) in zip(labelled, guessed, strict=True):
        views = [
            _weak(study, examples, x[rows], of_epoch),
            _weak(study, examples, others[more], moved),
            examples.ready(strong(_moved(study, examples, others[more], moved), moved)),
        ]
        yield Batch(torch.cat(views), y[rows])


def steps_of(study: ImbalanceStudy, examples: Examples) -> int:
    """Return the steps of an epoch: through all labelled examples, or through all without a label."""
    if len(examples.unlabelled):
        return -(-len(examples.unlabelled) // (study.semi.batch_size * study.semi.times))
    return -(-len(examples.train[1]) // study.training.batch_size)


def loss_of(logits: Tensor, batch: Batch, threshold: float) -> Tensor:
    """Return the mean loss of the labelled, and for the others that of the strong view at the weak one's sure guess.

    >>> batch = Batch(torch.zeros(3, 1), torch.tensor([0]))
    >>> logits = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 0.0]])
    >>> [round(loss_of(logits, batch, sure).item() / math.log(2), 6) for sure in (0.95, 0.9999)]
    [2.0, 1.0]
    """
    labelled = F.cross_entropy(logits[: len(batch.y)], batch.y)
    if len(logits) == len(batch.y):
        return labelled
    weak, strong_ = logits[len(batch.y) :].chunk(2)
    sure, guess = weak.detach().softmax(-1).max(-1)
    return labelled + (F.cross_entropy(strong_, guess, reduction="none") * (sure >= threshold)).mean()


def strong(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return pixels (N, C, H, W) turned by up to 30 degrees, scaled by up to a fifth, brightened, a square cut out.

    >>> strong(torch.ones(2, 1, 8, 8), torch.Generator().manual_seed(0)).shape
    torch.Size([2, 1, 8, 8])
    """
    number, _, height, width = x.shape

    def drawn(reach: float, *shape: int) -> Tensor:
        return reach * (2 * torch.rand(number, *shape, generator=generator) - 1)

    angle, scale = drawn(math.pi / 6), 1 + drawn(0.2)
    turn = torch.stack([scale * angle.cos(), -scale * angle.sin(), scale * angle.sin(), scale * angle.cos()], -1)
    maps = torch.cat([turn.view(number, 2, 2), drawn(0.125, 2, 1)], 2)  # (N, 2, 3)
    places = F.affine_grid(maps, list(x.shape), align_corners=False)
    x = F.grid_sample(x, places, align_corners=False)
    x = (x * (1 + drawn(0.5, 1, 1, 1)) + drawn(0.2, 1, 1, 1)).clamp(0, 1)
    side = max(1, min(height, width) // 2)
    top = torch.randint(0, height, (number, 1, 1), generator=generator) - side // 2
    left = torch.randint(0, width, (number, 1, 1), generator=generator) - side // 2
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    cut = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)  # (N, H, W)
    return x.masked_fill(cut[:, None], 0.5)


def _orders(count: int, most: int, seed: int, purpose: str) -> Iterator[tuple[torch.Generator, Tensor]]:
    epoch = 0
    while True:
        transforms = stream(seed, f"{purpose}: transforms {epoch}")
        for rows in parted(torch.randperm(count, generator=stream(seed, f"{purpose} {epoch}")), most):
            yield transforms, rows
        epoch += 1


def _moved(study: ImbalanceStudy, examples: Examples, x: Tensor, generator: torch.Generator) -> Tensor:
    if examples.images is None or study.training.augmentation == "none":
        return x
    return augmented(x, examples.images, generator)


def _weak(study: ImbalanceStudy, examples: Examples, x: Tensor, generator: torch.Generator) -> Tensor:
    return examples.ready(_moved(study, examples, x, generator))
