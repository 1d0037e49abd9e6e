"""Curves and barriers against known numbers: lengths, means by arc length, what a barrier stands above."""

from __future__ import annotations

import math

import pytest
import torch

from lowland.landscape import Curve, Walk, along

POINTS = [{"w": torch.tensor(w, dtype=torch.float64)} for w in ([0.0, 0.0], [1.0, 2.0], [2.0, 0.0])]


def test_the_length_of_a_curve_and_the_mean_along_it() -> None:
    curve = Curve("bezier", POINTS)
    found = along(curve, lambda weights: weights["w"][1].item(), points=61)
    assert found.length == pytest.approx(2.9577200778, abs=1e-8)
    assert found.summary().by_length == pytest.approx(0.5899150356, abs=1e-8)
    fine = along(curve, lambda weights: weights["w"][1].item(), points=2001)
    assert fine.length == pytest.approx(2.9578857151, abs=1e-6)
    assert fine.summary().by_length == pytest.approx(0.5900197825, abs=1e-6)
    assert sum(fine.values["loss"]) / 2001 == pytest.approx(2 / 3, abs=1e-3)


def test_a_barrier_stands_above_the_chord_between_the_ends() -> None:
    values = (1.0, 3.0, 2.0, 5.0, 2.0)
    walk = Walk((0.0, 0.25, 0.5, 0.75, 1.0), {"loss": values}, (1.0,) * 4)
    assert walk.barrier() == 3.25
    ends = values[0], values[-1]
    assert max(values) - max(ends) == 3 and max(values) - math.fsum(ends) / 2 == 3.5  # what other papers report
