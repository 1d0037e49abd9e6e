"""ASWA: METHODS 17.13 and every branch of 11.1, the released faults, scores that write, raise or return NaN."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lowland
from lowland import ASWA, applied, copy_to
from lowland.aswa import Decision

from .reference import aswa as reference

PATH = [0.0, 4.0, 7.0, 3.0, 6.0, 20.0]


def near_five(weights: Mapping[str, Tensor]) -> float:
    return -abs(weights["w"].item() - 5)


def judge(value: float) -> float:
    return -abs(value - 5)


def run(path: list[float], score: lowland.weights.Score = near_five) -> ASWA:
    average = ASWA(score)
    for value in path:
        average.update({"w": torch.tensor(value, dtype=torch.float64)})
    return average


def test_17_13() -> None:
    average = ASWA(near_five)
    expected = [
        ("first", 0.0, 1),
        ("hard", 4.0, 1),
        ("soft", 5.5, 2),
        ("soft", 4.6667, 3),
        ("soft", 5.0, 4),
        ("reject", 5.0, 4),
    ]
    for value, (action, mean, n) in zip(PATH, expected, strict=True):
        average.update({"w": torch.tensor(value)})
        assert average.trace[-1].action == action
        assert average.mean()["w"].item() == pytest.approx(mean, abs=5e-5)
        assert average.averaged == n
        assert average.best == pytest.approx(judge(mean), abs=5e-5)
    assert average.count == 6
    assert average.mean()["w"].item() == 5.0


def test_equals_the_naive_rule() -> None:
    met = set()
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        path = (5 + 3 * torch.randn(40, generator=generator, dtype=torch.float64)).tolist()
        average = ASWA(near_five)
        for value, (action, mean, n) in zip(path, reference.intended(path, judge), strict=True):
            average.update({"w": torch.tensor(value, dtype=torch.float64)})
            assert (average.trace[-1].action, average.averaged) == (action, n)
            assert average.mean()["w"].item() == pytest.approx(mean, abs=1e-12)
            met.add(action)
    assert met == {"first", "hard", "soft", "reject"}


def test_the_trace_holds_the_scores_that_decided() -> None:
    assert run(PATH[:4]).trace == [
        Decision("first", running=-5.0, ahead=None, averaged=1),
        Decision("hard", running=-1.0, ahead=-3.0, averaged=1),
        Decision("soft", running=-2.0, ahead=-0.5, averaged=2),
        Decision("soft", running=-2.0, ahead=pytest.approx(-1 / 3), averaged=3),
    ]


# All tests are strict.


def scored(table: dict[float, float]) -> lowland.weights.Score:
    return lambda weights: table[weights["w"].item()]


@pytest.mark.parametrize(
    ("running", "ahead", "action"),
    [
        (2.0, 1.0, "hard"),
        (2.0, -1.0, "hard"),
        (2.0, 2.0, "soft"),  # a tie with the look-ahead is no hard update
        (0.0, 2.0, "soft"),
        (0.0, -1.0, "reject"),  # a tie with the average is none either
        (-1.0, 0.0, "reject"),  # nor is it a soft one
        (-1.0, -2.0, "reject"),
        (0.0, 0.0, "reject"),
        (math.inf, 1.0, "hard"),
        (-math.inf, -math.inf, "reject"),
    ],
)
def test_every_branch(running: float, ahead: float, action: str) -> None:
    average = run([0.0, 4.0], scored({0.0: 0.0, 4.0: running, 2.0: ahead}))
    assert average.trace[-1].action == action
    assert average.mean()["w"].item() == {"hard": 4.0, "soft": 2.0, "reject": 0.0}[action]
    assert average.averaged == (2 if action == "soft" else 1)
    assert average.best == {"hard": running, "soft": ahead, "reject": 0.0}[action]


# The released faults: what they give, and that we do not.


def test_the_cleared_count_of_the_released_code() -> None:
    # https://github.com/dice-group/aswa/blob/3039db5/ddp_train.py#L222
    assert reference.cleared_count(PATH, judge, operator.gt) == 4.0
    assert reference.cleared_count(PATH, judge, operator.ge) == 6.0
    after_hard = run(PATH[:3])
    assert after_hard.trace[1].action == "hard" and after_hard.trace[1].averaged == 1
    assert after_hard.mean()["w"].item() == 5.5  # (4 + 7) / 2: the model of the hard update weighs one
    assert run(PATH).mean()["w"].item() == 5.0


def test_the_aliased_rollback_of_the_released_code() -> None:
    # https://github.com/dice-group/aswa/blob/3039db5/ddp_train.py#L202 and #L232
    assert reference.train_script(PATH, judge, nn.Module.state_dict) == pytest.approx(7.3)
    assert reference.train_script(PATH, judge, lambda model: copy.deepcopy(model.state_dict())) == pytest.approx(4.25)
    average = run(PATH[:5])
    kept = average.mean()["w"].clone()
    average.update({"w": torch.tensor(20.0, dtype=torch.float64)})
    assert average.trace[-1].action == "reject"
    assert torch.equal(average.mean()["w"], kept)


def test_a_rejected_update_leaves_the_average_bit_identical() -> None:
    generator = torch.Generator().manual_seed(0)
    average = ASWA(lambda weights: -float(weights["w"].square().sum()))
    for scale in (1.0, 0.5):
        average.update({"w": scale * torch.randn(20, generator=generator)})
    before = (average.mean()["w"], average.averaged, average.best)
    average.update({"w": torch.full((20,), 100.0)})
    assert average.trace[-1].action == "reject"
    assert torch.equal(average.mean()["w"], before[0])
    assert (average.averaged, average.best) == before[1:]


# Scores.


def test_a_score_may_write_into_what_it_gets() -> None:
    def rude(weights: Mapping[str, Tensor]) -> float:
        value = near_five(weights)
        weights["w"].fill_(1e9)
        return value

    shown = [torch.tensor(value, dtype=torch.float64) for value in PATH]
    average = ASWA(rude)
    for tensor in shown:
        average.update({"w": tensor})
    assert average.mean()["w"].item() == 5.0
    assert [decision.action for decision in average.trace] == [d.action for d in run(PATH).trace]
    assert [tensor.item() for tensor in shown] == PATH


def test_a_score_may_use_the_live_model() -> None:
    model = nn.Linear(1, 1, bias=False).double()

    def in_place(weights: Mapping[str, Tensor]) -> float:
        with applied(model, weights):
            return judge(model.weight.item())

    def for_good(weights: Mapping[str, Tensor]) -> float:
        copy_to(weights, model)
        return judge(model.weight.item())

    for score in (in_place, for_good):
        average = ASWA(score)
        for value in PATH:
            nn.init.constant_(model.weight, value)
            average.update(model)
        assert average.mean()["weight"].item() == 5.0


def test_the_score_of_the_average_is_kept() -> None:
    asked: list[float] = []

    def counting(weights: Mapping[str, Tensor]) -> float:
        asked.append(weights["w"].item())
        return near_five(weights)

    run(PATH, counting)
    assert len(asked) == 1 + 2 * 5
    assert asked[:5] == [0.0, 4.0, 2.0, 7.0, 5.5]


def test_a_score_may_return_a_tensor() -> None:
    average = run(PATH, lambda weights: -(weights["w"] - 5).abs())  # type: ignore[arg-type, return-value]
    assert average.mean()["w"].item() == 5.0
    assert all(isinstance(decision.running, float) for decision in average.trace)


def test_scores_see_float32_of_a_bfloat16_model() -> None:
    seen = set()

    def score(weights: Mapping[str, Tensor]) -> float:
        seen.add(weights["w"].dtype)
        return near_five(weights)

    average = ASWA(score)
    for value in PATH:
        average.update({"w": torch.tensor(value, dtype=torch.bfloat16)})
    assert seen == {torch.float32}
    assert average.mean()["w"].item() == 5.0


@pytest.mark.parametrize(
    ("at", "on"), [(at, "running") for at in range(6)] + [(at, "look-ahead") for at in range(1, 6)]
)
@pytest.mark.parametrize("fault", ["raise", "nan", "none"])
def test_a_failing_score_changes_nothing(at: int, on: str, fault: str) -> None:
    broken = False
    calls = 0

    def score(weights: Mapping[str, Tensor]) -> float:
        nonlocal calls
        calls += 1
        if broken and calls == (1 if on == "running" else 2):
            if fault == "raise":
                raise OSError("the disk is gone")
            return math.nan if fault == "nan" else None  # type: ignore[return-value]
        return near_five(weights)

    average = run(PATH[:at], score)
    before = copy.deepcopy(average.state_dict())
    broken, calls = True, 0
    error = ValueError if fault == "nan" else RuntimeError
    said = {"raise": "failed with OSError: the disk is gone", "nan": "is NaN", "none": "failed with TypeError"}[fault]
    with pytest.raises(error, match=f"the score of the {on} .*{said}.*; nothing is changed"):
        average.update({"w": torch.tensor(PATH[at], dtype=torch.float64)})
    after = average.state_dict()
    assert {**after, "slots": None} == {**before, "slots": None}
    assert after["slots"].keys() == before["slots"].keys()
    for slot, named in after["slots"].items():
        assert all(torch.equal(tensor, before["slots"][slot][name]) for name, tensor in named.items())
    broken = False
    for value in PATH[at:]:
        average.update({"w": torch.tensor(value, dtype=torch.float64)})
    assert average.mean()["w"].item() == 5.0


def test_the_cause_of_a_failing_score_is_kept() -> None:
    with pytest.raises(RuntimeError) as caught:
        run([0.0], lambda weights: weights["missing"].item())
    assert isinstance(caught.value.__cause__, KeyError)


# State.


@pytest.mark.parametrize("cut", range(7))
def test_the_trace_is_resumed(cut: int, tmp_path: Path) -> None:
    lowland.save(run(PATH[:cut]), tmp_path / "aswa.safetensors")
    again = lowland.load(tmp_path / "aswa.safetensors", score=near_five)
    for value in PATH[cut:]:
        again.update({"w": torch.tensor(value, dtype=torch.float64)})
    whole = run(PATH)
    assert again.trace == whole.trace
    assert (again.averaged, again.best) == (whole.averaged, whole.best)


def test_a_file_holds_only_the_name_of_the_score(tmp_path: Path) -> None:
    lowland.save(run(PATH), tmp_path / "aswa.safetensors")
    with pytest.raises(ValueError, match="got 'near_five'; a file holds only its name: pass it again with score="):
        lowland.load(tmp_path / "aswa.safetensors")


def test_loading_under_another_score_names_both() -> None:
    def other(weights: Mapping[str, Tensor]) -> float:
        return 0.0

    with pytest.raises(ValueError, match=r"score .state 'near_five', here '.*other'"):
        ASWA(other).load_state_dict(run(PATH).state_dict())


@pytest.mark.parametrize("scalars", [{}, {"action": ["first"], "running": [], "ahead": [None], "averaged": [1]}])
def test_a_damaged_trace_changes_nothing(scalars: dict[str, list[object]]) -> None:
    average = run(PATH[:3])
    damaged = {**run(PATH).state_dict(), "scalars": scalars}
    with pytest.raises(
        ValueError, match="must hold lists of one length under .*'action', 'running', 'ahead', 'averaged'"
    ):
        average.load_state_dict(damaged)
    assert (average.mean()["w"].item(), average.count, average.averaged) == (5.5, 3, 2)


def test_errors() -> None:
    with pytest.raises(ValueError, match="score must be a function from weights to a number, got None"):
        ASWA(None)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=r"ASWA has no weights yet: call update\(model\) first"):
        ASWA(near_five).mean()
    new = ASWA(near_five)
    assert (new.averaged, new.best, new.trace) == (0, None, [])
