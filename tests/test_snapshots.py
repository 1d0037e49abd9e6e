"""Snapshots: the window by number, order, draws, dtypes, memory and errors."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from lowland import Snapshots
from lowland.averager import draws

from .problems import four_iterates, walk


def filled(k: int, values: list[float]) -> Snapshots:
    snapshots = Snapshots(k)
    for value in values:
        snapshots.update({"w": torch.tensor([value])})
    return snapshots


def test_mean_and_members_of_the_four_iterates() -> None:
    snapshots = Snapshots(k=2)
    for weights in four_iterates():
        snapshots.update(weights)
    assert snapshots.mean()["w"].tolist() == [4.0, 2.5]
    assert [member["w"].tolist() for member in snapshots.members()] == [[2.0, 5.0], [6.0, 0.0]]
    assert snapshots.count == 4


@pytest.mark.parametrize("k", [1, 2, 3, 7])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 6, 7, 8])
def test_the_window_is_the_latest_k_oldest_first(k: int, steps: int) -> None:
    values = [float(step * step) for step in range(steps)]
    snapshots = filled(k, values)
    window = values[-k:]
    assert [member["w"].item() for member in snapshots.members()] == window
    assert snapshots.mean()["w"].item() == pytest.approx(sum(window) / len(window), rel=1e-6)


def test_members_keep_the_models_dtype_and_the_mean_is_wide() -> None:
    snapshots = Snapshots(3)
    for weights in walk(3, dtype=torch.bfloat16):
        snapshots.update(weights)
    assert all(tensor.dtype == torch.bfloat16 for member in snapshots.members() for tensor in member.values())
    for name, tensor in snapshots.mean().items():
        exact = torch.stack([member[name].double() for member in snapshots.members()]).mean(0)
        assert tensor.dtype == torch.float32
        assert torch.allclose(tensor.double(), exact, atol=1e-6)


def test_float16_members_do_not_overflow_in_the_mean() -> None:
    snapshots = Snapshots(4)
    for _ in range(4):
        snapshots.update({"w": torch.tensor([60_000.0], dtype=torch.float16)})
    assert snapshots.mean()["w"].item() == 60_000.0 - 60_000.0 % 32


def test_integers_of_the_mean_are_the_latest() -> None:
    snapshots = Snapshots(3)
    for step in (1, 5, 7, 8):
        snapshots.update({"w": torch.zeros(1), "steps": torch.tensor(step)})
    assert snapshots.mean()["steps"].item() == 8


def test_members_are_copies() -> None:
    snapshots = filled(2, [1.0, 2.0])
    for member in (*snapshots.members(), snapshots.sample(), *snapshots.draws(2)):
        member["w"].fill_(9.0)
    assert [member["w"].item() for member in snapshots.members()] == [1.0, 2.0]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 9])
def test_draws_are_shared_out_evenly(n: int) -> None:
    snapshots = filled(3, [1.0, 2.0, 3.0, 4.0])
    drawn = snapshots.sample(n, generator=torch.Generator().manual_seed(n))["w"]
    assert drawn.shape == (n, 1)
    counts = Counter(drawn.flatten().tolist())
    assert set(counts) <= {2.0, 3.0, 4.0}
    assert all(counts[value] in (n // 3, -(-n // 3)) for value in (2.0, 3.0, 4.0))


def test_every_single_draw_is_uniform() -> None:
    snapshots = filled(3, [0.0, 1.0, 2.0])
    generator = torch.Generator().manual_seed(0)
    runs = torch.stack([snapshots.sample(4, generator=generator)["w"].flatten() for _ in range(1500)])  # (1500, 4)
    # Each place holds each member in a third of the runs: five standard errors of a share are 5 sqrt(2 / 9 / 1500).
    for value in (0.0, 1.0, 2.0):
        assert ((runs == value).double().mean(0) - 1 / 3).abs().max() < 5 * (2 / 9 / 1500) ** 0.5


def test_one_draw_has_no_leading_axis_and_follows_its_generator() -> None:
    snapshots = filled(4, [1.0, 2.0, 3.0, 4.0])
    one = [snapshots.sample(generator=torch.Generator().manual_seed(3))["w"] for _ in range(2)]
    assert one[0].shape == (1,)
    assert torch.equal(one[0], one[1])


def test_a_finite_posterior_gives_every_member_once() -> None:
    snapshots = filled(3, [1.0, 2.0, 3.0, 4.0])
    assert [weights["w"].item() for weights in draws(snapshots, None)] == [2.0, 3.0, 4.0]
    assert sorted(weights["w"].item() for weights in draws(snapshots, 6)) == [2.0, 2.0, 3.0, 3.0, 4.0, 4.0]


@pytest.mark.parametrize("k", [0, -1, 2.0, True, "3"])
def test_k_out_of_range(k: object) -> None:
    with pytest.raises(ValueError, match="k must be a whole number of at least 1, got"):
        Snapshots(k)  # type: ignore[arg-type]


def test_errors_of_order() -> None:
    snapshots = Snapshots(2)
    for call in (snapshots.mean, snapshots.members, snapshots.sample, lambda: snapshots.draws(2)):
        with pytest.raises(RuntimeError, match=r"Snapshots has no weights yet: call update\(model\) first"):
            call()
    snapshots.update({"w": torch.zeros(1)})
    with pytest.raises(ValueError, match="samples must be a whole number of at least 1, got 0"):
        snapshots.sample(0)
    with pytest.raises(ValueError, match="k .state 2, here 3"):
        Snapshots(3).load_state_dict(snapshots.state_dict())
