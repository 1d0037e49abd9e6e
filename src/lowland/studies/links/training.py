"""Training against all tails of a head and a relation at once (KvsAll: Dettmers et al. 2018, arXiv 1707.01476).

A batch holds pairs (h, r), those of inverse relations among them. With y_e = 1 where (h, r, e) is a training triple,

    loss = mean over pairs and entities e of BCE(score(h, r, e), (1 - smoothing) y_e + smoothing / entities)

BCE(s, y) is softplus(s) - y s, so the targets, nearly all of them the same, need no matrix of their own.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .graphs import Tails
from .scorers import Scorer


def epochs(
    scorer: Scorer,
    tails: Tails,
    *,
    learning_rate: float,
    batch_size: int,
    weight_decay: float = 0.0,
    smoothing: float = 0.0,
    generator: torch.Generator | None = None,
) -> Iterator[float]:
    """Train for one epoch at each step of the iterator, by Adam at a constant rate; yield the epoch's mean loss.

    Args:
        tails: of the training triples and their inverses.
        weight_decay: decoupled from the gradient (AdamW: Loshchilov, Hutter 2019, arXiv 1711.05101).
        generator: of the order of the pairs.

    >>> from lowland.studies.links.graphs import graph_of
    >>> graph = graph_of("tiny", [("a", "r", "b"), ("b", "r", "c")], [("b", "r", "a")], [("b", "r", "b")])
    >>> scorer = Scorer("distmult", graph, dimension=8)
    >>> losses = epochs(scorer, Tails(graph.both_ways), learning_rate=0.1, batch_size=2)
    >>> next(losses) > [next(losses) for epoch in range(20)][-1]
    True
    """
    optimiser = torch.optim.AdamW(scorer.parameters(), lr=learning_rate, weight_decay=weight_decay)
    pairs = tails.pairs
    while True:
        scorer.train()
        total = torch.zeros((), dtype=torch.float64)
        for rows in torch.split(torch.randperm(len(pairs), generator=generator), batch_size):
            heads, relations = pairs[rows].unbind(1)
            scores = scorer(heads, relations)
            loss = loss_of(scores, *tails.of(heads, relations), smoothing=smoothing)
            optimiser.zero_grad()
            torch.autograd.backward(loss + scorer.penalty())
            optimiser.step()
            scorer.constrain_()
            total += loss.detach().double() * len(rows)
        yield float(total) / len(pairs)


def batches_of(tails: Tails, batch_size: int) -> Iterator[dict[str, Tensor]]:
    """Yield all pairs in order, as the arguments of a scorer: what BatchNorm statistics are computed over.

    >>> [len(batch["heads"]) for batch in batches_of(Tails(torch.tensor([[0, 0, 1], [1, 0, 1], [2, 0, 1]])), 2)]
    [2, 1]
    """
    for piece in torch.split(tails.pairs, batch_size):
        yield {"heads": piece[:, 0], "relations": piece[:, 1]}


def loss_of(scores: Tensor, rows: Tensor, columns: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Return the loss of scores (B, entities) whose true answers stand at rows and columns, (T,) each.

    >>> loss_of(torch.zeros(1, 2), torch.tensor([0]), torch.tensor([1]))
    tensor(0.6931)
    """
    true = (1 - smoothing) * scores[rows, columns].sum()
    if smoothing:
        true = true + smoothing / scores.shape[1] * scores.sum()
    return (softplus(scores).sum() - true) / scores.numel()
