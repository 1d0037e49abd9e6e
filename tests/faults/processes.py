"""Commands run in forked children: they start at once, and end however a test wants them to."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code, or minus the number of the signal, and what it printed."""

    code: int
    output: str


def forked(
    job: Callable[[], object],
    log: Path,
    *,
    kill_after: float | None = None,
    signal_number: int = signal.SIGKILL,
    seconds: float = 900.0,
    memory: int | None = None,
    cpu: int | None = None,
) -> Ended:
    """Run `job` in a child and return how it ended.

    Args:
        log: the file that takes what the child prints.
        kill_after: seconds after which the child gets the signal; None leaves it alone.
        seconds: after which it is killed in any case.
        memory: bytes of address space that the child may take beyond what it starts with.
        cpu: seconds of the processor that it may take.
    """
    return ended(begun(job, log, memory=memory, cpu=cpu), log, kill_after, signal_number, seconds)


def begun(
    job: Callable[[], object], log: Path, *, memory: int | None = None, cpu: int | None = None, wait: float = 0.0
) -> int:
    """Begin `job` in a child, after `wait` seconds; return the child's number."""
    child = os.fork()
    if not child:
        time.sleep(wait)
        _in_child(job, log, memory, cpu)
    return child


def ended(
    child: int,
    log: Path,
    kill_after: float | None = None,
    signal_number: int = signal.SIGKILL,
    seconds: float = 900.0,
) -> Ended:
    """Wait for a child, as `forked` does."""
    began, sent = time.monotonic(), False
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        passed = time.monotonic() - began
        if kill_after is not None and not sent and passed >= kill_after:
            os.kill(child, signal_number)
            sent = True
        if passed > seconds:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.0005 if passed < 1 else 0.01)
    return Ended(os.waitstatus_to_exitcode(status), log.read_text(errors="replace") if log.exists() else "")


def _in_child(job: Callable[[], object], log: Path, memory: int | None, cpu: int | None) -> None:
    code = 70
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # who waits for a test ignores it, perhaps
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", closefd=False)
        if memory is not None:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
        if cpu is not None:
            resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        job()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 71
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def command(arguments: Sequence[str | Path]) -> Callable[[], None]:
    """The command line with these arguments, as `lowland` would run it."""

    def job() -> None:
        from rich.console import Console

        from lowland import cli
        from lowland.cli import screen

        screen.out = Console(file=sys.stdout)
        screen.err = Console(file=sys.stderr, stderr=False)
        sys.argv = ["lowland", *map(str, arguments)]
        cli.main()

    return job


def contents(path: Path) -> dict[str, bytes]:
    """Every file of a file or folder."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return {file.relative_to(path.parent).as_posix(): file.read_bytes() for file in files}


def leftovers(folder: Path) -> list[str]:
    """What a writer that was stopped has left beside its output."""
    return sorted(path.name for path in folder.iterdir() if path.name.startswith(".") or path.name.endswith(".part"))
