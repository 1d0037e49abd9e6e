"""Knowledge graphs as triples of numbers: three small ones out of PyKEEN's package, others from a folder or an archive.

The small graphs are read as files; PyKEEN is not imported for them. An entity that only validation or test triples
name keeps its number: it has an embedding that training never touches, as in the published evaluations.
"""

from __future__ import annotations

import lzma
import re
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from ..packaged import PYKEEN_PACKAGE, find_file

PACKAGED = ("umls", "kinships", "nations")
# What the three parts are called in folders of triples; the second name is that of our own parts.
_FILES = {"train": ("train",), "validation": ("valid", "validation"), "test": ("test",)}

Names = Iterable[tuple[str, str, str]]


@dataclass(frozen=True)
class Graph:
    """A knowledge graph whose triples are split in three parts.

    A triple is head, relation, tail: numbers of an entity, a relation and an entity.

    >>> graph = graph_of("tiny", [("a", "likes", "b")], [("b", "likes", "a")], [("b", "likes", "b")])
    >>> graph.entities, graph.relations, graph.train
    (('a', 'b'), ('likes',), tensor([[0, 0, 1]]))
    """

    name: str
    entities: tuple[str, ...]
    relations: tuple[str, ...]
    train: Tensor  # (N, 3) int64
    validation: Tensor  # (N, 3) int64
    test: Tensor  # (N, 3) int64

    @property
    def everything(self) -> Tensor:
        """The triples of all parts, (N, 3) int64."""
        return torch.cat([self.train, self.validation, self.test])

    @property
    def both_ways(self) -> Tensor:
        """The training triples and their inverses, (2 N, 3) int64; relation r read backwards is r + relations."""
        return with_inverses(self.train, len(self.relations))


def with_inverses(triples: Tensor, relations: int) -> Tensor:
    """Add to each triple (h, r, t) its inverse (t, r + relations, h): (N, 3) becomes (2 N, 3).

    >>> with_inverses(torch.tensor([[0, 1, 2]]), relations=5)
    tensor([[0, 1, 2],
            [2, 6, 0]])
    """
    return torch.cat([triples, triples[:, [2, 1, 0]] + triples.new_tensor([0, relations, 0])])


