"""Queries of several hops on a knowledge graph: drawn at random, and their true answers.

Ren, Leskovec 2020, arXiv 2010.11465. A query asks for the entities at the end of a tree of links: a path ("what is
caused by what treats a"), an intersection, a union. Among its answers over all triples, those that the triples known
before testing give are easy; those that need a held-out triple are hard, and only they are ranked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from .graphs import Graph

T = TypeVar("T")


@dataclass(frozen=True)
class Link:
    """What the relation in slot `relation` leads to from the anchor in slot `anchor`."""

    anchor: int
    relation: int


@dataclass(frozen=True)
class Hop:
    """What the relation in slot `relation` leads to from what `start` gives."""

    start: Tree
    relation: int


@dataclass(frozen=True)
class Both:
    """What all parts give."""

    parts: tuple[Tree, ...]


@dataclass(frozen=True)
class Either:
    """What at least one part gives."""

    parts: tuple[Tree, ...]


Tree = Link | Hop | Both | Either

# Letters of the papers: p a projection, i an intersection, u a union, in the order of answering.
KINDS: dict[str, Tree] = {
    "2p": Hop(Link(0, 0), 1),
    "3p": Hop(Hop(Link(0, 0), 1), 2),
    "2i": Both((Link(0, 0), Link(1, 1))),
    "3i": Both((Link(0, 0), Link(1, 1), Link(2, 2))),
    "ip": Hop(Both((Link(0, 0), Link(1, 1))), 2),
    "pi": Both((Hop(Link(0, 0), 1), Link(1, 2))),
    "2u": Either((Link(0, 0), Link(1, 1))),
    "up": Hop(Either((Link(0, 0), Link(1, 1))), 2),
}


@dataclass(frozen=True)
class Query:
    """A question of one kind, with its true answers in ascending order.

    >>> query = Query("2p", anchors=(4,), relations=(0, 2), easy=(1,), hard=(3, 5))
    >>> query.answers
    (1, 3, 5)
    """

    kind: str
    anchors: tuple[int, ...]
    relations: tuple[int, ...]
    easy: tuple[int, ...]  # given by the triples known before testing
    hard: tuple[int, ...]  # given by all triples, not by the known ones

    @property
    def answers(self) -> tuple[int, ...]:
        """The easy and the hard answers."""
        return tuple(sorted(self.easy + self.hard))


def fold(
    tree: Tree,
    link: Callable[[int, int], T],
    hop: Callable[[T, int], T],
    both: Callable[[T, T], T],
    either: Callable[[T, T], T],
) -> T:
    """Answer a tree from its anchors up: `link` and `hop` get slots, `both` and `either` combine two parts.

    >>> fold(KINDS["pi"], "a{}r{}".format, "{} r{}".format, "({} and {})".format, "({} or {})".format)
    '(a0r0 r1 and a1r2)'
    """
    if isinstance(tree, Link):
        return link(tree.anchor, tree.relation)
    if isinstance(tree, Hop):
        return hop(fold(tree.start, link, hop, both, either), tree.relation)
    first, *others = (fold(part, link, hop, both, either) for part in tree.parts)
    for other in others:
        first = both(first, other) if isinstance(tree, Both) else either(first, other)
    return first


class Facts:
    """Triples that answer queries exactly.

    >>> facts = Facts(torch.tensor([[0, 0, 1], [0, 0, 2], [1, 1, 3]]))
    >>> facts.answers("2p", anchors=(0,), relations=(0, 1))
    {3}
    """

    def __init__(self, triples: Tensor) -> None:
        heads, relations, tails = triples.unbind(1)
        self._relations = int(relations.max()) + 1
        # A key is an entity and a relation in one number.
        self._tails = _grouped(heads * self._relations + relations, tails)
        self._heads = _grouped(tails * self._relations + relations, heads)
        self._leading = _grouped(tails, relations)  # relations that lead to an entity
        self.targets = list(self._leading)

    def tails(self, head: int, relation: int) -> list[int]:
        """Where the relation leads from the entity, in ascending order."""
        if relation >= self._relations:
            return []  # a relation of other triples only
        return self._tails.get(head * self._relations + relation, [])

    def answers(self, kind: str, anchors: Sequence[int], relations: Sequence[int]) -> set[int]:
        """All entities that answer the query."""

        def link(anchor: int, relation: int) -> set[int]:
            return set(self.tails(anchors[anchor], relations[relation]))

        def hop(start: set[int], relation: int) -> set[int]:
            return set().union(*(self.tails(head, relations[relation]) for head in start))

        return fold(KINDS[kind], link, hop, set.__and__, set.__or__)

    def slots(self, kind: str, generator: torch.Generator | None = None) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Draw anchors and relations of a query that has an answer, backwards from it, as the papers do.

        A step back takes a relation that leads to the entity, then a head of it, each with equal chances. The further
        parts of a union lead to entities of their own.
        """
        anchors: dict[int, int] = {}
        relations: dict[int, int] = {}

        def back(tail: int, relation: int) -> int:
            leading = self._leading[tail]
            relations[relation] = leading[_draw(len(leading), generator)]
            heads = self._heads[tail * self._relations + relations[relation]]
            return heads[_draw(len(heads), generator)]

        def fill(tree: Tree, target: int) -> bool:
            # False where the walk back ends at an entity that nothing leads to.
            if target not in self._leading:
                return False
            if isinstance(tree, Link):
                anchors[tree.anchor] = back(target, tree.relation)
                return True
            if isinstance(tree, Hop):
                return fill(tree.start, back(target, tree.relation))
            for number, part in enumerate(tree.parts):
                if not fill(part, self._target(generator) if number and isinstance(tree, Either) else target):
                    return False
            return True

        for _ in range(_TRIES):
            if fill(KINDS[kind], self._target(generator)):
                return _in_order(anchors), _in_order(relations)
        raise ValueError(f"the triples hold no path that a {kind} query could follow: leave {kind} out")

    def _target(self, generator: torch.Generator | None) -> int:
        return self.targets[_draw(len(self.targets), generator)]


