"""The other commands that write files: what they are given, and how their output is compared."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lowland import save

from .kills import Writer, results, told
from .processes import command, forked

MODEL = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))

def data():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(60, 2, generator=g)
    y = (x[:, 0] * x[:, 1] > 0).long()
    return list(zip(x.split(30), y.split(30)))
"""


def prepare(home: Path) -> None:
    """Checkpoints and data for landscapes, shards, and a finished study with texts to classify."""
    (home / "my.py").write_text(MODEL)
    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
        save(
            {n: torch.randn(t.shape, generator=g) for n, t in model.state_dict().items()}, home / f"w{seed}.safetensors"
        )
    _shards(home / "shards")
    with (home / "texts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text",), *((f"what a thing, number {n}",) for n in range(40))])
    study = command(["study", "text", "--config", home / "study.toml", "--out", home / "finished"])
    ended = forked(study, home / "log")
    if ended.code:
        raise RuntimeError(f"the study for predict and report ended with {ended.code}: {ended.output[-500:]}")


def _shards(folder: Path) -> None:
    from scipy.sparse import csr_matrix

    from lowland.linear import write_shard

    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        X = rng.normal(size=(200, 20)) * (rng.random((200, 20)) < 0.3)
        write_shard(folder / f"{number}.npz", csr_matrix(X), (X[:, 0] + 0.1 * rng.normal(size=200) > 0).astype(int))


def others(home: Path) -> list[Writer]:
    """Every command that writes and is not among `kills.writers`."""
    points = [home / f"w{seed}.safetensors" for seed in range(3)]
    mine = ["--model", f"{home / 'my.py'}:build", "--data", f"{home / 'my.py'}:data"]

    def cli(*arguments: str | Path, option: str = "--out") -> Callable[[Path], Callable[[], object]]:
        return lambda out: command([*arguments, option, out])

    def report(out: Path) -> Callable[[], object]:
        def job() -> None:
            if not (out / "metrics.json").exists():
                shutil.copytree(home / "finished", out, dirs_exist_ok=True)
            command(["report", out])()

        return told(job)

    def page(out: Path) -> dict[str, bytes]:
        return {"report.html": (out / "report.html").read_bytes()}

    def numbers(out: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(out.glob("*.safetensors"))} | {
            path.name: b"" for path in sorted(out.glob("*.jsonl"))
        }

    def row(out: Path) -> dict[str, bytes]:
        return {"rows": out.read_bytes()}

    score = f"{home / 'score.sh'} {{}}"
    checkpoints = [home / "run" / f"checkpoint-{step}" for step in range(4)]
    shards = home / "shards"
    return [
        Writer("choose", cli("choose", *checkpoints, "--score", score, "--windows", "2,4", "--blends", "1")),
        Writer("average --as dcp", cli("average", *checkpoints, "--as", "dcp")),
        Writer("landscape", cli("landscape", *points, *mine, "--points", "5"), "", numbers),
        Writer("schedule", cli("schedule", "triangle", "cycle=40", "low=0.1", option="--svg"), ".svg", row),
        Writer("linear fit", cli("linear", "fit", shards, "--method", "naive"), ".safetensors", row),
        Writer(
            "linear path", cli("linear", "path", shards, "--lambdas", "1e-1:1e-2:2", "--methods", "naive"), "", results
        ),
        Writer(
            "predict", cli("predict", home / "finished", "--input", home / "texts.csv", option="--output"), ".csv", row
        ),
        Writer("report", report, "", page),
    ]
