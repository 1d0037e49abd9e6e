"""How a member sees its batches: PAPA's pool of recipes, of which each member of a mixed population draws one.

Mixup: Zhang et al. 2018, arXiv 1710.09412. CutMix: Yun et al. 2019, arXiv 1905.04899. Random erasing: Zhong et al.
2020, arXiv 1708.04896. Label smoothing: Szegedy et al. 2016, arXiv 1512.00567. Where a recipe has both mixup and
CutMix, a batch takes one of them by chance.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

POOL = {
    "mixup": (0.0, 0.5, 1.0),
    "smoothing": (0.0, 0.05, 0.1),
    "cutmix": (0.0, 0.5, 1.0),
    "erasing": (0.0, 0.15, 0.35),
}


class Recipe(NamedTuple):
    """The strengths of a member's regularisation; all 0 is none."""

    mixup: float = 0.0  # both parameters of the Beta distribution
    smoothing: float = 0.0
    cutmix: float = 0.0  # both parameters of the Beta distribution
    erasing: float = 0.0  # probability of an image


def drawn(random: np.random.Generator) -> Recipe:
    """Return one combination of the pool.

    >>> drawn(np.random.default_rng(0))
    Recipe(mixup=1.0, smoothing=0.05, cutmix=0.5, erasing=0.0)
    """
    return Recipe(**{name: float(values[random.integers(len(values))]) for name, values in POOL.items()})


def prepared(x: Tensor, y: Tensor, classes: int, recipe: Recipe, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return images and target probabilities (N, classes) of one batch of standardised images (N, C, H, W).

    >>> x, y = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 4, 4), torch.tensor([0, 1])
    >>> prepared(x, y, 2, Recipe(smoothing=0.5), np.random.default_rng(0))[1]
    tensor([[0.7500, 0.2500],
            [0.2500, 0.7500]])
    """
    targets = F.one_hot(y, classes).float() * (1 - recipe.smoothing) + recipe.smoothing / classes
    ways = [way for way, strength in (("mixup", recipe.mixup), ("cutmix", recipe.cutmix)) if strength]
    if ways:
        way = ways[random.integers(len(ways))]
        strength = getattr(recipe, way)
        share = float(random.beta(strength, strength))
        other = torch.from_numpy(random.permutation(len(y)))
        if way == "mixup":
            x = share * x + (1 - share) * x[other]
        else:
            height, width = x.shape[2:]
            rows, columns = (_interval(size, (1 - share) ** 0.5, random) for size in (height, width))
            x = x.clone()
            x[:, :, rows, columns] = x[other][:, :, rows, columns]
            share = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
        targets = share * targets + (1 - share) * targets[other]
    if recipe.erasing:
        x = _erased(x, recipe.erasing, random)
    return x, targets


def _interval(size: int, share: float, random: np.random.Generator) -> slice:
    """A stretch of this share around a random place, cut at the ends."""
    middle, half = int(random.integers(size)), int(size * share) / 2
    return slice(max(0, int(middle - half)), min(size, int(middle + half)))


def _erased(x: Tensor, chance: float, random: np.random.Generator) -> Tensor:
    """Images of which a rectangle of 2 % to a third of the area is the training pixels' mean, by chance."""
    x = x.clone()
    height, width = x.shape[2:]
    for image in np.flatnonzero(random.random(len(x)) < chance):
        area = random.uniform(0.02, 1 / 3) * height * width
        ratio = float(np.exp(random.uniform(np.log(0.3), np.log(3.3))))
        tall = min(height, max(1, round((area * ratio) ** 0.5)))
        wide = min(width, max(1, round((area / ratio) ** 0.5)))
        top, left = random.integers(height - tall + 1), random.integers(width - wide + 1)
        x[image, :, top : top + tall, left : left + wide] = 0.0
    return x
