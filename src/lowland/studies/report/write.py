"""The report of a study: one HTML file that holds everything it shows.

Needs matplotlib and Jinja2: `pip install 'lowland[plot]'`.
"""

import importlib
from pathlib import Path
from typing import Any

from lowland.files.replacing import write_bytes


def write(run_folder: Path) -> Path:
    """Write `report.html` into a finished run folder and return its path.

    The file refers to nothing outside itself, and the same run folder gives the same bytes. It replaces an older report
    in one step: whoever reads meanwhile sees the old one or the new one.

    Raises `ImportError` where matplotlib or Jinja2 is missing, `FileNotFoundError` for a missing file of the run and
    `ValueError` for a broken one, naming it; nothing is written then.

    >>> write(Path("no-such-run"))
    Traceback (most recent call last):
    ...
    FileNotFoundError: no-such-run is not a run folder: got no such directory, wanted one that a study wrote
    """
    for package in ("jinja2", "matplotlib"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ImportError(f"the report needs {package}: pip install 'lowland[plot]'") from error
    from .grid_page import is_grid, render_grid
    from .run import read

    run_folder = Path(run_folder)
    text = render_grid(run_folder) if is_grid(run_folder) else _rendered(read(run_folder), run_folder)
    path = run_folder / "report.html"
    write_bytes(path, text.encode(errors="replace"))
    return path


def _rendered(run: Any, folder: Path) -> str:
    from .page import render
    from .run import REMEDY

    try:
        return render(run)
    except ImportError:
        raise
    except Exception as error:  # whatever a foreign folder makes Jinja2, numpy and matplotlib raise
        raise ValueError(
            f"the files of {folder} do not fit together ({type(error).__name__}: {error}): one of them is cut off or "
            f"of another version; {REMEDY}"
        ) from error
