"""The interactive page in headless Chromium: hover, switches, the turned surface, widths and colour schemes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chromium import Browser, executable
from tests.figures.test_landscape import ABOUT, grid, some_rays, spectra, walks

pytest.importorskip("matplotlib", reason="figures need lowland[plot]")

from lowland.figures.landscape_page import write_page

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(executable() is None, reason="no Chromium is installed (apt-get install chromium)"),
]
# Boxes whose contents are wider than they are.
CUT_OFF = """
[...document.querySelectorAll('body *')].filter(e => e.clientWidth > 0 && e.scrollWidth > e.clientWidth + 1)
  .map(e => `${e.tagName}: ${e.scrollWidth} in ${e.clientWidth}`)
"""
CLICK = "[...document.querySelectorAll('input')].find(i => i.value === '%s').click()"
OUT = "document.querySelector('output').textContent"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shown: dict[str, Any] = {"Plane": grid(), "Line": walks(), "Rays": some_rays(), "Spectra": spectra()}
    return write_page(shown, tmp_path_factory.mktemp("page") / "page.html", about=ABOUT)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def move(browser: Browser, x: float, y: float, kind: str = "mouseMoved", **more: object) -> None:
    browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)


def spot(browser: Browser, row: int, column: int) -> tuple[float, float]:
    found = browser.evaluate(
        f"(() => {{ const v = VIEWS[0], b = v.canvas.getBoundingClientRect(); "
        f"return [b.left + v.px(v.item.x[{column}]), b.top + v.py(v.item.y[{row}])]; }})()"
    )
    return found[0], found[1]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_and_reports_no_error(page: Path, browser: Browser, width: int, scheme: str) -> None:
    browser.open(page, width, scheme=scheme)
    assert browser.evaluate(CUT_OFF) == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    browser.evaluate(CLICK % "surface")
    errors = [e for e in browser.events if e.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")]
    assert errors == []
    asked = [e for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    assert all(e["params"]["request"]["url"].startswith("file:") for e in asked)


def test_hovering_reads_the_nearest_place_and_switches_change_the_value(page: Path, browser: Browser) -> None:
    browser.open(page, 1280, height=2400)
    x, y = spot(browser, 4, 3)
    move(browser, x + 4, y - 4)  # beside the place, nearer to it than to the next
    values = grid().values

    def said(name: str) -> str:
        return f"{name} {float(f'{float(values[name][4, 3]):.4g}'):g}\n"

    assert browser.evaluate(OUT).startswith(said("train loss"))
    browser.evaluate(CLICK % "test")
    assert browser.evaluate(OUT).startswith(said("test loss"))
    browser.evaluate(CLICK % "error")
    assert browser.evaluate(OUT).startswith(said("test error"))
    browser.evaluate(CLICK % "train")
    browser.evaluate(CLICK % "loss")
    x, y = spot(browser, 0, 0)
    move(browser, x, y)
    assert browser.evaluate(OUT).startswith("train loss not finite")


def test_levels_change_the_map(page: Path, browser: Browser) -> None:
    browser.open(page, 1280, height=2400)
    before = browser.evaluate("VIEWS[0].canvas.toDataURL()")
    browser.evaluate(CLICK % "linear")
    assert browser.evaluate("VIEWS[0].canvas.toDataURL()") != before


def test_the_surface_turns_and_can_be_read(page: Path, browser: Browser) -> None:
    browser.open(page, 1280, height=2400)
    browser.evaluate(CLICK % "surface")
    before = browser.evaluate("VIEWS[0].canvas.toDataURL()")
    x, y = browser.evaluate(
        "(() => { const b = VIEWS[0].canvas.getBoundingClientRect(); return [b.left + b.width / 2, b.top + 200]; })()"
    )
    move(browser, x, y, "mousePressed", button="left", clickCount=1)
    move(browser, x + 120, y + 30, buttons=1)
    move(browser, x + 120, y + 30, "mouseReleased", button="left")
    assert browser.evaluate("VIEWS[0].turn") == pytest.approx(-0.6 + 120 / 150)
    assert browser.evaluate("VIEWS[0].canvas.toDataURL()") != before
    browser.evaluate("VIEWS[0].canvas.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}))")
    assert browser.evaluate("VIEWS[0].turn") == pytest.approx(-0.6 + 120 / 150 + 0.1)
    a, b = browser.evaluate(
        "(() => { const v = VIEWS[0], c = v.canvas.getBoundingClientRect(), s = v.spots[3][2]; "
        "return [c.left + s[0], c.top + s[1]]; })()"
    )
    move(browser, a, b)
    assert "x -0.25, y 0.125" in browser.evaluate(OUT)


def test_keys_move_the_place_that_is_read(page: Path, browser: Browser) -> None:
    browser.open(page, 390, height=2400)
    for key in ("ArrowRight", "ArrowUp"):
        browser.evaluate(f"VIEWS[0].canvas.dispatchEvent(new KeyboardEvent('keydown', {{key: '{key}'}}))")
    assert "x -0.625, y -0.625" in browser.evaluate(OUT)


def test_lines_are_read_with_their_bands(page: Path, browser: Browser) -> None:
    browser.open(page, 1280, height=3000)
    place = browser.evaluate(
        "(() => { const v = VIEWS[2], b = v.canvas.getBoundingClientRect(); return [b.left + v.px(1), b.top + 60]; })()"
    )
    move(browser, place[0] + 5, place[1])
    found = browser.evaluate("document.querySelectorAll('output')[2].textContent")
    mean = some_rays()["SWA"].mean("loss")[1]
    assert "at 1: SGD 0.25" in found and f"SWA {mean.mean:.4g} [{mean.low:.4g}, {mean.high:.4g}]" in found
