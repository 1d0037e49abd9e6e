"""Files that are cut off, altered or hostile: each reader of a study refuses them by name, with one kind of error."""

import io
import json
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from lowland.studies.images.reading import read
from lowland.studies.runs.folder import plain_cell, read_arrays, read_json, text_of_cell, write_arrays, write_rows
from lowland.studies.runs.settings import read_toml
from lowland.studies.tables import looked_at, read_table
from lowland.studies.text.datasets import read_labelled


def damaged(whole: bytes, rng: random.Random, count: int) -> Iterator[bytes]:
    """Copies with a byte turned, a stretch taken out or doubled, or the end cut off."""
    for number in range(count):
        place = rng.randrange(len(whole))
        if number % 4 == 0:
            yield whole[:place]
        elif number % 4 == 1:
            yield whole[:place] + whole[place + rng.randint(1, 20) :]
        elif number % 4 == 2:
            yield whole[:place] + whole[place : place + 30] + whole[place:]
        else:
            yield whole[:place] + bytes([whole[place] ^ rng.randint(1, 255)]) + whole[place + 1 :]


@pytest.mark.parametrize("pack", [np.savez, np.savez_compressed], ids=["stored", "deflated"])
def test_damaged_arrays_are_a_value_error_that_names_the_file(tmp_path: Path, pack: Callable[..., None]) -> None:
    path, rng = tmp_path / "a.npz", random.Random(0)
    images = np.random.default_rng(0).integers(0, 40, (60, 8, 8), dtype=np.uint8)
    pack(path, images=images, labels=np.arange(60) % 3)
    whole = path.read_bytes()
    refused = 0
    for content in damaged(whole, rng, 300):
        path.write_bytes(content)
        for reader in (read_arrays, lambda path: read("x", path)):
            try:
                reader(path)
            except ValueError as error:
                refused += 1
                assert str(path) in str(error)
    assert refused > 150


def header(shape: tuple[int, ...], kind: str = "<f8") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        header((2**40,)),
        header((2**20, 2**20, 2**20)),
        header((3,), "|O"),
        b"\x93NUMPY\x01\x00\x03\x00{'a",
        b"",
        b"x" * 200,
    ],
)
def test_headers_that_promise_what_is_not_there(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", content)
        archive.writestr("labels.npy", content)
    for reader in (read_arrays, lambda path: read("x", path)):
        with pytest.raises(ValueError, match=r"a\.npz"):
            reader(path)


def test_arrays_come_back_and_are_no_pickles(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    given = {"a": np.arange(6.0).reshape(2, 3), "b": np.asarray(["x", "yz"]), "c": np.zeros((0, 2)), "d": np.array(1.5)}
    write_arrays(path, given)
    found = read_arrays(path)
    assert list(found) == list(given) and all(np.array_equal(found[name], given[name]) for name in given)
    np.savez(path, a=np.asarray([object()], dtype=object))
    with pytest.raises(ValueError, match=r"a\.npz"):
        read_arrays(path)


@pytest.mark.parametrize("text", ["k = " + "[" * 20_000, "k = " + "9" * 5000, "k = 1\nk = 2", "\x00", "[a", "k = 1e"])
def test_configurations_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"c\.toml is no"):
        read_toml(tmp_path / "c.toml")


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, "", "{", "\x00", "{'a': 1}"])
def test_json_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"m\.json is no JSON file"):
        read_json(tmp_path / "m.json")
    (tmp_path / "m.jsonl").write_text(text or " \n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"m\.jsonl"):
        read_table(tmp_path / "m.jsonl", ["a"])


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.parquet"])
def test_damaged_tables_are_read_or_refused_by_name(tmp_path: Path, name: str) -> None:
    path, rng = tmp_path / name, random.Random(1)
    texts, labels = [f'caf\xe9 "{i}", and\nmore' for i in range(12)], [i % 2 for i in range(12)]
    if name.endswith("parquet"):
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"text": texts, "label": labels}), path)
    elif name.endswith("jsonl"):
        rows = [json.dumps({"text": t, "label": y}) for t, y in zip(texts, labels, strict=True)]
        path.write_text("\n".join(rows), encoding="utf-8")
    else:
        between = "\t" if name.endswith("tsv") else ","
        quoted = [f'"{t.replace(chr(34), chr(34) * 2)}"{between}{y}' for t, y in zip(texts, labels, strict=True)]
        path.write_text("\n".join([f"text{between}label", *quoted]), encoding="utf-8")
    whole = path.read_bytes()
    assert read_labelled(path, "text", "label") == (texts, list(map(str, labels)))
    for content in damaged(whole, rng, 200):
        path.write_bytes(content)
        try:
            found = read_labelled(path, "text", "label", looked_at(path))
            assert len(found[0]) == len(found[1])
        except ValueError as error:
            assert name in str(error)


TEXTS = ["=1+1", "+1-1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "'=1", "''@", "'tis", "-5", "- no", "", "1=1", "=\n"]


def test_no_cell_that_is_written_is_a_formula_and_none_is_lost(tmp_path: Path) -> None:
    write_rows(tmp_path / "t.csv", ["=head", "p"], [[text, -0.5] for text in TEXTS])
    table = read_table(tmp_path / "t.csv", ["p"])
    assert list(table.columns) == ["'=head", "p"] and set(table.columns["p"]) == {"-0.5"}
    cells = table.columns["'=head"]
    for cell in cells:
        number = cell.lstrip("+-").isdigit()
        assert number or not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert [text_of_cell(cell) for cell in cells] == TEXTS
    assert [plain_cell(cell) for cell in ("1.5", 1.5, None)] == ["1.5", 1.5, None]


def test_names_of_columns_are_bounded_in_messages(tmp_path: Path) -> None:
    from lowland.studies.tables import read_table

    path = tmp_path / "wide.csv"
    path.write_text(",".join([*(f"column {n}" for n in range(500)), "x" * 100_000]) + "\n" + "1," * 500 + "1\n")
    with pytest.raises(ValueError, match="has no column 'text', it has 'column 0'.* and 489 more: name one") as caught:
        read_table(path, ["text"])
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", b"PK\x03\x04" + b"x" * 50, "is an Excel file or another archive, whatever its name says"),
        ("a.csv", b"\x1f\x8b\x08" + b"x" * 50, "is compressed, whatever its name says"),
        ("a.xlsx", b"PK\x03\x04" + b"x" * 50, r"got '\.xlsx': save it as CSV"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "line 2 holds no JSON .*: mend or drop it"),
        ("a.jsonl", b'{"text": \n{"text": \n', "lines 1, 2 hold no JSON .*: mend or drop them"),
    ],
)
def test_files_that_are_not_what_they_are_called(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    from lowland.studies.tables import read_table

    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=says):
        read_table(tmp_path / name, ["text"])
