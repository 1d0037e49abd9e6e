"""Low-rank adapters folded into the layers that they adapt, once per draw: one product a layer instead of three.

    W = W_0 + sum over active adapters of scaling * B A    (Hu et al., 2021, arXiv:2106.09685)

Layers are known by their attributes, as PEFT's linear LoRA layer has them; PEFT itself is not imported. Layers with any
variant (DoRA and others), a bias in the adapter, mixed dtypes, or adapters merged or switched off are not folded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...weights.named import Weights, bare_name
from .places import Places


@dataclass
class _Layer:
    module: Any
    base: nn.Linear
    frozen: Tensor  # W_0
    frozen_name: str | None  # where the draws name W_0 too
    pairs: list[tuple[nn.Linear, nn.Linear, float]]  # A, B, scaling


class Folded:
    """A model's adapters, and draws in which they are folded into the weights of the layers below.

    Args:
        places: where unfolded draws go; the adapters' tensors must be among them.

    Attributes:
        places: where folded draws go.

    Raises:
        ValueError: there is no layer whose adapter can be folded, or a sampled adapter that cannot.
    """

    def __init__(self, places: Places) -> None:
        names = {id(tensor): name for name, tensor in places.tensors.items()}
        self._plain = places
        self._names = names
        self.layers: list[_Layer] = []
        for module in places.model.modules():
            if hasattr(module, "base_layer") and hasattr(module, "lora_A") and hasattr(module, "lora_B"):
                adapter = [*module.lora_A.parameters(), *module.lora_B.parameters()]  # type: ignore[union-attr]
                if any(id(tensor) in names for tensor in adapter):
                    self.layers.append(_layer(module, names))
        if not self.layers:
            raise ValueError("no sampled tensor belongs to a low-rank adapter")
        owners = Counter(id(tensor) for module in places.model.modules() for tensor in module._parameters.values())
        if any(owners[id(layer.base.weight)] > 1 for layer in self.layers):
            raise ValueError("an adapted weight is used by another layer too")
        gone = {id(linear.weight) for layer in self.layers for pair in layer.pairs for linear in pair[:2]}
        kept = {name: tensor for name, tensor in places.tensors.items() if id(tensor) not in gone}
        bases = {id(layer.base.weight) for layer in self.layers}
        named = {bare_name(name): tensor for name, tensor in places.model.named_parameters()}
        weights = {name: tensor for name, tensor in named.items() if id(tensor) in bases}
        self._targets = {id(tensor): name for name, tensor in weights.items()}
        self.places = Places(places.model, {**kept, **weights})
        self._kept = list(kept)
        self._scratch = {name: torch.empty_like(tensor) for name, tensor in weights.items()}

    def fold(self, weights: Weights) -> dict[str, Tensor]:
        """Return the draw with its adapters folded in; the memory is used again by the next call."""
        out = {name: weights[name] for name in self._kept}
        for layer in self.layers:
            target = self._scratch[self._targets[id(layer.base.weight)]]
            start = layer.frozen if layer.frozen_name is None else weights[layer.frozen_name]
            for down, up, scaling in layer.pairs:
                a, b = self._of(down, weights), self._of(up, weights)
                torch.addmm(start, b.to(start.dtype), a.to(start.dtype), alpha=scaling, out=target)
                start = target
            out[self._targets[id(layer.base.weight)]] = target
        return out

    @contextmanager
    def without_adapters(self) -> Iterator[None]:
        """Run a block in which the adapted layers are their base layers."""
        try:
            for layer in self.layers:
                layer.module.__dict__["forward"] = _base_only(layer.base)
            yield
        finally:
            for layer in self.layers:
                layer.module.__dict__.pop("forward", None)

    def _of(self, linear: nn.Linear, weights: Weights) -> Tensor:
        name = self._names.get(id(linear.weight))
        return linear.weight.detach() if name is None else weights[name]


def _layer(module: Any, names: dict[int, str]) -> _Layer:
    base = module.base_layer
    active = list(getattr(module, "active_adapters", ()))
    variants = {
        **getattr(module, "lora_variant", {}),
        **{k: v for k, v in getattr(module, "use_dora", {}).items() if v},
    }
    known = [name for name in active if name in module.lora_A]
    pairs = [(module.lora_A[name], module.lora_B[name], module.scaling[name]) for name in known]
    plain = (
        type(base) is nn.Linear
        and bool(pairs)
        and not (module.disable_adapters or module.merged or getattr(module, "fan_in_fan_out", False))
        and not any(name in variants for name in known)
        and "forward" not in module.__dict__
        and all(type(part) is nn.Linear and part.bias is None for pair in pairs for part in pair[:2])
        and all(part.weight.dtype == base.weight.dtype for pair in pairs for part in pair[:2])
        and not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    )
    if not plain:
        raise ValueError(f"an adapter on a {type(base).__name__} is of a kind that cannot be folded")
    return _Layer(module, base, base.weight.detach(), names.get(id(base.weight)), pairs)


def _base_only(base: nn.Linear) -> Callable[..., Tensor]:
    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output: Tensor = base(x, *args, **kwargs)
        return output

    return forward
