"""Which checkpoints are meant, and in which order."""

from __future__ import annotations

import re
from collections.abc import Iterable
from glob import glob
from pathlib import Path

from .layout import TORCH_SUFFIXES


def _natural(text: str) -> list[tuple[int, str]]:
    """A sort key in which numbers count as numbers."""
    parts = re.split(r"(\d+)", text)
    return [(int(part), "") if place % 2 else (-1, part) for place, part in enumerate(parts)]


def expand(inputs: Iterable[str | Path], *, keep_order: bool = False) -> list[Path]:
    """Return the checkpoints that paths and glob patterns name, in natural order.

    A folder that holds no checkpoint itself but sub-folders `checkpoint-*` stands for those.

    Raises:
        FileNotFoundError: a path or pattern names nothing.
        ValueError: one checkpoint is named twice.

    >>> import tempfile
    >>> run = Path(tempfile.mkdtemp())
    >>> for step in (2000, 900):
    ...     (run / f"checkpoint-{step}").mkdir()
    >>> [path.name for path in expand([run])]
    ['checkpoint-900', 'checkpoint-2000']
    """
    found: list[Path] = []
    for item in map(str, inputs):
        here = [Path(item)] if Path(item).exists() else [Path(p) for p in sorted(glob(item), key=_natural)]
        if not here:
            raise FileNotFoundError(f"there is no checkpoint {item}")
        for path in here:
            found += _steps(path) or [path]
    twice = sorted({str(path) for path in found if sum(p.resolve() == path.resolve() for p in found) > 1})
    if twice:
        raise ValueError(f"named twice: {twice[:3]}; give each checkpoint once (or weights to `lowland average`)")
    return found if keep_order else sorted(found, key=lambda path: _natural(str(path)))


def _steps(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    if any(p.suffix in (".safetensors", *TORCH_SUFFIXES) or p.name == ".metadata" for p in path.iterdir()):
        return []
    return sorted((p for p in path.glob("checkpoint-*") if p.is_dir()), key=lambda p: _natural(p.name))
