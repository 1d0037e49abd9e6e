"""Refreshing BatchNorm by a control variate: the twin, closed forms, the choice of batches, restoring and bad input."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lowland.batchnorm import Refreshed, bn_reference, refresh_bn

from ..reference.control_variate import naive_control, naive_errors
from .test_batchnorm import assert_same, convolutional, images, state


def near(model: nn.Module, distance: float = 0.05) -> nn.Module:
    """A copy whose weights are off by a relative `distance`."""
    other = copy.deepcopy(model)
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(distance * p.abs().mean() * torch.randn(p.shape, generator=g))
    return other


def many(number: int = 12, size: int = 8) -> list[Tensor]:
    g = torch.Generator().manual_seed(3)
    return [torch.randn(size, 3, 6, 6, generator=g) * (1 + torch.rand(1, generator=g)) for _ in range(number)]


def distance(model: nn.Module, exact: nn.Module) -> float:
    pairs = zip(model.named_buffers(), exact.buffers(), strict=True)
    return max(float((a - b).abs().max()) for (name, a), b in pairs if "running" in name)


# --- numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("few", [2, 3, 4, 8])
def test_statistics_and_errors_equal_the_twins(few: int) -> None:
    mean, batches = convolutional(), many()
    batches[1] = batches[1][:5]
    other = near(mean)
    wanted = naive_control(copy.deepcopy(other), copy.deepcopy(mean), batches, batches[:few])
    errors = naive_errors(copy.deepcopy(other), copy.deepcopy(mean), batches, batches[:few], 1e-5)
    found = bn_reference(mean, batches).refresh(other, few=few)
    assert found.batches == few
    for name, (running_mean, running_var) in wanted.items():
        layer = other.get_submodule(name)
        torch.testing.assert_close(layer.running_mean.double(), running_mean, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(layer.running_var.double(), running_var, atol=1e-5, rtol=1e-4)
        assert layer.num_batches_tracked == 12
        assert found.errors[name] == pytest.approx(errors[name], rel=1e-3)
    assert found.error == max(found.errors.values()) > 0


def test_the_reference_is_refreshed_as_by_refresh_bn() -> None:
    one, two = convolutional(), convolutional()
    for weighting in ("samples", "batches"):
        bn_reference(one, images(), weighting=weighting)  # type: ignore[arg-type]
        refresh_bn(two, images(), weighting=weighting)  # type: ignore[arg-type]
        for (name, got), wanted in zip(one.named_buffers(), two.buffers(), strict=True):
            torch.testing.assert_close(got, wanted, msg=name)


def test_the_reference_itself_comes_back_without_error() -> None:
    model = convolutional()
    reference = bn_reference(model, many())
    wanted = copy.deepcopy(model)
    found = reference.refresh(model)
    assert found.error < 1e-6 and distance(model, wanted) < 1e-5


def test_it_is_exact_where_every_channel_is_scaled_and_shifted() -> None:
    """mean_s = a mean_0 + b and var_s = a^2 var_0 in every batch; the mean's equation needs a = 1 or equal means."""
    torch.manual_seed(0)
    mean = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    batches = [torch.randn(8, 4) * k + 1 for k in (1, 2, 1, 2)]
    shifted, scaled = copy.deepcopy(mean), copy.deepcopy(mean)
    with torch.no_grad():
        shifted[0].bias.add_(torch.tensor([1.0, -2.0, 3.0]))
        scaled[0].weight.mul_(3.0)
    reference = bn_reference(mean, batches)
    for model in (shifted, scaled):
        exact = copy.deepcopy(model)
        refresh_bn(exact, batches)
        found = reference.refresh(model)
        torch.testing.assert_close(model[1].running_var, exact[1].running_var)
        if model is shifted:
            torch.testing.assert_close(model[1].running_mean, exact[1].running_mean)
            assert found.error < 1e-6


def test_it_beats_the_few_batches_alone_near_the_reference() -> None:
    mean, batches = convolutional(), many(40)
    reference = bn_reference(mean, batches)
    exact, fast, alone = (near(mean, 0.02) for _ in range(3))
    refresh_bn(exact, batches)
    refresh_bn(alone, batches[:2])
    reference.refresh(fast)
    assert distance(fast, exact) < 0.2 * distance(alone, exact)


