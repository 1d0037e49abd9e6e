"""States in the form of diffusers' EMAModel, against its recursion written here."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowland import EMA, weights_of
from lowland.ema import Power, Warmup
from lowland.integrations.diffusers import from_ema_model, to_ema_model
from lowland.weights import matching


class Theirs:
    """What EMAModel does at a step, from its documented state."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = {**state, "shadow_params": [tensor.clone() for tensor in state["shadow_params"]]}

    def step(self, parameters: list[Tensor]) -> None:
        s = self.state
        s["optimization_step"] += 1
        n = max(0, s["optimization_step"] - s["update_after_step"] - 1)
        grown = 1 - (1 + n / s["inv_gamma"]) ** -s["power"] if s["use_ema_warmup"] else (1 + n) / (10 + n)
        decay = 0.0 if n <= 0 else max(min(grown, s["decay"]), s["min_decay"])
        for shadow, parameter in zip(s["shadow_params"], parameters, strict=True):
            shadow.sub_((1 - decay) * (shadow - parameter))


def moved(model: nn.Module, step: int) -> nn.Module:
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("decay", [0.9, Warmup(0.95, power=0.75)], ids=["constant", "warm-up"])
def test_either_goes_on_where_the_other_stopped(decay: Any) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    whole = EMA(decay)
    for step in range(4):
        whole.update(moved(model, step))
    theirs, again = Theirs(to_ema_model(whole, model)), EMA(decay)
    again.load_state_dict(whole.state_dict())
    for step in range(4, 8):
        again.update(moved(model, step))
        theirs.step([parameter.detach() for parameter in model.parameters()])
    for name, shadow in zip(weights_of(model), theirs.state["shadow_params"], strict=True):
        torch.testing.assert_close(again.mean()[name], shadow, atol=1e-6, rtol=1e-6)
    back = from_ema_model(theirs.state, model)
    assert back.count == 8 and back.settings == whole.settings
    theirs.step([parameter.detach() for parameter in moved(model, 8).parameters()])
    back.update(model)
    for name, shadow in zip(weights_of(model), theirs.state["shadow_params"], strict=True):
        torch.testing.assert_close(back.mean()[name], shadow, atol=1e-6, rtol=1e-6)


def test_a_selection_keeps_its_order_and_bfloat16_becomes_float32() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)).bfloat16()
    average = EMA(0.9, select=matching("^1"))
    average.update(model)
    state = to_ema_model(average, model)
    assert [tuple(tensor.shape) for tensor in state["shadow_params"]] == [(1, 3), (1,)]
    state["shadow_params"] = [tensor.bfloat16() for tensor in state["shadow_params"]]
    back = from_ema_model(state, model, select=matching("^1"))
    assert all(tensor.dtype == torch.float32 for tensor in back.mean().values())
    with pytest.raises(ValueError, match="the state holds 2 tensors and the selection of Sequential 4"):
        from_ema_model(state, model)


def test_what_the_other_does_not_have_is_refused() -> None:
    model = nn.Linear(1, 1)
    power = EMA(Power(6.94))
    power.update(model)
    with pytest.raises(ValueError, match="EMAModel has no decay like"):
        to_ema_model(power, model)
    average = EMA(0.9999)
    average.update(model)
    state = to_ema_model(average, model)
    with pytest.raises(ValueError, match="still growing"):
        from_ema_model({**state, "min_decay": 0.0}, model)
    with pytest.raises(ValueError, match="waits for its first update"):
        from_ema_model({**state, "update_after_step": 100}, model)
    with pytest.raises(ValueError, match="of which Bilinear has"):
        to_ema_model(average, nn.Bilinear(1, 1, 1, bias=False))


def test_against_the_package_itself() -> None:
    training_utils = pytest.importorskip("diffusers.training_utils")
    model = nn.Linear(3, 2)
    average = EMA(0.9)
    for step in range(3):
        average.update(moved(model, step))
    theirs = training_utils.EMAModel(model.parameters())
    theirs.load_state_dict(to_ema_model(average, model))
    theirs.step(moved(model, 3).parameters())
    average.update(model)
    for tensor, shadow in zip(average.mean().values(), theirs.shadow_params, strict=True):
        torch.testing.assert_close(tensor, shadow, atol=1e-6, rtol=1e-6)
