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
from lowland import ASWA, SWAG, applied, copy_to
from lowland.aswa import Decision

from .reference import aswa as reference
from .reference import released_aswa as released

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
    assert released.cleared_count(PATH, judge, operator.gt) == 4.0
    assert released.cleared_count(PATH, judge, operator.ge) == 6.0
    after_hard = run(PATH[:3])
    assert after_hard.trace[1].action == "hard" and after_hard.trace[1].averaged == 1
    assert after_hard.mean()["w"].item() == 5.5  # (4 + 7) / 2: the model of the hard update weighs one
    assert run(PATH).mean()["w"].item() == 5.0


def test_the_aliased_rollback_of_the_released_code() -> None:
    # https://github.com/dice-group/aswa/blob/3039db5/ddp_train.py#L202 and #L232
    assert released.train_script(PATH, judge, nn.Module.state_dict) == pytest.approx(7.3)
    assert released.train_script(PATH, judge, lambda model: copy.deepcopy(model.state_dict())) == pytest.approx(4.25)
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


RELEASED = {
    "adopts before it looks ahead": (5.0, lambda path: released.eager(path, judge)),
    "forgets the adopted": (4.0, lambda path: released.cleared_count(path, judge, operator.gt)),
    "no rollback": (7.3, lambda path: released.train_script(path, judge, nn.Module.state_dict)),
    "a rollback that works": (
        4.25,
        lambda path: released.train_script(path, judge, lambda model: copy.deepcopy(model.state_dict())),
    ),
    "forgets, accepts ties, no rollback": (29 / 3, lambda path: released.ddp_script(path, judge)),
}


@pytest.mark.parametrize("code", RELEASED)
def test_what_each_released_code_ends_at(code: str) -> None:
    final, twin = RELEASED[code]
    assert twin(PATH) == pytest.approx(final, abs=1e-12)
    assert run(PATH).mean()["w"].item() == 5.0


@pytest.mark.parametrize(
    "damage",
    [
        {"action": ["first", "maybe"]},
        {"running": ["-1", -2.0]},
        {"averaged": [1, -1]},
        {"values": []},
        {"values": ["high"]},
        {"key": -1},
        {"running": 3.0},
        {"running": [-1.0]},
    ],
    ids=str,
)
def test_damaged_scalars_are_refused_and_change_nothing(damage: dict[str, object]) -> None:
    state = run(PATH[:2]).state_dict()
    average = run(PATH[:3])
    before = (average.trace[:], average.count)
    with pytest.raises(ValueError, match="ASWA"):
        average.load_state_dict({**state, "scalars": {**state["scalars"], **damage}})
    assert (average.trace, average.count) == before


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
        copy_to(model, weights)
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


def counted(path: list[float], score: lowland.weights.Score = near_five) -> tuple[ASWA, list[list[float]]]:
    """The run, and what each update asked the score for."""
    asked: list[list[float]] = []

    def counting(weights: Mapping[str, Tensor]) -> float:
        asked[-1].append(weights["w"].item())
        return score(weights)

    average = ASWA(counting)
    for value in path:
        asked.append([])
        average.update({"w": torch.tensor(value, dtype=torch.float64)})
    return average, asked


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


OLD = ("action", "running", "ahead", "averaged")


