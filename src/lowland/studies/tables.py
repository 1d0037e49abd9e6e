"""Tables of a user's own: CSV, TSV, JSONL and Parquet, as columns that know the lines they come from.

A reader takes exactly what it is told to expect. `looked_at` looks at a file first and says how it is written: what
Excel saves is separated by semicolons in half of the world, and in other encodings than UTF-8.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT = 1 << 27  # characters of one CSV cell
_COMMON = 65536  # bytes that are looked at
_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_ENCODINGS = {"utf-8-sig": "UTF-8", "utf-16": "UTF-16", "cp1252": "Windows-1252"}
_MARKS = ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


@dataclass(frozen=True)
class Written:
    """How a text file is written.

    >>> str(Written(";", "cp1252"))
    'cells separated by semicolons, the encoding Windows-1252'
    """

    delimiter: str = ","
    encoding: str = "utf-8-sig"

    def __str__(self) -> str:
        parts = [f"cells separated by {_NAMES[self.delimiter]}"] if self.delimiter != "," else []
        parts += [f"the encoding {_ENCODINGS[self.encoding]}"] if self.encoding != "utf-8-sig" else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Table:
    """Columns of a file; row i begins in the line `lines[i]` of it (of Parquet: it is the row of that number)."""

    path: Path
    columns: dict[str, list[Any]]
    lines: list[int]
    unit: str = "line"

    def __len__(self) -> int:
        return len(self.lines)

    def where(self, rows: Sequence[int], most: int = 6) -> str:
        """Name the places of some rows.

        >>> Table(Path("t.csv"), {}, [2, 3, 5, 9]).where([0, 2], most=1)
        'line 2 and 1 more'
        """
        shown = ", ".join(str(self.lines[row]) for row in rows[:most])
        more = f" and {len(rows) - most} more" if len(rows) > most else ""
        return f"{self.unit}{'s' * (len(rows[:most]) > 1)} {shown}{more}"


def read_table(path: Path, wanted: Sequence[str], written: Written | None = None) -> Table:
    """Read a file whose suffix says what it is; the columns `wanted` must be there.

    Args:
        written: how a CSV or JSONL file is written, such as `looked_at(path)`; left out: as `Written()` has it, and a
            TSV file with tabs.

    Raises:
        ValueError: the file is empty, damaged or written in another way, or a column is missing.
        FileNotFoundError: there is no such file.
    """
    suffix = path.suffix.lower()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: name a CSV, Parquet or JSONL file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty: it needs the columns {', '.join(wanted)}")
    readers: dict[str, Callable[[Path, Written], Table]]
    readers = {".csv": _csv, ".tsv": _csv, ".jsonl": _jsonl, ".ndjson": _jsonl, ".parquet": _parquet}
    if suffix not in readers:
        do = "save it as CSV" if suffix.startswith(".xls") else "convert or rename it"
        raise ValueError(f"{path} must end in .csv, .tsv, .jsonl or .parquet, got {suffix!r}: {do}")
    with path.open("rb") as file:
        head = file.read(4)
    if suffix != ".parquet" and (head == b"PK\x03\x04" or head[:2] == b"\x1f\x8b"):
        kind = "an Excel file or another archive" if head[:2] == b"PK" else "compressed"
        raise ValueError(f"{path} is {kind}, whatever its name says: unpack it, or save it as CSV")
    table = readers[suffix](path, written or Written("\t" if suffix == ".tsv" else ","))
    for name in wanted:
        if name not in table.columns:
            hint = _other_writing(path, written)
            raise ValueError(
                f"{path} has no column {name!r}, it has {told(list(table.columns))}: name one of them{hint}"
            )
    if not len(table):
        raise ValueError(f"{path} has no rows: it needs at least one text")
    return table


def told(names: Sequence[str], most: int = 12) -> str:
    """Return names out of a file for a message: the first of them, and of long ones the beginning.

    >>> told(["a", "b" * 100], most=1), told([])
    ("'a' and 1 more", 'none')
    """
    short = [repr(name if len(name) <= 60 else f"{name[:57]}...") for name in names[:most]]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(short)}{more}" if short else "none"


def looked_at(path: Path) -> Written:
    """Say how a file is written, from its first bytes and its first line; what is no text is taken for UTF-8.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "t.csv"
    >>> _ = file.write_bytes("text;label\\ncaf\\xe9, bar;1\\n".encode("cp1252"))
    >>> looked_at(file)
    Written(delimiter=';', encoding='cp1252')
    """
    suffix = path.suffix.lower()
    usual = "\t" if suffix == ".tsv" else ","
    if suffix == ".parquet" or not path.is_file():
        return Written(usual)
    content = path.read_bytes()
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "")
    if not encoding:
        try:
            content.decode("utf-8")
            encoding = "utf-8-sig"
        except UnicodeDecodeError:
            encoding = "cp1252"
    if suffix in (".jsonl", ".ndjson"):
        return Written(usual, encoding)
    head = content[:_COMMON].decode(encoding, "replace")
    return Written(_delimiter(head, usual), encoding)


def json_lines(text: str) -> list[tuple[int, str]]:
    """Split JSONL into numbered lines. Only a line feed ends one: a text may hold other separators unescaped.

    >>> json_lines('{"a": "one\\u2028two"}\\r\\n\\n1')
    [(1, '{"a": "one\\u2028two"}'), (3, '1')]
    """
    return [(number, line.strip(" \t\r")) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def parsed_lines(text: str, path: Path) -> list[tuple[int, Any]]:
    """Read the values of JSONL with the numbers of their lines.

    Raises:
        ValueError: lines are no JSON; the message names them.
    """
    found, bad, reason = [], [], ""
    for number, line in json_lines(text):
        try:
            found.append((number, json.loads(line)))
        except ValueError as error:
            bad.append(number)
            place = f" at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else ""
            reason = reason or f"{getattr(error, 'msg', error)}{place}"
        except RecursionError:
            bad.append(number)
            reason = reason or "nested too deeply"
    if bad:
        where = Table(path, {}, bad).where(range(len(bad)))
        verb, them = ("holds", "it") if len(bad) == 1 else ("hold", "them")
        raise ValueError(f"{path} cannot be read as jsonl: {where} {verb} no JSON ({reason}): mend or drop {them}")
    return found


def decoded(path: Path, written: Written) -> str:
    """Return the text of a file.

    Raises:
        ValueError: its bytes are no text of this encoding; the message says which one fits and what to do.
    """
    content = path.read_bytes()
    try:
        return content.decode(written.encoding)
    except UnicodeDecodeError as error:
        name = _ENCODINGS[written.encoding]
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path} cannot be read as {path.suffix[1:]} in {name} (line {line}, byte {error.start})"
            f"{_other_writing(path, written) or ': save it as UTF-8'}"
        ) from None


def _other_writing(path: Path, written: Written | None) -> str:
    """A hint where a file looks to be written in another way than it was read."""
    found = looked_at(path)
    if not str(found) or found == written:
        return ""
    return f": it looks to be a file with {found}; save it as UTF-8 with commas, or read it as such"


def _delimiter(head: str, usual: str) -> str:
    """The delimiter that splits the first row into most cells, counted outside of quotes."""
    counts: Counter[str] = Counter()
    quoted = False
    for character in head.lstrip("\ufeff"):
        if character == '"':
            quoted = not quoted
        elif not quoted and character in "\r\n":
            break
        elif not quoted and character in _NAMES:
            counts[character] += 1
    if not counts or counts[usual]:
        return usual
    return max(counts, key=lambda name: counts[name])


def _csv(path: Path, written: Written) -> Table:
    text = decoded(path, written)
    old = csv.field_size_limit(LIMIT)
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=written.delimiter, strict=True)
        begun = 1
        for row in reader:
            if row:
                rows.append(row)
                lines.append(begun)
            begun = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{path} cannot be read as {path.suffix[1:]}: {error} (line {reader.line_num})"
            f"{_other_writing(path, written) or ': double the quotes inside of quoted cells'}"
        ) from None
    finally:
        csv.field_size_limit(old)
    names = rows[0] if rows else []
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{path} names the column {twice[0]!r} twice: rename one of them")
    table = Table(path, {}, lines[1:])
    bad = [place for place, row in enumerate(rows[1:]) if len(row) != len(names)]
    if bad:
        hint = _other_writing(path, written) or ": quote cells that hold the delimiter"
        verb = "have" if len(bad) > 1 else "has"
        raise ValueError(f"{path}: {table.where(bad)} {verb} other than {len(names)} cells{hint}")
    return Table(path, {name: [row[place] for row in rows[1:]] for place, name in enumerate(names)}, lines[1:])


def _jsonl(path: Path, written: Written) -> Table:
    rows = parsed_lines(decoded(path, written), path)
    for number, row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"{path}: line {number} must be an object like {{...}}, got {type(row).__name__}")
    names = dict.fromkeys(name for _, row in rows for name in row)
    return Table(path, {name: [row.get(name) for _, row in rows] for name in names}, [number for number, _ in rows])


def _parquet(path: Path, written: Written) -> Table:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ImportError("reading Parquet needs pyarrow: pip install 'lowland[text]'") from None
    try:
        table = pq.read_table(path)
        columns: dict[str, list[Any]] = table.to_pydict()
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is no whole Parquet file: {reason}") from None
    return Table(path, columns, list(range(1, table.num_rows + 1)), "row")
