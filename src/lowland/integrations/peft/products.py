"""Averages of LoRA adapters (Hu et al. 2021, arXiv 2106.09685): of the factors, or of what they multiply to.

An adapter adds scaling * B A to a weight. Over adapters (A_i, B_i), i = 1..n:

    factors    mean(B) mean(A)              rank r; what averaging weights by name gives, and SWAG-LoRA's mean
    products   mean(B A) = 1/n [B_1 .. B_n] [A_1; ..; A_n]      rank n r, exact; or the nearest of a lower rank (SVD)

The two differ, since A -> R A, B -> B R^-1 changes the factors and not the adapter: little within one run, where the
factors stay close, and much between runs. The gap is |mean(B A) - mean(B) mean(A)| / |mean(B A)|, in the Frobenius norm
over all layers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...weights.named import Weights, applied, bare_name, check_same
from .folders import active_adapter, bare_peft, check_saved, read_adapter, saved_config, saved_keys, write_folder

Member = Weights | str | os.PathLike[str]
Factors = tuple[Tensor, Tensor]  # B: (out, k), A: (k, in), in float64


@dataclass(frozen=True)
class AdapterAverage:
    """An average of adapters that was written to a folder.

    Attributes:
        folder: where it lies, as PEFT writes adapters.
        rank: its largest rank.
        error: its distance to the exact mean of products, relative to that mean.
        gap: the same distance for the product of the averaged factors.
    """

    folder: Path
    rank: int
    error: float
    gap: float


def average_adapters(
    model: nn.Module,
    adapters: Iterable[Member],
    folder: str | os.PathLike[str],
    *,
    space: Literal["factors", "products"] = "factors",
    rank: int | None = None,
) -> AdapterAverage:
    """Write the equal average of several LoRA adapters as an adapter that PEFT loads.

    What is no factor (layers in modules_to_save, biases) is averaged as it is.

    Args:
        model: a PEFT model of the adapters' kind; it is left as it was.
        adapters: named weights (such as `Snapshots.members()`), or folders of adapters.
        space: "factors" averages A and B apart; "products" averages what they multiply to.
        rank: of the result for "products"; None keeps the exact mean at rank n r.

    Raises:
        ValueError: there are no adapters, they differ in kind, or the adapter is none whose products can be averaged:
            DoRA and other variants of LoRA, convolutions, adapters whose initialisation changes the base weights.
    """
    inner = bare_peft(model)
    if space not in ("factors", "products"):
        raise ValueError(f'space must be "factors" or "products", got {space!r}')
    if rank is not None and (space == "factors" or rank < 1):
        raise ValueError(f'rank is for space="products" and at least 1, got {rank} for {space!r}')
    members = _members(inner, adapters)
    mean = {name: torch.stack([weights[name].double() for weights in members]).mean(0) for name in members[0]}
    layers = _layers(inner)
    exact = {path: _concatenated(layer, members) for path, layer in layers.items()}
    plain = {path: _concatenated(layer, [mean]) for path, layer in layers.items()}
    gap = _distance(exact, plain)
    keys = saved_keys(inner)
    with torch.no_grad(), applied(inner, mean):
        own = {bare_name(name): tensor for name, tensor in (*inner.named_parameters(), *inner.named_buffers())}
        state = {key: own[name].detach().cpu().clone().contiguous() for key, name in keys.items()}
    config: Any = saved_config(inner)  # of LoRA, as `_layers` has checked
    if space == "factors":
        return AdapterAverage(
            write_folder(state, config, folder), max(layer.rank for layer in layers.values()), gap, gap
        )
    chosen = exact if rank is None else {path: _nearest(factors, rank) for path, factors in exact.items()}
    by_name = {name: key for key, name in keys.items()}
    ranks = {}
    for path, layer in layers.items():
        b, a = chosen[path]
        ranks[path.removeprefix("base_model.model.")] = a.shape[0]
        state[by_name[layer.a]] = a.to(state[by_name[layer.a]].dtype).contiguous()
        state[by_name[layer.b]] = b.to(state[by_name[layer.b]].dtype).contiguous()
        if layer.bias is not None:
            key = by_name[layer.bias]
            state[key] = (mean[layer.bias] * layer.scaling).to(state[key].dtype).cpu()
    # The scaling is inside the factors now: alpha / r is 1 in every layer.
    config.use_rslora, config.init_lora_weights = False, True
    config.r = config.lora_alpha = max(ranks.values())
    config.rank_pattern = {path: r for path, r in ranks.items() if r != config.r}
    config.alpha_pattern = dict(config.rank_pattern)
    return AdapterAverage(write_folder(state, config, folder), config.r, _distance(exact, chosen), gap)


def product_gap(model: nn.Module, adapters: Iterable[Member]) -> float:
    """Return how far the product of the averaged factors is from the mean of the products, relative to that mean.

    Raises:
        ValueError: as `average_adapters`.
    """
    inner = bare_peft(model)
    members = _members(inner, adapters)
    mean = {name: torch.stack([weights[name].double() for weights in members]).mean(0) for name in members[0]}
    layers = _layers(inner)
    exact = {path: _concatenated(layer, members) for path, layer in layers.items()}
    return _distance(exact, {path: _concatenated(layer, [mean]) for path, layer in layers.items()})


@dataclass(frozen=True)
class _Layer:
    """The names of one layer's factors."""

    a: str
    b: str
    bias: str | None
    scaling: float
    rank: int


