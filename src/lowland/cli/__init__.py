"""The command line: each command parses, calls a public function, shows progress, and says what to do next."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from . import checkpoints, choose, data, doctor, grids, landscape, linear, runs, schedule, screen, states, studies


class _Stopped(Exception):
    """Ctrl-C, by a name that the parser of arguments does not turn into a silent exit."""


class _Commands(TyperGroup):
    """The commands, where Ctrl-C reaches `main`."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _Stopped from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
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
app.command()(choose.choose)
app.command()(checkpoints.posterior)
app.command()(states.sample)
app.command()(states.info)
app.command()(states.verify)
app.command()(schedule.schedule)
app.command()(doctor.doctor)
app.command()(landscape.landscape)


def main() -> None:
    """Run the command line; a mistake is one line and exit code 2."""
    # Wherever it stands: who adds it to a failed command adds it at the end.
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        left = app(arguments, prog_name="lowland", standalone_mode=False)
    except (_Stopped, KeyboardInterrupt):
        screen.err.print(screen.when_stopped(), highlight=False, markup=False, soft_wrap=True)
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        sys.exit(_told(error, arguments))
    sys.exit(left if isinstance(left, int) else 0)


def _told(error: Exception, arguments: Sequence[str]) -> int:
    """Say in one line what went wrong, and return the exit code."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()  # type: ignore[attr-defined]  # of the parser: the help, which was printed
        return 2
    if hasattr(error, "format_message"):  # of the parser of arguments, whichever package it comes from
        words, code = _mistyped(error, arguments), int(getattr(error, "exit_code", 2))
    elif type(error).__name__ == "Abort":
        words, code = "stopped at a question", 1
    elif isinstance(error, ValueError | RuntimeError | OSError | ImportError):
        words, code = str(error), 2
    elif isinstance(error, MemoryError):
        words, code = f"the memory is not enough {error}".strip() + ": take fewer or smaller inputs", 2
    else:
        words = f"unexpected {type(error).__name__}: {error}: a fault of lowland; report it with what --debug shows"
        code = 1
    line = screen.printable(" ".join(words.split()))
    line = line if len(line) <= 2000 else f"{line[:2000]}..."  # names out of damaged files may have any length
    screen.err.print(f"[bold red]error:[/] {escape(line)}", soft_wrap=True, highlight=False)
    return code


def _mistyped(error: Any, arguments: Sequence[str]) -> str:
    words = str(error.format_message()).strip().rstrip(".")
    options = getattr(getattr(error, "param", None), "opts", [])
    given = [arguments[place + 1] for place, one in enumerate(arguments[:-1]) if one in options]
    given += [one.partition("=")[2] for one in arguments if one.partition("=")[0] in options and "=" in one]
    if given and given[-1] not in words:
        words = f"{words}, got {given[-1]!r}"
    context = getattr(error, "ctx", None)
    if context is None:
        return words
    return f"{words}{'' if words.endswith('?') else ':'} `{context.command_path} --help` shows what there is"


def _version(asked: bool) -> None:
    if asked:
        import platform
        from importlib.metadata import version

        import lowland

        screen.say(f"lowland {lowland.__version__} (torch {version('torch')}, Python {platform.python_version()})")
        raise typer.Exit()


@app.callback()
def _settings(
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole trace of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show versions and exit.")
    ] = False,
) -> None:
    """Averaged weights, Gaussian weight posteriors and calibrated predictions."""
