"""One forward pass over several adapters: the rows of a batch, once for each adapter, side by side.

The base model runs as if on a batch of n B rows; each layer that a draw names multiplies the rows of a draw with that
draw's own weights (`lowland.predict.plans.stacked`). The values are those of n separate passes, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...predict.plans.nested import Opaque
from ...predict.plans.places import Held, Places
from ...predict.plans.prefix import Memo
from ...predict.plans.stacked import Stack, Unstackable
from ...weights.named import Weights
from ...weights.running import call, evaluating, unwrapped


@torch.no_grad()
def forward_adapters(
    model: nn.Module,
    draws: Weights | Sequence[Weights],
    batch: object,
    *,
    forward: Callable[[nn.Module, Any], object] | None = None,
) -> Tensor:
    """Return what the model says of one batch under each of n draws, (n, B, ...), from one pass.

    The model's first axis is that of the batch, from the input to the output. It runs in eval mode and is left as it
    was. For a whole set of data and the scores of the average see `predict`.

    Args:
        draws: named weights, each with a leading axis of n, as `sample(n)` gives; or a list of n.
        batch: a tensor, a tuple that starts with one, or a mapping of tensors, (B, ...) each.
        forward: gets the model and the batch of n B rows, and returns n B rows.

    Raises:
        ValueError: the draws differ in number or names, or cannot share a pass, as those of DoRA, which reads the
            factors past their layers: use `predict`.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> forward_adapters(model, {"weight": torch.tensor([[[1.0]], [[2.0]]])}, torch.tensor([[3.0], [5.0]])).squeeze(-1)
    tensor([[ 3.,  5.],
            [ 6., 10.]])
    """
    points = _points(draws)
    number, inner = len(points), unwrapped(model, compiled=True)
    places = Places(inner, points[0])
    try:
        if places.obstacle:
            raise Unstackable(places.obstacle)
        stack = Stack(places, Memo(places))
        rows = stack.rows(batch, _rows(batch))
        held = Held(places, number)
        for point in points:
            held.add(point)
        with evaluating(inner), stack.several(held, 0, number, rows):
            output = (call if forward is None else forward)(inner, stack.repeat(batch, number))
    except (Unstackable, Opaque) as reason:
        raise ValueError(
            f"these draws cannot share a pass, as those of DoRA and of layers with hooks cannot ({reason}): use "
            "lowland.predict, which makes one for each"
        ) from None
    output = getattr(output, "logits", output)
    output = output[0] if isinstance(output, tuple) else output
    if not isinstance(output, Tensor) or output.shape[:1] != (number * rows,):
        raise ValueError(f"the model must return a tensor of n B rows, or have one as `logits`, got {type(output)}")
    if not bool(torch.isfinite(output).all()):
        raise ValueError(
            "the output is not finite: the weights are not, or the model reads drawn weights past the layers that hold "
            "them, as DoRA does; use lowland.predict, which makes a pass for each draw"
        )
    return output.reshape(number, rows, *output.shape[1:])


def _points(draws: Weights | Sequence[Weights]) -> list[Weights]:
    if not draws:
        raise ValueError("there are no draws: pass sample(n), or a list of named weights")
    if not isinstance(draws, Mapping):
        return list(draws)
    numbers = {len(tensor) if tensor.dim() else 0 for tensor in draws.values()}
    if len(numbers) != 1 or 0 in numbers:
        raise ValueError(f"every drawn tensor needs the same leading axis of n draws, got lengths {sorted(numbers)}")
    return [{name: tensor[index] for name, tensor in draws.items()} for index in range(*numbers)]


def _rows(batch: object) -> int | None:
    """The length of the first tensor of a batch."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else None
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else ()
    return next((rows for part in parts if (rows := _rows(part)) is not None), None)
