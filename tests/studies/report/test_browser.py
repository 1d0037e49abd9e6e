"""The report in headless Chromium: what a reader on a wide page, on a phone, in the dark and on paper would see."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chromium import Browser, executable
from tests.fake_run import build

pytest.importorskip("matplotlib", reason="the report needs lowland[plot]")
pytest.importorskip("jinja2", reason="the report needs lowland[plot]")

from lowland.studies import report

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(executable() is None, reason="no Chromium is installed (apt-get install chromium)"),
]

FIGURES = 4 + 4 + 2 + 2 + 1 + 1

# Boxes whose contents are wider than they are, unless they scroll or are there for screen readers only.
CUT_OFF = """
[...document.querySelectorAll('body *')].filter(e => !e.closest('svg') && !e.closest('.hidden'))
  .filter(e => e.clientWidth > 0 && e.scrollWidth > e.clientWidth + 1)
  .filter(e => getComputedStyle(e).overflowX !== 'auto')
  .map(e => `${e.tagName}.${e.className}: ${e.scrollWidth} in ${e.clientWidth}: ${e.textContent.trim().slice(0, 60)}`)
"""
# Letters of a figure that reach over its edge, or each other.
FIGURE_TEXT = """
[...document.querySelectorAll('svg.plot')].flatMap(svg => {
  const edge = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
  const over = texts.filter(([_, r]) => r.left < edge.left - 1 || r.right > edge.right + 1 ||
    r.top < edge.top - 1 || r.bottom > edge.bottom + 1).map(([t]) => `${svg.firstChild.textContent}: ${t} is cut off`);
  const met = texts.flatMap(([s, a], i) => texts.slice(i + 1).filter(([_, b]) =>
    Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
    Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3).map(([t]) =>
    `${svg.firstChild.textContent}: ${s} meets ${t}`));
  return [...over, ...met];
})
"""
SIZES = """
[...document.querySelectorAll('svg.plot')].map(s => [s.getBoundingClientRect().width, s.getBoundingClientRect().height])
"""
# WCAG contrast of every kind of text, in the page and in the figures, with the colour behind it.
CONTRAST = """
(() => {
  const numbers = c => c.match(/[\\d.]+/g).map(Number);
  const light = c => { const [r, g, b] = numbers(c).slice(0, 3).map(v => v / 255)
    .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if ((numbers(c)[3] ?? 1) > 0) return c; } return 'rgb(255, 255, 255)'; };
  const low = new Set();
  for (const e of document.querySelectorAll('body *')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) || e.tagName === 'title') continue;
    const style = getComputedStyle(e);
    const [a, b] = [light(e.closest('svg') ? style.fill : style.color), light(behind(e))].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < 4.5) low.add(`${e.tagName}.${e.className.baseVal ?? e.className} ${ratio.toFixed(2)}`);
  }
  return [...low];
})()
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report.write(build(tmp_path_factory.mktemp("browser") / "run", texts=200))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 768, 375, 320])
def test_a_page_as_it_should_be(browser: Browser, page: Path, width: int, scheme: str) -> None:
    browser.open(page, width, scheme=scheme)
    assert browser.evaluate("document.title") == "Text study: what averaging the weights changed"
    assert browser.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [width, width]
    sizes = browser.evaluate(SIZES)
    assert len(sizes) == FIGURES
    assert all(240 < w <= width and h > 100 for w, h in sizes), sizes
    assert browser.evaluate(CUT_OFF) == []
    assert browser.evaluate(FIGURE_TEXT) == []
    assert browser.evaluate(CONTRAST) == []


@pytest.mark.parametrize("width", [1280, 375])
def test_unfolded_texts_stay_in_their_boxes(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width)
    assert browser.evaluate("[...document.querySelectorAll('details')].map(d => d.open)") == [False] * 3
    browser.evaluate("document.querySelectorAll('summary').forEach(s => s.click())")
    assert browser.evaluate("[...document.querySelectorAll('details')].map(d => d.open)") == [True] * 3
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.evaluate(CUT_OFF) == []
    assert browser.evaluate("document.querySelectorAll('blockquote').length") == 20


def test_nothing_is_reported_and_nothing_is_fetched(browser: Browser, page: Path) -> None:
    browser.open(page, 1280)
    browser.evaluate("document.querySelectorAll('summary').forEach(s => s.click())")
    browser.evaluate("new Promise(done => setTimeout(done, 200))")
    methods = {event.get("method") for event in browser.events}
    assert not methods & {"Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"}, browser.events
    asked = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    assert asked == [page.resolve().as_uri()]


def test_the_schemes_differ_in_paper_ink_and_figures(browser: Browser, page: Path) -> None:
    look = """[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,
      getComputedStyle(document.querySelector('svg.plot text')).fill]"""
    browser.open(page, 1280, scheme="light")
    light = browser.evaluate(look)
    browser.open(page, 1280, scheme="dark")
    dark = browser.evaluate(look)
    assert all(one != other for one, other in zip(light, dark, strict=True))


def test_every_table_that_is_wider_than_a_phone_scrolls_in_its_box(browser: Browser, page: Path) -> None:
    browser.open(page, 375)
    boxes = browser.evaluate(
        "[...document.querySelectorAll('.scroll')]"
        ".map(b => [b.getBoundingClientRect().right, b.scrollWidth, b.clientWidth])"
    )
    assert all(right <= 375 for right, _, _ in boxes)
    assert boxes[0][1] > boxes[0][2]
    # the method's name stays in sight while the numbers pass
    moved = browser.evaluate(
        "(() => { const b = document.querySelector('.scroll'); b.scrollLeft = 200;"
        " return b.querySelector('tbody th').getBoundingClientRect().left - b.getBoundingClientRect().left; })()"
    )
    assert -1 <= moved <= 2


def test_print_keeps_texts_folded_and_figures_whole(browser: Browser, page: Path, tmp_path: Path) -> None:
    browser.open(page, 1280, scheme="dark")
    browser.call("Emulation.setEmulatedMedia", media="print", features=[])
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.evaluate("getComputedStyle(document.querySelector('figure')).breakInside") == "avoid"
    assert browser.evaluate("document.querySelector('blockquote').checkVisibility()") is False
    browser.pdf(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
