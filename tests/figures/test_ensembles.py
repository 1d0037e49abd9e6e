"""Figures of a run: the trace of ASWA, schedules and accumulation curves say what they show."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="figures need lowland[plot]")

from lowland import ASWA
from lowland.cycles import constant_after, cosine_restarts
from lowland.figures import write_accumulation, write_schedule, write_trace
from lowland.figures.ensembles import schedule_figure
from lowland.figures.trace import trace_figure
from lowland.predict import Accumulation

PATH = [0.0, 4.0, 7.0, 3.0, 6.0, 20.0]


def run() -> ASWA:
    average = ASWA(lambda weights: -abs(weights["w"].item() - 5))
    for value in PATH:
        average.update({"w": torch.tensor(value, dtype=torch.float64)})
    return average


def test_the_trace_says_every_update() -> None:
    root = ElementTree.fromstring(trace_figure(run(), metric="MRR"))
    said = root.attrib["aria-label"]
    for part in (
        "update 1 begin at -5, average -5 of 1",
        "update 2 replace at -1, average -1 of 1",
        "update 3 extend at -2, average -0.5 of 2",
        "update 6 reject at -15, average 0 of 4",
    ):
        assert part.replace("average 0 ", "average ") in said.replace("average -0 ", "average ").replace(
            "average 0 ", "average "
        )
    shown = " ".join(root.itertext())
    assert all(word in shown for word in ("MRR", "models", "update", "begin", "replace", "extend", "reject"))


def test_infinite_scores_and_no_trace() -> None:
    average = ASWA(lambda weights: float("-inf") if weights["w"] > 1 else 0.0)
    with pytest.raises(RuntimeError, match="no trace yet"):
        trace_figure(average)
    for value in (0.0, 3.0):
        average.update({"w": torch.tensor(value)})
    assert "-inf" in trace_figure(average)


def test_a_long_schedule_is_a_small_drawing_with_its_corners() -> None:
    text = schedule_figure(cosine_restarts(8_000, 5), 8_000, 0.1)
    assert len(text) < 300_000 and "5 collected, after steps 1599, 3199" in text
    assert "4500 collected" in schedule_figure(constant_after(0, 0.5), 4_500)


def test_figures_are_written_alone(tmp_path: Path) -> None:
    rows = [{"nll": 0.5}, {"nll": 0.25}]
    curves = Accumulation(rows, rows, rows)
    paths = [
        write_trace(run(), tmp_path / "a.svg"),
        write_schedule(constant_after(3, 0.5), 10, tmp_path / "b.svg"),
        write_accumulation(curves, "nll", tmp_path / "c.svg"),
    ]
    for path in paths:
        assert ElementTree.fromstring(path.read_text()).tag == "{http://www.w3.org/2000/svg}svg"
    assert "the last m members 0.5, 0.25" in paths[2].read_text()
