"""The figure of a sweep shows every trial, and the example that draws it runs."""

import re
import sys
import xml.etree.ElementTree as ElementTree

import pytest
import torch

pytest.importorskip("matplotlib", reason="figures need lowland[plot]")

from examples import retroactive as example

from lowland.figures import write_sweep
from lowland.figures.sweep import half_life_figure
from lowland.retroactive import Exponential, PowerLaw, Window, sweep
from lowland.retroactive.sweep import intervals


@pytest.fixture
def found():
    noise = torch.randn(50, generator=torch.Generator().manual_seed(0))
    kept = intervals([(step, {"w": torch.tensor([float(step)])}) for step in range(10, 101, 10)])
    targets = [Window.last(n, 100) for n in (20, 50, 100)] + [Exponential(h, 100) for h in (10.0, 40.0)]
    targets.append(PowerLaw.of_width(0.1, 100))
    return sweep(kept, targets, lambda weights: -(weights["w"].item() - 80 + noise).abs())


def test_the_figure_says_what_the_sweep_found(found):
    text = half_life_figure(found, metric="accuracy")
    root = ElementTree.fromstring(text)
    said = root.attrib["aria-label"]
    assert f"best {found.trials[found.best].target} with {found.trials[found.best].score:.4f}" in said
    assert said.count("half-life") >= len(found.trials) and said.count(", tied") == len(found.tied)
    shown = " ".join(root.itertext())
    for word in ("accuracy", "residual", "EMA", "power EMA", "window", "best", "ties with the best"):
        assert word in shown


def test_a_saved_figure_stands_alone(found, tmp_path):
    write_sweep(found, tmp_path / "sweep.svg")
    text = (tmp_path / "sweep.svg").read_text()
    assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    assert not re.findall(r"(?:href|src)=\"(?!#)", text)


def test_a_sweep_of_one_bare_score_is_drawn():
    kept = intervals([(10, {"w": torch.zeros(1)})])
    assert "<svg" in half_life_figure(sweep(kept, [Window(9, 10)], lambda weights: 1.0))


@pytest.mark.slow  # imports scikit-learn
def test_the_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(example, "STEPS", 60)
    monkeypatch.setattr(example, "EVERY", 20)
    monkeypatch.setattr(sys, "argv", ["retroactive.py", str(tmp_path)])
    example.main()
    said = capsys.readouterr().out
    assert said.count("| best |") == 1 and "Expected on other images" in said
    assert (tmp_path / "sweep.svg").exists() and "window of 20" in (tmp_path / "sweep.md").read_text()
    with pytest.raises(SystemExit, match="holds a record already"):
        example.main()
