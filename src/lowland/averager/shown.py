"""How objects that hold many numbers are shown: one line in a console, a small table in a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

Rows = Sequence[tuple[str, str]]


def one_line(title: str, rows: Rows) -> str:
    """Return what `repr` gives.

    >>> one_line("Walk", [("places", "3"), ("length", "4")])
    'Walk(places 3, length 4)'
    """
    return f"{title}({', '.join(f'{name} {value}' for name, value in rows)})"


def table(title: str, rows: Rows) -> str:
    """Return what `_repr_html_` gives; names and values are escaped.

    >>> table("a", [("<b>", "1")])
    '<table><caption>a</caption><tr><th>&lt;b&gt;</th><td>1</td></tr></table>'
    """
    cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    return f"<table><caption>{escape(title)}</caption>{cells}</table>"