_TRIES = 10_000


def sample_queries(
    graph: Graph,
    kinds: Sequence[str],
    number: int,
    generator: torch.Generator | None = None,
    *,
    part: Literal["validation", "test"] = "test",
    share: float = 0.5,
) -> list[Query]:
    """Draw `number` different queries of every kind; each has a hard answer, and no relation is walked backwards.

    Args:
        graph: its triples give the answers.
        kinds: of KINDS.
        number: of queries of each kind.
        generator: of the random numbers.
        part: "test": hard answers need a test triple beside those of training and validation, as in the papers.
            "validation": they need a validation triple beside those of training; for choosing.
        share: of the graph's entities that may answer a query; with more there is little left to rank against.

    Raises:
        ValueError: a kind or part is unknown, a number is out of range, or the graph has too few such queries.

    >>> from .graphs import graph_of
    >>> train, validation, test = [("a", "r", "b")], [("b", "s", "c")], [("b", "s", "d")]
    >>> sample_queries(graph_of("tiny", train, validation, test), ["2p"], 1, torch.Generator().manual_seed(0))
    [Query(kind='2p', anchors=(0,), relations=(0, 1), easy=(2,), hard=(3,))]
    """
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"there is no kind of query {kind!r}: take some of {', '.join(KINDS)}")
    if len(set(kinds)) < len(kinds):
        raise ValueError(f"kinds names one twice, got {list(kinds)}: name each once")
    if number < 1:
        raise ValueError(f"number must be 1 or more, got {number}")
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], got {share}")
    if part not in ("validation", "test"):
        raise ValueError(f"part must be 'validation' or 'test', got {part!r}")
    known, whole = graph.train, torch.cat([graph.train, graph.validation])
    if part == "test":
        known, whole = whole, torch.cat([whole, graph.test])
    before, after = Facts(known), Facts(whole)
    most = share * len(graph.entities)
    return [query for kind in kinds for query in _sample(before, after, kind, number, most, generator)]


def _sample(
    before: Facts, after: Facts, kind: str, number: int, most: float, generator: torch.Generator | None
) -> Iterator[Query]:
    seen: set[object] = set()
    for _ in range(_TRIES * number):
        anchors, relations = after.slots(kind, generator)
        asked = _meaning(KINDS[kind], anchors, relations)
        if asked is None or asked in seen:
            continue
        seen.add(asked)
        found = after.answers(kind, anchors, relations)
        hard = found - before.answers(kind, anchors, relations)
        if hard and len(found) <= most:
            yield Query(kind, anchors, relations, tuple(sorted(found - hard)), tuple(sorted(hard)))
            number -= 1
            if not number:
                return
    raise ValueError(
        f"{number} more {kind} queries with a hard answer were wanted than were found in {_TRIES} draws for each: "
        f"ask for fewer, or leave {kind} out"
    )


def _meaning(tree: Tree, anchors: tuple[int, ...], relations: tuple[int, ...]) -> object | None:
    """What is asked, whatever the order of its parts; None where two parts ask the same."""
    if isinstance(tree, Link):
        return anchors[tree.anchor], relations[tree.relation]
    if isinstance(tree, Hop):
        start = _meaning(tree.start, anchors, relations)
        return None if start is None else (start, relations[tree.relation])
    parts = frozenset(_meaning(part, anchors, relations) for part in tree.parts)
    return None if None in parts or len(parts) < len(tree.parts) else parts


def _grouped(keys: Tensor, values: Tensor) -> dict[int, list[int]]:
    """The different values of every key; keys and values in ascending order."""
    stride = int(values.max()) + 1
    pairs = (keys * stride + values).unique()  # type: ignore[no-untyped-call]
    found = (pairs % stride).tolist()
    kept, counts = (pairs // stride).unique_consecutive(return_counts=True)
    ends = counts.cumsum(0).tolist()
    triples = zip(kept.tolist(), [0, *ends], ends, strict=False)  # the last end opens nothing
    return {key: found[start:end] for key, start, end in triples}


def _in_order(slots: dict[int, int]) -> tuple[int, ...]:
    return tuple(slots[slot] for slot in sorted(slots))


def _draw(count: int, generator: torch.Generator | None) -> int:
    return int(torch.randint(count, (), generator=generator))
