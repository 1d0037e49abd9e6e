"""What every command has in common: help without torch, one line for a mistake, Ctrl-C, JSON, and hostile names."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.markup import escape
from rich.table import Table

import lowland
from lowland import cli
from lowland.cli import screen


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str]:
    """Run a command in this process; return its exit code and what it said on the error stream."""
    told = StringIO()
    monkeypatch.setattr(sys, "argv", ["lowland", *arguments])
    monkeypatch.setattr(screen, "err", screen._Screen(file=told, width=300))
    with pytest.raises(SystemExit) as left:
        cli.main()
    return int(left.value.code or 0), told.getvalue()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("demo --members x", "got 'x': `lowland demo --help`"),
        ("demo --members=2.5", "got '2.5'"),
        ("predict", "Missing argument"),
        ("averag a b", "Did you mean 'average'?"),
        ("study tex", "`lowland study --help` shows what there is"),
        ("demo --sed 3", "--seed"),
        ("--nope", "--nope"),
        ("average a --dtype", "--dtype"),
        ("data", ""),
    ],
)
def test_a_mistake_of_the_arguments_is_one_line(monkeypatch: pytest.MonkeyPatch, arguments: str, words: str) -> None:
    code, said = run(monkeypatch, *arguments.split())
    assert code == 2 and words in said
    assert not words or (said.startswith("error: ") and said.count("\n") == 1)


def test_help_and_version_do_not_load_torch() -> None:
    for option in ("--help", "--version"):
        script = f"import sys; sys.argv = ['lowland', {option!r}]; from lowland.cli import main\n"
        script += "try: main()\nfinally: assert not {'torch', 'numpy', 'transformers'} & set(sys.modules)"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"lowland {lowland.__version__} (torch ")


def test_a_shell_gets_its_completion() -> None:
    script = "import sys; sys.argv = ['lowland']; from lowland.cli import main; main()"
    given = {"_LOWLAND_COMPLETE": "complete_bash", "COMP_WORDS": "lowland ave", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env={**os.environ, **given}
    )
    assert done.stdout.split() == ["average"], done.stderr


def test_ctrl_c_says_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from lowland.studies.runs import settings

    def stop(path: Path) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("lowland.checkpoints.describe", stop)
    monkeypatch.setattr(screen, "_going_on", "")
    code, said = run(monkeypatch, "info", "x")
    assert code == 130 and "the same command goes on from here" in said and said.count("\n") == 1
    monkeypatch.setattr("lowland.studies.text.study.run_text_study", lambda *a, **k: stop(Path()))
    assert settings.period("epoch") == (1, "epoch")
    code, said = run(monkeypatch, "demo", "--out", "runs/a b", "--epochs", "8")
    assert code == 130 and said.count("\n") == 1
    assert "kept in runs/a b, and the same command goes on from there with --resume" in said
    assert "lowland demo --out 'runs/a b' --epochs 8 --resume" in said


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent to another process")
@pytest.mark.slow
def test_a_real_ctrl_c_leaves_one_line() -> None:
    script = (
        "import os, signal, sys, time, lowland.cli as cli, lowland.checkpoints as c\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "c.describe = lambda path: (os.kill(os.getpid(), signal.SIGINT), time.sleep(30))\n"
        "sys.argv = ['lowland', 'info', 'x']; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 128 + signal.SIGINT and done.stderr.startswith("stopped: ")
    assert done.stderr.count("\n") == 1


def test_an_unexpected_error_is_one_line_and_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowland.checkpoints.describe", lambda path: {}["absent"])
    code, said = run(monkeypatch, "info", "x")
    assert code == 1 and "unexpected KeyError: 'absent'" in said and "--debug" in said and said.count("\n") == 1


HOSTILE = "a\x1b]0;title\x07\x1b[2Jb\x9bc\u202ed\r\x00"


def test_names_out_of_files_do_not_steer_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> Any:
        raise ValueError(f"{HOSTILE} cannot be read")

    monkeypatch.setattr("lowland.checkpoints.describe", refuse)
    _, said = run(monkeypatch, "info", "x")
    assert said.rstrip("\n").isprintable() and "]0;title" in said
    shown = StringIO()
    console = screen._Screen(file=shown, width=80, force_terminal=True)
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    console.print(table)
    console.print(HOSTILE, markup=False)
    for bad in ("\x1b]0", "\x1b[2J", "\x07", "\x9b", "\u202e", "\r", "\x00"):
        assert bad not in shown.getvalue(), repr(bad)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_is_json(capsys: pytest.CaptureFixture[str], value: float) -> None:
    def strict(constant: str) -> Any:
        raise AssertionError(constant)

    screen.print_json({"score": value, "rows": [[value, 1.5]], "name": "caf\xe9 \udc80"})
    found = json.loads(capsys.readouterr().out, parse_constant=strict)
    assert found == {"score": None, "rows": [[None, 1.5]], "name": "caf\xe9 \udc80"}


def test_tables_are_plain_columns_in_a_pipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "bert.encoder.layer.1.attention.self.query." * 6 + "weight"

    def table() -> Table:
        made = Table(title="two", show_lines=True)
        for heading in ("", "tensor", "much"):
            made.add_column(heading)
        made.add_row("[red]error[/]", escape(name), "1")
        made.add_row("ok", escape("[b]"), "22")
        return made

    monkeypatch.setattr(screen, "out", screen._Screen())
    screen.show(table())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "two" and lines[2] == f"error  {name}  1" and lines[3].split() == ["ok", "[b]", "22"]
    monkeypatch.setattr(screen, "out", screen._Screen(force_terminal=True, width=80, color_system=None))
    screen.show(table())
    assert "│" in capsys.readouterr().out