def test_the_error_is_about_the_true_one() -> None:
    """Over 25 choices of batches the mean square of the estimate is that of the truth, within a factor of 1.5."""
    torch.manual_seed(0)
    mean = nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32))
    other = near(mean, 0.3)
    g = torch.Generator().manual_seed(0)
    batches = [torch.randn(32, 6, generator=g) for _ in range(100)]
    exact = copy.deepcopy(other)
    refresh_bn(exact, batches)
    estimated = true = 0.0
    for trial in range(25):
        order = batches[4 * trial :] + batches[: 4 * trial]
        found = bn_reference(copy.deepcopy(mean), order, keep=4).refresh(other, few=4)
        sigma = exact[1].running_var.sqrt()
        shift = (other[1].running_mean - exact[1].running_mean) / sigma
        stretch = (other[1].running_var.sqrt() / sigma).log()
        true += float((shift**2 + stretch**2).mean())
        estimated += found.error**2
    assert 1 / 1.5 < estimated / true < 1.5


def test_channels_without_variance_in_the_few_batches() -> None:
    """The ratio has no value there, so the variance's difference is taken; a dead channel stays dead."""
    mean = nn.Sequential(nn.ReLU(), nn.BatchNorm1d(2))
    batches = [torch.tensor([[-1.0, -1.0], [-2.0, -3.0]])] * 2 + [torch.tensor([[1.0, -1.0], [3.0, -1.0]])] * 2
    reference = bn_reference(mean, batches, keep=2)
    model = copy.deepcopy(mean)
    reference.refresh(model)
    torch.testing.assert_close(model[1].running_mean, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(model[1].running_var, torch.tensor([1.0, 0.0]))


# --- how many batches ----------------------------------------------------------------------------------------------


def counting(batches: list[Tensor]) -> tuple[list[int], Any]:
    seen: list[int] = []

    def forward(model: nn.Module, batch: Tensor) -> object:
        seen.append(next(i for i, b in enumerate(batches) if b is batch))
        return model(batch)

    return seen, forward


def test_a_tolerance_doubles_the_batches_until_it_is_met() -> None:
    mean, batches = convolutional(), many(20)
    seen, forward = counting(batches)
    reference = bn_reference(mean, batches, forward=forward, keep=8)
    errors = {few: reference.refresh(near(mean), few=few).error for few in (2, 4, 8)}
    assert errors[8] < errors[2]
    seen.clear()
    found = reference.refresh(near(mean), tolerance=max(errors[4], errors[8]))
    assert found.batches in (2, 4, 8) and found.error <= max(errors[4], errors[8])
    assert seen == list(range(found.batches))  # none is run twice
    seen.clear()
    assert reference.refresh(near(mean), tolerance=errors[2]).batches == 2 and seen == [0, 1]


def test_a_tolerance_that_is_not_met_runs_everything() -> None:
    mean, batches = convolutional(), many(10)
    exact, model = near(mean), near(mean)
    refresh_bn(exact, batches)
    found = bn_reference(mean, batches, keep=5).refresh(model, tolerance=0.0)
    assert found == Refreshed(5 + 10, {"1": 0.0, "5": 0.0})
    assert distance(model, exact) == 0.0


@pytest.mark.parametrize("few", [2, 3, 9])
def test_all_batches_are_exact(few: int) -> None:
    mean, batches = convolutional(), many(3)
    exact, model = near(mean), near(mean)
    refresh_bn(exact, batches)
    found = bn_reference(mean, batches).refresh(model, few=few, tolerance=0.0)
    assert found.batches == 3 and found.error == 0.0
    assert distance(model, exact) < 1e-6


def test_one_batch_in_all() -> None:
    mean, batches = convolutional(), many(1)
    exact, model = near(mean), near(mean)
    refresh_bn(exact, batches)
    assert bn_reference(mean, batches).refresh(model) == Refreshed(1, {"1": 0.0, "5": 0.0})
    assert distance(model, exact) < 1e-6


def test_a_loader_may_shuffle_and_an_iterator_will_do() -> None:
    data = torch.cat(many(10))
    loader = DataLoader(data, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(0))
    mean = convolutional()
    reference = bn_reference(mean, loader)
    one, two = near(mean), near(mean)
    reference.refresh(one)
    reference.refresh(two)
    assert distance(one, two) == 0.0  # the same few batches
    assert reference.refresh(one, tolerance=0.0).batches == 8 + 10
    reference = bn_reference(mean, iter(many(10)))
    assert reference.refresh(one).batches == 2
    with pytest.raises(
        ValueError, match="the error is above the tolerance of 0.0 after all 8 batches kept, and the oth"
    ):
        reference.refresh(one, tolerance=0.0)


def test_max_batches_holds_for_both() -> None:
    mean, batches = convolutional(), many(10)
    exact, model = near(mean), near(mean)
    refresh_bn(exact, batches, max_batches=5)
    found = bn_reference(mean, batches, max_batches=5, keep=2).refresh(model, tolerance=0.0)
    assert found.batches == 2 + 5 and distance(model, exact) == 0.0


# --- what is touched and what is not -------------------------------------------------------------------------------


@pytest.mark.parametrize("tolerance", [None, 0.0])
def test_only_running_statistics_change(tolerance: float | None) -> None:
    mean = convolutional()
    reference = bn_reference(mean, many(4), keep=2)
    model = near(mean).train()
    model[2].eval()
    before = state(model)
    reference.refresh(model, tolerance=tolerance)
    after = state(model)
    changed = {name for name, t in before["tensors"].items() if not torch.equal(t, after["tensors"][name])}
    assert changed <= {f"{i}.{name}" for i in (1, 5) for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert len(changed) >= 4
    for key in ("modes", "momenta", "hooks"):
        assert after[key] == before[key]


def test_an_exception_leaves_everything_as_it_was() -> None:
    calls = 0

    def forward(model: nn.Module, batch: Tensor) -> object:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise KeyboardInterrupt
        return model(batch)

    mean = convolutional()
    reference = bn_reference(mean, many(4), forward=forward)
    model = near(mean).train()
    before = state(model)
    with pytest.raises(KeyboardInterrupt):
        reference.refresh(model)
    assert_same(state(model), before)


def test_momentum_none_and_layers_without_affine() -> None:
    mean = nn.BatchNorm1d(1, momentum=None, affine=False)
    batches = [torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([[10.0], [14.0]])] * 2
    bn_reference(mean, batches).refresh(model := copy.deepcopy(mean))
    assert model.running_mean.item() == pytest.approx(5.0) and model.momentum is None


def test_a_layer_that_is_not_in_use_keeps_its_statistics() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
            self.idle.running_mean.fill_(7.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    model = Branches()
    reference = bn_reference(model, [torch.arange(4.0)[:, None] + k for k in range(4)], keep=2)
    for tolerance in (None, 0.0):
        reference.refresh(model, tolerance=tolerance)
        assert model.idle.running_mean.item() == 7.0 and model.idle.num_batches_tracked == 0


def test_a_layer_that_the_few_batches_do_not_reach() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.early, self.late = nn.BatchNorm1d(1), nn.BatchNorm1d(1)

        def forward(self, x: Tensor) -> Tensor:
            return self.early(x) if x[0] < 2 else self.late(x)

    batches = [torch.arange(4.0)[:, None] + k for k in range(4)]
    model = Late()
    reference = bn_reference(model, batches)
    with pytest.raises(ValueError, match="the few batches do not reach late"):
        reference.refresh(model)
    assert reference.refresh(model, tolerance=100.0).batches == 4  # all, as one half does not reach it
    assert model.late.running_mean.item() == pytest.approx(4.0)


def test_without_batchnorm_nothing_is_read() -> None:
    def stream() -> Iterator[Tensor]:
        raise AssertionError("read")
        yield

    model = nn.Linear(1, 1)
    assert bn_reference(model, stream()).refresh(model, tolerance=0.0) == Refreshed(0, {})


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"keep": 1}, "keep must be one batch or more for each half, a whole number of at least 2, got 1"),
        ({"weighting": "sample"}, 'weighting must be "samples" or "batches", got \'sample\''),
        ({"max_batches": 0}, "max_batches must be at least 1 or None, got 0"),
    ],
)
def test_bad_arguments(arguments: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        bn_reference(convolutional(), many(), **arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"few": 1}, "few must be one batch or more for each half, a whole number of at least 2, got 1"),
        ({"tolerance": -1.0}, "tolerance must be at least 0, or None for a fixed number of batches, got -1.0"),
        ({"tolerance": float("nan")}, "tolerance must be at least 0, .* got nan"),
    ],
)
def test_bad_arguments_of_refresh(arguments: Any, says: str) -> None:
    model = convolutional()
    with pytest.raises(ValueError, match=says):
        bn_reference(model, many()).refresh(model, **arguments)


