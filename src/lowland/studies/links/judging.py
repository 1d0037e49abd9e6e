"""What every set of weights of a cell is asked: filtered ranks of three parts of the graph, and multi-hop queries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from lowland import applied, refresh_bn
from lowland.weights import Weights

from ..runs.randomness import stream
from .answering import rank_queries
from .config import LinksStudy
from .config import Queries as Settings
from .graphs import Graph, Tails
from .queries import Query, sample_queries
from .ranking import Ranking
from .scorers import Scorer
from .training import batches_of

PARTS = ("train", "validation", "test")

Metrics = dict[str, float]


class Judge:
    """Judges weights of the scorers of one graph.

    The training triples that it asks for, and the queries, are the same for every cell of the graph.
    """

    def __init__(self, study: LinksStudy, graph: Graph, tails: Tails) -> None:
        self.study, self.tails = study, tails
        shown = study.data.train_triples or len(graph.train)
        some = torch.randperm(len(graph.train), generator=stream(0, "train part"))[:shown]
        parts = {"train": graph.train[some], "validation": graph.validation, "test": graph.test}
        seen = torch.cat([graph.train, graph.validation])
        known = {"validation": seen}  # choices rest on it, so it leaves nothing out that only test triples tell
        self.rankings = {part: Ranking(graph, triples, known.get(part)) for part, triples in parts.items()}
        self.queries = queries_of(study.queries, graph)

    def links(self, scorer: Scorer, weights: Weights, parts: Iterable[str] = PARTS) -> dict[str, Metrics]:
        """Return the metrics of parts of the graph."""
        with self._in(scorer, weights):
            return {part: self.rankings[part].metrics(scorer) for part in parts}

    def everything(self, scorer: Scorer, weights: Weights) -> dict[str, Metrics]:
        """Return the metrics of all parts of the graph and of all kinds of queries."""
        settings = self.study.queries
        with self._in(scorer, weights):
            found = {part: self.rankings[part].metrics(scorer) for part in PARTS}
            if self.queries:
                found |= rank_queries(scorer, self.queries, settings.t_norm, settings.beam or None)
            return found

    @contextmanager
    def _in(self, scorer: Scorer, weights: Weights) -> Iterator[None]:
        with applied(scorer, weights), torch.no_grad():
            refresh_bn(scorer, batches_of(self.tails, self.study.training.batch_size))
            training = scorer.training
            scorer.eval()
            try:
                yield
            finally:
                scorer.train(training)


def queries_of(settings: Settings, graph: Graph) -> list[Query]:
    """Sample the queries of a graph: the same for the same settings.

    >>> from lowland.studies.links.graphs import graph_of
    >>> graph = graph_of("tiny", [("a", "r", "b")], [("b", "r", "c")], [("c", "r", "d")])
    >>> [query.hard for query in queries_of(Settings(("2p",), number=1), graph)]
    [(3,)]
    """
    if settings.number == 0 or not settings.kinds:
        return []
    return sample_queries(graph, settings.kinds, settings.number, stream(settings.seed, "queries"))
