"""Which checkpoints are meant, and in which order."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from glob import escape, glob
from pathlib import Path

from .folders import STEP, holds_weights, is_weights
from .layout import Left


def _natural(text: str) -> list[tuple[int, str]]:
    """A sort key in which numbers count as numbers."""
    parts = re.split(r"(\d+)", text)
    return [(int(part), "") if place % 2 else (-1, part) for place, part in enumerate(parts)]


def expand(inputs: Iterable[str | Path], *, keep_order: bool = False) -> list[Path]:
    """Return the checkpoints that paths and glob patterns name, in natural order.

    A folder with `checkpoint-*` in it stands for those, also where a final model lies beside them (`final_models` names
    it), and one that holds no checkpoint itself for its `step-100`, `iter_0000100`, ... or its files
    `checkpoint-1.safetensors`, ... Paths that differ in their numbers only are ordered by these; others stay as given.

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
        for path in _named(item):
            found += _steps(path) or [path]
    known = Counter(path.resolve() for path in found)
    twice = sorted({str(path) for path in found if known[path.resolve()] > 1})
    if twice:
        raise ValueError(f"named twice: {twice[:3]}; give each checkpoint once (or weights to `lowland average`)")
    if keep_order:
        return found
    kinds = list(dict.fromkeys(_kind(path) for path in found))
    return sorted(found, key=lambda path: (kinds.index(_kind(path)), _natural(str(path))))


def final_models(inputs: Iterable[str | Path]) -> list[Left]:
    """Return the models that lie beside the `checkpoint-*` of a run, which an average of the run does not take.

    >>> import tempfile
    >>> run = Path(tempfile.mkdtemp())
    >>> (run / "checkpoint-900").mkdir()
    >>> (run / "model.safetensors").touch()
    >>> [left.why for left in final_models([run])]
    ['the model beside its checkpoints; name it too to take it']
    """
    found = []
    for item in map(str, inputs):
        for path in _named(item):
            steps = _steps(path)
            if steps and any(p not in steps and (is_weights(p) or p.name == ".metadata") for p in path.iterdir()):
                found.append(Left(str(path), 0, "the model beside its checkpoints; name it too to take it"))
    return found


def _named(item: str) -> list[Path]:
    """The paths that an item names: one that is there as it is written, or those that a pattern finds."""
    if Path(item).exists():
        return [Path(item)]
    found = [Path(path) for path in glob(item)]
    if not found and "[" in item:
        # Brackets in the name of a run, such as lr[3e-4], are meant as they are; in the last part they are a pattern.
        home, name = Path(item).parent, Path(item).name
        found = [Path(path) for path in glob(f"{escape(str(home))}/{name}")]
        found = found or [Path(path) for path in glob(re.sub(r"\[", "[[]", item))]
    if not found:
        raise FileNotFoundError(f"there is no checkpoint {item}")
    return sorted(found, key=lambda path: _natural(str(path)))


def _kind(path: Path) -> str:
    return re.sub(r"\d+", "#", str(path))


def _steps(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    folders = [p for p in path.iterdir() if p.is_dir()]
    found = [p for p in folders if p.name.startswith("checkpoint-")]
    files = [p for p in path.iterdir() if p.is_file() and is_weights(p)]
    if not found and not files and not holds_weights(path):
        found = [p for p in folders if STEP.fullmatch(p.name)]
    if not found and len(files) > 1 and all(STEP.fullmatch(p.stem) for p in files) and not _sharded(path, files):
        found = files if len({(_kind(p), p.suffix) for p in files}) == 1 else []
    return sorted(found, key=lambda p: _natural(p.name))


def _sharded(path: Path, files: list[Path]) -> bool:
    return any(path.glob("*.index.json")) or any("-of-" in p.name for p in files)
