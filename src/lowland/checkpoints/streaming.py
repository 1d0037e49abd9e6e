"""The stream: a stretch of every tensor at a time is read from all checkpoints, reduced and written.

A stretch stays in the processor's cache while the checkpoints pass through it, so that the sum is not read and written
again for each of them, and memory is bounded by the stretches in flight whatever the number and size of the tensors.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..arithmetic.moments import first_nonfinite, wide
from ..weights.named import Weights
from .layout import Checkpoint, Run, Stored

BUDGET = 256 << 20  # bytes of all stretches in flight
_LONGEST = 1 << 20  # elements of a stretch: what a core's share of the cache holds
_SHORTEST = 1 << 12
_MOST_WORKERS = 4
_OPEN_FILES = 256

Key = tuple[str, str]  # a slot of a state, or "", and the name of a tensor
Work = Callable[[Iterator[Weights]], Mapping[Key, Tensor]]
Report = Callable[[int], None]  # told of bytes as they are read and written


@dataclass(frozen=True)
class Piece:
    """The elements from `start` to before `stop` of one flattened tensor."""

    name: str
    start: int
    stop: int


Job = tuple[Piece, ...]


@dataclass(frozen=True)
class Place:
    """Where the rows of a result go in a file: row r, element e to `offset + (r * numel + e) * itemsize`."""

    path: Path
    offset: int
    numel: int
    dtype: torch.dtype


def workers() -> int:
    """Return how many stretches are in flight: one a thread of torch's, and one more that waits for the disk."""
    return min(_MOST_WORKERS, torch.get_num_threads() + 1)


def stretch() -> tuple[int, int]:
    """Return what decides how tensors are cut: a run must be resumed with the same."""
    return _LONGEST, BUDGET


