"""The command that shows schedules: METHODS' numbers, what it collects, figures and mistakes."""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("typer")

from rich.console import Console

from lowland import cli
from lowland.cli.schedule import EXAMPLES, KINDS, build


@pytest.fixture
def schedule(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lowland", "schedule", *map(str, arguments)])
        monkeypatch.setattr(cli.screen, "out", Console(width=160, force_terminal=True, color_system=None))
        monkeypatch.setattr(cli.screen, "err", Console(stderr=True, width=160))
        with pytest.raises(SystemExit) as left:
            cli.main()
        printed = capsys.readouterr()
        return int(left.value.code or 0), printed.out, printed.err

    return run


@pytest.mark.parametrize(
    "made", ["triangle cycle=10 low=0.1", "sawtooth cycle=7 low=0.2", "cosine_restarts steps=400 cycles=40"]
)
def test_many_cycles_show_the_first_turning_points(schedule: Any, made: str) -> None:
    code, out, _ = schedule(*made.split())
    rows = re.findall(r"│\s+(\d+) │\s+([\d.e-]+) │", out)
    steps, rates = [int(step) for step, _ in rows], [float(rate) for _, rate in rows]
    kind, *arguments = made.split()
    assert code == 0 and rates == pytest.approx([build(kind, arguments)(step) for step in steps], rel=1e-5)
    lowest, highest = min(rates), max(rates)
    assert lowest in rates[:4] and highest in rates[:4] and steps[2] < 25, "a valley and a peak early on"
    assert "later turning points are not shown (--rows" in " ".join(out.split())


def test_a_mistake_names_no_type_of_python(schedule: Any) -> None:
    for kind in KINDS:
        code, _, err = schedule(kind, "nothing=1")
        assert code == 2 and "<class" not in err and "NoneType" not in err, err
    assert "every=... (none)" in schedule("swa_linear", "x=1")[2]


def test_fge_by_number(schedule: Any) -> None:
    code, out, _ = schedule("triangle", "cycle=8", "low=0.01", "--rate", 0.05, "--steps", 16, "--json")
    found = json.loads(out)
    assert code == 0 and found["schedule"] == "triangle(cycle=8, low=0.01)"
    assert found["rates"][:6] == pytest.approx([0.05, 0.037625, 0.02525, 0.012875, 0.0005, 0.012875])
    assert found["collect_after"] == [3, 11]


def test_snapshots_by_number(schedule: Any) -> None:
    arguments = ("cosine_restarts", "steps=20000", "cycles=5", "steps_per_epoch=100", "--rate", 0.2, "--json")
    found = json.loads(schedule(*arguments)[1])
    wanted = {0: 0.2, 1000: 0.170655, 2000: 0.099921, 3000: 0.029234, 3900: 0.000302, 4000: 0.2}
    assert {step: pytest.approx(found["rates"][step], abs=1e-6) for step in wanted} == wanted
    assert found["steps"] == 20000 and found["collect_after"] == [3999, 7999, 11999, 15999, 19999]


@pytest.mark.parametrize("kind", KINDS)
def test_every_schedule_has_a_table_in_bounds(kind: str, schedule: Any) -> None:
    code, out, err = schedule(kind, *EXAMPLES[kind].split(), "--rows", 9)
    assert code == 0, err
    made = build(kind, EXAMPLES[kind].split())
    rows = [line.split("│") for line in out.splitlines() if line.startswith("│")]
    assert 2 <= len(rows) <= 9 and int(rows[0][1]) == 0 and int(rows[-1][1]) == 199
    for row in rows:
        step = int(row[1])
        assert float(row[2]) == pytest.approx(made(step), rel=1e-5)
        assert ("*" in row[4]) == made.collect_at(step)
        assert int(row[4].split()[0]) == sum(map(made.collect_at, range(step + 1)))
    assert "LambdaLR" in out


def test_the_table_shows_what_is_collected(schedule: Any) -> None:
    _, out, _ = schedule("triangle", "cycle=40", "low=0.01")
    assert out.count("*") == 5 + 1 and "after 19, 59, 99, 139, 179" in out


def test_schedules_are_listed(schedule: Any) -> None:
    _, out, _ = schedule()
    assert all(f"lowland schedule {kind}" in out for kind in KINDS)
    listed = json.loads(schedule("--json")[1])
    assert set(listed) == set(KINDS) and "form=paper|code (=paper)" in listed["sawtooth"]["takes"]


def test_the_figure_stands_alone_and_says_what_it_shows(schedule: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="figures need lowland[plot]")
    code, out, err = schedule("triangle", "cycle=8", "low=0.01", "--rate", 0.05, "--svg", tmp_path / "fge.svg")
    assert code == 0, err
    root = ElementTree.fromstring((tmp_path / "fge.svg").read_text())
    assert "25 collected, after steps 3, 11" in root.attrib["aria-label"] and "fge.svg" in out
    assert "collected after this step: 25" in " ".join(root.itertext())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["triangel"], "there is no schedule 'triangel': it is one of swa_linear, triangle"),
        (["triangle", "cycle=4"], "triangle wants low too; such as: lowland schedule triangle cycle=40 low=0.01"),
        (["triangle", "cycle=3", "low=1"], "cycle must be even to have a middle, got 3: use 4"),
        (["triangle", "cycle"], "triangle takes cycle=... low=..., got 'cycle'"),
        (["triangle", "cycle=4", "high=1"], "got 'high=1'"),
        (["sawtooth", "cycle=4", "low=a"], "sawtooth: "),
        (["triangle", "cycle=4", "low=0.1", "--steps", "0"], "--steps wants 1 or more"),
        (["triangle", "cycle=4", "low=0.1", "--rate", "-1"], "--rate above 0"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], said: str, schedule: Any) -> None:
    code, out, err = schedule(*arguments)
    assert code == 2 and out == "" and said in err and len(err.strip().splitlines()) == 1


def test_one_step_at_rate_nought_has_a_table(schedule: Any) -> None:
    assert schedule("cosine_restarts", "steps=1", "cycles=1")[0] == 0
