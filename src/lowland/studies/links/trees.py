"""Trees of links that queries of several hops are, and triples that answer them exactly.

Ren, Leskovec 2020, arXiv 2010.11465. A tree starts from anchors, follows relations, and combines what several parts
give.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

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
TRIES = 10_000  # random walks for one query


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

        for _ in range(TRIES):
            if fill(KINDS[kind], self._target(generator)):
                return _in_order(anchors), _in_order(relations)
        raise ValueError(f"the triples hold no path that a {kind} query could follow: leave {kind} out")

    def _target(self, generator: torch.Generator | None) -> int:
        return self.targets[_draw(len(self.targets), generator)]


def meaning(tree: Tree, anchors: tuple[int, ...], relations: tuple[int, ...]) -> object | None:
    """What is asked, whatever the order of its parts; None where two parts ask the same."""
    if isinstance(tree, Link):
        return anchors[tree.anchor], relations[tree.relation]
    if isinstance(tree, Hop):
        start = meaning(tree.start, anchors, relations)
        return None if start is None else (start, relations[tree.relation])
    parts = frozenset(meaning(part, anchors, relations) for part in tree.parts)
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
