"""The arithmetic of the benchmarks: medians, ratios, the limit, peak memory, and what is written."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch
from benchmarks import harness, triads
from benchmarks.harness import Row


def test_a_ratio_is_the_median_over_rounds_not_the_ratio_of_medians() -> None:
    ours, theirs = Row("ours", [1.0, 2.0, 30.0]), Row("theirs", [4.0, 1.0, 30.0])
    assert ours.over(theirs) == 1.0
    assert theirs.over(ours) == 1.0
    assert ours.seconds == 2.0 and theirs.seconds == 4.0


def test_the_distance_between_quartiles_is_that_of_the_textbook() -> None:
    assert harness.spread([1.0, 2.0, 3.0, 4.0, 5.0]) == 2.0
    assert harness.spread([7.0]) == 0.0


def test_the_limit_counts_vectors_against_the_three_of_a_triad() -> None:
    assert harness.over_limit(2.0, 1.0, 6) == 1.0
    assert harness.over_limit(2.0, 1.0, 3) == 2.0
    assert harness.over_limit(2.0, 1.0, None) == 2.0


def test_rounds_are_interleaved_in_random_order_after_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    called: list[str] = []
    rows = harness.compare(
        {"a": lambda: called.append("a"), "b": lambda: called.append("b")},
        limit=lambda: called.append("limit"),
        vectors={"a": 3},
        prepare={"b": lambda: called.append("made ready")},
        baseline="b",
        rounds=6,
        calls=1,
        window=0.0,
        device="cpu",
    )
    # The first call of each and the calibration of the limit are not of the rounds.
    turns = " ".join(called[called.index("limit") + 1 :]).replace("limit a", "A").replace("made ready b", "B").split()
    pairs = [turns[place : place + 2] for place in range(0, len(turns), 2)]
    assert [sorted(pair) for pair in pairs] == [["A", "B"]] * 6
    assert ["A", "B"] in pairs and ["B", "A"] in pairs
    a, b = rows
    assert (a.name, len(a.times), len(a.limits), len(b.limits)) == ("a", 6, 6, 0)
    assert b.limit is None and b.ratio == 1.0 and a.ratio == pytest.approx(a.over(b))


def test_a_budget_ends_the_rounds_but_leaves_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    rows = harness.compare({"a": lambda: None}, rounds=9, calls=1, budget=0.0, device="cpu")
    assert len(rows[0].times) == 2


def test_a_time_is_that_of_one_call() -> None:
    row = harness.compare({"a": lambda: time.sleep(0.004)}, rounds=3, calls=5, device="cpu")[0]
    assert 0.004 <= row.seconds < 0.02


def test_compare_refuses_nothing_and_an_unknown_baseline() -> None:
    with pytest.raises(ValueError, match="a contender and a round"):
        harness.compare({})
    with pytest.raises(ValueError, match=r"the baseline 'c' is no contender: \['a'\]"):
        harness.compare({"a": list}, baseline="c")


def test_every_way_runs_the_same_triad() -> None:
    # An odd length: the streaming loop has a head and a tail.
    found, (a, b, c) = triads.ways(1003)
    b.copy_(torch.arange(1003.0))
    for name, run in found.items():
        a.fill_(-1)
        run()
        assert torch.equal(a, b + 0.5 * c), name
    assert "torch" in found


def test_the_fastest_way_lives_by_itself() -> None:
    triad = triads.fastest(5000, rounds=3)
    triad()
    assert torch.equal(triad.tensors[0], torch.full((5000,), 2.0))
    assert triad.gigabytes == max(triad.tried.values()) and triad.how in repr(triad)
    with pytest.raises(ValueError, match="at least one element"):
        triads.fastest(0)


def test_peak_extra_sees_what_a_call_allocates_and_frees() -> None:
    def allocates() -> None:
        torch.ones(8_000_000)  # 32 MB

    small = harness.peak_extra(lambda: None, "cpu")
    assert 31e6 < harness.peak_extra(allocates, "cpu") < 40e6
    assert small < 4e6


def test_a_result_names_machine_versions_command_and_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["/somewhere/benchmarks/speed.py", "--threads", "2", "--data", "/somewhere/a.npz"])
    rows = [Row("ours", [0.001, 0.003], [1.0, 1.5], [0.0, 0.0]), Row("theirs", [0.01, 0.02])]
    checks = [("ours is fast", "at most 1.5x", "1.25x", True), ("ours is small", "16 MB", "17 MB", False)]
    path = harness.write(
        "speed", "A speed", {"25M": rows, "own": [{"x": 1.23456}]}, ["a note"], checks, packages=["timm"]
    )
    text, raw = path.read_text(), json.loads((tmp_path / "speed.json").read_text())
    assert "| ours | 2 | 1 | 1.25 | 0.25 |" in text and "| 1.235 |" in text and "- a note" in text
    assert "| ours is small | 16 MB | 17 MB | **no** |" in text
    assert "Command: `python benchmarks/speed.py --threads 2 --data a.npz`" in text and "/somewhere" not in text
    assert raw["tables"]["25M"][0]["times_s"] == [0.001, 0.003] and raw["tables"]["25M"][0]["over_limit"] == 1.25
    assert raw["versions"]["torch"] == torch.__version__ and raw["versions"]["timm"] == "1.0.31"
    assert raw["machine"]["cores"] and [check["ok"] for check in raw["checks"]] == [True, False]
    assert capsys.readouterr().out.startswith("# A speed")


def test_what_the_benchmarks_of_updates_and_draws_call_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """They reach inside to hold an averager at one place of its ring, which a change of its inside may break."""
    monkeypatch.setitem(sys.modules, "harness", harness)
    monkeypatch.syspath_prepend(str(Path(harness.__file__).parent))
    from benchmarks import draws, updates

    model, troubles = torch.nn.Linear(3, 2), dict.fromkeys(updates.PEERS, "not asked for")
    groups = [lambda: updates.means(model, troubles), *updates.gaussians(model, troubles, True)]
    called = [update() for make in groups for name, update in make().items() if name.startswith("lowland")]
    assert len(called) > 8
    swag = draws.collected(model, 4)
    assert swag.count == 5 and all(bool(t.isfinite().all()) for t in swag.sample(2).values())
