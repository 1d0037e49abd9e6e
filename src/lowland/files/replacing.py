"""A file or folder is replaced whole: the old one or the new one, never half."""

from __future__ import annotations

import os
import shutil
import tempfile
from io import FileIO
from pathlib import Path


class Replacing:
    """A new file that takes the place of `path` when the block ends well."""

    def __init__(self, path: Path, size: int) -> None:
        if not path.parent.is_dir():
            raise OSError(f"cannot write {path}: the folder {path.parent} does not exist; make it first")
        if path.is_dir():
            raise OSError(f"cannot write {path}: it is a folder; name a file in it")
        free = shutil.disk_usage(path.parent).free
        if free < size:
            raise OSError(
                f"cannot write {path}: {size / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free; "
                "make room or choose another disk"
            )
        self._path = path

    def __enter__(self) -> FileIO:
        handle, self._name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.", suffix=".part")
        self._file = FileIO(handle, "wb")
        return self._file

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                os.fsync(self._file.fileno())
            self._file.close()
            if kind is None:
                os.chmod(self._name, 0o666 & ~umask())
                os.replace(self._name, self._path)
                flush(self._path.parent)
        finally:
            self._file.close()
            Path(self._name).unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Ask the system to put a folder's content on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def umask() -> int:
    """Return the mask of the rights that new files are refused."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
