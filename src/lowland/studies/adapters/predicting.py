"""Predictions of a study: `lowland.predict` over a posterior of folded adapters, on several sets of items at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowland import predict
from lowland.averager import Drawable
from lowland.integrations.peft.folded import Folded
from lowland.predict import one_by_one
from lowland.weights import Weights

from .classifier import AdaptedClassifier
from .tokens import Batch, Corpus

CLOSE = 1e-4  # nats a text: the KL divergence below which products in bfloat16 are taken
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
    products: str = "float32",
) -> dict[str, Predicted]:
    """Predict all sets under the same draws; `done` hears how many items are through.

    `products` is the type in which matrices are multiplied; sums, norms and softmax stay in float32.

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
        with torch.autocast(device.type, torch.bfloat16, enabled=products == "bfloat16"):
            logits: Tensor = model(**{key: tensor.to(device) for key, tensor in batch.items()})["logits"].float()
        if name not in votes:
            votes[name] = torch.zeros(len(sets[name]), logits.shape[1], dtype=torch.float64)
        votes[name][list(rows), logits.argmax(1).cpu()] += 1
        if done is not None:
            done(len(rows))
        # An answer that a question does not offer has minus infinity. The exponential of -10,000 is zero as well, and
        # `predict` can go on refusing outputs that are not finite.
        return logits.masked_fill(logits == float("-inf"), -1e4)

    with one_by_one():  # each batch comes exactly once for each draw, which is what is counted here
        found = predict(
            adapted.merged,
            Folded(adapted.model, posterior),
            items,
            samples=samples,
            forward=forward,
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


def fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in instructions of its own (elsewhere they are no gain)."""
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def products_for(adapted: AdaptedClassifier, weights: Weights, corpus: Corpus, batch_size: int) -> dict[str, Any]:
    """Return the type for products, and what the choice rests on: the mean KL divergence from float32, in nats a text.

    bfloat16 where the processor has it and the probabilities stay what they are: compared on every fourth batch.
    """
    if not fast_bfloat16() or next(adapted.merged.parameters()).device.type != "cpu":
        return {"products": "float32", "kl": None}
    adapted.write(weights)
    total, count = 0.0, 0
    for _, batch in corpus.batches(batch_size)[::-4]:  # the longest texts among them
        with torch.inference_mode():
            exact = torch.log_softmax(adapted.merged(**batch)["logits"].double(), -1)
            with torch.autocast("cpu", torch.bfloat16):
                rough = adapted.merged(**batch)["logits"]
            rough = torch.log_softmax(rough.double(), -1)
        total += float((exact.exp() * (exact - rough)).sum())
        count += len(exact)
    kl = total / count
    return {"products": "bfloat16" if kl < CLOSE else "float32", "kl": kl}
