"""The page of a grid study, and what it refuses."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="the report needs lowland[plot]")
pytest.importorskip("jinja2", reason="the report needs lowland[plot]")
pytest.importorskip("scipy", reason="the statistics of a study need scipy")

from lowland.studies import report
from lowland.studies.grid import run_grid
from lowland.studies.report.grid_page import ShownKind

from ...chromium import Browser, executable
from ..toy_grid import KIND, ToyStudy, build, cells, run_cell
from .test_browser import CUT_OFF, FIGURE_TEXT


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run_grid(ToyStudy(), KIND, cells(), run_cell, tmp_path / "run", build=build)
    return tmp_path / "run"


def test_the_page_holds_tables_tests_and_figures(folder: Path) -> None:
    text = report.write(folder).read_text(encoding="utf-8")
    metrics = json.loads((folder / "metrics.json").read_text())
    cell = metrics["table"]["hard"]["huge"]["ASWA"]["test"]["accuracy"]
    assert f"{cell['mean']:.4f} ± {cell['sd']:.4f}" in text
    assert text.count('<svg class="plot"') == 2 + 6 + 3 + 4  # claims, curves, sensitivities, lines
    line = metrics["landscape"]["plain"]["small"]
    assert f"{line['shift']['mean']:.2f} ± {line['shift']['sd']:.2f}" in text
    assert metrics["landscape"]["plain"]["huge"] is None
    assert "noise, severity 3" in text and "SWA minus SGD" in text
    assert "better in 6 of 6" in text and "better in 0 of 6" in text
    assert "://" not in re.sub(r'xmlns(:xlink)?="[^"]*"', "", text)
    assert report.write(folder).read_text(encoding="utf-8") == text


def test_a_missing_and_a_broken_file_are_named(folder: Path) -> None:
    metrics = json.loads((folder / "metrics.json").read_text())
    del metrics["claims"]["SWA - SGD"]["nll"]
    (folder / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(ValueError, match=r"metrics\.json lacks what the report needs"):
        report.write(folder)
    (folder / "metrics.json").write_text('{"study"')
    with pytest.raises(ValueError, match=r"metrics\.json cannot be read"):
        report.write(folder)
    (folder / "metrics.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"metrics\.json is missing"):
        report.write(folder)


def test_the_page_reads_what_a_study_says_of_itself() -> None:
    """Page and studies share no code, only this: what one writes the other reads, field by field."""
    shown = ShownKind.of(json.loads(json.dumps(KIND.plain())))
    for field in dataclasses.fields(ShownKind):
        if field.name != "metrics":
            value = getattr(KIND, field.name)
            assert getattr(shown, field.name) == (list(value) if isinstance(value, tuple) else value), field.name
    assert [dataclasses.asdict(one) for one in shown.metrics] == [dataclasses.asdict(one) for one in KIND.metrics]
    assert shown.main.key == KIND.main.key


@pytest.mark.browser
@pytest.mark.skipif(executable() is None, reason="no Chromium is installed (apt-get install chromium)")
def test_nothing_is_cut_off_on_a_wide_page_or_a_phone(folder: Path, tmp_path: Path) -> None:
    page = report.write(folder)
    with Browser(tmp_path / "profile") as browser:
        for width in (1100, 380):
            browser.open(page, width)
            assert browser.evaluate(CUT_OFF) == []
            assert browser.evaluate(FIGURE_TEXT) == []
            assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