def test_another_network_is_refused_by_layer() -> None:
    reference = bn_reference(nn.Sequential(nn.BatchNorm1d(2)), [torch.randn(4, 2)] * 3)
    with pytest.raises(ValueError, match=r"not those of the reference: 0 has \(channels, device\) \(3, device"):
        reference.refresh(nn.Sequential(nn.BatchNorm1d(3)))
    with pytest.raises(ValueError, match=r"1 has \(channels, device\) \(2, .* wanted None"):
        reference.refresh(nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2)))


def test_statistics_that_are_not_finite_are_refused() -> None:
    mean = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    reference = bn_reference(mean, [torch.randn(4, 2) for _ in range(4)])
    model = copy.deepcopy(mean)
    nn.init.constant_(model[0].weight, torch.nan)
    before = model[1].running_mean.clone()
    for tolerance in (None, 1.0):
        with pytest.raises(ValueError, match="the statistics of 1 are not finite"):
            reference.refresh(model, tolerance=tolerance)
        assert torch.equal(model[1].running_mean, before)


def test_a_loader_that_overwrites_its_batches_is_refused() -> None:
    def stream() -> Iterator[dict[str, Tensor]]:
        buffer = torch.empty(4, 1)
        for k in range(4):
            yield {"input": buffer.copy_(torch.arange(4.0)[:, None] * (k + 1))}

    model = nn.BatchNorm1d(1)
    reference = bn_reference(model, stream())
    with pytest.raises(ValueError, match="batch 0 was overwritten after bn_reference had run it"):
        reference.refresh(model)