class Tails:
    """The tails that triples give to each pair of head and relation.

    >>> tails = Tails(torch.tensor([[0, 0, 1], [0, 0, 2], [1, 0, 2]]))
    >>> tails.pairs
    tensor([[0, 0],
            [1, 0]])
    >>> tails.of(torch.tensor([1, 0, 2]), torch.tensor([0, 0, 0]))
    (tensor([0, 1, 1]), tensor([2, 1, 2]))
    """

    def __init__(self, triples: Tensor) -> None:
        ordered = torch.unique(triples, dim=0)  # (T, 3), sorted by head, relation, tail
        self._relations = int(ordered[:, 1].max()) + 1
        self._tails = ordered[:, 2]
        self._keys, counts = torch.unique_consecutive(
            ordered[:, 0] * self._relations + ordered[:, 1], return_counts=True
        )
        self._ends = counts.cumsum(0)
        self._counts = counts

    @property
    def pairs(self) -> Tensor:
        """Every head and relation that has a tail, (P, 2) int64, in order."""
        return torch.stack([self._keys // self._relations, self._keys % self._relations], dim=1)

    def of(self, heads: Tensor, relations: Tensor) -> tuple[Tensor, Tensor]:
        """Return, for B pairs, the row in the batch and the tail of each known triple."""
        keys = heads * self._relations + relations
        at = torch.searchsorted(self._keys, keys).clamp(max=len(self._keys) - 1)
        counts = torch.where((self._keys[at] == keys) & (relations < self._relations), self._counts[at], 0)
        rows = torch.arange(len(keys)).repeat_interleave(counts)
        within = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows]
        return rows, self._tails[(self._ends[at] - self._counts[at])[rows] + within]


def graph_of(name: str, train: Names, validation: Names, test: Names) -> Graph:
    """Number the entities and relations of named triples, in alphabetical order.

    Raises:
        ValueError: a part has no triples.

    >>> graph_of("tiny", [("a", "r", "b")], [("a", "r", "c")], [("c", "r", "a")]).test
    tensor([[2, 0, 0]])
    """
    parts = {"train": list(train), "validation": list(validation), "test": list(test)}
    for part, triples in parts.items():
        if not triples:
            raise ValueError(f"the graph {name} has no {part} triples, wanted at least one: check its files")
    together = [triple for triples in parts.values() for triple in triples]
    entities = sorted({triple[0] for triple in together} | {triple[2] for triple in together})
    relations = sorted({triple[1] for triple in together})
    of_entity = {entity: number for number, entity in enumerate(entities)}
    of_relation = {relation: number for number, relation in enumerate(relations)}

    def numbered(triples: list[tuple[str, str, str]]) -> Tensor:
        return torch.tensor([(of_entity[h], of_relation[r], of_entity[t]) for h, r, t in triples], dtype=torch.int64)

    return Graph(name, tuple(entities), tuple(relations), **{part: numbered(found) for part, found in parts.items()})


def load_graph(name: str, *, path: str | Path | None = None) -> Graph:
    """Read a graph: umls, kinships or nations by name alone, any other one from `path`.

    Args:
        name: of the graph; in a path that holds several graphs it says which one.
        path: a folder with tab-separated train.txt, valid.txt and test.txt, or a folder or a tar archive of such
            folders. A folder "kg_FB15k-237" answers to the name "fb15k237".

    Raises:
        ValueError: the name is unknown, the path is wrong, or a line is no triple.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for part in ("train", "valid", "test"):
    ...         _ = (Path(folder) / f"{part}.txt").write_text("oslo\\tcapital of\\tnorway\\n")
    ...     graph = load_graph("mine", path=folder)
    >>> graph.relations, len(graph.test)
    (('capital of',), 1)
    """
    if path is None:
        if name not in PACKAGED:
            raise ValueError(f"there is no packaged graph {name!r}: take {', '.join(PACKAGED)}, or give a path")
        folder = f"pykeen/datasets/{name}"
        texts = {
            part: find_file(f"{folder}/{files[0]}.txt", PYKEEN_PACKAGE).read_bytes() for part, files in _FILES.items()
        }
        return _graph(name, texts, folder)
    place = Path(path)
    if place.is_dir():
        files = {str(PurePosixPath(found.relative_to(place))): found for found in sorted(place.rglob("*.txt"))}
        chosen = _choose(name, files, place)
        return _graph(name, {part: files[relative].read_bytes() for part, relative in chosen.items()}, str(place))
    if not place.is_file():
        raise ValueError(f"there is nothing at {place}: give a folder of train.txt, valid.txt, test.txt, or an archive")
    try:
        with tarfile.open(place) as archive:
            members = {member.name.removeprefix("./"): member for member in archive.getmembers() if member.isfile()}
            texts = {}
            for part, relative in _choose(name, members, place).items():
                file = archive.extractfile(members[relative])
                texts[part] = file.read() if file is not None else b""
    except (tarfile.TarError, EOFError, OSError, lzma.LZMAError, zlib.error):
        raise ValueError(
            f"{place} is no tar archive, or a damaged one: give a folder, .tar, .tar.gz or .tar.xz"
        ) from None
    return _graph(name, texts, str(place))


def _choose(name: str, paths: Mapping[str, object], place: Path) -> dict[str, str]:
    """Find the files of the three parts in one folder: the only one that has them, or the one with the graph's name."""
    found: dict[str, dict[str, str]] = {}
    for folder in {str(PurePosixPath(path).parent) for path in paths}:
        parts: dict[str, str] = {}
        for part, files in _FILES.items():
            for file in files:
                relative = str(PurePosixPath(folder) / f"{file}.txt")
                if relative in paths:
                    parts.setdefault(part, relative)
        if len(parts) == len(_FILES):
            found[folder] = parts
    if not found:
        raise ValueError(f"{place} has no folder with train.txt, valid.txt and test.txt: put the three files together")
    if len(found) == 1:
        return next(iter(found.values()))
    fitting = [folder for folder in found if _plain(PurePosixPath(folder).name).endswith(_plain(name))]
    if len(fitting) != 1 or not _plain(name):
        raise ValueError(f"{place} holds the graphs {', '.join(sorted(found))}, none or several of them is {name!r}")
    return found[fitting[0]]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _graph(name: str, texts: Mapping[str, bytes], place: str) -> Graph:
    return graph_of(name, **{part: _triples(text, f"{part} triples of {place}") for part, text in texts.items()})


def _triples(text: bytes, what: str) -> list[tuple[str, str, str]]:
    try:
        lines = text.decode("utf-8").split("\n")  # not splitlines: names may hold other separators
    except UnicodeDecodeError as error:
        raise ValueError(f"the {what} are no UTF-8 text ({error}): save the file as UTF-8") from None
    triples = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        cells = line.rstrip("\r").split("\t")
        if len(cells) != 3:
            raise ValueError(
                f"line {number} of the {what} has {len(cells)} cells, wanted 3 (head, relation, tail) with tabs between"
            )
        triples.append((cells[0].strip(), cells[1].strip(), cells[2].strip()))
    return triples


def check_data(study: Any) -> None:
    """See that the packaged graphs that a study asks for are there.

    Raises:
        ValueError: one is not installed; the message says how to get it.
    """
    located = {entry.partition("=")[0] for entry in study.data.paths}
    for name in study.data.graphs:
        if name in PACKAGED and name not in located:
            find_file(f"pykeen/datasets/{name}/{_FILES['train'][0]}.txt", PYKEEN_PACKAGE)
