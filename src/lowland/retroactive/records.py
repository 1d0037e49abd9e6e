"""Averages and snapshots that were kept, in memory or in files, and which average each of them is."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..files.header import header_of
from ..weights.named import Weights
from .profiles import Profile, Window

Source = Weights | str | os.PathLike[str]


@dataclass(frozen=True)
class Recorded:
    """An average that was kept, and which one it is.

    Args:
        profile: how much of it each step has.
        weights: the average: a mapping; a safetensors file of weights or of an averager written by `lowland.save`; or
            any file or folder that `checkpoints.open_checkpoint` reads. Files are read tensor by tensor when needed.
    """

    profile: Profile
    weights: Source


def intervals(
    snapshots: Iterable[tuple[int, Source]], *, start: int | None = None, around: bool = False
) -> list[Recorded]:
    """Return snapshots as the averages they stand in for: snapshot by snapshot the steps since the one before.

    Args:
        snapshots: pairs of the step and the weights after it, or the file that holds them; steps must rise.
        start: the step after which the first one stands; None: as long before it as the second is after it.
        around: a snapshot stands for the steps that are nearer to it than to any other. Closer to the average over all
            steps where the weights still drift; the last k snapshots are then no longer an equal average of k.

    Raises:
        ValueError: there is none, steps do not rise, or `start` is not before the first.

    Example:
        >>> kept = intervals([(100, {"w": torch.zeros(1)}), (200, {"w": torch.ones(1)})])
        >>> [str(one.profile) for one in kept], kept[0].profile
        (['window of 100', 'window of 100'], Window(start=0, end=100))
    """
    pairs = list(snapshots)
    steps = [step for step, _ in pairs]
    if not steps or any(later <= earlier for earlier, later in zip(steps, steps[1:], strict=False)):
        raise ValueError(f"snapshots need rising steps, one or more, got {steps[:10]}")
    first = max(0, 2 * steps[0] - steps[1] if len(steps) > 1 else steps[0] - 1) if start is None else start
    if not 0 <= first < steps[0]:
        raise ValueError(f"start must lie from 0 up to before the first snapshot's step {steps[0]}, got {first}")
    inner = [(a + b) // 2 for a, b in zip(steps, steps[1:], strict=False)] if around else steps[:-1]
    borders = [first, *inner, steps[-1]]
    windows = [Window(a, b) for a, b in zip(borders, borders[1:], strict=False)]
    return [Recorded(window, weights) for window, (_, weights) in zip(windows, pairs, strict=True)]


class _File(Mapping[str, Tensor]):
    """The weights in a safetensors file, or the mean in a file of an averager; a tensor is read when asked for."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise FileNotFoundError(f"there is no file {path}")
        try:
            file: Any = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is no whole safetensors file ({error})") from None
        self._file = file
        try:
            keys, header = list(file.keys()), header_of(file.metadata())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        prefix = "" if header is None else "weights/" if header.get("class") == "weights" else "mean/"
        self._keys = {key.removeprefix(prefix): key for key in keys if key.startswith(prefix)}
        if not self._keys:
            raise ValueError(f"{path} holds no mean: it is a {(header or {}).get('class')} with {keys[:5]}")

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(self._keys[name])
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


class _Checkpoint(Mapping[str, Tensor]):
    """The weights of a checkpoint in any other layout; a tensor is read when asked for."""

    def __init__(self, path: Path) -> None:
        from ..checkpoints import open_checkpoint

        self._tensors = open_checkpoint(path).tensors

    def __getitem__(self, name: str) -> Tensor:
        from ..checkpoints.streaming import Reader

        stored = self._tensors[name]
        tensor = torch.empty(stored.numel, dtype=stored.dtype)
        with Reader() as reader:
            reader.read(stored, 0, stored.numel, tensor)
        return tensor.view(stored.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def opened(source: Source) -> Weights:
    """Return a mapping as it is, and a file or folder as a mapping that reads a tensor when it is asked for it.

    Raises:
        FileNotFoundError: there is nothing under the path.
        ValueError: what lies there is damaged or holds no mean.

    >>> opened({"w": torch.ones(1)})
    {'w': tensor([1.])}
    """
    if isinstance(source, Mapping):
        return source
    path = Path(source)
    return _File(path) if path.suffix == ".safetensors" and not path.is_dir() else _Checkpoint(path)
