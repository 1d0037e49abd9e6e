"""The solutions and the measure that `lowland landscape` was asked for: of files, or of a study's run folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from ..landscape import Work
    from .measures import FromFiles

LEAST = {"plane": 2, "line": 2, "rays": 1, "spectrum": 1}


class Asked:
    """Solutions by name, and their measure; `posterior` is a SWAG whose subspace is to be drawn, or None."""

    def __init__(
        self,
        measure: FromFiles,
        weights: dict[str, dict[str, Tensor]],
        about: dict[str, str],
        journal: dict[str, str],
        posterior: Any = None,
    ) -> None:
        from ..checkpoints.ranks import of_torchrun

        self.measure, self.about, self.journal, self.posterior = measure, about, journal, posterior
        self.names, self.weights = list(weights), list(weights.values())
        self.ranks = of_torchrun()

    @property
    def speaks(self) -> bool:
        """Whether this process writes and prints: the first of those that torchrun started."""
        return self.ranks.rank == 0

    def work(self, jobs: int, out_folder: Path, kind: str, progress: Callable[[int, int], None]) -> Work:
        """How its places are measured: kept on the way by one process, shared by the ranks of torchrun."""
        from ..landscape import Work

        if self.ranks.world > 1:
            return Work(ranks=True, about=self.journal, progress=progress if self.speaks else None)
        return Work(jobs=jobs, keep=out_folder / f"{kind}.jsonl", about=self.journal, progress=progress)


def of_files(inputs: list[str], model: str, data: str, loss: str, bn: str, names: str, kind: str) -> Asked:
    """Return what checkpoints hold, by names of their own.

    Raises:
        ValueError: there are too few or too many, or the names are not as many and different.
    """
    from ..checkpoints import expand
    from .measures import FromFiles, posterior_in, weights_in

    paths = expand(inputs, keep_order=True)
    posterior = posterior_in(paths[0]) if kind == "plane" and len(paths) == 1 else None
    if (len(paths) < LEAST[kind] and posterior is None) or (kind == "line" and len(paths) > 2):
        wanted = "two" if kind == "line" else f"{LEAST[kind]} or more"
        also = ", or the state of one SWAG" if kind == "plane" else ""
        raise ValueError(f"a {kind} wants {wanted} checkpoints{also}, got {len(paths)}")
    given = _split(names) or _short([p.stem if p.is_file() else p.name for p in paths])
    if len(given) != len(paths) or len(set(given)) < len(given):
        raise ValueError(f"--names wants {len(paths)} different names, got {given}")
    spec = model or str(paths[0])
    measure = FromFiles(spec, data, loss, bn, str(paths[-1]))
    weights = {name: measure.fitted(weights_in(path)) for name, path in zip(given, paths, strict=True)}
    journal = {"model": spec, "data": data, "loss": loss, "bn": bn}
    return Asked(measure, weights, {**measure.about(), "n": "one run"}, journal, posterior)


def of_run(folder: Path, cell: str, rule: str, bn: str, names: str, kind: str) -> Asked:
    """Return solutions of a study's run folder: those that `names` picks, or as many of the first as the kind takes.

    Raises:
        ValueError: as `solutions_in`, or there is no solution of a name, or too few are named.
    """
    from .run_folders import FromRun

    measure = FromRun(str(folder), cell, rule, bn)
    found = measure.solutions
    picked = _split(names) or list(found.weights)[: {"plane": 3, "line": 2}.get(kind)]
    unknown = [name for name in picked if name not in found.weights and name not in found.posteriors]
    if unknown or len(set(picked)) < len(picked):
        raise ValueError(
            f"--names picks from {[*found.weights, *found.posteriors]} of {folder}, each once, got {picked}"
        )
    journal = {"run": str(folder), "cell": cell, "rule": rule, "bn": bn}
    if picked[0] in found.posteriors:
        if kind != "plane" or len(picked) > 1:
            raise ValueError(
                f"{picked[0]} is a posterior: it has a plane of its own, by --kind plane and no other name"
            )
        mean = {picked[0]: dict(found.posteriors[picked[0]].mean())}
        return Asked(measure, mean, measure.about(), journal, found.posteriors[picked[0]])
    if len(picked) < LEAST[kind] or (kind == "line" and len(picked) > 2):
        wanted = "two" if kind == "line" else f"{LEAST[kind]} or more"
        raise ValueError(f"a {kind} wants {wanted} solutions, got {picked}")
    measure = measure.at(picked[-1])
    return Asked(measure, {name: dict(found.weights[name]) for name in picked}, measure.about(), journal)


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",")] if names else []


def _short(names: list[str]) -> list[str]:
    """Names of checkpoints, numbered where two are alike."""
    if len(set(names)) == len(names):
        return names
    return [f"{name} {number}" for number, name in enumerate(names, start=1)]
