"""Files of a run folder: written beside their place, flushed and renamed, so a crash leaves them whole or absent."""

from __future__ import annotations

import io
import json
import math
import os
import re
import shutil
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowland.files import replacing


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all; missing folders are made.

    Raises:
        OSError: the disk is full or the folder cannot be written; an older file stays as it was.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "a" / "b.txt"
    >>> write_bytes(target, b"whole")
    >>> target.read_text()
    'whole'
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot write {path} ({error.strerror or error}): choose another folder") from None
    replacing.write_bytes(path, content)


def write_json(path: Path, content: Any) -> None:
    """Write plain data as JSON: floats in their shortest exact form, so that equal numbers give equal bytes."""
    write_bytes(path, (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote.

    Raises:
        ValueError: the file is missing or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: is this the folder of a finished study? If not, resume it") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON file ({error}): delete it and resume the study") from None


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write named arrays as one .npz file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **dict(arrays))
    write_bytes(path, buffer.getvalue())


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read what `write_arrays` wrote; nothing is unpickled.

    Raises:
        ValueError: the file is missing or damaged.
    """
    try:
        return load_arrays(path)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: is this the folder of a finished study? If not, resume it") from None
    except DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} cannot be read ({reason}): delete it and resume the study") from None


# Whatever numpy and zipfile raise on a file that is cut off, altered, or was never an archive of arrays.
DAMAGED = (
    *(OSError, ValueError, EOFError, KeyError, TypeError, MemoryError, NotImplementedError, RuntimeError, SyntaxError),
    *(ArithmeticError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read an .npz file; nothing is unpickled, and nothing is made room for that the file does not hold.

    Raises one of `DAMAGED` where it cannot be read.
    """
    with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
        total = 0
        for item in archive.infolist():
            with archive.open(item) as member:
                version = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, kind = read(member)
            wanted = math.prod(shape) * kind.itemsize
            if wanted > item.file_size:
                raise ValueError(f"{item.filename} asks for {wanted:,} bytes and holds {item.file_size:,}")
            total += wanted
        if hasattr(os, "sysconf") and total > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
            raise ValueError(f"its arrays take {total / 1e9:.1f} GB, more than this machine has")
        stream.seek(0)
        # An open file of our own, as numpy leaves its own open after an error.
        with np.load(stream, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table as CSV in UTF-8; a cell that a spreadsheet would compute gets an apostrophe before it."""
    # Quoted by hand: Python's writer leaves a lone carriage return bare, and so ends the row there.
    lines = (",".join(_quoted(plain_cell(cell)) for cell in row) + "\n" for row in (header, *rows))
    text = "".join(lines)
    write_bytes(path, text.encode("utf-8", "surrogatepass"))


def _quoted(cell: Any) -> str:
    text = "" if cell is None else str(cell)
    return '"' + text.replace('"', '""') + '"' if re.search(r'[",\r\n]', text) else text


_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def plain_cell(cell: Any) -> Any:
    """Return a text that no spreadsheet takes for a formula; numbers, also those written as text, stay as they are.

    >>> plain_cell("=1+1"), plain_cell("-0.25"), plain_cell("- no"), plain_cell("'=1"), plain_cell(-3)
    ("'=1+1", '-0.25', "'- no", "''=1", -3)
    """
    if not isinstance(cell, str) or not _FORMULA.match(cell):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def text_of_cell(cell: str) -> str:
    """Return what `plain_cell` was given.

    >>> [text_of_cell(plain_cell(text)) for text in ("=1+1", "'=1", "'tis", "-0.25")]
    ['=1+1', "'=1", "'tis", '-0.25']
    """
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def require_space(folder: Path, megabytes: float) -> None:
    """Refuse to start where the disk cannot hold what will be written.

    Raises:
        OSError: less is free than needed.

    >>> require_space(Path("."), 0.0)
    """
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free / 1e6
    if free < megabytes:
        raise OSError(f"{folder} needs about {megabytes:.0f} MB, {free:.0f} MB are free: make room or choose another")
