"""Filtered ranks of link prediction (Bordes et al. 2013; ties: Berrendorf et al. 2020, arXiv 2002.06914).

Each triple asks twice: for its tail, and for its head through the inverse relation. With s the score of the true
answer among the entities that make no known triple,

    rank = 1 + #{better than s} + #{others equal to s} / 2,     MRR = mean of 1 / rank,     Hits@k = share of rank <= k

These are the realistic ranks of PyKEEN's RankBasedEvaluator; a test holds them equal.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .graphs import Graph, Tails, with_inverses

HITS = (1, 3, 10)
_PIECE = 1 << 25  # bytes of scores that live at once


class Ranking:
    """What some triples of a graph ask of a scorer, with the entities that each question leaves out.

    `known_triples` (N, 3) say which entities are left out; by default they are all triples of the graph. What chooses
    must not know the test triples, not even as rivals to leave out: their absence would raise the scores of models
    that rank them high.

    >>> from lowland.studies.links.graphs import graph_of
    >>> graph = graph_of("tiny", [("a", "r", "b"), ("a", "r", "c")], [("b", "r", "d")], [("a", "r", "d")])
    >>> ranking = Ranking(graph, graph.test)
    >>> ranking.ranks(lambda heads, relations: torch.tensor([[1.0, 9.0, 9.0, 0.0], [2.0, 5.0, 5.0, 2.0]]))
    tensor([2.0000, 2.5000], dtype=torch.float64)
    """

    def __init__(self, graph: Graph, triples: Tensor, known_triples: Tensor | None = None) -> None:
        relations = len(graph.relations)
        known = Tails(with_inverses(graph.everything if known_triples is None else known_triples, relations))
        asked = with_inverses(triples, relations)  # (2 N, 3)
        lines = max(1, _PIECE // (4 * len(graph.entities)))
        self._pieces: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = []
        for piece in torch.split(asked, lines):
            heads, relation, tails = piece.unbind(1)
            rows, columns = known.of(heads, relation)
            rivals = columns != tails[rows]  # the true answer stays
            self._pieces.append((heads, relation, tails, rows[rivals], columns[rivals]))

    @torch.no_grad()
    def ranks(self, scores: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Return the ranks of the tails, then of the heads, (2 N,) float64.

        `scores` is called with heads (B,) and relations (B,) and returns (B, entities).

        Raises:
            RuntimeError: a score is NaN, or a true answer's score is not finite.
        """
        found = []
        for heads, relations, tails, rows, columns in self._pieces:
            given = scores(heads, relations).clone()  # (B, E)
            true = given.gather(1, tails[:, None])  # (B, 1)
            if given.isnan().any() or not true.isfinite().all():
                raise RuntimeError("a score is not finite: the weights have diverged, take a smaller learning rate")
            given[rows, columns] = -torch.inf
            better = (given > true).sum(1)
            as_good = (given >= true).sum(1)  # the true answer is one of these
            found.append((better + 1 + as_good).double() / 2)
        return torch.cat(found)

    def metrics(self, scores: Callable[[Tensor, Tensor], Tensor]) -> dict[str, float]:
        """Return mrr, hits@1, hits@3 and hits@10 over both directions."""
        return metrics_of(self.ranks(scores))


def metrics_of(ranks: Tensor) -> dict[str, float]:
    """Return mrr, hits@1, hits@3 and hits@10 of ranks (N,).

    >>> metrics_of(torch.tensor([1.0, 4.0]))
    {'mrr': 0.625, 'hits@1': 0.5, 'hits@3': 0.5, 'hits@10': 1.0}
    """
    found = {"mrr": float(ranks.double().reciprocal().mean())}
    return found | {f"hits@{k}": float((ranks <= k).double().mean()) for k in HITS}
