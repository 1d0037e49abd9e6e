"""One forward pass over several adapters: the rows of a batch, once for each adapter, side by side.

The base model runs as if on a batch of n B rows; each adapted layer multiplies the rows of a draw with that draw's own
weights (one batched product for all). The values are those of n separate passes, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...weights.named import Weights, bare_name
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
        draws: named weights of linear layers, each with a leading axis of n, as `sample(n)` gives; or a list of n.
        batch: a tensor, a tuple that starts with one, or a mapping of tensors, (B, ...) each.
        forward: gets the model and the batch of n B rows, and returns n B rows.

    Raises:
        ValueError: a drawn tensor is no weight or bias of a linear layer (DoRA's magnitudes, normalisations,
            embeddings: use `predict`, which makes a pass for each draw), or the draws differ in number.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> forward_adapters(model, {"weight": torch.tensor([[[1.0]], [[2.0]]])}, torch.tensor([[3.0], [5.0]])).squeeze(-1)
    tensor([[ 3.,  5.],
            [ 6., 10.]])
    """
    stacked = _stacked(draws)
    number = len(next(iter(stacked.values())))
    inner = unwrapped(model, compiled=True)
    with evaluating(inner), _hooked(inner, stacked, number):
        output = (call if forward is None else forward)(inner, _repeated(batch, number))
    output = getattr(output, "logits", output)
    output = output[0] if isinstance(output, tuple) else output
    if not isinstance(output, Tensor) or output.shape[0] % number:
        raise ValueError(f"the model must return a tensor of n B rows, or have one as `logits`, got {type(output)}")
    return output.reshape(number, -1, *output.shape[1:])


def _stacked(draws: Weights | Sequence[Weights]) -> dict[str, Tensor]:
    if not draws:
        raise ValueError("there are no draws: pass sample(n), or a list of named weights")
    if not isinstance(draws, Mapping):
        draws = {name: torch.stack([weights[name] for weights in draws]) for name in draws[0]}
    numbers = {len(tensor) if tensor.dim() else 0 for tensor in draws.values()}
    if len(numbers) != 1 or 0 in numbers:
        raise ValueError(f"every drawn tensor needs the same leading axis of n draws, got lengths {sorted(numbers)}")
    return dict(draws)


def _repeated(batch: object, number: int) -> object:
    """The rows of the batch once for each draw: those of the first draw come first."""
    if isinstance(batch, Tensor):
        return batch.repeat(number, *[1] * (batch.dim() - 1)) if batch.dim() else batch
    if isinstance(batch, Mapping):
        return {name: _repeated(value, number) for name, value in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(_repeated(value, number) for value in batch)
    return batch


@contextmanager
def _hooked(model: nn.Module, stacked: Mapping[str, Tensor], number: int) -> Iterator[None]:
    own: dict[int, dict[str, Tensor]] = {}
    modules: dict[int, nn.Linear] = {}
    left = set(stacked)
    for path, module in model.named_modules():
        if getattr(module, "lora_variant", None):
            # DoRA and its like read the factors themselves, past any layer of their own.
            raise ValueError(f"{path} is a variant of LoRA such as DoRA, whose draws cannot share a pass: use predict")
        if not isinstance(module, nn.Linear):
            continue
        for part in ("weight", "bias"):
            name = bare_name(f"{path}.{part}" if path else part)
            if name in left:
                own.setdefault(id(module), {})[part] = stacked[name]
                modules[id(module)] = module
                left.discard(name)
    if left:
        raise ValueError(
            f"{sorted(left)[:5]} are no weights or biases of linear layers, so draws of them cannot share a pass: use "
            "lowland.predict, which makes one for each"
        )
    handles = [module.register_forward_hook(_product(own[key], number)) for key, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _product(draws: Mapping[str, Tensor], number: int) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        x: Tensor = inputs[0]
        if x.shape[0] % number:
            raise ValueError(f"a layer got {x.shape[0]} rows for {number} draws: its first axis is not the batch's")
        weight, bias = draws.get("weight"), draws.get("bias")
        rows = x.reshape(number, -1, x.shape[-1])  # (n, B ..., in)
        if weight is None:
            product = nn.functional.linear(rows, module.get_parameter("weight"))
        else:
            product = torch.bmm(rows, weight.to(rows.device, rows.dtype).transpose(1, 2))
        if bias is not None:
            product = product + bias.to(rows.device, rows.dtype)[:, None]
        elif getattr(module, "bias", None) is not None:
            product = product + module.get_parameter("bias")
        return product.reshape(output.shape)

    return hook
