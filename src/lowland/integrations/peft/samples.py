"""Posteriors over adapters and PEFT (`peft`): draws as ordinary adapter folders, averages, and batched passes.

`select=lowland.weights.trainable` makes an averager collect the adapter: its factors, the layers in `modules_to_save`,
the biases that `bias=` trains and the magnitudes of DoRA. SWAG of these is SWAG-LoRA (Onal, Floege, Caldwell,
Sheverdin, Fortuin 2024, arXiv 2405.03425).
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from ...averager.posteriors import Drawable, draws, members_of
from .batches import forward_adapters as forward_adapters
from .folders import read_adapter as read_adapter
from .folders import write_adapter as write_adapter
from .products import AdapterAverage as AdapterAverage
from .products import average_adapters as average_adapters
from .products import product_gap as product_gap


def sample_adapters(
    posterior: Drawable,
    model: nn.Module,
    samples: int | None,
    folder: str | os.PathLike[str],
    *,
    generator: torch.Generator | None = None,
) -> list[Path]:
    """Write draws of a posterior as adapter folders `draw-0`, `draw-1`, ... and return their paths.

    Each is an ordinary adapter (`adapter_model.safetensors` and `adapter_config.json` under PEFT's names): for
    `PeftModel.from_pretrained`, for `load_adapter` and batches with `adapter_names`, for servers of many adapters. The
    mean of their predicted probabilities is what `predict` returns for the same draws. One draw is in memory at a
    time. DoRA, rank-stabilised LoRA and `bias=` need nothing special: draws are of the tensors that PEFT saves.

    Args:
        model: the PEFT model that the posterior's names belong to; it is left as it was.
        samples: how many draws; None writes each member of a finite posterior once.
        generator: where the randomness comes from, as for `sample`.

    Raises:
        ValueError: samples is below 1, or None for a posterior with infinitely many points; a drawn tensor is no part
            of the adapter.
        RuntimeError: the posterior has no weights yet.
        OSError: a `draw-i` exists and is no adapter folder.
    """
    members = members_of(posterior) if samples is None else None
    if members is not None and not members:
        raise RuntimeError(f"{type(posterior).__name__} has no weights yet: call update(model) first")
    drawn = draws(posterior, samples, generator) if members is None else iter(members)
    last = (samples or 1) - 1 if members is None else len(members) - 1
    width = len(str(last))
    target = Path(folder)
    return [write_adapter(model, target / f"draw-{index:0{width}d}", weights) for index, weights in enumerate(drawn)]
