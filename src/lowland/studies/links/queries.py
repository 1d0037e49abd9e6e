"""Queries of several hops on a knowledge graph: drawn at random, and their true answers.

Ren, Leskovec 2020, arXiv 2010.11465. A query asks for the entities at the end of a tree of links: a path ("what is
caused by what treats a"), an intersection, a union. Among its answers over all triples, those that the triples known
before testing give are easy; those that need a held-out triple are hard, and only they are ranked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from .graphs import Graph
from .trees import KINDS as KINDS
from .trees import TRIES, Facts, meaning


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
    for _ in range(TRIES * number):
        anchors, relations = after.slots(kind, generator)
        asked = meaning(KINDS[kind], anchors, relations)
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
        f"{number} more {kind} queries with a hard answer were wanted than were found in {TRIES} draws for each: "
        f"ask for fewer, or leave {kind} out"
    )
