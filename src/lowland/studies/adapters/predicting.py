"""Predictions of a study: `lowland.predict` over a posterior of folded adapters, on several sets of items at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowland import predict
from lowland.averager import Drawable
from lowland.integrations.peft.folded import Folded

from .classifier import AdaptedClassifier
from .tokens import Batch, Corpus

Item = tuple[str, Sequence[int], Batch]  # a batch, the set that it is of, and its rows there


@dataclass(frozen=True)
class Predicted:
    """What the draws say of one set, in the order of its items; float64."""

    probs: Tensor  # (N, C) mean over draws
    expected_entropy: Tensor  # (N,) mean over draws of the entropy of each
    votes: Tensor  # (N, C) share of the draws that find a class most probable


def predicted(
    adapted: AdaptedClassifier,
    posterior: Drawable,
    sets: Mapping[str, Corpus],
    batch_size: int,
    *,
    samples: int | None = None,
    done: Callable[[int], None] | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Predicted]:
    """Predict all sets under the same draws; `done` hears how many items are through.

    Raises:
        ValueError: a set is empty.
    """
    empty = [name for name, corpus in sets.items() if not len(corpus)]
    if empty:
        raise ValueError(f"there is nothing to classify in {empty}")
    items = [(name, rows, batch) for name, corpus in sets.items() for rows, batch in corpus.batches(batch_size)]
    device = next(adapted.merged.parameters()).device
    votes: dict[str, Tensor] = {}

    def forward(model: nn.Module, item: Item) -> Tensor:
        name, rows, batch = item
        logits: Tensor = model(**{key: tensor.to(device) for key, tensor in batch.items()})["logits"]
        if name not in votes:
            votes[name] = torch.zeros(len(sets[name]), logits.shape[1], dtype=torch.float64)
        votes[name][list(rows), logits.argmax(1).cpu()] += 1
        if done is not None:
            done(len(rows))
        # An answer that a question does not offer has minus infinity. The exponential of -10,000 is zero as well, and
        # `predict` can go on refusing outputs that are not finite.
        return logits.masked_fill(logits == float("-inf"), -1e4)

    # The loop brings each batch exactly once for each draw, which is what is counted here.
    found = predict(
        adapted.merged,
        Folded(adapted.model, posterior),
        items,
        samples=samples,
        forward=forward,
        plan="loop",
        generator=generator,
    )
    result, begun = {}, 0
    for name in sets:
        order = torch.tensor([row for other, rows, _ in items if other == name for row in rows])
        part = slice(begun, begun + len(order))
        probs, entropies = torch.empty_like(found.probs[part]), torch.empty_like(found.expected_entropy[part])
        probs[order], entropies[order] = found.probs[part], found.expected_entropy[part]
        result[name] = Predicted(probs, entropies, votes[name] / found.samples)
        begun += len(order)
    return result
