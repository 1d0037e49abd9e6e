"""Data sets of a grid study that lie outside packages: "NAME=PATH" entries of `data.paths`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

Data = TypeVar("Data")  # a frozen dataclass with `paths`


def path_of(paths: Sequence[str], name: str) -> str | None:
    """Return where a set lies, or None where no entry names it.

    >>> path_of(("own=pictures.npz",), "own")
    'pictures.npz'
    """
    return next((path for key, _, path in (entry.partition("=") for entry in paths) if key == name), None)


def placed(data: Data, folder: Path) -> Data:
    """Return the data section with its paths, which are relative to a configuration's folder, made absolute."""
    named = [entry.partition("=") for entry in data.paths]  # type: ignore[attr-defined]
    paths = tuple(f"{key}={(folder / path).resolve()}" for key, _, path in named)
    return dataclasses.replace(data, paths=paths)  # type: ignore[type-var]