@pytest.mark.parametrize("cut", range(7))
def test_states_written_before_there_was_a_gate_go_on(
    cut: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = run(PATH[:cut])
    scalars = {field: [getattr(decision, field) for decision in part.trace] for field in OLD}
    with monkeypatch.context() as patch:
        patch.setattr(ASWA, "_scalars", lambda self: scalars)
        lowland.save(part, tmp_path / "aswa.safetensors")
        state = part.state_dict()
    from_file = lowland.load(tmp_path / "aswa.safetensors", score=near_five)
    from_state = ASWA(near_five)
    from_state.load_state_dict(state)
    for again in (from_file, from_state):
        assert (again.trace, again.best) == (part.trace, part.best)
        for value in PATH[cut:]:
            again.update({"w": torch.tensor(value, dtype=torch.float64)})
        assert again.trace == run(PATH).trace


# The gate: 200 examples, each of which is worth -(w - its own target)^2.

TARGETS = 5 + torch.randn(200, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def each(weights: Mapping[str, Tensor]) -> Tensor:
    return -((weights["w"] - TARGETS) ** 2)


def whole(weights: Mapping[str, Tensor]) -> float:
    return float(each(weights).mean())


def gated(path: list[float], **arguments: object) -> ASWA:
    arguments = {"level": 0.95, "generator": torch.Generator().manual_seed(0), **arguments}
    average = ASWA(each, **arguments)  # type: ignore[arg-type]
    for value in path:
        average.update({"w": torch.tensor(value, dtype=torch.float64)})
    return average


def test_the_gate_takes_what_the_examples_agree_on_and_no_more() -> None:
    best = float(TARGETS.mean())
    # The last step goes from 0.17 off to 0.025: 0.027 better on average, with a standard error of 0.02.
    path = [best + off for off in (10.0, 3.0, -2.0, -0.5, -0.4)]
    free, strict = run(path, whole), gated(path)
    assert [d.action for d in free.trace] == ["first", "hard", "soft", "soft", "soft"]
    assert [d.action for d in strict.trace] == ["first", "hard", "soft", "soft", "reject"]
    assert [d.running for d in strict.trace] == pytest.approx([d.running for d in free.trace])
    last = strict.trace[-1]
    assert last.favour is not None and 0.5 < last.favour < 0.95
    assert all(d.favour is not None and d.favour >= 0.95 for d in strict.trace[1:-1])
    assert strict.trace[0].favour is None


def test_the_share_agrees_with_a_naive_bootstrap() -> None:
    path = [5.1, 4.8]
    average = gated(path, resamples=4000, level=0.5)
    best = 4.8 if average.trace[-1].action == "hard" else 4.95
    new, old = each({"w": torch.tensor(best)}), each({"w": torch.tensor(path[0])})
    generator = torch.Generator().manual_seed(123)
    wins = 0
    for _ in range(4000):
        places = torch.randint(200, (200,), generator=generator)
        wins += bool(new[places].mean() > old[places].mean())
    share = average.trace[-1].favour
    assert share is not None and abs(share - wins / 4000) < 5 * (0.25 * 2 / 4000) ** 0.5


def test_a_level_of_a_half_refuses_no_clear_gain_and_a_tie_is_none() -> None:
    right = torch.zeros(50)
    average = ASWA(lambda weights: right + weights["w"], level=0.5)
    for value in (0.0, 0.0, 1.0):
        average.update({"w": torch.tensor(value)})
    assert [d.action for d in average.trace] == ["first", "reject", "hard"]
    assert average.trace[-1].favour == 1.0


@pytest.mark.parametrize("cut", range(6))
def test_a_gated_run_is_resumed_bit_for_bit_without_its_generator(cut: int, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(5)
    path = (5 + torch.randn(6, generator=generator, dtype=torch.float64)).tolist()
    straight = gated(path, level=0.6)
    lowland.save(gated(path[:cut], level=0.6), tmp_path / "aswa.safetensors")
    again = lowland.load(tmp_path / "aswa.safetensors", score=each, generator=torch.Generator().manual_seed(99))
    for value in path[cut:]:
        again.update({"w": torch.tensor(value, dtype=torch.float64)})
    assert again.trace == straight.trace and again.best == straight.best
    assert torch.equal(again.mean()["w"], straight.mean()["w"])
    assert {**again.state_dict(), "slots": None} == {**straight.state_dict(), "slots": None}


@pytest.mark.parametrize(
    ("values", "error", "said"),
    [
        (torch.tensor(1.0), ValueError, r"a number for each validation example, .*, got shape \[\]"),
        (torch.zeros(3, 2), ValueError, r"got shape \[3, 2\]"),
        (torch.tensor([1.0, math.inf]), ValueError, "is not finite for some example"),
        (torch.zeros(199), ValueError, "has 199 values, that of the average 200; nothing is changed"),
        ("none", RuntimeError, "the score of the running weights failed with TypeError"),
    ],
)
def test_a_gated_score_of_a_wrong_kind_changes_nothing(values: object, error: type[Exception], said: str) -> None:
    average = gated([4.0])
    before = {**average.state_dict(), "slots": None}
    average.score = lambda weights: values  # type: ignore[assignment, return-value]
    with pytest.raises(error, match=said):
        average.update({"w": torch.tensor(5.0, dtype=torch.float64)})
    average.score = each
    assert {**average.state_dict(), "slots": None} == before
    assert average.mean()["w"].item() == 4.0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"level": 0.4}, "level must lie in .0.5, 1., got 0.4"),
        ({"level": 1.0}, "level must lie in"),
        ({"resamples": 0}, "resamples must be a whole number of at least 1, got 0"),
    ],
)
def test_arguments_of_the_gate(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        gated([], **arguments)


# What is accepted feeds a posterior.


def test_the_swag_of_accepted_iterates_has_the_mean_of_aswa() -> None:
    generator = torch.Generator().manual_seed(3)
    average, swag, taken = ASWA(near_five), SWAG(rank=2), []
    for value in (5 + 3 * torch.randn(40, generator=generator, dtype=torch.float64)).tolist():
        weights = {"w": torch.tensor(value, dtype=torch.float64)}
        average.update(weights)
        if average.trace[-1].action in ("first", "hard"):
            swag, taken = SWAG(rank=2), []
        if average.trace[-1].accepted:
            swag.update(weights)
            taken.append(value)
    assert swag.count == average.averaged == len(taken) > 3
    assert swag.mean()["w"].item() == pytest.approx(average.mean()["w"].item(), abs=1e-12)
    assert swag.mean()["w"].item() == pytest.approx(sum(taken) / len(taken), abs=1e-12)


def test_errors() -> None:
    with pytest.raises(ValueError, match="score must be a function from weights to a number, got None"):
        ASWA(None)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=r"ASWA has no weights yet: call update\(model\) first"):
        ASWA(near_five).mean()
    new = ASWA(near_five)
    assert (new.averaged, new.best, new.trace) == (0, None, [])
