"""EMA: against a float64 loop and torch, decay schedules by number, bfloat16, state and errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import lowland
from lowland import EMA, SWA
from lowland.ema import Power, Warmup, half_life

from .problems import walk
from .reference import ema as reference


def fading(count: int) -> float:
    return 1 - 0.5 / count


def steady(count: int) -> float:
    return 0.5


DECAYS = {
    "number": 0.9,
    "zero": 0.0,
    "one": 1.0,
    "warm-up": Warmup(0.95, gamma=2.0, power=0.75),
    "power": Power(6.94),
    "own": fading,
}


@pytest.mark.parametrize("decay", DECAYS.values(), ids=DECAYS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equals_the_naive_loop(decay: float | Callable[[int], float], dtype: torch.dtype) -> None:
    path = walk(40, dtype=dtype)
    average = EMA(decay)
    for weights in path:
        average.update(weights)
    function = decay if callable(decay) else lambda count: decay
    for name, tensor in average.mean().items():
        naive = reference.ema([weights[name].double().flatten().tolist() for weights in path], function)
        # A step of float32 loses at most one unit in the last place of a number of size about 3.
        tolerance = 1e-14 * 40 if dtype == torch.float64 else 40 * 3e-7
        assert tensor.flatten().tolist() == pytest.approx(naive, abs=tolerance)


def test_equals_torch_on_a_float32_model() -> None:
    model = nn.Linear(3, 2)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    ours = EMA(0.9)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        theirs.update_parameters(model)
        ours.update(model)
    for name, parameter in theirs.module.named_parameters():
        assert torch.allclose(ours.mean()[name], parameter, atol=1e-6)


def test_a_bfloat16_average_does_not_stall() -> None:
    # After 3000 updates at 0.999 an average has gone 1 - 0.999 ** 3000 = 95.03 % of the way. In the model's own dtype,
    # as torch.optim.swa_utils keeps it, it stops where a thousandth of the rest is below half a unit in the last place.
    model = nn.Linear(4, 1, bias=False).to(torch.bfloat16)
    ours, theirs = EMA(0.999), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    nn.init.zeros_(model.weight)
    ours.update(model)
    theirs.update_parameters(model)
    nn.init.ones_(model.weight)
    for _ in range(3000):
        ours.update(model)
        theirs.update_parameters(model)
    moved = ours.mean()["weight"]
    assert moved.dtype == torch.float32
    assert moved.flatten().tolist() == pytest.approx([1 - 0.999**3000] * 4, abs=1e-4)
    assert theirs.module.weight.max().item() < 0.5


def test_the_first_update_copies_whatever_the_decay() -> None:
    for decay in DECAYS.values():
        average = EMA(decay)
        average.update({"w": torch.tensor([3.0])})
        assert average.mean()["w"].item() == 3.0


def test_integers_are_copied_from_the_latest_update() -> None:
    average = EMA(0.9)
    for step in (5, 8):
        average.update({"w": torch.zeros(1), "steps": torch.tensor(step)})
    assert average.mean()["steps"].item() == 8
    assert average.mean()["steps"].dtype == torch.int64


# Schedules.


def test_half_life() -> None:
    assert half_life(1) == 0.5
    assert half_life(10) ** 10 == pytest.approx(0.5, rel=1e-12)
    average = EMA(half_life(25))
    average.update({"w": torch.zeros(1, dtype=torch.float64)})
    for _ in range(25):
        average.update({"w": torch.ones(1, dtype=torch.float64)})
    assert average.mean()["w"].item() == pytest.approx(0.5, rel=1e-12)


def test_warmup_by_number() -> None:
    # timm's ModelEmaV3 with use_warmup: step s asks 1 - (1 + (s - 1) / gamma) ** -power, its first step copies.
    decay = Warmup(0.99, gamma=1.0, power=2 / 3)
    assert decay(1) == pytest.approx(1 - 2 ** (-2 / 3))
    assert decay(7) == pytest.approx(0.75)
    assert decay(999) == pytest.approx(0.99)
    assert decay(10**9) == 0.99
    assert Warmup(0.99, gamma=10.0, power=1.0)(10) == pytest.approx(0.5)


@pytest.mark.parametrize("decay", [Warmup(1.0, gamma=1.0, power=1.0), Power(0.0)], ids=repr)
def test_the_equal_average_is_a_special_case(decay: Callable[[int], float]) -> None:
    ema, swa = EMA(decay), SWA()
    for weights in walk(30, dtype=torch.float64):
        ema.update(weights)
        swa.update(weights)
    for name, tensor in swa.mean().items():
        assert torch.allclose(ema.mean()[name], tensor, rtol=0, atol=1e-12)


def test_power_profile_in_closed_form() -> None:
    # The recursion telescopes: iterate i of t weighs (i ** (gamma + 1) - (i - 1) ** (gamma + 1)) / t ** (gamma + 1).
    t, gamma = 12, 2.5
    average = EMA(Power(gamma))
    for one_hot in torch.eye(t, dtype=torch.float64):
        average.update({"w": one_hot})
    expected = [(i ** (gamma + 1) - (i - 1) ** (gamma + 1)) / t ** (gamma + 1) for i in range(1, t + 1)]
    assert average.mean()["w"].tolist() == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("width", [0.02, 0.05, 0.1, 0.25, 12**-0.5])
def test_power_of_width(width: float) -> None:
    gamma = Power.of_width(width).gamma
    assert math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2) == pytest.approx(width, rel=1e-9)
    t = torch.arange(1, 100_001, dtype=torch.float64) / 100_000
    profile = t**gamma / (t**gamma).sum()
    centre = (profile * t).sum()
    assert (profile * (t - centre).square()).sum().sqrt().item() == pytest.approx(width, rel=1e-3)


# State.


def test_own_functions_are_asked_with_the_count_of_updates_before() -> None:
    asked = []

    def decay(count: int) -> float:
        asked.append(count)
        return 0.5

    average = EMA(decay)
    for weights in walk(4):
        average.update(weights)
    assert asked == [1, 2, 3]


@pytest.mark.parametrize("decay", [0.9, Warmup(0.99, gamma=3.0, power=0.7), Power(1 / 3)], ids=repr)
def test_a_file_holds_the_numbers_of_a_decay(decay: float | Callable[[int], float], tmp_path: Path) -> None:
    average = EMA(decay)
    average.update(walk(1)[0])
    lowland.save(average, tmp_path / "ema.safetensors")
    again = lowland.load(tmp_path / "ema.safetensors")
    assert again.decay == decay
    assert f"decay={decay!r}" in repr(again)


def test_a_file_holds_the_name_of_an_own_decay(tmp_path: Path) -> None:
    average = EMA(fading)
    average.update(walk(1)[0])
    lowland.save(average, tmp_path / "ema.safetensors")
    with pytest.raises(ValueError, match="got 'fading'; a file holds only the name .* pass it again with decay="):
        lowland.load(tmp_path / "ema.safetensors")
    assert lowland.load(tmp_path / "ema.safetensors", decay=fading).decay is fading


@pytest.mark.parametrize(
    ("saved", "loaded", "message"),
    [
        (0.9, 0.99, "decay .state 0.9, here 0.99"),
        (fading, steady, "decay .state 'fading', here 'steady'"),
        (Warmup(0.9), Warmup(0.99), r"decay .state 'Warmup\(decay=0.9, .*here 'Warmup\(decay=0.99, "),
        (Power(1.0), 0.5, r"decay .state 'Power\(gamma=1.0\)', here 0.5"),
    ],
)
def test_loading_under_another_decay_names_both(
    saved: float | Callable[[int], float], loaded: float | Callable[[int], float], message: str
) -> None:
    average = EMA(saved)
    average.update(walk(1)[0])
    with pytest.raises(ValueError, match=message):
        EMA(loaded).load_state_dict(average.state_dict())


def test_a_numpy_number_is_a_number() -> None:
    assert EMA(np.float32(0.5)).settings == {"decay": 0.5}  # type: ignore[arg-type]


def test_schedules_are_values() -> None:
    assert Warmup(0.9) == Warmup(0.9) and hash(Power(2.0)) == hash(Power(2.0))
    assert eval(repr(Warmup(0.9))) == Warmup(0.9)


# Errors.


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: EMA(1.5), r"decay must lie in \[0, 1\], got 1.5"),
        (lambda: EMA(-0.1), r"decay must lie in \[0, 1\], got -0.1"),
        (lambda: EMA(math.nan), r"decay must lie in \[0, 1\], got nan"),
        (lambda: EMA("0.9"), "decay must be a number or a function of the count, got '0.9'"),  # type: ignore[arg-type]
        (lambda: EMA(True), "decay must be a number or a function of the count, got True"),
        (lambda: EMA(None), "decay must be a number or a function of the count, got None"),  # type: ignore[arg-type]
        (lambda: Warmup(1.5), r"decay must lie in \[0, 1\], got 1.5"),
        (lambda: Warmup(0.9, gamma=0.0), "gamma must be positive, got 0.0"),
        (lambda: Warmup(0.9, power=-1.0), "power must be positive, got -1.0"),
        (lambda: Power(-0.5), r"gamma must be at least 0 \(the equal average\), got -0.5"),
        (lambda: Power.of_width(0.3), r"width must lie in \(0, 0.2887\].* got 0.3"),
        (lambda: Power.of_width(0.0), r"width must lie in \(0, 0.2887\].* got 0.0"),
        (lambda: half_life(0), "updates must be positive, got 0"),
    ],
)
def test_errors(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_a_decay_out_of_range_changes_nothing() -> None:
    average = EMA(lambda count: 0.5 if count < 2 else 2.0)
    path = walk(3)
    for weights in path[:2]:
        average.update(weights)
    before = average.mean()
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\], got 2.0 from .*lambda>\(2\)"):
        average.update(path[2])
    assert average.count == 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in average.mean().items())
