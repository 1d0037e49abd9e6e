"""`lowland doctor`: what it prints, its exit codes, and what it refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from lowland import cli


class Done(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def command(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["lowland", "doctor", *map(str, arguments)])
        monkeypatch.setattr(cli.screen, "out", Console(width=240))
        monkeypatch.setattr(cli.screen, "err", Console(stderr=True, width=200))
        with pytest.raises(SystemExit) as left:
            cli.main()
        printed = capsys.readouterr()
        return Done(int(left.value.code or 0), printed.out, printed.err)

    return command


def checkpoint(folder: Path, value: float, extra: int = 0) -> Path:
    """A folder whose score will be -(w^2 - 1)^2 of its one number that varies."""
    folder.mkdir()
    tensors = {"w.weight": torch.tensor([[value, 3.0, 1.0]]), "steps": torch.tensor(7)}
    if extra:
        tensors["other"] = torch.zeros(extra)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text("{}")
    return folder


EVALUATE = """
import json, struct, sys
from pathlib import Path
assert (Path(sys.argv[1]) / "config.json").exists()
raw = (Path(sys.argv[1]) / "model.safetensors").read_bytes()  # by hand: importing torch takes seconds
size = struct.unpack("<Q", raw[:8])[0]
start = json.loads(raw[8 : 8 + size])["w.weight"]["data_offsets"][0]
w = struct.unpack("<f", raw[8 + size + start :][:4])[0]
print("loss", (w**2 - 1) ** 2)
"""

DATA = """
import torch
from torch import nn
from torch.nn.functional import mse_loss

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Linear(3, 1, bias=False)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, x):
        return self.w(self.norm(x))

def model():
    return Model()

def losses(model):
    assert not model.training
    return (model.w.weight[0, 0] ** 2 - 1) ** 2 * torch.linspace(0.9, 1.1, 20)

def batches():
    return [torch.randn(8, 3, generator=torch.Generator().manual_seed(0))]
"""


@pytest.fixture
def score(tmp_path: Path) -> str:
    (tmp_path / "evaluate.py").write_text(EVALUATE)
    return f"{sys.executable} {tmp_path / 'evaluate.py'} {{}}"


def test_the_verdict_is_the_exit_code(run: Run, tmp_path: Path) -> None:
    near = [checkpoint(tmp_path / f"near-{n}", 0.9 + 0.1 * n) for n in range(2)]
    done = run(*near)
    assert done.code == 0 and "Averageable" in done.out and "--score or --data" in done.out
    copy = checkpoint(tmp_path / "copy", 0.9)
    done = run(near[0], copy)
    assert done.code == 1 and "bit for bit" in done.out and "Doubtful" in done.out
    done = run(near[0], near[1], checkpoint(tmp_path / "wrong", 0.9, extra=2))
    assert done.code == 3 and "has other besides" in done.out
    assert "These can: near-0, near-1." in done.out


def test_a_score_command_finds_a_ridge(run: Run, tmp_path: Path, score: str) -> None:
    ends = [checkpoint(tmp_path / name, value) for name, value in (("a", -1.0), ("b", 1.0))]
    done = run(*ends, "--score", score, "--lower-is-better", "--json")
    assert done.code == 3, done.err
    found = json.loads(done.out)
    assert (found["verdict"], found["exit_code"], found["ingredients"]) == ("not averageable", 3, ["a", "b"])
    (barrier,) = [one for one in found["findings"] if one["check"] == "barrier"]
    assert barrier["values"]["barrier"] == pytest.approx(1.0) and barrier["values"]["at"] == 0.5
    # Two ends, weights of zero, three points of the line, of which the middle is the mean.
    assert len(done.err.splitlines()) == 6
    near = checkpoint(tmp_path / "near", 1.1)
    done = run(ends[1], near, "--score", score, "--lower-is-better", "--points", 1)
    assert done.code == 0 and "barrier" in done.out


def test_a_file_gives_model_losses_and_batches(run: Run, tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text(DATA)
    ends = [checkpoint(tmp_path / name, value) for name, value in (("a", -1.0), ("b", 1.0))]
    done = run(*ends, "--data", tmp_path / "data.py", "--json")
    assert done.code == 3, done.err
    checks = {one["check"]: one for one in json.loads(done.out)["findings"]}
    assert checks["barrier"]["values"]["barrier"] == pytest.approx(1.0)
    assert checks["barrier"]["values"]["error"] > 0, "twenty losses have a standard error"
    assert checks["norms"]["values"]["score_after"] == pytest.approx(-1.0)
    # Rows and state files of lowland are read too.
    row = [checkpoint(tmp_path / f"step-{n}", 1 + 0.01 * n) for n in range(5)]
    done = run(*row, "--data", tmp_path / "data.py", "--trajectory", "--tolerance", 0.5)
    assert done.code == 1 and "count as" in done.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--score", "true"], "wants {}"),
        (["--score", "false {}"], "failed with exit code 1"),
        (["--lower-is-better"], "belongs to --score"),
        (["--data", "none.py"], "there is no file none.py"),
        (["--data", "data.py", "--score", "x {}"], "exclude each other"),
        (["--points", "0"], "points must be a whole number of at least 1"),
    ],
)
def test_mistakes_are_one_line(run: Run, tmp_path: Path, options: list[str], message: str) -> None:
    ends = [checkpoint(tmp_path / name, value) for name, value in (("a", 1.0), ("b", 1.1))]
    done = run(*ends, *options)
    assert done.code == 2 and message in done.err and len(done.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def model(): pass", "does not define losses()"),
        ("def model(): return 3\ndef losses(model): pass", "returned int"),
    ],
)
def test_data_files_are_checked(run: Run, tmp_path: Path, text: str, message: str) -> None:
    ends = [checkpoint(tmp_path / name, value) for name, value in (("a", 1.0), ("b", 1.1))]
    (tmp_path / "bad.py").write_text(text)
    done = run(*ends, "--data", tmp_path / "bad.py")
    assert done.code == 2 and message in done.err


def test_one_checkpoint_is_too_few(run: Run, tmp_path: Path) -> None:
    done = run(checkpoint(tmp_path / "a", 1.0))
    assert done.code == 2 and "at least two" in done.err
