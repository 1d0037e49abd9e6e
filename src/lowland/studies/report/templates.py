"""The templates of the pages, beside this file, and what they may call."""

from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup, escape


def render(name: str, **given: Any) -> str:
    """Fill a template of this package; `style` is given by itself."""
    here = files(__package__)
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda asked: (here / asked).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["breakable"] = breakable
    style = Markup((here / "style.css").read_text(encoding="utf-8"))
    return environment.get_template(name).render(style=style, **given)


def breakable(name: str) -> Markup:
    """A dotted name that may go on in the next line after a dot or an underscore."""
    return Markup(str(escape(name)).replace(".", ".<wbr>").replace("_", "_<wbr>"))
