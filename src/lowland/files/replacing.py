"""A file or folder is replaced whole: the old one or the new one, never half. The one place that renames.

What is new is written under a hidden name beside its destination, flushed to disk, and put in its place by one rename.
A writer holds a lock on its hidden file, so that what a killed one left is told from what is being written, and is
removed by the next. The rights of a file that is replaced stay; a link stays a link to the file that is replaced.
"""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

fcntl: Any = (
    importlib.import_module("fcntl") if importlib.util.find_spec("fcntl") is not None else None
)  # not on Windows

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_EXCHANGE = 2  # of renameat2
_HERE = -100  # AT_FDCWD


class Replacing:
    """A new file that takes the place of `path` when the block ends well; it is open for writing bytes.

    Args:
        path: the file; its folder exists.
        size: how many bytes will be written, as far as that is known.

    Raises:
        OSError: the folder does not exist, there is a folder of that name, or the disk is full: at once, in the block
            or at its end. What was there before is as it was.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.txt"
    >>> with Replacing(path) as file:
    ...     _ = file.write(b"whole")
    >>> path.read_text(), [entry.name for entry in path.parent.iterdir()]
    ('whole', ['a.txt'])
    """

    def __init__(self, path: str | os.PathLike[str], size: int = 0) -> None:
        path = Path(path)
        if path.is_symlink():
            path = path.resolve()
        if not path.parent.is_dir():
            raise OSError(f"cannot write {path}: the folder {path.parent} does not exist; make it first")
        if path.is_dir():
            raise OSError(f"cannot write {path}: it is a folder; name a file in it")
        sweep(path)
        free = shutil.disk_usage(path.parent).free
        if free < size:
            raise OSError(
                f"cannot write {path}: {size / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free; "
                "make room or choose another disk"
            )
        self._path = path

    def __enter__(self) -> FileIO:
        try:
            self._part, handle = _begin(self._path)
        except OSError as error:
            raise _told(error, self._path) from None
        self._file = FileIO(handle, "wb")
        return self._file

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        try:
            if kind is None:
                os.fsync(self._file.fileno())
                with suppress(FileNotFoundError):  # the rights of the file that it replaces
                    os.chmod(self._part, self._path.stat().st_mode & 0o7777)
                # Before the lock goes with the file's end: after that the hidden name is anybody's to sweep.
                put(self._part, self._path)
        except OSError as found:
            raise _told(found, self._path) from None
        finally:
            with suppress(OSError):  # what could not be written is found out again
                self._file.close()
            self._part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _FULL:
            raise _told(error, self._path) from None


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a small file, whole or not at all.

    Raises:
        OSError: as `Replacing`.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.txt"
    >>> write_bytes(path, b"whole")
    >>> path.read_text()
    'whole'
    """
    with Replacing(path, len(content)) as file:
        view = memoryview(content)
        while view:
            view = view[file.write(view) :]


@contextmanager
def replacing_folder(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a hidden folder that takes the place of `target` when the block ends well, and vanishes otherwise.

    Raises:
        OSError: the folder around it does not exist or cannot be written.

    >>> import tempfile
    >>> home = Path(tempfile.mkdtemp())
    >>> with replacing_folder(home / "a") as part:
    ...     (part / "b.txt").touch()
    >>> [path.relative_to(home).as_posix() for path in home.rglob("*")]
    ['a', 'a/b.txt']
    """
    target = Path(target)
    part = _hidden(target)
    part.mkdir()
    try:
        yield part
        put(part, target)
    except OSError as error:
        raise _told(error, target) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def alone(folder: str | os.PathLike[str], what: object) -> Iterator[None]:
    """Be the only process that writes in `folder` while the block runs; a folder that stays empty is removed.

    Raises:
        OSError: another process is writing there, which the message calls `what`.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp()) / "run"
    >>> with alone(folder, "the run"):
    ...     with alone(folder, "the run"):
    ...         pass
    Traceback (most recent call last):
    ...
    OSError: another process is writing the run: wait for it, or name another output
    """
    folder = Path(folder)
    handle = _held(folder, what)
    try:
        yield
    finally:
        with suppress(OSError):
            folder.rmdir()
        os.close(handle)


