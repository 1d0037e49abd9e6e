"""Scoring functions of PyKEEN (Ali et al. 2021, arXiv 2007.14175), which score all entities as tails at once.

    DistMult   <h, r, t>               Yang et al. 2015, arXiv 1412.6575
    ComplEx    Re <h, r, conj(t)>      Trouillon et al. 2016, arXiv 1606.06357
    QuatE      -<h * r / |r|, t>       Zhang et al. 2019, arXiv 1904.10281 (PyKEEN keeps the sign of the released code)

In these three the tail enters linearly, so the scores of all entities are one matrix product; it equals PyKEEN's own
`score_t`, which makes a tensor of batch, entities and dimension. Other models of PyKEEN go by that method.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .graphs import Graph

LINEAR = ("distmult", "complex", "quate")


class Scorer(nn.Module):
    """A model of PyKEEN over a graph's entities, its relations, and its relations read backwards.

    Relation r + relations is the inverse of r. Weights are drawn from torch's global generator. DistMult, ComplEx and
    QuatE have no constraint and no penalty on their embeddings, and start normal; other models are as PyKEEN sets them.

    Args:
        name: as PyKEEN calls the model, such as "complex" or "tucker".
        dimension: real numbers per entity: a multiple of 2 for ComplEx, of 4 for QuatE. Other models get it as their
            `embedding_dim`.
        spread: standard deviation of the initial embeddings of DistMult, ComplEx and QuatE.

    Raises:
        ImportError: PyKEEN is not installed.
        ValueError: PyKEEN has no such model, or it cannot be built from these arguments.

    >>> from lowland.studies.links.graphs import graph_of
    >>> graph = graph_of("tiny", [("a", "r", "b")], [("b", "r", "a")], [("b", "r", "b")])
    >>> Scorer("complex", graph, dimension=4)(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1])).shape
    torch.Size([3, 2])
    """

    def __init__(self, name: str, graph: Graph, *, dimension: int = 64, spread: float = 0.1) -> None:
        super().__init__()
        parts = {"complex": 2, "quate": 4}.get(name, 1)
        if dimension < 1 or dimension % parts:
            raise ValueError(f"the dimension of {name} must be a multiple of {parts}, got {dimension}")
        self.name = name
        self.model = _built(name, graph, dimension // parts, partial(nn.init.normal_, std=spread))

    def forward(self, heads: Tensor, relations: Tensor) -> Tensor:
        """Score every entity as the tail of heads (B,) and relations (B,): logits (B, entities)."""
        if self.name not in LINEAR:
            scores: Tensor = self.model.score_t(torch.stack([heads, relations], dim=1))
            return scores
        h = self.model.entity_representations[0](indices=heads)  # (B, d) or, of QuatE, (B, d, 4)
        r = self.model.relation_representations[0](indices=relations)
        t = self.model.entity_representations[0](indices=None)  # (E, d) or (E, d, 4)
        if self.name == "quate":
            asked = -torch.einsum("bdij,ijk->bdk", h.unsqueeze(3) * r.unsqueeze(2), self.model.interaction.table)
        else:
            asked = h * r
        if asked.is_complex():  # Re(a conj(b)) is the inner product of real and imaginary parts
            asked, t = torch.view_as_real(asked), torch.view_as_real(t)
        scores = asked.flatten(1) @ t.flatten(1).T
        return scores

    def penalty(self) -> Tensor | float:
        """What PyKEEN adds to the loss for this model; zero where nothing is."""
        penalty: Tensor | float = self.model.collect_regularization_term()
        return penalty

    def constrain_(self) -> None:
        """Put the weights back where the model wants them, after a step of the optimiser."""
        self.model.post_parameter_update()


def _built(name: str, graph: Graph, dimension: int, start: Any) -> Any:
    try:
        from pykeen.models import model_resolver
        from pykeen.triples import CoreTriplesFactory
        from pykeen.utils import NoRandomSeedNecessary
    except ImportError as error:
        raise ImportError("link prediction needs PyKEEN: pip install 'lowland[links]'") from error
    known = sorted(model_resolver.lookup_dict)
    if name not in known:
        raise ValueError(f"PyKEEN has no model {name!r}: it has {', '.join(known)}")
    starts = {"entity_initializer": start, "relation_initializer": start}
    options: dict[str, dict[str, Any]] = {
        "distmult": {"entity_constrainer": None, "regularizer": None, **starts},
        "complex": {"regularizer": None, **starts},
        "quate": {"entity_regularizer": None, "relation_regularizer": None, **starts},
    }
    model: Any = model_resolver.lookup_dict[name]  # each takes options of its own
    triples = CoreTriplesFactory(graph.both_ways, len(graph.entities), 2 * len(graph.relations))
    try:
        return model(
            triples_factory=triples,
            random_seed=NoRandomSeedNecessary,
            embedding_dim=dimension,
            **options.get(name, {}),
        )
    except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
        reason = re.sub(r"\s+", " ", str(error))
        raise ValueError(
            f"PyKEEN's {name} cannot be built for {graph.name} with dimension {dimension}: {reason}"
        ) from None
