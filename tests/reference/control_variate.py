"""BatchNorm by a control variate, from the inputs that each layer sees: the equations as they are printed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

Moments = dict[str, tuple[Tensor, Tensor]]


@torch.no_grad()
def naive_moments(model: nn.Module, batches: Sequence[Tensor]) -> Moments:
    """Average over batches, by size, of the mean and unbiased variance of every BatchNorm layer's input."""
    sums: Moments = {}
    handles = []
    model.eval()
    for name, layer in model.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.train()

            def see(layer: nn.Module, inputs: tuple[Tensor], name: str = name) -> None:
                x = inputs[0].double().transpose(0, 1).flatten(1)  # (C, everything else)
                share = len(inputs[0]) / sum(len(batch) for batch in batches)
                mean, var = sums.get(name, (0.0, 0.0))
                sums[name] = (mean + share * x.mean(1), var + share * x.var(1))

            handles.append(layer.register_forward_pre_hook(see))
    for batch in batches:
        model(batch)
    for handle in handles:
        handle.remove()
    return sums


def naive_control(model: nn.Module, mean_model: nn.Module, batches: Sequence[Tensor], few: Sequence[Tensor]) -> Moments:
    own, reference, everything = (
        naive_moments(model, few),
        naive_moments(mean_model, few),
        naive_moments(mean_model, batches),
    )
    return {
        name: (
            own[name][0] - reference[name][0] + everything[name][0],
            own[name][1] * everything[name][1] / reference[name][1],
        )
        for name in own
    }


def naive_errors(
    model: nn.Module, mean_model: nn.Module, batches: Sequence[Tensor], few: Sequence[Tensor], eps: float
) -> dict[str, float]:
    whole = naive_control(model, mean_model, batches, few)
    one, two = (naive_control(model, mean_model, batches, half) for half in (few[::2], few[1::2]))
    errors = {}
    for name, (_, var) in whole.items():
        shift = (one[name][0] - two[name][0]) / 2 / (var + eps).sqrt()
        sigma_one, sigma_two = (one[name][1] + eps).sqrt(), (two[name][1] + eps).sqrt()
        stretch = (sigma_one.log() - sigma_two.log()) / 2
        errors[name] = float((shift**2 + stretch**2).mean().sqrt())
    return errors
