"""The solutions in the run folder of a study, for `lowland landscape`: which study it is, and their measure."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .measures import FromFiles

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..studies.runs.solutions import Solutions
    from ..weights.named import Weights

WITH = ("text", "images", "population")  # studies whose solutions are networks on batches of labelled examples


def is_run(path: Path) -> bool:
    """Whether a path is the run folder of a study."""
    return path.is_dir() and (path / "config.toml").is_file()


def solutions_in(folder: Path, cell: str = "", rule: str = "") -> Solutions:
    """Return the solutions in a run folder.

    Args:
        cell: of a grid study, DATA-MODEL-SEED, the first by default; of a text study a member's number.
        rule: of a study of populations; "independent" by default.

    Raises:
        ValueError: the study is not finished, has no such cell, or is of a kind that has no solutions to show.
    """
    path = folder / "metrics.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no finished study (no metrics.json): resume it")
    metrics = json.loads(path.read_text(encoding="utf-8"))
    kind = metrics.get("study", "text" if "labels" in metrics and "shifted" not in metrics else "choice")
    if kind not in WITH:
        raise ValueError(
            f"{folder} is of the study {kind!r}, which keeps no networks on labelled batches: landscapes are drawn of "
            f"{', '.join(WITH)}, and of checkpoints with --model and --data"
        )
    if rule and kind != "population":
        raise ValueError(f"--rule is of studies of populations, and {folder} is one of {kind}: leave it out")
    if kind == "text":
        from ..studies.text.solutions import solutions

        if cell and not cell.isdecimal():
            raise ValueError(f"--cell of a text study is the number of a member, from 0, got {cell!r}")
        return solutions(folder, int(cell or 0))
    names = sorted(file.stem for file in (folder / "cells").glob("*.json"))
    if not names or (cell and cell not in names):
        raise ValueError(f"{folder} has no cell {cell!r}: it has {', '.join(names[:6])}")
    return _of_grid(kind, folder, cell or names[0], rule)


def _of_grid(kind: str, folder: Path, name: str, rule: str) -> Solutions:
    from ..studies.grid.cells import Cell
    from ..studies.runs.opening import read_configured

    cell = Cell.named(name)
    if kind == "images":
        from ..studies.images import from_mapping
        from ..studies.images.solutions import solutions

        return solutions(read_configured(folder, from_mapping), cell, folder / "landscape" / name)
    from ..studies.population import from_mapping as population
    from ..studies.population.solutions import solutions as members

    rule = rule or "independent"
    kept = folder / "landscape" / f"{name}-{rule.replace(' ', '-')}"
    return members(read_configured(folder, population), cell, kept, rule)


@dataclass
class FromRun(FromFiles):
    """The measure of a run folder: `model` is the folder, `data` the cell and `loss` the rule of a population."""

    _found: Any = field(default=None, repr=False, compare=False)

    @property
    def solutions(self) -> Solutions:
        """Those of the folder; read, or trained, at the first call."""
        if self._found is None:
            self._found = solutions_in(Path(self.model), self.data, self.loss)
        found: Solutions = self._found
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return FromRun, (self.model, self.data, self.loss, self.bn, self.reference)

    def _make(self) -> tuple[Any, ...]:
        from ..landscape import exact, fast, frozen, measured

        found = self.solutions
        refresh: Any = frozen()
        if found.statistics and self.bn == "exact":
            refresh = exact(found.statistics)
        elif found.statistics and self.bn == "fast":
            refresh = fast(found.model, found.weights[self.reference], found.statistics)
        measure = measured(found.model, found.sets, found.loss, refresh=refresh)
        return measure, found.model, dict(found.sets), found.loss, refresh

    def fitted(self, weights: Weights, model: nn.Module | None = None) -> dict[str, Tensor]:
        """Return the weights: a study's are its network's."""
        return dict(weights)

    def about(self) -> dict[str, str]:
        """Return what a caption says."""
        found = self.solutions
        return found.about | {"refresh": str(self.parts[3]) if found.statistics else "no BatchNorm"}

    def at(self, reference: str) -> FromRun:
        """The same with another reference."""
        return replace(self, reference=reference, _made=None)
