"""torchcontrib's optimiser wrapper: its rules and its number check, and what the original cannot do."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from lowland.integrations.torchcontrib import SWA


class Point(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.zeros(1, dtype=dtype))


def take(model: Point, optimiser: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimiser.zero_grad()
        (model.p - 1).square().sum().backward()
        optimiser.step()


def quadratic(**given: float) -> tuple[Point, SWA]:
    model = Point()
    return model, SWA(torch.optim.SGD(model.parameters(), lr=0.1), **given)


def test_numbers_of_the_automatic_mode() -> None:
    """METHODS 17.2: (10, 5, 0.05), 100 steps."""
    model, optimiser = quadratic(swa_start=10, swa_freq=5, swa_lr=0.05)
    seen = {}
    for step in range(1, 101):
        take(model, optimiser, 1)
        seen[step] = (model.p.item(), optimiser.param_groups[0]["lr"])
    assert seen[5][0] == pytest.approx(0.67232, abs=1e-12)
    assert seen[10] == (pytest.approx(0.8926258176, abs=1e-12), 0.1)
    assert seen[11] == (pytest.approx(0.90336323584, abs=1e-12), 0.05)
    assert optimiser.param_groups[0]["n_avg"] == 18
    last = model.p.item()
    optimiser.swap_swa_sgd()
    assert model.p.item() == pytest.approx(0.991399131338, abs=1e-12)
    optimiser.swap_swa_sgd()
    assert model.p.item() == last


def test_the_rate_overrides_a_scheduler_at_every_step() -> None:
    model, optimiser = quadratic(swa_start=2, swa_freq=1, swa_lr=0.05)
    scheduler = torch.optim.lr_scheduler.StepLR(optimiser, step_size=1, gamma=0.5)
    used = []
    for _ in range(4):
        take(model, optimiser, 1)
        used.append(optimiser.param_groups[0]["lr"])
        scheduler.step()
    assert used == [0.1, 0.05, 0.05, 0.05]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"swa_start": -1, "swa_freq": 1}, "swa_start"),
        ({"swa_start": 1, "swa_freq": 0}, "swa_freq"),
        ({"swa_start": 1, "swa_freq": 1, "swa_lr": -0.1}, "swa_lr"),
    ],
)
def test_bad_settings_are_refused(given: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quadratic(**given)


def test_manual_mode_and_its_warnings() -> None:
    with pytest.warns(UserWarning, match="swa_freq is None"):
        quadratic(swa_start=3)
    with pytest.warns(UserWarning, match="ignored"):
        quadratic(swa_lr=0.1)
    with pytest.warns(UserWarning, match="cut to"):
        quadratic(swa_start=1.5, swa_freq=1)
    model, optimiser = quadratic()
    visited = []
    for _ in range(3):
        take(model, optimiser, 1)
        visited.append(model.p.item())
        optimiser.update_swa()
    optimiser.swap_swa_sgd()
    assert model.p.item() == pytest.approx(sum(visited) / 3, abs=1e-15)


def test_swapping_without_an_average_warns_and_changes_nothing() -> None:
    model, optimiser = quadratic()
    with pytest.warns(UserWarning, match="1 parameters have no average"):
        optimiser.swap_swa_sgd()
    assert model.p.item() == 0


def test_a_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    whole, optimiser = quadratic(swa_start=10, swa_freq=5, swa_lr=0.05)
    take(whole, optimiser, 100)
    model, optimiser_a = quadratic(swa_start=10, swa_freq=5, swa_lr=0.05)
    take(model, optimiser_a, 37)
    torch.save({"model": model.state_dict(), "swa": optimiser_a.state_dict()}, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed, optimiser_b = quadratic(swa_start=10, swa_freq=5, swa_lr=0.05)
    resumed.load_state_dict(state["model"])
    optimiser_b.load_state_dict(state["swa"])
    take(resumed, optimiser_b, 63)
    for one in (optimiser, optimiser_b):
        one.swap_swa_sgd()
    assert torch.equal(whole.p, resumed.p)
    assert optimiser_b.param_groups[0]["n_avg"] == 18


def test_a_state_saved_while_swapped_swaps_back_after_loading() -> None:
    model, optimiser = quadratic(swa_start=0, swa_freq=1)
    take(model, optimiser, 5)
    trained = model.p.item()
    optimiser.swap_swa_sgd()
    state, weights = copy.deepcopy(optimiser.state_dict()), copy.deepcopy(model.state_dict())
    other, fresh = quadratic(swa_start=0, swa_freq=1)
    other.load_state_dict(weights)
    fresh.load_state_dict(state)
    fresh.swap_swa_sgd()
    assert other.p.item() == trained


def test_a_foreign_state_is_refused_and_changes_nothing() -> None:
    model, optimiser = quadratic(swa_start=0, swa_freq=1)
    take(model, optimiser, 3)
    before = copy.deepcopy(optimiser.state_dict())
    with pytest.raises(ValueError, match="lacks"):
        optimiser.load_state_dict({"state": {}})
    with pytest.raises(ValueError, match="fits none"):
        optimiser.load_state_dict({**before, "swa_state": {0: {"swa_buffer": torch.zeros(7)}}})
    assert optimiser.state_dict()["swa_state"][0]["swa_buffer"].equal(before["swa_state"][0]["swa_buffer"])


def test_bfloat16_is_averaged_in_float32_and_swapped_back_exactly() -> None:
    model = Point(torch.bfloat16)
    optimiser = SWA(torch.optim.SGD(model.parameters(), lr=0.1))
    for value in (1.0, 1.0078125, 1.0078125):
        with torch.no_grad():
            model.p.fill_(value)
        optimiser.update_swa()
    average = optimiser.state_dict()["swa_state"][0]["swa_buffer"]
    assert average.dtype == torch.float32
    assert average.item() == pytest.approx(1.0052083, abs=1e-6)
    optimiser.swap_swa_sgd()
    optimiser.swap_swa_sgd()
    assert model.p.item() == 1.0078125
    assert optimiser.state_dict()["swa_state"][0]["swa_buffer"].equal(average)


def test_averaging_while_swapped_is_refused() -> None:
    model, optimiser = quadratic(swa_start=0, swa_freq=1)
    take(model, optimiser, 2)
    optimiser.swap_swa_sgd()
    with pytest.raises(RuntimeError, match="swap_swa_sgd"):
        optimiser.update_swa()


def test_a_late_group_starts_later() -> None:
    model, optimiser = quadratic(swa_start=2, swa_freq=1)
    late = nn.Parameter(torch.ones(1, dtype=torch.float64))
    take(model, optimiser, 2)
    optimiser.add_param_group({"params": [late], "lr": 0.0})
    late.grad = torch.zeros(1, dtype=torch.float64)
    take(model, optimiser, 2)
    assert [group["n_avg"] for group in optimiser.param_groups] == [2, 0]
    assert optimiser.optimizer.param_groups is optimiser.param_groups


def test_closure_and_hooks_and_gradient_scaler_interface() -> None:
    model, optimiser = quadratic(swa_start=0, swa_freq=1)
    calls = []
    optimiser.register_step_post_hook(lambda *_: calls.append("after"))

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = (model.p - 1).square().sum()
        loss.backward()
        return loss

    assert optimiser.step(closure).item() == 1.0
    assert calls == ["after"]


def test_bn_update_weights_by_samples() -> None:
    """METHODS 17.8: sample-weighted mean 5.0, variance 3.777778."""
    model = nn.BatchNorm1d(1)
    batches = [torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([[10.0], [14.0]])]
    SWA.bn_update([(batch, None) for batch in batches], model, device="cpu")
    assert model.running_mean.item() == pytest.approx(5.0)
    assert model.running_var.item() == pytest.approx(3.777778, abs=1e-6)
