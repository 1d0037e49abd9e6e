"""What is being written: a hidden folder beside the destination that is renamed when it is whole.

A kill leaves the hidden folder with a journal of the stretches whose bytes are on the disk; the same command goes on
from there and ends with the same bytes.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from ..files.replacing import flush, put
from ..files.replacing import write_bytes as durable
from .layout import DTYPE_NAMES, Stored, is_file_name
from .ranks import Ranks
from .streaming import Place
from .torchfiles import mend_checksums, write_torch_skeleton

SYNC_BYTES = 1 << 30  # what a kill can cost

_PLAN, _JOURNAL = "lowland-plan.json", "lowland-journal"


class Assembly:
    """A file or folder that is put together out of order.

    Args:
        target: the file or folder that will be there in the end.
        plan: plain data that says what is made of what; a run under another plan does not go on with this one.
        restart: forget an unfinished run.

    Raises:
        OSError: the target is there already, its parent is not, or another process is writing it.
        ValueError: an unfinished run under another plan lies there.
    """

    def __init__(
        self, target: Path, plan: Mapping[str, Any], *, restart: bool = False, ranks: Ranks | None = None
    ) -> None:
        self.ranks = ranks or Ranks()
        self.target = target
        self.part = target.parent / f".{target.name}.part"
        check_target(target)
        if restart and self.part.exists() and self.ranks.rank == 0:
            self._discard()
        self.part.mkdir(parents=True, exist_ok=True)
        own = _JOURNAL if self.ranks.rank == 0 else f"{_JOURNAL}-{self.ranks.rank}"
        self._lock = (self.part / own).open("a+", encoding="ascii")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise OSError(f"another process is writing {target}: wait for it, or name another output") from None
        there = os.fstat(self._lock.fileno()).st_nlink and (self.part / own).exists()
        if not there:  # whoever held it has just finished
            self._lock.close()
            raise OSError(f"another process has just written {target}: name another output, or delete it")
        text = json.dumps(plan, indent=1, sort_keys=True)
        written = self.part / _PLAN
        if written.exists() and written.read_text(encoding="utf-8") != text:
            self._lock.close()
            raise ValueError(
                f"{self.part} holds an unfinished run with other inputs or settings: pass --restart to begin anew, or "
                "give the same command again to finish it"
            )
        if not written.exists():
            durable(written, text.encode())
        # A kill can cut the last line short.
        journals = [path.read_text(encoding="ascii") for path in sorted(self.part.glob(f"{_JOURNAL}*"))]
        self.finished = {int(line) for text in journals for line in text.split("\n")[:-1]}
        self.files: list[Path] = []
        self._mend: list[Path] = []
        self._waiting: list[int] = []
        self._bytes = 0
        self._syncs: list[Future[None]] = []
        self._pool = ThreadPoolExecutor(1, "lowland-sync")

    def _discard(self) -> None:
        """Remove an unfinished run, unless another process is at it."""
        with (self.part / _JOURNAL).open("a") as journal:
            try:
                fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                said = f"another process is writing {self.target}: wait for it, or name another output"
                raise OSError(said) from None
            shutil.rmtree(self.part)

    def __enter__(self) -> Assembly:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if kind is not None and self._waiting:
            self._syncs.append(self._pool.submit(self._sync, self._waiting))
        self._pool.shutdown()
        self._lock.close()
        if isinstance(error, ValueError) and self.ranks.rank == 0 and not self.finished and not self._syncs:
            # A refusal before anything was done: the same command can never finish, so nothing is kept for it.
            shutil.rmtree(self.part, ignore_errors=True)
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if full or (isinstance(error, RuntimeError) and "inline_container" in str(error)):
            raise OSError(
                errno.ENOSPC,
                f"the disk is full: {self.target} is not finished; what is done lies in {self.part}: make room and "
                "give the same command again, or delete it",
            ) from None

    def path(self, name: str) -> Path:
        """Return where a file of the output is written for now."""
        return self.part / name

    def add_safetensors(
        self, name: str, tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str] | None
    ) -> dict[str, Place]:
        """Make room for a safetensors file and return the places of its tensors."""
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        offset = 0
        places = {}
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Wide types first keep every tensor aligned.
        for key in sorted(tensors, key=lambda key: -tensors[key][0].itemsize):
            dtype, shape = tensors[key]
            numel = torch.Size(shape).numel()
            size = numel * dtype.itemsize
            header[key] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
            places[key] = Place(path, offset, numel, dtype)
            offset += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        begin = 8 + len(text)
        self._reserve(path, begin + offset, len(text).to_bytes(8, "little") + text)
        return {key: Place(path, begin + p.offset, p.numel, p.dtype) for key, p in places.items()}

    def add_torch(
        self,
        name: str,
        tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
        ties: Mapping[str, str],
        under: tuple[str, ...],
        carried: Mapping[tuple[str, ...], Any],
    ) -> dict[str, Place]:
        """Make room for a torch file and return the places of its tensors."""
        path = self.path(name)
        home = f"lowland-skeleton-{self.ranks.rank}"
        skeleton = self.path(f"{home}/{name}")
        skeleton.parent.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        offsets = write_torch_skeleton(skeleton, tensors, ties, under, carried)
        if not (path.exists() and path.stat().st_size == skeleton.stat().st_size):
            self._forget()
            put(skeleton, path)
        shutil.rmtree(self.path(home))
        self.files.append(path)
        self._mend.append(path)
        return {
            key: Place(path, offsets[key], torch.Size(shape).numel(), dtype) for key, (dtype, shape) in tensors.items()
        }

    def _reserve(self, path: Path, size: int, head: bytes) -> None:
        self.files.append(path)
        if path.exists() and path.stat().st_size == size:
            return
        self._forget()
        with path.open("wb") as file:
            file.write(head)
            file.truncate(size)

    def _forget(self) -> None:
        """Whatever the journal says, the bytes are not there."""
        self.finished.clear()
        self._lock.truncate(0)
        for journal in self.part.glob(f"{_JOURNAL}-*"):
            journal.unlink()

    def done(self, number: int, nbytes: int) -> None:
        """Note a job whose bytes are written; now and then they are put on the disk and entered in the journal."""
        self._waiting.append(number)
        self._bytes += nbytes
        if self._bytes >= SYNC_BYTES and all(sync.done() for sync in self._syncs):
            for sync in self._syncs:
                sync.result()
            self._syncs = [self._pool.submit(self._sync, self._waiting)]
            self._waiting, self._bytes = [], 0

    def _sync(self, numbers: Sequence[int]) -> None:
        for path in self.files:
            flush(path)
        self._lock.write("".join(f"{number}\n" for number in numbers))
        self._lock.flush()
        os.fsync(self._lock.fileno())

    def finish(self, beside: Callable[[Path], None], record: Mapping[str, Any] | None = None) -> None:
        """Flush everything, let `beside` add small files, and rename the whole to its destination.

        A single file gets its `record` beside it, since there is no folder to hold one.
        """
        for sync in self._syncs:
            sync.result()
        if self.ranks.world > 1:
            if self._waiting:
                self._sync(self._waiting)
            self.ranks.barrier()
        if self.ranks.rank:
            self.ranks.barrier()  # until the first has renamed it
            return
        for path in self._mend:
            mend_checksums(path)
        for path in self.files:
            flush(path)
        if not is_file_name(self.target):
            beside(self.part)
            (self.part / _PLAN).unlink()
            for journal in self.part.glob(f"{_JOURNAL}*"):
                journal.unlink()
            flush(self.part)
            put(self.part, self.target)  # check_target saw that there is none, or an empty one
        else:
            if record is not None:
                durable(record_of(self.target), (json.dumps(record, indent=2) + "\n").encode())
            put(self.part / self.target.name, self.target)
            shutil.rmtree(self.part)
        if self.ranks.world > 1:
            self.ranks.barrier()


def record_of(target: Path) -> Path:
    """Return where the record of a merge lies: in the folder, or beside a single file.

    >>> str(record_of(Path("mean.pt"))), str(record_of(Path("mean")))
    ('mean.pt.merge.json', 'mean/lowland_merge.json')
    """
    return target.with_name(f"{target.name}.merge.json") if is_file_name(target) else target / "lowland_merge.json"


def ground(target: Path) -> Path:
    """Return the nearest folder above a target that is there."""
    return next((folder for folder in target.absolute().parents if folder.is_dir()), Path("/"))


def check_target(target: Path) -> None:
    """Refuse a destination that is there already or cannot be made.

    Beside a file that is there, what a process left that was killed as it ended is swept.

    Raises:
        OSError: says what to do.
    """
    if target.is_symlink():
        raise OSError(
            f"{target} is a link: name the place that it stands for, {os.readlink(target)}, or another output"
        )
    blocked = next((folder for folder in target.absolute().parents if folder.exists() and not folder.is_dir()), None)
    if blocked is not None:
        raise OSError(f"cannot write {target}: {blocked} is no folder; name another output")
    if not target.name:
        raise OSError(f"cannot write {target}: name a file or folder")
    if target.exists() and (target.is_file() or any(target.iterdir())):
        part = target.parent / f".{target.name}.part"
        if part.is_dir() and not (part / target.name).exists() and target.is_file():
            shutil.rmtree(part, ignore_errors=True)  # of a process that was killed after it had put the file there
        raise OSError(f"{target} is there already: name another output, or delete it")


def check_room(folder: Path, wanted: int, held: int = 0) -> None:
    """Refuse to begin what the disk cannot hold; `held` bytes of it are there already.

    Raises:
        OSError: says how much is wanted and free.
    """
    free = shutil.disk_usage(folder).free + held
    if free < wanted:
        raise OSError(
            f"cannot write into {folder}: {wanted / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free; make room "
            "or choose another disk"
        )


def sizes(tensors: Mapping[str, Stored], names: Iterable[str], types: Mapping[str, torch.dtype]) -> dict[str, Any]:
    """Return dtype and shape of each named tensor as it will be written."""
    return {name: (types.get(name, tensors[name].dtype), tensors[name].shape) for name in names}
