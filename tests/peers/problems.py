"""The problems of known.py as models, how an average of them is measured, and the list of who is asked what.

An adapter feeds iterates to a released class and reads back what it holds or draws; it never touches the arithmetic.
It enters itself with @section(peer, kind). Kinds: "swag" (moments of draws), "swa", "ema" and "teacher" (bf16),
"variance" (fp32).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from known import (
    DRAWS,
    DRIFTS,
    ITERATES,
    SPREAD_ITERATES,
    SPREAD_WEIGHTS,
    SPREADS,
    TEACHER_RATES,
    TEACHER_STEPS,
    UPDATES,
)
from loading import PEERS
from torch import Tensor, nn

Row = dict[str, Any]
SECTIONS: dict[str, dict[str, Callable[[], list[Row]]]] = {name: {} for name in PEERS}


def section(peer: str, kind: str) -> Callable[[Callable[[], list[Row]]], Callable[[], list[Row]]]:
    def enter(function: Callable[[], list[Row]]) -> Callable[[], list[Row]]:
        SECTIONS[peer][kind] = function
        return function

    return enter


def two_layers(weight: float = 0.0) -> nn.Module:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    return put(model, weight)


def put(model: nn.Module, value: float | Tensor) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.as_tensor(value).expand_as(parameter))
    return model


def iterates() -> Iterator[nn.Module]:
    model = two_layers()
    for value in ITERATES:
        yield put(model, value)


def moments(draws: Tensor) -> Row:
    draws = draws.double().reshape(-1, 2)  # (n, 2): one weight of each layer
    return {"n": len(draws), "mean": draws.mean(0).tolist(), "covariance": torch.cov(draws.T).tolist()}


def row(setting: str, draw: Callable[[], nn.Module], causes: Sequence[str] = (), block: bool = False) -> Row:
    """Moments of DRAWS calls to `draw`, each of which returns the model that was drawn."""
    torch.manual_seed(0)
    pairs = [[p.item() for p in weights(draw())] for _ in range(DRAWS)]
    return {"setting": setting, **moments(torch.tensor(pairs)), "causes": list(causes), "block": block}


def weights(model: nn.Module) -> list[Tensor]:
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    return [layer.weight for layer in layers]


def wide() -> nn.Module:
    return nn.Linear(SPREAD_WEIGHTS, 1, bias=False)


def variances(collect: Callable[[Iterator[nn.Module]], Tensor]) -> list[Row]:
    """Feed fp32 iterates, compare the variance an implementation then holds (before any clamp) with float64."""
    rows = []
    for mean, std in SPREADS:
        generator = torch.Generator().manual_seed(0)
        values = mean + std * torch.randn(SPREAD_ITERATES, SPREAD_WEIGHTS, generator=generator)
        model = wide()
        got = collect(put(model, value) for value in values).detach().double().flatten()
        exact = values.double().var(0, correction=0)
        error = ((got - exact).abs() / exact).median().item()
        rows.append({"mean": mean, "std": std, "error": error, "negative": (got < 0).double().mean().item()})
    return rows


def ema_row(setting: str, begin: Callable[[nn.Module], Any], update: Callable, read: Callable) -> Row:
    """Share of the way that an average of a bf16 model has gone, UPDATES after all weights moved by one."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(64, 64, generator=generator).bfloat16()
    model = put(nn.Linear(64, 64, bias=False).bfloat16(), start)
    average = begin(model)
    update(average, model)
    put(model, start + 1)
    way = model.weight.detach().double() - start.double()
    for _ in range(UPDATES):
        update(average, model)
    gone = read(average).detach().double() - start.double()
    return {"setting": setting, "share": (gone / way).mean().item(), "dtype": str(read(average).dtype)[6:]}


def teacher_rows(setting: str, begin: Callable[[nn.Module, float], Any], update: Callable, read: Callable) -> list[Row]:
    """Share of the way that teachers of drifting bf16 students go, beside the same recursion in float64."""
    found = []
    for drift in DRIFTS:
        for rate in TEACHER_RATES:
            start = torch.randn(256, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
            way = torch.randn(256, 256, generator=torch.Generator().manual_seed(1)) * drift
            model = put(nn.Linear(256, 256, bias=False).bfloat16(), start)
            teacher, known = begin(model, rate), start.double()
            for step in range(1, TEACHER_STEPS + 1):
                put(model, start.float() + way * (step / TEACHER_STEPS))
                update(teacher, model)
                known += rate * (model.weight.detach().double() - known)
            gone, wanted = read(teacher).detach().double() - start.double(), known - start.double()
            share = float((gone * wanted).sum() / wanted.square().sum())
            dtype = str(read(teacher).dtype)[6:]
            found.append({"setting": setting, "drift": drift, "rate": rate, "share": share, "dtype": dtype})
    return found


def swa_row(setting: str, average: Any, update: Callable, read: Callable, count: Callable, again: Callable) -> Row:
    """Average 1, 2, 3, 4 and load the state into a fresh average; `again` returns that average's mean."""
    model = nn.Linear(1, 1, bias=False)
    for step, value in enumerate((1.0, 2.0, 3.0, 4.0)):
        update(average, put(model, value), step)
    result = {"setting": setting, "mean": float(read(average)), "count": int(count(average))}
    try:
        reloaded = float(again(average))
        result["reload"] = "yes" if reloaded == result["mean"] else f"gives {reloaded:g}"
    except Exception as error:  # what a peer raises is the finding
        result["reload"] = f"no: {type(error).__name__}: {str(error).splitlines()[-1].strip()}"
    return result
