"""How places are measured: in this process, in several, or over the ranks of torch.distributed; kept on the way.

Places that are measured are appended to a journal, one line of JSON each, so that a run that was killed goes on.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, final

import torch
import torch.distributed as dist
from torch import Tensor

from ..arguments import whole
from ..weights.named import Weights
from .together import as_numbers
from .walk import Measure

Place = tuple[float, ...]
Values = dict[str, float]
Ask = Callable[[Sequence[Place]], list[Values]]


class Ground(Protocol):
    """What has weights at places: a `Frame`, a `Bundle` of directions."""

    def at(self, coordinates: Place, /) -> Weights:
        """Return the weights at a place."""

    def several(self, coordinates: Sequence[Place], /) -> Mapping[str, Tensor]:
        """Return those at several places, stacked."""

    def digest(self) -> str:
        """Return a fingerprint."""


@final
@dataclass(frozen=True)
class Work:
    """How places are measured.

    Args:
        jobs: processes, of one thread each. With more than one the measure is sent to them by pickle: its functions
            must stand in a module.
        keep: a journal. Places that it holds are not measured again; a journal of other places is refused.
        about: what the journal is of, besides the places: data, model, refresh. Another `about` is refused too.
        ranks: share the places among the ranks of torch.distributed, each of which must call and gets all values.
            A refresh must not talk to other ranks then: `exact` and `fast` do not.
        progress: called with the places done and the places in all.

    >>> Work(jobs=0)
    Traceback (most recent call last):
    ...
    ValueError: jobs must be a whole number of at least 1, got 0
    """

    jobs: int = 1
    keep: str | os.PathLike[str] | None = None
    about: Mapping[str, str] = field(default_factory=dict)
    ranks: bool = False
    progress: Callable[[int, int], None] | None = None

    def __post_init__(self) -> None:
        whole("jobs", self.jobs, 1)
        if self.ranks and not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError("ranks=True shares places among ranks: call torch.distributed.init_process_group first")
        if self.ranks and self.keep is not None:
            raise ValueError("a journal is of one process: give keep= or ranks=True, not both")


HERE = Work()


@contextmanager
def asking(measure: Measure, ground: Ground, work: Work = HERE) -> Iterator[Ask]:
    """Open what measures places of a ground; what is yielded takes places and returns the values of each, in order.

    >>> from lowland.landscape.frame import Frame
    >>> line = Frame({"w": torch.tensor([1.0])}, [{"w": torch.tensor([1.0])}])
    >>> with asking(lambda weights: weights["w"].item() ** 2, line) as ask:
    ...     ask([(0.0,), (2.0,)])
    [{'loss': 1.0}, {'loss': 9.0}]
    """
    journal = None if work.keep is None else Journal(Path(work.keep), {"ground": ground.digest(), **work.about})
    with _runner(measure, ground, work) as run:

        def ask(places: Sequence[Place]) -> list[Values]:
            known = {} if journal is None else journal.known
            missing = list(dict.fromkeys(place for place in places if place not in known))
            found = {place: known[place] for place in places if place in known}
            told = len(found)
            if work.progress is not None:
                work.progress(told, told + len(missing))
            for place, values in run(missing):
                _check(values, found, place)
                if journal is not None:
                    journal.add(place, values)
                found[place] = values
                if work.progress is not None:
                    work.progress(len(found), told + len(missing))
            return [found[place] for place in places]

        try:
            yield ask
        finally:
            if journal is not None:
                journal.close()


def _check(values: Values, found: Mapping[Place, Values], place: Place) -> None:
    if not values:
        raise ValueError("the measure returned no numbers: it takes weights and returns one number, or several by name")
    before = next(iter(found.values()), values)
    if values.keys() != before.keys():
        raise ValueError(f"at {place} the measure named {list(values)}, before that {list(before)}")


class Journal:
    """Values that were measured, one line each; a line that was cut off is dropped.

    Raises:
        ValueError: the file is of other places.

    >>> import tempfile
    >>> journal = Journal(Path(tempfile.mkdtemp()) / "grid.jsonl", {"frame": "a"})
    >>> journal.add((0.5,), {"loss": 1.0})
    >>> journal.close()
    >>> again = Journal(journal.path, {"frame": "a"})
    >>> again.close()
    >>> again.known
    {(0.5,): {'loss': 1.0}}
    """

    def __init__(self, path: Path, of: Mapping[str, str]) -> None:
        self.path = path
        self.known: dict[Place, Values] = {}
        head = json.dumps({"of": dict(of)}, sort_keys=True)
        whole = 0
        if path.exists():
            content = path.read_bytes()
            whole = content.rfind(b"\n") + 1
            lines = content[:whole].decode().splitlines()
            if lines and lines[0] != head:
                raise ValueError(
                    f"{path} holds places of another plane, data or model: remove it, or name another with keep="
                )
            for line in lines[1:]:
                entry = json.loads(line)
                self.known[tuple(entry["at"])] = {name: float(value) for name, value in entry["values"].items()}
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._lock()
        self._file.truncate(whole)
        self._file.seek(whole)
        if not whole:
            self._write(head)

    def add(self, place: Place, values: Values) -> None:
        """Append what was measured at a place."""
        plain = {name: value if abs(value) < float("inf") else str(value) for name, value in values.items()}
        self._write(json.dumps({"at": list(place), "values": plain}))
        self.known[place] = values

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # not on Windows
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise OSError(f"another process is writing {self.path}: wait for it, or name another output") from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, line: str) -> None:
        self._file.write(line.encode() + b"\n")
        self._file.flush()


Run = Callable[[Sequence[Place]], Iterator[tuple[Place, Values]]]


@contextmanager
def _runner(measure: Measure, ground: Ground, work: Work) -> Iterator[Run]:
    if work.ranks:
        yield lambda places: _by_ranks(measure, ground, places)
    elif work.jobs == 1:
        yield lambda places: zip(places, measured_at(measure, ground, places), strict=True)
    else:
        try:
            sent = pickle.dumps((measure, ground))
        except Exception as error:  # pickle raises whatever an object's own method does
            raise ValueError(
                f"jobs={work.jobs} sends the measure to other processes, and it cannot be pickled ({error}): use "
                "functions that stand in a module, or jobs=1"
            ) from None
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
        pool = ProcessPoolExecutor(work.jobs, mp_context=context, initializer=_begin, initargs=(os.getpid(), sent))
        try:
            yield lambda places: _by_processes(pool, places, work.jobs)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        pool.shutdown()


def measured_at(measure: Measure, ground: Ground, places: Sequence[Place]) -> Iterator[Values]:
    """Yield what a measure finds at each place, several in one pass where it can.

    >>> from lowland.landscape.frame import Frame
    >>> line = Frame({"w": torch.tensor([1.0])}, [{"w": torch.tensor([1.0])}])
    >>> list(measured_at(lambda weights: weights["w"].item(), line, [(1.0,)]))
    [{'loss': 2.0}]
    """
    many = getattr(measure, "many", None)
    if many is not None:
        yield from many(_Sites(ground, places))
    else:
        for place in places:
            yield as_numbers(measure(ground.at(place)))


@dataclass(frozen=True)
class _Sites:
    ground: Ground
    places: Sequence[Place]

    def __len__(self) -> int:
        return len(self.places)

    def one(self, number: int) -> Weights:
        return self.ground.at(self.places[number])

    def several(self, first: int, count: int) -> Mapping[str, Tensor]:
        return self.ground.several(self.places[first : first + count])


def _by_ranks(measure: Measure, ground: Ground, places: Sequence[Place]) -> Iterator[tuple[Place, Values]]:
    rank, world = dist.get_rank(), dist.get_world_size()
    own = list(places[rank::world])
    shares: list[Any] = [None] * world
    failure = ""
    try:
        mine: list[Any] = list(zip(own, measured_at(measure, ground, own), strict=True))
    except Exception as error:  # told to all, who would wait for ever
        failure, mine = f"rank {rank}: {type(error).__name__}: {error}", []
    dist.all_gather_object(shares, (failure, mine))
    if told := [failure for failure, _ in shares if failure]:
        raise RuntimeError(f"a rank could not measure its places: {'; '.join(told)}")
    for _, share in shares:
        yield from share


_sent: tuple[Measure, Ground] | None = None


def _begin(parent: int, sent: bytes) -> None:
    """Take the measure, and end this process when its parent is gone."""
    global _sent
    torch.set_num_threads(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    _sent = pickle.loads(sent)


def _some(places: Sequence[Place]) -> list[Values]:
    assert _sent is not None  # `_begin` runs before any place
    return list(measured_at(*_sent, places))


def _by_processes(pool: ProcessPoolExecutor, places: Sequence[Place], jobs: int) -> Iterator[tuple[Place, Values]]:
    size = max(1, min(64, len(places) // (4 * jobs)))
    waiting: dict[Future[list[Values]], Sequence[Place]] = {}
    for start in range(0, len(places), size):
        part = places[start : start + size]
        waiting[pool.submit(_some, part)] = part
    while waiting:
        done, _ = wait(waiting, return_when=FIRST_COMPLETED)
        for future in done:
            yield from zip(waiting.pop(future), future.result(), strict=True)