# --- ranks ---------------------------------------------------------------------------------------------------------

RANK = """
import copy, sys
import torch, torch.distributed as dist
from torch import nn
from lowland.batchnorm import bn_reference
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
torch.manual_seed(0)
mean = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2), nn.BatchNorm1d(2))
batches = [torch.randn(6, 3) * (1 + k % 3) for k in range(10)]
other = copy.deepcopy(mean)
with torch.no_grad():
    for p in other.parameters():
        p.add_(0.05 * torch.randn(p.shape))
def statistics(m):
    return torch.cat([b.double().flatten() for name, b in m.named_buffers() if "running" in name])
def run(share, reference, few, tolerance, synchronise):
    model = copy.deepcopy(other)
    found = bn_reference(copy.deepcopy(mean), share, keep=4, synchronise=synchronise).refresh(
        model, few=few, tolerance=tolerance)
    return found, statistics(model)
# Batches 0 and 1 of each rank are batches 0, 1, 2, 3 in the order of one process: 0 1 on rank 0, 2 3 on rank 1.
shares = [[batches[i] for i in (0, 2, 4, 6, 8)], [batches[i] for i in (1, 3, 5, 7, 9)]]
single, wanted = run([batches[i] for i in (0, 2, 1, 3)] + batches[4:], None, 4, None, False)
found, got = run(shares[rank], None, 2, None, True)
assert found.batches == 2 and torch.allclose(got, wanted, atol=1e-6), (got - wanted)
gathered = [None, None]
dist.all_gather_object(gathered, found.error)
assert gathered[0] == gathered[1] > 0, gathered
_, exact = run(batches, None, 2, 0.0, False)
found, got = run(shares[rank], None, 2, 0.0, True)
assert found.error == 0 and found.batches == 4 + 5 and torch.allclose(got, exact, atol=1e-6)
# Shares of unequal length: rank 1 has a single batch.
found, got = run(batches[:9] if rank == 0 else batches[9:], None, 2, 0.0, True)
assert found.error == 0 and found.batches == ((4 + 9) if rank == 0 else 2) and torch.allclose(got, exact, atol=1e-6)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_ranks_share_the_batches(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RANK]
    runs = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "meet")], stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    for run in runs:
        _, stderr = run.communicate(timeout=900)
        assert run.returncode == 0, stderr
