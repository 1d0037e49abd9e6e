"""The texts: sources of Python's standard library, and for the shift its reference manual, which is English prose."""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SETS = ("stdlib",)
_PARTS = ("train", "validation", "test", "shift")


@dataclass(frozen=True)
class Texts:
    """Rows of `context + 1` bytes, as int64: train (N, T + 1), and so on."""

    train: Tensor
    validation: Tensor
    test: Tensor
    shift: Tensor


def read(name: str, path: Path | None, context: int, rows: int) -> Texts:
    """Return the rows of a set: `rows` each for validation, test and shift.

    Files, not rows, are dealt out, so that no file is in two parts; the parts are the same for every seed. A set of
    one's own is a folder: its text files are dealt out, and `shift/` in it, where there is one, is the shifted set.

    Raises:
        ValueError: the set is unknown or too small.
        FileNotFoundError: there is no such folder.
    """
    if path is None:
        if name not in SETS:
            raise ValueError(f"there is no packaged text {name!r}: take {', '.join(SETS)}, or add it to data.paths")
        home = Path(sysconfig.get_paths()["stdlib"])
        files = sorted(home.glob("*.py")) + sorted(home.glob("[a-z]*/*.py"))
        files = [file for file in files if not {"test", "site-packages", "pydoc_data", "idlelib"} & set(file.parts)]
        foreign = [home / "pydoc_data" / "topics.py"]
    else:
        if not path.is_dir():
            raise FileNotFoundError(f"there is no folder {path}: name one with text files")
        files = sorted(
            file for file in path.rglob("*") if file.is_file() and "shift" not in file.relative_to(path).parts
        )
        foreign = sorted(file for file in (path / "shift").rglob("*") if file.is_file())
    order = np.random.default_rng(0).permutation(len(files))
    held = len(files) // 10
    deal = {"validation": order[:held], "test": order[held : 2 * held], "train": order[2 * held :]}
    found = {part: _rows([files[index] for index in places], context) for part, places in deal.items()}
    found["shift"] = _rows(foreign, context) if foreign else found["test"]
    for part in _PARTS:
        if part != "train":
            if len(found[part]) < rows:
                raise ValueError(
                    f"{name} has {len(found[part])} rows of {context + 1} bytes for {part}, wanted {rows}: give more "
                    "text, or lower evaluation.rows"
                )
            found[part] = found[part][:rows]
    if not len(found["train"]):
        raise ValueError(f"{name} has no text to train on: give more files")
    return Texts(**found)


def _rows(files: list[Path], context: int) -> Tensor:
    """The files one after another, cut into rows, in an order that mixes the files."""
    content = b"".join(file.read_bytes() for file in files)
    count = len(content) // (context + 1)
    rows = np.frombuffer(content[: count * (context + 1)], dtype=np.uint8).reshape(count, context + 1)
    return torch.from_numpy(rows[np.random.default_rng(1).permutation(count)].astype(np.int64))