def cut(checkpoints: Sequence[Checkpoint], names: Iterable[str], bytes_an_element: int) -> list[Job]:
    """Cut tensors into jobs of bounded length: long tensors into stretches, short ones together."""
    # Not by the number of threads at hand: a run may be resumed under another.
    longest = max(_SHORTEST, min(_LONGEST, BUDGET // (_MOST_WORKERS * bytes_an_element)))
    jobs: list[Job] = []
    small: list[Piece] = []
    held = 0
    for name in names:
        stored = checkpoints[0].tensors[name]
        if not stored.numel:
            continue
        if held and held + stored.numel > longest:
            jobs.append(tuple(small))
            small, held = [], 0
        if any(checkpoint.tensors[name].whole is not None for checkpoint in checkpoints):
            jobs.append((Piece(name, 0, stored.numel),))
        elif stored.numel > longest:
            starts = range(0, stored.numel, longest)
            jobs += [(Piece(name, start, min(start + longest, stored.numel)),) for start in starts]
        else:
            small.append(Piece(name, 0, stored.numel))
            held += stored.numel
    return [*jobs, tuple(small)] if small else jobs


class Reader:
    """Reads stretches of tensors; safe to use from several threads."""

    def __init__(self) -> None:
        self._open: dict[Path, int] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def read(self, stored: Stored, start: int, stop: int, target: Tensor) -> None:
        """Fill the flat `target` with the elements from `start` to before `stop`."""
        if stored.whole is not None:
            target.copy_(stored.whole().flatten()[start:stop])
            return
        buffer = target.view(torch.uint8).numpy().data
        for run, first, last in _within(stored, start, stop):
            size = stored.dtype.itemsize
            into = buffer[(first - start) * size : (last - start) * size]
            self._fill(run.path, run.offset + (first - run.start) * size, into)

    def expect(self, stored: Stored, start: int, stop: int) -> None:
        """Tell the system that these elements will be read soon."""
        size = stored.dtype.itemsize
        for run, first, last in _within(stored, start, stop):
            handle = self._open.get(run.path)
            if handle is not None and hasattr(os, "posix_fadvise"):
                begin = run.offset + (first - run.start) * size
                os.posix_fadvise(handle, begin, (last - first) * size, os.POSIX_FADV_WILLNEED)

    def _fill(self, path: Path, offset: int, into: memoryview) -> None:
        handle, kept = self._handle(path)
        try:
            while len(into):
                got = os.preadv(handle, [into], offset)
                if got == 0:
                    raise ValueError(f"{path} ends early: it was cut short while it was read")
                into, offset = into[got:], offset + got
        finally:
            if not kept:
                os.close(handle)

    def _handle(self, path: Path) -> tuple[int, bool]:
        with self._lock:
            if path in self._open:
                return self._open[path], True
            handle = os.open(path, os.O_RDONLY)
            if len(self._open) < _OPEN_FILES:
                self._open[path] = handle
                return handle, True
            return handle, False


def _within(stored: Stored, start: int, stop: int) -> Iterator[tuple[Run, int, int]]:
    for run in stored.runs:
        first, last = max(start, run.start), min(stop, run.start + run.length)
        if first < last:
            yield run, first, last


def stream(
    checkpoints: Sequence[Checkpoint],
    jobs: Sequence[Job],
    todo: Iterable[int],
    work: Work,
    places: Mapping[Key, Place],
    done: Callable[[int], None],
    report: Report,
    *,
    check_finite: bool = True,
) -> None:
    """Run the jobs of these numbers; `done` is called in this thread for each whose results are written.

    `work` gets the stretches of one checkpoint after the other: flat tensors in float32 or wider that hold until the
    next is asked for. It returns results by slot and name: (*leading, n) for a stretch of n elements.

    Raises:
        ValueError: a value is not finite, by file and tensor; a file changed while it was read.
    """
    threads = torch.get_num_threads()
    handles = {path: os.open(path, os.O_WRONLY) for path in {place.path for place in places.values()}}
    local = threading.local()
    stopped = threading.Event()

    def iterates(job: Job, reader: Reader) -> Iterator[Weights]:
        for number, checkpoint in enumerate(checkpoints):
            if stopped.is_set():
                raise InterruptedError("another part of the stream failed")
            if number + 1 < len(checkpoints):
                for piece in job:
                    reader.expect(checkpoints[number + 1].tensors[piece.name], piece.start, piece.stop)
            yield _stretches(checkpoint, job, reader, local, report)

    def one(number: int, reader: Reader) -> None:
        job = jobs[number]
        pieces = {piece.name: piece for piece in job}
        try:
            results = work(iterates(job, reader))
        except ValueError:
            if check_finite:
                _blame(checkpoints, job, reader, local)
            raise
        # One that is not finite leaves no sum finite: the iterates need no look each.
        if check_finite and first_nonfinite({"/".join(key): tensor for key, tensor in results.items()}) is not None:
            _blame(checkpoints, job, reader, local)
            raise ValueError(
                f"the result of {sorted(pieces)[:5]} is not finite though every checkpoint is: it overflows"
            )
        for key, result in results.items():
            _write(handles, places[key], pieces[key[1]], result, report)

    pool = ThreadPoolExecutor(workers(), "lowland-stream", initializer=torch.set_num_threads, initargs=(1,))
    try:
        with Reader() as reader, pool, torch.no_grad():
            pending: dict[Future[None], int] = {}
            try:
                for number in todo:
                    pending[pool.submit(_quiet, one, number, reader)] = number
                    if len(pending) >= 4 * workers():
                        _collect(pending, done)
                while pending:
                    _collect(pending, done)
            except BaseException:
                stopped.set()
                pool.shutdown(cancel_futures=True)
                raise
    finally:
        # The threads of the pool asked for one thread each; this puts the process's own number back.
        torch.set_num_threads(threads)
        for handle in handles.values():
            os.close(handle)


def _quiet(one: Callable[[int, Reader], None], number: int, reader: Reader) -> None:
    with torch.no_grad():
        one(number, reader)


def _collect(pending: dict[Future[None], int], done: Callable[[int], None]) -> None:
    finished, _ = wait(pending, return_when=FIRST_COMPLETED)
    for future in finished:
        number = pending.pop(future)
        future.result()
        done(number)


def _stretches(
    checkpoint: Checkpoint, job: Job, reader: Reader, local: threading.local, report: Report
) -> dict[str, Tensor]:
    """Read one checkpoint's part of a job, in float32 or wider, into memory that is used again for the next."""
    weights = {}
    for place, piece in enumerate(job):
        stored = checkpoint.tensors[piece.name]
        length = piece.stop - piece.start
        target = _buffer(local, place, stored.dtype, length)
        reader.read(stored, piece.start, piece.stop, target)
        weights[piece.name] = target
        if stored.dtype != wide(stored.dtype):
            weights[piece.name] = _buffer(local, place, wide(stored.dtype), length).copy_(target)
        report(length * stored.dtype.itemsize)
    return weights


def _blame(checkpoints: Sequence[Checkpoint], job: Job, reader: Reader, local: threading.local) -> None:
    for checkpoint in checkpoints:
        name = first_nonfinite(_stretches(checkpoint, job, reader, local, lambda _: None))
        if name is not None:
            raise ValueError(
                f"{name} in {checkpoint.path} holds a value that is not finite: leave this checkpoint out, or pass "
                "--no-check-finite (check_finite=False)"
            ) from None


def _buffer(local: threading.local, place: int, dtype: torch.dtype, length: int) -> Tensor:
    """A flat tensor of this thread that is used again for every checkpoint and job."""
    held: dict[tuple[int, torch.dtype], Tensor] = local.__dict__.setdefault("held", {})
    own = held.get((place, dtype))
    if own is None or own.numel() < length:
        own = held[place, dtype] = torch.empty(length, dtype=dtype)
    return own[:length]


def _write(handles: Mapping[Path, int], place: Place, piece: Piece, result: Tensor, report: Report) -> None:
    rows = result.reshape(-1, piece.stop - piece.start)
    size = place.dtype.itemsize
    for row, values in enumerate(rows):
        cast = values.to(place.dtype).contiguous()
        if place.dtype == torch.float16 and values.dtype != torch.float16 and first_nonfinite({"": cast}) is not None:
            raise ValueError(f"{piece.name} does not fit into float16: pass --dtype bfloat16 or float32")
        content = cast.view(torch.uint8).numpy().data
        offset = place.offset + (row * place.numel + piece.start) * size
        report(len(content))
        while len(content):
            written = os.pwrite(handles[place.path], content, offset)
            content, offset = content[written:], offset + written
