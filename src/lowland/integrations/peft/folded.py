"""Low-rank adapters folded into the layers that they adapt, for a model without adapters: one product a layer, not
three.

    W = W_0 + sum over active adapters of scaling * B A    (Hu et al., 2021, arXiv:2106.09685)

Folding starts from W_0 each time, so that no rounding piles up from one draw to the next. Layers are known by their
attributes, as PEFT's linear LoRA layer has them; PEFT itself is not imported. Layers with any variant (DoRA and
others), a bias in the adapter, mixed dtypes, or adapters merged or switched off are not folded.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...averager.posteriors import Drawable, Posterior, check_draws, draws, members_of
from ...weights.named import Weights, bare_name

_ADDED = re.compile(r"(^base_model\.model\.)|(\.base_layer(?=\.))|(\.modules_to_save\.[^.]+(?=\.))")


@dataclass
class _Layer:
    target: str  # the weight's name in a model without adapters
    base: nn.Linear
    base_name: str | None  # where the draws name W_0 too
    pairs: list[tuple[nn.Linear, nn.Linear, float]]  # A, B, scaling


class Folded:
    """A posterior over a model's adapters, as one over the weights of the same model without adapters.

    Args:
        model: with adapters; its frozen weights are read, and not changed.
        posterior: what names some or all of the adapters' tensors, and maybe others; or weights that do.

    Raises:
        ValueError: no sampled tensor belongs to an adapter, or there is an adapter that cannot be folded.
        RuntimeError: the posterior has no weights yet.
    """

    def __init__(self, model: nn.Module, posterior: Drawable) -> None:
        self.posterior = posterior
        first = next(iter(draws(posterior, 1, torch.Generator())))
        parameters = {bare_name(name): tensor for name, tensor in model.named_parameters(remove_duplicate=False)}
        self._names = {id(parameters[name]): name for name in first if name in parameters}
        # Adapters that no draw names are folded in too: the model without adapters would lack them.
        self._layers = [
            _layer(module, bare_name(path), self._names)
            for path, module in model.named_modules()
            if hasattr(module, "base_layer") and hasattr(module, "lora_A") and hasattr(module, "lora_B")
        ]
        factors = {id(linear.weight) for layer in self._layers for pair in layer.pairs for linear in pair[:2]}
        if not factors & self._names.keys():
            raise ValueError("no sampled tensor belongs to a low-rank adapter")
        owners = Counter(id(tensor) for module in model.modules() for tensor in module._parameters.values())
        if any(owners[id(layer.base.weight)] > 1 for layer in self._layers):
            raise ValueError("an adapted weight is used by another layer too")
        gone = factors | {id(layer.base.weight) for layer in self._layers}
        self._kept = {
            name: plain_name(name) for name in first if name not in parameters or id(parameters[name]) not in gone
        }

    @torch.no_grad()
    def fold(self, weights: Weights, out: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return a draw by the names of a model without adapters; in new tensors, or in those of `out`."""
        made = {
            plain: weights[name] if out is None else out[plain].copy_(weights[name])
            for name, plain in self._kept.items()
        }
        for layer in self._layers:
            start = layer.base.weight.detach() if layer.base_name is None else weights[layer.base_name]
            target = torch.empty_like(layer.base.weight) if out is None else out[layer.target]
            for down, up, scaling in layer.pairs:
                a, b = self._of(down, weights), self._of(up, weights)
                start = torch.addmm(start, b.to(start.dtype), a.to(start.dtype), alpha=scaling, out=target)
            made[layer.target] = target
        return made

    def sample(self, samples: int | None = None, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Draw from the posterior and fold; with `samples` every tensor gains a leading axis of so many draws."""
        made = list(self.draws(1 if samples is None else samples, generator=generator))
        return made[0] if samples is None else {name: torch.stack([w[name] for w in made]) for name in made[0]}

    def draws(self, samples: int, *, generator: torch.Generator | None = None) -> Iterator[dict[str, Tensor]]:
        """Yield the posterior's draws, folded, one at a time."""
        check_draws(samples, generator)
        if isinstance(self.posterior, Posterior):
            return (self.fold(weights) for weights in draws(self.posterior, samples, generator))
        (point,) = members_of(self.posterior) or ()
        return (self.fold(point) for _ in range(samples))

    def members(self) -> list[Weights] | None:
        """Return the points of a finite posterior, folded; None if there are infinitely many."""
        points = members_of(self.posterior)
        return None if points is None else [self.fold(point) for point in points]

    def _of(self, linear: nn.Linear, weights: Weights) -> Tensor:
        name = self._names.get(id(linear.weight))
        return linear.weight.detach() if name is None else weights[name]


def plain_name(name: str) -> str:
    """Return a tensor's name in the model without PEFT's wrappers.

    >>> plain_name("base_model.model.layer.query.base_layer.bias"), plain_name("head.modules_to_save.default.weight")
    ('layer.query.bias', 'head.weight')
    """
    return _ADDED.sub("", name)


def _layer(module: Any, path: str, names: Mapping[int, str]) -> _Layer:
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
        and all(type(part) is nn.Linear and part.bias is None for pair in pairs for part in pair[:2])
        and all(part.weight.dtype == base.weight.dtype for pair in pairs for part in pair[:2])
    )
    if not plain:
        raise ValueError(f"an adapter on a {type(base).__name__} is of a kind that cannot be folded")
    return _Layer(plain_name(f"{path}.weight"), base, names.get(id(base.weight)), pairs)