def _held(folder: Path, what: object) -> int:
    """A handle of the folder, locked."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # removed by who held it until now
            handle = os.open(folder, os.O_RDONLY)
            try:
                if fcntl is not None:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(handle), os.stat(folder)):
                    return handle
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    os.close(handle)
                    said = f"another process is writing {what}: wait for it, or name another output"
                    raise OSError(said) from None
                if error.errno != errno.ENOENT:
                    return handle  # a disk that knows no locks
            os.close(handle)


def put(part: Path, target: Path) -> None:
    """Let a file or folder that is whole take the place of `target`; a folder's old content is removed afterwards.

    On Linux folders change places in one step. Elsewhere there is a moment without either, and the old one comes back
    if the new one cannot be put.

    Raises:
        OSError: they lie on different disks, or the folder may not be written. The old one is there then.

    >>> import tempfile
    >>> home = Path(tempfile.mkdtemp())
    >>> for name in ("new", "old"):
    ...     (home / name).mkdir()
    ...     (home / name / name).touch()
    >>> put(home / "new", home / "old")
    >>> [path.relative_to(home).as_posix() for path in home.rglob("*")]
    ['old', 'old/new']
    """
    if part.is_dir():
        for entry in part.rglob("*"):
            if not entry.is_symlink():
                flush(entry)
        flush(part)
    if not part.is_dir() or not target.is_dir():
        os.replace(part, target)
    elif _exchange(part, target):
        shutil.rmtree(part, ignore_errors=True)
    else:
        aside = _hidden(target)
        os.rename(target, aside)
        try:
            os.rename(part, target)
        except BaseException:
            os.rename(aside, target)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    flush(target.parent)


def sweep(path: Path) -> None:
    """Remove what killed writers of this file have left; what is being written is locked, and stays.

    >>> sweep(Path("nothing/of/this.name"))
    """
    if fcntl is None or not path.parent.is_dir():
        return
    begin = f".{path.name}."
    for entry in os.scandir(path.parent):
        if not (entry.name.startswith(begin) and entry.name.endswith(".part")) or not entry.is_file(
            follow_symlinks=False
        ):
            continue
        if len(entry.name) != len(begin) + _LENGTH + len(".part"):
            continue  # some other file's
        with suppress(OSError):
            handle = os.open(entry.path, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(entry.path)
            finally:
                os.close(handle)


def flush(path: Path) -> None:
    """Ask the system to put a file, or what a folder lists, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


_LENGTH = 8  # of what tells hidden files of one destination apart


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(_LENGTH // 2)}.part")


def _begin(path: Path) -> tuple[Path, int]:
    """A new hidden file and its handle, locked; no link is followed, and rights are those of any new file."""
    while True:
        part = _hidden(path)
        try:
            handle = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o666)
        except FileExistsError:
            continue
        if fcntl is None:
            return part, handle
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), os.stat(part)):
                return part, handle
        except FileNotFoundError:
            pass  # swept before it was locked
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):  # a disk that knows no locks
                return part, handle
        os.close(handle)


def _exchange(one: Path, two: Path) -> bool:
    """Let two names change places at once, where the system can."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return bool(rename(_HERE, os.fsencode(one), _HERE, os.fsencode(two), _EXCHANGE) == 0)


def _told(error: OSError, path: Path) -> OSError:
    if error.errno in _FULL:
        kept = "the file that was there is as it was" if path.exists() else "nothing is left of it"
        said = f"cannot write {path}: the disk is full ({os.strerror(error.errno or 0)}), and {kept}"
        return OSError(error.errno, f"{said}; make room or go elsewhere")
    return error
