"""Run the cells of a study, several at once, each once; gather them when all are there.

A cell is a pure function of the study and the cell, on one thread, so neither the number of processes nor an
interruption changes a bit of its result. Finished cells lie in RUN/cells and are not repeated.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lowland.files.replacing import alone

from ..runs.folder import read_json, require_space, write_bytes, write_json
from ..runs.opening import check_folder
from ..runs.progress import Progress, Silent
from ..runs.randomness import one_thread, own_randomness, quiet
from ..runs.settings import to_toml
from ..runs.versions import clean, machine
from .cells import Cell, Result, check_result
from .gathering import gather
from .kinds import Kind

Run = Callable[[Any, Cell], Result]


def run_grid(
    study: Any,
    kind: Kind,
    cells: Sequence[Cell],
    run_cell: Run,
    folder: Path,
    *,
    build: Callable[[dict[str, Any]], Any],
    jobs: int = 1,
    resume: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run a study, or the rest of it, and return what metrics.json holds.

    Args:
        study: frozen sections of settings; it is handed to `run_cell`, which must be a function of a module.
        build: makes such a study from nested dictionaries, to read back what the folder holds.
        jobs: processes; each cell uses one thread of the CPU.

    Raises:
        ValueError: bad settings, or the folder holds another study.
        OSError: the disk is full or the folder cannot be written.
        RuntimeError: a cell failed; its name and error are told, and what is finished stays.
    """
    progress = Silent() if progress is None else progress
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1 process, got {jobs}")
    if len(set(cells)) != len(cells) or not cells:
        raise ValueError(f"a study wants one cell or more, each once, got {[cell.name for cell in cells]}")
    check_folder(study, folder, resume, build)
    if (folder / "metrics.json").exists():  # written last
        done: dict[str, Any] = read_json(folder / "metrics.json")
        return done
    require_space(folder, 20)
    with alone(folder, folder):
        clean(folder)
        write_bytes(folder / "config.toml", to_toml(study).encode())
        packages = ("lowland", "torch", "numpy", "scipy", "scikit-learn", *filter(None, (kind.wants,)))
        write_json(folder / "versions.json", {"python": platform.python_version(), **machine(packages)})
        paths = {cell: folder / "cells" / f"{cell.name}.json" for cell in cells}
        missing = [cell for cell in cells if not paths[cell].exists()]
        progress.plan(len(cells))
        for cell in cells:
            if paths[cell].exists():
                progress.begin(cell.name, 1)
                progress.end(f"{cell.name}: found")
        begun = time.perf_counter()
        for cell, result, seconds in _results(
            functools.partial(_one, run_cell, study), missing, min(jobs, len(missing))
        ):
            check_result(result, kind, cell)
            write_json(paths[cell], {**result, "cell": cell.name, "wall_seconds": seconds})
            progress.begin(cell.name, 1)
            progress.end(f"{cell.name}: {_said(kind, result)}, {seconds:.0f} s")
        results = {cell: read_json(path) for cell, path in paths.items()}
        for cell, result in results.items():
            check_result(result, kind, cell)
        metrics = gather(kind, results)
        walls = [one["wall_seconds"] for one in results.values()]
        timings = {
            "cells_seconds": sum(walls),  # one thread each
            "this_call_seconds": time.perf_counter() - begun,
            "this_call_cells": len(missing),
            "jobs": jobs,
        }
        write_json(folder / "timings.json", timings)
        write_json(folder / "metrics.json", metrics)
        found: dict[str, Any] = read_json(folder / "metrics.json")  # the same kinds of lists as in a later call
        return found


def _said(kind: Kind, result: Result) -> str:
    key = kind.main.key
    best = (max if kind.main.higher else min)(kind.methods, key=lambda m: result["methods"][m]["validation"][key])
    shown = dict.fromkeys((kind.baseline, best))
    values = ", ".join(f"{method} {result['methods'][method]['validation'][key]:.4f}" for method in shown)
    return f"validation {kind.main.label} {values}"


def _one(run_cell: Run, study: Any, cell: Cell) -> tuple[Cell, Result, float]:
    """Run a cell on one thread, with its own random state."""
    begun = time.perf_counter()
    with one_thread(), quiet(), own_randomness():
        torch.manual_seed(cell.seed)
        result = run_cell(study, cell)
    return cell, result, time.perf_counter() - begun


def _results(
    one: Callable[[Cell], tuple[Cell, Result, float]], cells: Sequence[Cell], jobs: int
) -> Iterator[tuple[Cell, Result, float]]:
    """Yield results as they come; after a failure the cells that run are still waited for and yielded."""
    if jobs <= 1:
        for cell in cells:
            try:
                found = one(cell)
            except (ValueError, RuntimeError, OSError) as error:
                raise _failed(cell, error) from error
            yield found
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    stop = context.Event()
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_end_with, initargs=(os.getpid(), stop)) as pool:
        failure: RuntimeError | None = None
        try:
            with _deaf_children():
                waiting: dict[Future[tuple[Cell, Result, float]], Cell] = {pool.submit(one, c): c for c in cells}
            while waiting:
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    cell = waiting.pop(future)
                    if future.cancelled():
                        continue
                    broken = future.exception()
                    if broken is None:
                        yield future.result()
                    elif failure is None:
                        failure = _failed(cell, broken)
                        failure.__cause__ = broken
                        for other in waiting:
                            other.cancel()
        except BaseException:
            stop.set()  # a cell that runs is not waited for: it is run again by --resume
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if failure is not None:
        raise failure


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Start processes that do not hear Ctrl-C, which a terminal sends to all: this one hears it and ends them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # Held back, not lost: it arrives here when the block ends.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with(parent: int, stop: Any) -> None:
    """End this process when it is told to, or when its parent is gone: one that is killed outright cannot tell."""

    def watch() -> None:
        while os.getppid() == parent and not stop.wait(1):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _failed(cell: Cell, error: BaseException) -> RuntimeError:
    return RuntimeError(
        f"cell {cell.name} failed with {type(error).__name__}: {error}; finished cells are kept: mend it and run the "
        "same command with --resume"
    )