def _members(model: nn.Module, adapters: Iterable[Member]) -> list[Weights]:
    members = [read_adapter(model, m) if isinstance(m, str | os.PathLike) else m for m in adapters]
    if not members:
        raise ValueError("an average needs at least one adapter, got none")
    # Named weights may leave out what was not trained; the model has it.
    check_saved(model, members[0])
    for member in members[1:]:
        check_same(members[0], member, what="the adapters of an average")
    return [{name: tensor.detach().cpu() for name, tensor in member.items()} for member in members]


def _layers(model: Any) -> dict[str, _Layer]:
    """The LoRA layers of the active adapter, by their path."""
    from peft.tuners.lora import LoraLayer

    adapter = active_adapter(model)
    config = model.peft_config[adapter]
    if str(getattr(config.peft_type, "value", config.peft_type)) != "LORA":
        raise ValueError(f"products are LoRA's; this adapter is {config.peft_type}: average its weights by name")
    if getattr(config, "target_parameters", None):
        raise ValueError("products of target_parameters (LoRA on bare parameters) cannot be averaged")
    if not isinstance(config.init_lora_weights, bool) and config.init_lora_weights not in ("gaussian", "orthogonal"):
        raise ValueError(
            f"init_lora_weights={config.init_lora_weights!r} changes the base weights, so that an adapter of another "
            'rank would not fit them: use space="factors"'
        )
    found = {}
    for path, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        inside = [name for name in ("lora", "lora_embedding") if adapter in getattr(module, f"{name}_A")]
        if not inside:
            continue
        variant = getattr(module, "lora_variant", {}).get(adapter)
        if variant is not None:
            name = type(variant).__name__
            raise ValueError(
                f"{path} is a variant of LoRA ({name}; DoRA is one), which is not linear in the product B A: "
                'use space="factors"'
            )
        if isinstance(module.get_base_layer(), nn.Conv1d | nn.Conv2d | nn.Conv3d):
            raise ValueError(f'{path} is a convolution, whose products are not averaged here: use space="factors"')
        ending = f".{adapter}" if inside[0] == "lora_embedding" else f".{adapter}.weight"
        has_bias = inside[0] == "lora" and getattr(module.lora_B[adapter], "bias", None) is not None
        found[bare_name(path)] = _Layer(
            a=bare_name(f"{path}.{inside[0]}_A{ending}"),
            b=bare_name(f"{path}.{inside[0]}_B{ending}"),
            bias=bare_name(f"{path}.lora_B.{adapter}.bias") if has_bias else None,
            scaling=float(module.scaling[adapter]),
            rank=int(module.r[adapter]),
        )
    return found


def _concatenated(layer: _Layer, members: Sequence[Weights]) -> Factors:
    """The mean of the products as one product, of rank n r."""
    share = layer.scaling / len(members)
    b = torch.cat([weights[layer.b].double() * share for weights in members], dim=1)  # (out, n r)
    return b, torch.cat([weights[layer.a].double() for weights in members], dim=0)  # (n r, in)


def _nearest(factors: Factors, rank: int) -> Factors:
    """The nearest product of a lower rank (Eckart, Young 1936), without forming the (out, in) matrix."""
    (qb, rb), (qa, ra) = torch.linalg.qr(factors[0]), torch.linalg.qr(factors[1].T)
    u, s, vh = torch.linalg.svd(rb @ ra.T, full_matrices=False)
    keep, root = min(rank, len(s)), s.sqrt()
    return qb @ (u[:, :keep] * root[:keep]), (root[:keep, None] * vh[:keep]) @ qa.T


def _distance(exact: dict[str, Factors], other: dict[str, Factors]) -> float:
    """|exact - other| / |exact| over all layers, each a product."""
    total = apart = 0.0
    for path, (b, a) in exact.items():
        total += _square(b, a)
        apart += _square(torch.cat([b, -other[path][0]], dim=1), torch.cat([a, other[path][1]], dim=0))
    return math.sqrt(apart / total) if total else 0.0


def _square(b: Tensor, a: Tensor) -> float:
    """|B A|^2, through the small triangles of both."""
    return float((torch.linalg.qr(b).R @ torch.linalg.qr(a.T).R.T).square().sum())
