"""Frozen lower layers of an encoder, computed once per text.

Where adapters sit in the upper layers only, what reaches the first adapted layer is the same in every epoch and for
every draw of the weights. It is recorded once by a hook on that layer; then the layers below are replaced by ones that
pass their input on, and the record takes its place at the layer's door.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .tokens import Tokens


class _PassOn(nn.Module):
    """Stands where a frozen layer was, and returns what it was given, in the form that the layer returned."""

    def __init__(self, as_tuple: bool) -> None:
        super().__init__()
        self.as_tuple = as_tuple

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (hidden_states,) if self.as_tuple else hidden_states


def layers_of(encoder: nn.Module) -> nn.ModuleList:
    """Return the stack of layers of an encoder.

    Raises:
        ValueError: there is none, or more than one.
    """
    count = getattr(getattr(encoder, "config", None), "num_hidden_layers", None)
    stacks = [m for m in encoder.modules() if isinstance(m, nn.ModuleList) and len(m) > 1]
    fitting = [stack for stack in stacks if count is None or len(stack) == count]
    if len(fitting) != 1:
        raise ValueError(
            f"the lower layers of {type(encoder).__name__} cannot be cached (its stack of layers was not found): "
            'set lora.layers = "all"'
        )
    return fitting[0]


def skip_lower_layers(model: Any, lowest: int) -> None:
    """Replace the layers below `lowest` of `model.encoder` and feed `model.given` to that layer instead."""
    layers = layers_of(model.encoder)
    for index in range(lowest):
        layers[index] = _PassOn(bool(getattr(model.encoder, "_lowland_tuples", False)))

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if model.given is None:
            raise RuntimeError("the lower layers were replaced: this batch must bring their hidden states")
        if args:
            return (model.given, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": model.given}

    layers[lowest].register_forward_pre_hook(enter, with_kwargs=True)


class _Reached(Exception):
    """Raised at the first adapted layer: nothing above it is needed."""


@torch.no_grad()
def record_lower_layers(encoder: nn.Module, lowest: int, tokens: Tokens, batch_size: int) -> None:
    """Compute what reaches layer `lowest` for every text and keep it in `tokens.hidden`.

    Raises:
        ValueError: the encoder hands its layers something else than hidden states (B, L, H).
    """
    layers = layers_of(encoder)
    caught: list[Tensor] = []

    def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states = args[0] if args else kwargs.get("hidden_states")
        if isinstance(states, Tensor):
            caught.append(states)
        raise _Reached

    def note(module: nn.Module, args: Any, output: Any) -> None:
        encoder._lowland_tuples = isinstance(output, tuple)  # type: ignore[assignment]

    device = next(encoder.parameters()).device
    handles = [layers[lowest].register_forward_pre_hook(catch, with_kwargs=True), layers[0].register_forward_hook(note)]
    hidden: list[Tensor] = [torch.empty(0)] * len(tokens)
    encoder.eval()
    try:
        for rows, batch in tokens.batches(batch_size):
            caught.clear()
            try:
                encoder(**{name: tensor.to(device) for name, tensor in batch.items()})
            except _Reached:
                pass
            if not caught or caught[0].shape[:2] != batch["input_ids"].shape:
                raise ValueError(
                    f"the lower layers of {type(encoder).__name__} cannot be cached (they take other inputs than "
                    'hidden states): set lora.layers = "all"'
                )
            for place, row in enumerate(rows):
                hidden[row] = caught[0][place, : len(tokens.ids[row])].clone()
    finally:
        for handle in handles:
            handle.remove()
    tokens._sorted.clear()
    tokens.hidden = hidden
