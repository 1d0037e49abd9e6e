"""The short form of the faults: some kills, full disks and damaged files of each. `make faults` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="a text study is among what is killed")

from . import commands, disk, kills, mutations, pairs
from .processes import forked

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kills.inputs(tmp_path_factory.mktemp("faults"))


WRITERS = [writer.name for writer in kills.writers(Path("/nowhere"))]
FORMATS = [format.name for format in mutations.formats(Path("/nowhere"))]


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_killed_loses_nothing(home: Path, name: str) -> None:
    writer = next(writer for writer in kills.writers(home) if writer.name == name)
    killed = kills.kill(writer, home, 1 if name == "study text" else 2)
    assert killed.faults == [] and killed.kills


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "study text"])
def test_a_full_disk_is_told_and_damages_nothing(home: Path, name: str) -> None:
    writer = next(writer for writer in kills.writers(home) if writer.name == name)
    try:
        filled = disk.fill(writer, home, 3)
    except PermissionError as error:
        pytest.skip(f"a small disk cannot be mounted here: {error}")
    assert filled.faults == [] and filled.refused


TWICE = ["average", "average .pt", "soup", "sample", "save", "SnapshotFiles", "a grid study", "choose", "schedule"]


@pytest.mark.parametrize("name", TWICE)
def test_two_processes_on_one_output(home: Path, name: str) -> None:
    writers = [*kills.writers(home), *commands.others(home)]
    paired = pairs.pair(next(writer for writer in writers if writer.name == name), home, 1)
    assert paired.faults == [] and paired.both + paired.refused == 1


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_are_read_or_refused(home: Path, name: str) -> None:
    format = next(format for format in mutations.formats(home) if format.name == name)
    mutated = mutations.mutate(format, home / "mutated", 12 if "run folder" in name else 30, seed=1)
    assert mutated.faults == [] and mutated.refused


def test_the_harness_sees_what_it_looks_for(tmp_path: Path) -> None:
    """A reader that crashes, hangs or grabs memory, one that mumbles, and code that runs are all found."""
    import os
    import pickle
    import signal

    def reader(job: object) -> list[str]:
        def write(folder: Path) -> list[Path]:
            (folder / "a.bin").write_bytes(b"0" * 100)
            return [folder / "a.bin"]

        return mutations.mutate(mutations.Format("toy", write, job), tmp_path / "toy", 2).faults  # type: ignore[arg-type]

    def crash(folder: Path) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    def mumble(folder: Path) -> None:
        raise KeyError("a")

    def grab(folder: Path) -> None:
        raise ValueError(len(bytearray(8 << 30)))

    def run_code(folder: Path) -> None:
        pickle.loads(mutations.hostile(tmp_path / "toy" / "canary"))

    def refuse(folder: Path) -> None:
        raise ValueError("no")

    def linger(folder: Path) -> None:
        while True:
            pass

    assert "an undamaged one is refused" in reader(refuse)[0]
    assert "ended with -11" in reader(crash)[1]
    assert "KeyError" in reader(mumble)[1]
    assert "more memory" in reader(grab)[1]
    assert "code in a file ran" in reader(run_code)[-1]
    assert forked(lambda: linger(tmp_path), tmp_path / "log", cpu=1).code in (-signal.SIGXCPU, -signal.SIGKILL)
    assert forked(lambda: signal.pause(), tmp_path / "log", seconds=0.2).code == -signal.SIGKILL
