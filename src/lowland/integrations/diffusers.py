"""EMA states in the form of diffusers' `EMAModel`, out and in; diffusers itself is not needed.

    torch.save(to_ema_model(average, unet), "ema.pt")            # EMAModel(...).load_state_dict(torch.load("ema.pt"))
    average = from_ema_model(torch.load("ema.pt"), unet)         # goes on from it

`EMAModel` keeps its weights in a list, in the order of the parameters that it was made from, and in their dtype: a
bfloat16 one loses most of its updates. Out of here they go in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..ema import EMA, Warmup
from ..weights.named import Select, parameters, weights_of

_WARMUP = {"inv_gamma": 1.0, "power": 2 / 3}  # their defaults, which they store also without a warm-up


def to_ema_model(average: EMA, model: nn.Module) -> dict[str, Any]:
    """Return what `EMAModel(model.parameters()).load_state_dict` takes: the average of what the averager selects.

    Raises:
        ValueError: the decay is neither a number nor a `Warmup`, or the average is of another model.
        RuntimeError: there has been no update.

    >>> model = nn.Linear(1, 1)
    >>> average = EMA(0.999)
    >>> average.update(model)
    >>> state = to_ema_model(average, model)
    >>> state["decay"], state["min_decay"], state["optimization_step"], len(state["shadow_params"])
    (0.999, 0.999, 1, 2)
    """
    mean = average.mean()
    names = list(weights_of(model, lambda name, tensor: name in mean))
    if len(names) != len(mean):
        raise ValueError(f"the average holds {len(mean)} tensors, of which {type(model).__name__} has {len(names)}")
    if isinstance(average.decay, Warmup):
        decay = average.decay
        how = {"decay": decay.decay, "min_decay": 0.0, "inv_gamma": decay.gamma, "power": decay.power}
    elif isinstance(average.decay, float):
        # Their decay begins small also without a warm-up, unless the smallest is the largest.
        how = {"decay": average.decay, "min_decay": average.decay, **_WARMUP}
    else:
        raise ValueError(f"EMAModel has no decay like {average!r}: use a number or a Warmup")
    return {
        **how,
        "optimization_step": average.count,
        "update_after_step": 0,
        "use_ema_warmup": isinstance(average.decay, Warmup),
        "shadow_params": [mean[name] for name in names],
    }


def from_ema_model(state: Mapping[str, Any], model: nn.Module, *, select: Select = parameters) -> EMA:
    """Return the averager that goes on where an `EMAModel` with this state stopped.

    Args:
        select: which of the model's parameters it was made from, in their order.

    Raises:
        ValueError: the state is of other tensors, waits before its first update, or has a decay that grows without
            being a warm-up.

    >>> model, average = nn.Linear(1, 1), EMA(Warmup(0.99))
    >>> average.update(model)
    >>> from_ema_model(to_ema_model(average, model), model)
    EMA(decay=Warmup(decay=0.99, gamma=1.0, power=0.6666666666666666), select=parameters) after 1 updates
    """
    own = weights_of(model, select)
    shadow: list[Tensor] = list(state["shadow_params"])
    shapes = [tuple(tensor.shape) for tensor in own.values()]
    if [tuple(tensor.shape) for tensor in shadow] != shapes:
        raise ValueError(
            f"the state holds {len(shadow)} tensors and the selection of {type(model).__name__} {len(own)}, or their "
            "shapes differ: pass the select= that EMAModel's parameters were chosen by"
        )
    step = int(state["optimization_step"])
    if state.get("update_after_step", 0) and step <= state["update_after_step"] + 1:
        raise ValueError("the state still waits for its first update: begin a new EMA")
    decay: float | Warmup = float(state["decay"])
    if state.get("use_ema_warmup", False):
        decay = Warmup(float(state["decay"]), float(state["inv_gamma"]), float(state["power"]))
    elif state.get("min_decay", 0.0) != state["decay"] and (1 + step) / (10 + step) < state["decay"]:
        raise ValueError(
            "the state's decay is still growing as (1 + n) / (10 + n), which no EMA here does: go on with EMAModel, or "
            "set its min_decay to its decay"
        )
    average = EMA(decay, select=select)
    average.update(own)
    found = average.state_dict()
    found["count"] = step - int(state.get("update_after_step", 0))
    for name, tensor in zip(own, shadow, strict=True):
        found["slots"]["mean"][name] = tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
    average.load_state_dict(found)
    return average
