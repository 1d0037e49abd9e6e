"""REPAIR: the statistics that an average of networks has lost (Jordan, Sedghi, Saukh, Entezari, Neyshabur 2023, arXiv
2211.08403), as PAPA-all uses it.

    mu_k     mean over batches of the batch means of a layer's output, one for each channel, for each parent k
    sigma_k  square root of the mean over batches of the unbiased batch variances
    goal     mean sum_k a_k mu_k, std sum_k a_k sigma_k: standard deviations are averaged, not variances
    child    y <- goal std (y - mu) / sqrt(var + 1e-5) + goal mean, in training mode, each layer on what repaired ones
             before it give; then written into the layer's weight and bias

for every convolution and linear layer but the last. A layer without a bias has no place for the shift and is refused:
behind it stands a norm that takes scale and shift out again, and what such networks need is `lowland.refresh_bn`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..weights import weights_of

EPS = 1e-5
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
Statistics = dict[str, tuple[Tensor, Tensor]]


def repairable(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that are repaired, by name: convolutions and linear layers but the last.

    >>> list(repairable(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))))
    ['0']
    """
    return dict([(name, module) for name, module in model.named_modules() if isinstance(module, _LAYERS)][:-1])


def check(model: nn.Module) -> None:
    """Refuse a model whose layers cannot take what a repair writes.

    Raises:
        ValueError: a layer has no bias, or there is none to repair.

    >>> check(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)))
    """
    found = repairable(model)
    if not found:
        raise ValueError(f"{type(model).__name__} has no convolution or linear layer before the last: use repair=0")
    bare = [name for name, module in found.items() if module.bias is None]
    if bare:
        raise ValueError(
            f"{bare[0]} has no bias for the shift of a repair: use repair=0, and refresh_bn for the average"
        )


@torch.no_grad()
def statistics(model: nn.Module, batches: Iterable[Any]) -> Statistics:
    """Return mean and standard deviation of what each layer gives, (C,) each; the model is left as it was.

    Raises:
        ValueError: there is no batch.

    >>> layer = nn.Linear(1, 1)
    >>> _ = layer.load_state_dict({"weight": torch.ones(1, 1), "bias": torch.zeros(1)})
    >>> statistics(nn.Sequential(layer, nn.Identity(), nn.Linear(1, 1)), [torch.tensor([[1.0], [3.0]])])
    {'0': (tensor([2.]), tensor([1.4142]))}
    """
    return {name: (mean, var.sqrt()) for name, (mean, var) in _watched(model, batches, {}).items()}


@torch.no_grad()
def repair_(model: nn.Module, batches: Iterable[Any], goals: Statistics) -> None:
    """Let each layer of the model give outputs of the mean and standard deviation in `goals`, on these batches.

    Raises:
        ValueError: there is no batch; nothing is changed.

    >>> model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    >>> repair_(model, [torch.tensor([[1.0], [3.0], [8.0]])], {"0": (torch.tensor([2.0]), torch.tensor([3.0]))})
    >>> out = model[0](torch.tensor([[1.0], [3.0], [8.0]]))
    >>> round(out.mean().item(), 3), round(out.std().item(), 3)
    (2.0, 3.0)
    """
    found = _watched(model, batches, goals)
    layers = repairable(model)
    for name, (mean, var) in found.items():
        weight, bias = layers[name].weight, layers[name].bias
        assert isinstance(weight, Tensor) and isinstance(bias, Tensor)
        goal_mean, goal_std = goals[name]
        scale = goal_std / (var + EPS).sqrt()
        weight.mul_(scale.to(weight).view(-1, *[1] * (weight.ndim - 1)))
        bias.copy_((bias - mean.to(bias)) * scale.to(bias) + goal_mean.to(bias))


def _watched(model: nn.Module, batches: Iterable[Any], goals: Mapping[str, tuple[Tensor, Tensor]]) -> Statistics:
    """Means over batches of each layer's batch means and unbiased variances; with goals, layers give repaired ones."""
    sums: Statistics = {}
    count = 0

    def hook(name: str) -> Any:
        def watch(module: nn.Module, given: Any, out: Tensor) -> Tensor | None:
            axis = -1 if isinstance(module, nn.Linear) else out.ndim - _spatial(module) - 1
            others = [each for each in range(out.ndim) if each != axis % out.ndim]
            wide = out.float()
            mean, var = wide.mean(others), wide.var(others, correction=1)
            old = sums.get(name)
            sums[name] = (mean, var) if old is None else (old[0] + mean, old[1] + var)
            if name not in goals:
                return None
            shape = [-1 if each == axis % out.ndim else 1 for each in range(out.ndim)]
            goal_mean, goal_std = (goal.to(wide).view(shape) for goal in goals[name])
            flat = wide.var(others, correction=1).add(EPS).sqrt().view(shape)
            return (goal_std * (wide - mean.view(shape)) / flat + goal_mean).to(out.dtype)

        return watch

    with _training(model):
        hooks = [module.register_forward_hook(hook(name)) for name, module in repairable(model).items()]
        try:
            for batch in batches:
                count += 1
                model(batch[0] if isinstance(batch, tuple | list) else batch)
        finally:
            for each in hooks:
                each.remove()
    if not count:
        raise ValueError(
            "a repair wants a batch of each member or more, got none: pass batches= that can be read again"
        )
    return {name: (mean / count, var / count) for name, (mean, var) in sums.items()}


@contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    """Training mode, buffers, modes and the global random stream put back afterwards."""
    modes = {module: module.training for module in model.modules()}
    try:
        kept = {
            name: (t, t.clone()) for name, t in weights_of(model, lambda _, t: not isinstance(t, nn.Parameter)).items()
        }
    except ValueError:  # there is no buffer
        kept = {}
    cards = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(cards):
        try:
            model.train()
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            for tensor, old in kept.values():
                tensor.copy_(old)


def _spatial(module: nn.Module) -> int:
    return 1 if isinstance(module, nn.Conv1d) else 3 if isinstance(module, nn.Conv3d) else 2
