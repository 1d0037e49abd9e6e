"""An extension of griffe, which reads the docstrings for the site: examples become code blocks.

Markdown takes the `>>>` of a doctest for a quotation three deep. Docstrings stay free of fences, and get them here.
"""

import griffe


class DoctestBlocks(griffe.Extension):
    """Put every run of lines that starts with `>>>` and ends at a blank line between fences."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring is None or ">>>" not in obj.docstring.value:
            return
        lines: list[str] = []
        indent: str | None = None  # of the example we are in
        for line in [*obj.docstring.value.splitlines(), ""]:
            if indent is None and line.lstrip().startswith(">>> "):
                indent = line[: len(line) - len(line.lstrip())]
                lines += ["", "```pycon"]
            elif indent is not None and not line.strip():
                lines.append("```")
                indent = None
            lines.append(line.removeprefix(indent or ""))
        obj.docstring.value = "\n".join(lines).rstrip()
