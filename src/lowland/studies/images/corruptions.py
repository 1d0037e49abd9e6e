"""Corrupted test images: what a network has not seen, in five severities.

After Hendrycks & Dietterich 2019, arXiv 1903.12261 (CIFAR-10-C), and Mu & Gilmer 2019, arXiv 1906.02337 (MNIST-C).
Lengths are shares of an image's size here, so that one severity means the same for 8, 28 and 32 pixels; the numbers
are not those of the papers, and results are not to be compared with theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_Corruption = Callable[[Tensor, float, torch.Generator], Tensor]


def corrupted(x: Tensor, name: str, severity: int, seed: int) -> Tensor:
    """Return images (N, C, H, W) with pixels in [0, 1] after one corruption; the same arguments give the same images.

    Args:
        name: one of CORRUPTIONS.
        severity: 1, barely seen, to 5.
        seed: of the noise, the places and the directions.

    Raises:
        ValueError: the corruption or the severity is unknown.

    >>> grey = torch.full((1, 1, 2, 2), 0.5)
    >>> corrupted(grey, "brightness", 2, seed=0).unique()
    tensor([0.7000])
    """
    if name not in _CORRUPTIONS:
        raise ValueError(f"there is no corruption {name!r}: use one of {', '.join(CORRUPTIONS)}")
    if severity not in range(1, 6):
        raise ValueError(f"the severity of {name} must be 1, 2, 3, 4 or 5, got {severity}: choose one of them")
    change, amounts = _CORRUPTIONS[name]
    return change(x, amounts[severity - 1], torch.Generator().manual_seed(seed)).clamp(0, 1)


def _noise(x: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise."""
    return x + deviation * torch.randn(x.shape, generator=generator)


def _impulses(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Turn this share of the pixels black or white."""
    chance = torch.rand(len(x), 1, *x.shape[2:], generator=generator)
    return torch.where(chance < share, (chance < share / 2).to(x.dtype), x)


def _blur(x: Tensor, width: float, generator: torch.Generator) -> Tensor:
    """Average by a Gaussian whose standard deviation is this share of the size; edges are repeated outwards."""
    deviation = width * x.shape[3]
    reach = math.ceil(3 * deviation)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / deviation).square())
    weights = (weights / weights.sum()).to(x.dtype).expand(x.shape[1], 1, 1, -1)
    x = F.conv2d(F.pad(x, (reach, reach, 0, 0), mode="replicate"), weights, groups=x.shape[1])
    return F.conv2d(F.pad(x, (0, 0, reach, reach), mode="replicate"), weights.mT, groups=x.shape[1])


def _contrast(x: Tensor, kept: float, generator: torch.Generator) -> Tensor:
    """Draw every pixel towards its image's mean."""
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + kept * (x - mean)


def _brightness(x: Tensor, added: float, generator: torch.Generator) -> Tensor:
    return x + added


def _occlusion(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Hide a grey square whose side is this share of the size, at a random place."""
    side = max(1, round(share * x.shape[3]))
    inside = []
    for length in x.shape[2:]:
        start = torch.randint(0, length - side + 1, (len(x), 1), generator=generator)
        at = torch.arange(length)
        inside.append((at >= start) & (at < start + side))  # (N, length)
    hidden = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return torch.where(hidden, torch.tensor(0.5, dtype=x.dtype), x)


def _rotation(x: Tensor, degrees: float, generator: torch.Generator) -> Tensor:
    """Turn by this angle, to the left or to the right; edges are repeated outwards."""
    left = torch.rand(len(x), generator=generator) < 0.5
    angle = torch.where(left, 1.0, -1.0) * math.radians(degrees)
    zero = torch.zeros(len(x))
    rows = [torch.stack([angle.cos(), -angle.sin(), zero], 1), torch.stack([angle.sin(), angle.cos(), zero], 1)]
    return _moved(x, torch.stack(rows, 1))


def _shift(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Move by this share of the size in a random direction; edges are repeated outwards."""
    angle = 2 * math.pi * torch.rand(len(x), generator=generator)
    theta = torch.eye(2, 3).repeat(len(x), 1, 1)
    # A grid runs from -1 to 1 over the image, so a size is 2 long.
    theta[:, :, 2] = 2 * share * torch.stack([angle.cos(), angle.sin()], 1)
    return _moved(x, theta)


def _moved(x: Tensor, theta: Tensor) -> Tensor:
    """Sample each image at the places of its affine map (N, 2, 3), between pixels bilinearly."""
    grid = F.affine_grid(theta.to(x.dtype), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


_CORRUPTIONS: dict[str, tuple[_Corruption, tuple[float, ...]]] = {  # with the amount of each severity
    "noise": (_noise, (0.05, 0.1, 0.2, 0.3, 0.45)),
    "impulses": (_impulses, (0.02, 0.05, 0.1, 0.2, 0.3)),
    "blur": (_blur, (0.04, 0.055, 0.07, 0.085, 0.1)),
    "contrast": (_contrast, (0.7, 0.5, 0.35, 0.2, 0.1)),
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "occlusion": (_occlusion, (0.15, 0.25, 0.35, 0.5, 0.6)),
    "rotation": (_rotation, (10, 20, 30, 40, 50)),
    "shift": (_shift, (0.04, 0.08, 0.12, 0.16, 0.2)),
}
CORRUPTIONS = tuple(_CORRUPTIONS)
