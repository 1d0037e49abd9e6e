"""Queries of several hops, answered by a model that was fitted to single links.

Arakelyan, Daza, Minervini, Cochez 2021, arXiv 2011.03459. The truth of a link is p(h, r, t) = sigmoid(score), and an
entity t answers a query with the truth

    hop:           max over e of  A(e) * p(e, r, t)         A is the truth of what the hop starts from
    intersection:  A(t) * B(t)
    union:         A(t) + B(t) - A(t) B(t)

with the t-norm "product"; with "min", * is the minimum and a union the maximum. The maximum is over all entities, or
over the `beam` entities with the largest A. All is computed with logarithms of truths: products of sigmoids near 0 or 1
would be equal in float32 where their logarithms differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .queries import Query
from .trees import KINDS, fold

# Raw scores of all entities as the tails of links: heads (B,), relations (B,) -> (B, entities).
Scores = Callable[[Tensor, Tensor], Tensor]
Truths = Callable[[Tensor, Tensor], Tensor]  # the same, of logarithms of truths
Norm = Callable[[Tensor, Tensor], Tensor]

METRICS = ("mrr", "hits@1", "hits@3", "hits@10")
T_NORMS = ("product", "min")
_PIECE = 1 << 24  # bytes of one intermediate tensor; a few of them live at a time
_TABLE = 1 << 27  # bytes; where the links of all queries fit, each is scored once


@torch.no_grad()
def answer(
    scores: Scores, queries: Query | Sequence[Query], t_norm: str = "product", beam: int | None = None
) -> Tensor:
    """Return the logarithm of every entity's truth as the answer, (N, entities), for N queries of one kind.

    `scores` is called with int64 tensors on the CPU. Without `beam`, a hop scores the links of all entities.

    Raises:
        ValueError: no query, queries of several kinds, an unknown t-norm, or a beam below 1.
        RuntimeError: a score is NaN.

    >>> link = torch.tensor([[0.0, 1.0], [2.0, 0.0]])  # of each head to each tail, whatever the relation
    >>> query = Query("2p", anchors=(0,), relations=(0, 0), easy=(), hard=(0,))
    >>> answer(lambda heads, relations: link[heads], query).exp()
    tensor([[0.6439, 0.3655]])
    """
    return _answer(partial(_truths, scores), queries if isinstance(queries, Sequence) else [queries], t_norm, beam)


@torch.no_grad()
def rank_queries(
    scores: Scores, queries: Sequence[Query], t_norm: str = "product", beam: int | None = None
) -> dict[str, dict[str, float]]:
    """Return mrr, hits@1, hits@3 and hits@10 of every kind of query.

    A hard answer's rank is one plus the number of entities with a larger truth, those with an equal truth counted half;
    entities that answer the query, easily or not, are left out. A query's metric is the mean over its hard answers, a
    kind's the mean over its queries.

    Raises:
        ValueError: there is no query, a query has no hard answer, an unknown t-norm, or a beam below 1.
        RuntimeError: a score is NaN.

    >>> link = torch.tensor([[0.0, 3.0, 2.0, 1.0]]).expand(4, 4)
    >>> queries = [Query("2u", (0, 0), (0, 1), easy=(1,), hard=(3,))]
    >>> rank_queries(lambda heads, relations: link[heads], queries)["2u"]
    {'mrr': 0.5, 'hits@1': 0.0, 'hits@3': 1.0, 'hits@10': 1.0}
    """
    if not queries:
        raise ValueError("there is no query to rank: sample some")
    if not all(query.hard for query in queries):
        raise ValueError("a query has no hard answer, wanted one or more in each: sample_queries gives such queries")
    truths: Truths = partial(_truths, scores)
    first = queries[0]
    entities = truths(torch.tensor(first.anchors[:1]), torch.tensor(first.relations[:1])).shape[1]
    relations = sorted({relation for query in queries for relation in query.relations})
    if len(relations) * entities * entities * 8 <= _TABLE:
        truths = _table(truths, entities, relations)
    step = max(1, _PIECE // (entities * 8))
    found: dict[str, dict[str, float]] = {}
    for kind in dict.fromkeys(query.kind for query in queries):
        batch = [query for query in queries if query.kind == kind]
        rows = []
        for start in range(0, len(batch), step):
            some = batch[start : start + step]
            rows += _metrics(_answer(truths, some, t_norm, beam), some)
        means = [math.fsum(column) / len(batch) for column in zip(*rows, strict=True)]
        found[kind] = dict(zip(METRICS, means, strict=True))
    return found


def _answer(truths: Truths, queries: Sequence[Query], t_norm: str, beam: int | None) -> Tensor:
    kinds = sorted({query.kind for query in queries})
    if len(kinds) != 1:
        raise ValueError(f"queries must be of one kind, got {kinds}: answer each kind by itself")
    if t_norm not in T_NORMS:
        raise ValueError(f"t_norm must be 'product' or 'min', got {t_norm!r}")
    if beam is not None and beam < 1:
        raise ValueError(f"beam must be 1 or more, or None, got {beam}")
    anchors = torch.tensor([query.anchors for query in queries])  # (N, anchors)
    relations = torch.tensor([query.relations for query in queries])  # (N, relations)
    both = torch.add if t_norm == "product" else torch.minimum
    either = _either if t_norm == "product" else torch.maximum

    def link(anchor: int, relation: int) -> Tensor:
        return truths(anchors[:, anchor], relations[:, relation])

    def hop(start: Tensor, relation: int) -> Tensor:
        if beam is not None and beam < start.shape[1]:
            return _hop_from_best(truths, start, relations[:, relation], both, beam)
        return _hop_from_all(truths, start, relations[:, relation], both)

    return fold(KINDS[kinds[0]], link, hop, both, either)


def _hop_from_all(truths: Truths, start: Tensor, relations: Tensor, both: Norm) -> Tensor:
    """The hop from every entity, (N, entities); links of one relation are scored once for all its queries."""
    entities = start.shape[1]
    end = torch.full_like(start, -math.inf)
    lines = max(1, _PIECE // (entities * start.element_size()))  # of the links' matrix, in one piece
    for relation in sorted(set(relations.tolist())):
        rows = (relations == relation).nonzero().flatten()
        for heads in _pieces(entities, lines):
            links = truths(heads, torch.full_like(heads, relation))  # (heads, entities)
            for piece in _pieces(len(rows), lines // len(heads)):
                some = rows[piece]
                joined = both(start[some][:, heads, None], links)  # (rows, heads, entities)
                end[some] = torch.maximum(end[some], joined.amax(1))
    return end


def _hop_from_best(truths: Truths, start: Tensor, relations: Tensor, both: Norm, beam: int) -> Tensor:
    """The hop from the `beam` entities with the largest truths of each query, (N, entities)."""
    end = torch.full_like(start, -math.inf)
    values, heads = start.topk(beam, dim=1)  # (N, beam)
    lines = max(1, _PIECE // (start.shape[1] * start.element_size()))
    for some in _pieces(len(start), lines // beam):
        for kept in _pieces(beam, lines):
            chosen = heads[some][:, kept]  # (rows, kept)
            asked = relations[some].repeat_interleave(len(kept))
            links = truths(chosen.flatten(), asked).view(*chosen.shape, -1)  # (rows, kept, entities)
            joined = both(values[some][:, kept, None], links)
            end[some] = torch.maximum(end[some], joined.amax(1))
    return end


def _table(truths: Truths, entities: int, relations: Sequence[int]) -> Truths:
    """The truths of all links of some relations, scored once and looked up afterwards."""
    numbers = torch.tensor(relations)
    heads, asked = torch.arange(entities).repeat(len(numbers)), numbers.repeat_interleave(entities)
    pieces = _pieces(len(heads), _PIECE // (entities * 8))
    table = torch.cat([truths(heads[piece], asked[piece]) for piece in pieces]).view(len(numbers), entities, entities)
    place = torch.zeros(int(numbers.max()) + 1, dtype=torch.int64)
    place[numbers] = torch.arange(len(numbers))
    return lambda heads, relations: table[place[relations], heads]


def _pieces(count: int, size: int) -> list[Tensor]:
    """The numbers 0 .. count - 1 in pieces of at most `size`, and at least one."""
    size = max(1, size)
    return [torch.arange(at, min(at + size, count)) for at in range(0, count, size)]


def _metrics(truths: Tensor, queries: Sequence[Query]) -> list[list[float]]:
    """The METRICS of every query, from the realistic ranks of its hard answers among what does not answer it."""
    entities = truths.shape[1]
    rivals = truths.clone()
    for row, query in enumerate(queries):
        rivals[row, list(query.easy + query.hard)] = -math.inf
    counts = torch.tensor([len(query.hard) for query in queries])
    widest = int(counts.max())
    hard = torch.tensor([query.hard + query.hard[:1] * (widest - len(query.hard)) for query in queries])
    real = torch.arange(widest) < counts[:, None]  # (N, widest); what is not fills the rows up
    given = truths.gather(1, hard)
    ordered = rivals.sort(dim=1).values
    larger = entities - torch.searchsorted(ordered, given, right=True)
    as_large = entities - torch.searchsorted(ordered, given)
    # A truth of zero has the logarithm with which the answers were taken out: they are no rivals of it.
    others = torch.tensor([entities - len(query.easy) - len(query.hard) for query in queries])
    ranks = 1 + (larger + torch.minimum(as_large, others[:, None])).double() / 2  # (N, widest)
    values = torch.stack([1 / ranks, *((ranks <= k).double() for k in (1, 3, 10))], dim=-1)
    means = (values * real[:, :, None]).sum(dim=1) / counts[:, None]
    return [[float(value) for value in row] for row in means]


def _truths(scores: Scores, heads: Tensor, relations: Tensor) -> Tensor:
    """Logarithms of the truths of links, (B, entities), in float32 or wider."""
    given = scores(heads, relations)
    if given.isnan().any():
        raise RuntimeError("a score is not a number: the weights have diverged, take a smaller learning rate")
    return logsigmoid(given if given.dtype == torch.float64 else given.float())


def _either(first: Tensor, second: Tensor) -> Tensor:
    """log(a + b - ab) from log a and log b, as log(1 - (1 - a)(1 - b))."""
    return _log_complement(_log_complement(first) + _log_complement(second))


def _log_complement(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0, by the formula that keeps the digits there (Mächler 2012, log1mexp of Rmpfr)."""
    return torch.where(x > -math.log(2), torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))
