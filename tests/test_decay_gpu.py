"""The large study of decays at toy size on a CPU: slices end where the study in one go ends, and a dry run is whole."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from benchmarks import harness

from lowland.studies.decay import cells, from_mapping, run_cell


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(harness.__file__).parent))
    for name in ("grids", "pages", "decay_seeds", "decay_gpu"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    found = importlib.import_module("decay_gpu")
    monkeypatch.setitem(sys.modules, "decay_gpu", found)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)  # put back what the script sets
    return found


@pytest.mark.slow
def test_slices_are_the_study_in_one_go(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = from_mapping(script.TOY)
    (cell,) = cells(study)
    wanted = run_cell(study, cell)
    # A clock by which every look at it takes ten seconds: a call gets few chunks done.
    hand = iter(range(0, 10_000_000, 10))
    monkeypatch.setattr(script.time, "monotonic", lambda: float(next(hand)))
    monkeypatch.setattr(script, "JUDGING", 0.0)
    calls = 0
    while not script.advanced(study, cell, tmp_path, "cpu", False, next(hand) + 65):
        calls += 1
        assert calls < 60, "no call gets further"
    assert calls > 4
    found = json.loads((tmp_path / f"{cell.name}.json").read_text())
    assert found["methods"] == wanted["methods"] and found["sensitivity"] == wanted["sensitivity"]
    assert found["chosen"] == wanted["chosen"] and found["seconds"]["training"] > 0
    assert [path.name for path in tmp_path.iterdir()] == [f"{cell.name}.json"]  # what it was made from is gone


@pytest.mark.slow
def test_a_dry_run_writes_its_page_and_is_not_repeated(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["decay_gpu.py", "--dry-run", "--minutes", "0", "--state", str(tmp_path)])
    assert script.main() == 0
    assert "call again: stdlib-tiny-0 left" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["decay_gpu.py", "--dry-run", "--state", str(tmp_path)])
    assert script.main() == 0 and capsys.readouterr().out.endswith("all done\n")
    assert "merged minus-sqrt" in (tmp_path / "results" / "decay_gpu.md").read_text()
    found = json.loads((tmp_path / "results" / "decay_gpu.json").read_text())
    assert found["paired"]["stdlib-tiny"]["decayed linear"]["share, test"]["mean"] == 1.0
    monkeypatch.setattr(script, "Slices", lambda *_: pytest.fail("a finished seed was repeated"))
    assert script.main() == 0


def test_without_a_device_or_text_it_says_so(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["decay_gpu.py"])
    with pytest.raises(SystemExit):
        script.main()


def test_the_sizes_are_those_of_the_page(script: ModuleType) -> None:
    from lowland.studies.decay.config import WIDTHS
    from lowland.studies.decay.network import Transformer

    study = from_mapping(script.SIZES)
    shape = study.model
    with torch.device("meta"):
        model = Transformer(WIDTHS["large"], shape.layers, shape.heads, shape.context)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(122e6, rel=0.005)
