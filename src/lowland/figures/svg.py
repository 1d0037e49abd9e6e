"""One look for all figures: a matplotlib figure becomes SVG text that follows the colours of the page around it.

Figures are drawn in the marker colours below. `text_of` turns each into a CSS variable with a fallback, so one drawing
serves light and dark pages. Text stays text: it takes the font of the page and can be selected, searched and read.
"""

import html
import io
import re
import warnings
import zlib
from collections.abc import Callable

import matplotlib.style
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#010101", "#020202", "#030303", "#040404"
SERIES = tuple(f"#0500{i:02x}" for i in range(7))
MARKS = ("o", "s", "^", "D", "v", "P", "X")  # a series is known by its mark too, not by its colour alone
DASHES: tuple[str, ...] = ("-", "--", ":")

# Fallbacks for an SVG taken out of its page; the series are Okabe and Ito's, darkened where white paper needs it.
LIGHT = {INK: "#1b1f24", MUTED: "#59626d", GRID: "#d5dae0", PAPER: "#ffffff"} | dict(
    zip(SERIES, ("#0072b2", "#d55e00", "#008a64", "#b0508c", "#a67c00", "#2f9fd6", "#6a5acd"), strict=True)
)
# The same in a dark page.
DARK = {INK: "#e8eaed", MUTED: "#a7b0ba", GRID: "#3a4148", PAPER: "#14171a"} | dict(
    zip(SERIES, ("#5ab4ea", "#ff9248", "#37cfa2", "#e79bc9", "#e3bf4c", "#b9e2fa", "#b3a6ff"), strict=True)
)
_NAMES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--paper"} | {
    colour: f"--c{i}" for i, colour in enumerate(SERIES)
}
STYLE: dict[str, object] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lowland",
    "text.parse_math": False,  # a `$` in a tensor's name or a label is a dollar
    "font.size": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "path.simplify_threshold": 0.3,
}


def series(i: int) -> tuple[str, str, str]:
    """Colour, mark and dash of series i; seven colours, then mark and dash shift."""
    return SERIES[i % 7], MARKS[(i + i // 7) % 7], DASHES[i // 7 % 3]


def text_of(draw: Callable[[Figure], None], size: tuple[float, float], name: str, title: str, alt: str) -> str:
    """SVG text of what `draw` puts on a figure of `size` inches.

    `name` starts every id of the drawing, so figures with different names can stand in one page; it may be any text.
    `title` and `alt` name and describe the figure for readers who do not see it.
    """
    # "default" first: a reader's own matplotlibrc must not change the report
    # The widths of letters that its font lacks are guessed; the page's own font has them.
    with matplotlib.style.context(["default", STYLE], after_reset=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        # Labels may be so long that no room is left: they are drawn over each other then.
        warnings.filterwarnings("ignore", message="constrained_layout not applied")
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _clean(plain(file.getvalue()), identifier(name), plain(title), plain(alt))


def alone(text: str) -> str:
    """Return a figure's SVG text as a file of its own, which takes the light or the dark colours that a reader prefers.

    >>> alone('<svg class="plot" viewBox="0 0 1 1"></svg>').split("<style>")[0]
    '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" class="plot" viewBox="0 0 1 1">'
    """
    colours = "; ".join(f"{variable}: {DARK[colour]}" for colour, variable in _NAMES.items())
    style = f"<style>@media (prefers-color-scheme: dark) {{ svg.plot {{ {colours} }} }}</style>"
    head, rest = text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" ', 1).split(
        ">", 1
    )
    return f"{head}>{style}{rest}"


def identifier(name: str) -> str:
    """Return letters, digits, `-` and `_` that stand for a text in ids; different texts have different ones.

    >>> identifier("curve-mnist-cnn"), identifier('x"/><meta>')
    ('curve-mnist-cnn', 'x-meta-82845d10')
    """
    kept = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")
    return kept if kept == name else f"{kept}-{zlib.crc32(name.encode('utf-8', 'surrogatepass')):08x}"


def label(text: str, most: int = 40) -> str:
    """Return a name from elsewhere as a figure can carry it: no controls, not too long, and not hidden from legends.

    >>> label("a" * 50, most=5), label("_hidden")
    ('aaaa\u2026', '\u200b_hidden')
    """
    text = plain(" ".join(text.split()))
    text = text if len(text) <= most else f"{text[: most - 1]}\u2026"
    return f"\u200b{text}" if text.startswith("_") else text


def plain(text: str) -> str:
    """Return a text without the characters that XML forbids: controls and halves of a pair."""
    return re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]", "\ufffd", text)


def _clean(text: str, name: str, title: str, alt: str) -> str:
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # matplotlib's `*{...}` would style the whole page once the drawing stands in it
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]+)"', text)
    assert box is not None  # matplotlib always writes one
    head = (
        f'<svg class="plot" role="img" aria-label="{html.escape(alt)}" viewBox="{box[1]}">'
        f"<title>{html.escape(title)}</title>"
    )
    text = head + text[text.index(">") + 1 :]
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r"url\(#", f"url(#{name}-", text).replace('xlink:href="#', f'href="#{name}-')
    text = re.sub(r"font-family: [^;\"]+;? ?", "", text)
    text = re.sub(r' transform="rotate\(-0 [^)]*\)"', "", text)
    for colour, variable in _NAMES.items():
        text = text.replace(colour, f"var({variable}, {LIGHT[colour]})")
    shorter = lambda m: re.sub(r"-?\d+\.\d{3,}", lambda n: f"{float(n[0]):.2f}", m[0])  # noqa: E731
    text = re.sub(r' (?:d|x|y|points|transform|width|height)="[^"]*"', shorter, text)
    return re.sub(r">\s+<", "><", re.sub(r"\s*\n\s*", " ", text)).strip()
