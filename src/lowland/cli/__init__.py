"""The command line: each command parses, calls a public function, shows progress, and says what to do next."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.markup import escape

from . import checkpoints, data, doctor, grids, linear, runs, schedule, screen, studies

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Averaged weights, Gaussian weight posteriors and calibrated predictions.",
)
app.add_typer(grids.study_app, name="study")
app.add_typer(data.data_app, name="data")
app.add_typer(linear.app, name="linear")
app.command()(studies.demo)
app.command()(runs.predict)
app.command()(runs.report)
app.command()(checkpoints.average)
app.command()(checkpoints.soup)
app.command()(checkpoints.posterior)
app.command()(checkpoints.sample)
app.command()(checkpoints.info)
app.command()(schedule.schedule)
app.command()(doctor.doctor)

_debug = False


def main() -> None:
    """Run the command line; a mistake is one line and exit code 2."""
    global _debug
    # Wherever it stands: who adds it to a failed command adds it at the end.
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    _debug = len(arguments) < len(sys.argv) - 1
    try:
        app(arguments)
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        if _debug:
            raise
        screen.err.print(f"[bold red]error:[/] {escape(' '.join(str(error).split()))}", soft_wrap=True, highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        screen.err.print("stopped; the same command goes on from here; a study wants --resume", highlight=False)
        sys.exit(130)


@app.callback()
def _settings(
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole trace of an error.")] = False,
) -> None:
    """Averaged weights, Gaussian weight posteriors and calibrated predictions."""
