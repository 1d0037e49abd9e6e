"""`lowland landscape`: what it writes and prints, a killed grid that goes on, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from rich.console import Console
from torch import nn

pytest.importorskip("matplotlib", reason="pictures need lowland[plot]")

from lowland import SWA, cli, save
from lowland.landscape import Grid, load_result

MINE = """
import os, time
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(2, 8), nn.{norm}, nn.Tanh(), nn.Linear(8, 2))

def data():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(96, 2, generator=g)
    y = (x[:, 0] * x[:, 1] > 0).long()
    batches = list(zip(x.split(24), y.split(24)))
    return {{"train": batches[:2], "test": batches[2:]}}

def one_list():
    return data()["train"]

def slow(model, batch):
    time.sleep(0.01)
    return nn.functional.cross_entropy(model(batch[0]), batch[1])

def nothing():
    return []
"""


class Done(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def command(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["lowland", "landscape", *map(str, arguments)])
        monkeypatch.setattr(cli.screen, "out", Console(width=200))
        monkeypatch.setattr(cli.screen, "err", Console(stderr=True, width=200))
        with pytest.raises(SystemExit) as left:
            cli.main()
        printed = capsys.readouterr()
        return Done(int(left.value.code or 0), printed.out, printed.err)

    return command


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return made(tmp_path, "BatchNorm1d(8)")


def made(folder: Path, norm: str) -> Path:
    """A model and data of one's own, and four checkpoints of it in three formats."""
    (folder / "my.py").write_text(MINE.format(norm=norm))
    layer = nn.LayerNorm(8) if norm.startswith("Layer") else nn.BatchNorm1d(8)
    for seed in range(4):
        state = torch.random.get_rng_state()
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(2, 8), layer, nn.Tanh(), nn.Linear(8, 2))
        torch.random.set_rng_state(state)
        if seed == 1:
            torch.save(model.state_dict(), folder / "w1.pt")
        elif seed == 2:
            average = SWA()
            average.update(model)
            save(average, folder / "w2.safetensors")
        else:
            save(dict(model.state_dict()), folder / f"w{seed}.safetensors")
    return folder


def options(home: Path, *more: object) -> list[object]:
    return ["--model", f"{home}/my.py:build", "--data", f"{home}/my.py:data", "--out", home / "out", *more]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "count", "words"),
    [
        ("plane", 3, ["train loss", "test error", "lowest", "from w2"]),
        ("line", 2, ["barrier", "test error from train loss", "length"]),
        ("rays", 2, ["rise 0.05", "w1"]),
        ("spectrum", 1, ["largest", "trace"]),
    ],
)
def test_every_kind_writes_pictures_a_page_and_results(
    run: Run, home: Path, kind: str, count: int, words: list[str]
) -> None:
    inputs = [home / name for name in ("w0.safetensors", "w1.pt", "w2.safetensors", "w3.safetensors")[:count]]
    more = ["--points", 5, "--directions", 2, "--steps", 3, "--probes", 2, "--rise", 0.05, "--reach", 2]
    done = run(*inputs, *options(home, "--kind", kind, *more))
    assert done.code == 0, done.err
    for word in (*words, f"{kind}.html"):
        assert word in done.out
    names = {path.name for path in (home / "out").iterdir()}
    assert {f"{kind}.svg", f"{kind}.png", f"{kind}-dark.png", f"{kind}.html"} <= names
    assert not [name for name in names if name.endswith(".jsonl")]
    results = [name for name in names if name.endswith(".safetensors")]
    _, about = load_result(home / "out" / results[0])
    assert "BatchNorm refreshed" in about["refresh"] and "48 train, 48 test" in about["data"]
    again = run(home / "out" / results[0], "--out", home / "again")
    assert again.code == 0 and (home / "again" / f"{kind}.svg").exists()


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave pictures out: they have tests of their own, and take a second."""
    monkeypatch.setattr("lowland.cli.landscape.draw", lambda *_: "nothing")


@pytest.mark.usefixtures("undrawn")
def test_two_checkpoints_span_a_plane_with_a_direction_and_four_their_principal_one(run: Run, home: Path) -> None:
    every = ("w0.safetensors", "w1.pt", "w2.safetensors", "w3.safetensors")
    for names, said in ((every[:2], "across"), (every, "explained")):
        done = run(*(home / name for name in names), *options(home, "--points", 3, "--json"))
        assert done.code == 0, done.err
        grid, about = load_result(home / "out" / "plane.safetensors")
        assert said in about and len(grid.points) == len(names) and grid.path == (len(names) == 4)


@pytest.mark.usefixtures("undrawn")
def test_json_is_plain(run: Run, home: Path) -> None:
    a, b = home / "w0.safetensors", home / "w3.safetensors"
    done = run(a, b, *options(home, "--kind", "line", "--points", 3, "--json", "--bn", "frozen", "--names", "SGD,SWA"))
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert set(told["values"]) == {"train loss", "train error", "test loss", "test error"}


@pytest.mark.usefixtures("undrawn")
def test_a_grid_is_refined_near_levels(run: Run, home: Path) -> None:
    inputs = [home / f"w{k}.safetensors" for k in (0, 2, 3)]
    done = run(*inputs, *options(home, "--points", 21, "--levels", "train loss=0.72", "--json"))
    assert done.code == 0, done.err
    grid, _ = load_result(home / "out" / "plane.safetensors")
    assert isinstance(grid, Grid) and json.loads(done.out)["places"] == int(grid.measured.sum()) < 21 * 21


@pytest.mark.usefixtures("undrawn")
def test_a_killed_command_goes_on(run: Run, tmp_path: Path) -> None:
    home = made(tmp_path, "LayerNorm(8)")
    inputs = [home / f"w{k}.safetensors" for k in (0, 2, 3)]
    arguments = [str(a) for a in (*inputs, *options(home, "--points", 17, "--loss", f"{home}/my.py:slow"))]
    process = subprocess.Popen(
        [sys.executable, "-m", "lowland.cli", "landscape", *arguments],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ,
    )  # fmt: skip
    journal = home / "out" / "plane.jsonl"
    try:
        end = time.monotonic() + 90
        while not (journal.exists() and journal.read_bytes().count(b"\n") > 10):
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = journal.read_bytes().count(b"\n") - 1
    assert 0 < kept < 289 and not (home / "out" / "plane.safetensors").exists()
    refused = run(*arguments, "--bn", "frozen")
    assert refused.code == 2 and "another plane, data or model" in refused.err
    done = run(*arguments, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["places"] == 289 and not journal.exists()


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_several_processes_measure_the_same(run: Run, home: Path) -> None:
    inputs = [home / f"w{k}.safetensors" for k in (0, 2, 3)]
    values = []
    for jobs in (1, 2):
        done = run(*inputs, *options(home, "--points", 5, "--jobs", jobs, "--bn", "fast"))
        assert done.code == 0, done.err
        values.append(load_result(home / "out" / "plane.safetensors")[0].values["test loss"])
    assert torch.allclose(*values, atol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_the_ranks_of_torchrun_share_the_places(run: Run, home: Path) -> None:
    inputs = [home / f"w{k}.safetensors" for k in (0, 2, 3)]
    assert run(*inputs, *options(home, "--points", 5)).code == 0
    alone = load_result(home / "out" / "plane.safetensors")[0].values["test loss"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    arguments = [str(a) for a in (*inputs, *options(home, "--points", 5, "--json"))]
    arguments[arguments.index("--out") + 1] = str(home / "shared")
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "lowland.cli", "landscape", *arguments], stdout=subprocess.PIPE, text=True,
            env=os.environ | {"RANK": str(k), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
        )
        for k in (0, 1)
    ]  # fmt: skip
    try:
        said = [rank.communicate(timeout=200)[0] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert json.loads(said[0])["places"] == 25 and said[1] == ""
    shared = load_result(home / "shared" / "plane.safetensors")[0].values["test loss"]
    assert torch.allclose(alone, shared, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kind", "cube"], "--kind must be one of"),
        (["--bn", "none"], "--bn must be"),
        (["--data", "my.py"], "wants FILE:FUNCTION"),
        (["--data", "{home}/none.py:data"], "there is no file"),
        (["--data", "{home}/my.py:none"], "defines no function none"),
        (["--data", "{home}/my.py:nothing"], "gave no batch"),
        (["--model", "{home}/my.py:data"], "wanted a torch module"),
        (["--levels", "error"], "--levels wants NAME=NUMBER"),
        (["--names", "a"], "--names wants 3 different names"),
        (["--kind", "line"], "a line wants two checkpoints"),
        (["--normalise", "rows"], "--normalise must be"),
    ],
)
def test_mistakes_are_one_line(run: Run, home: Path, arguments: list[str], message: str) -> None:
    inputs = [home / f"w{k}.safetensors" for k in (0, 2, 3)]
    done = run(*inputs, *options(home), *(argument.format(home=home) for argument in arguments))
    assert done.code == 2 and message in done.err and done.err.count("\n") == 1


def test_more_mistakes(run: Run, home: Path) -> None:
    assert "--data FILE:FUNCTION is wanted" in run(home / "w0.safetensors", home / "w3.safetensors").err
    save({"other": torch.ones(2)}, home / "other.safetensors")
    done = run(home / "w0.safetensors", home / "other.safetensors", *options(home))
    assert done.code == 2 and "the checkpoint lacks" in done.err
    done = run(home / "w0.safetensors", home / "w0.safetensors", *options(home))
    assert done.code == 2 and "named twice" in done.err


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_folders_of_transformers_need_no_model(run: Run, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=32, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=8, num_labels=3,
    )  # fmt: skip
    for name in "abc":
        transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / name)
    (tmp_path / "my.py").write_text(
        "import torch\n"
        "def data():\n"
        "    g = torch.Generator().manual_seed(0)\n"
        "    ids = lambda *s: torch.randint(32, s, generator=g)\n"
        "    return [{'input_ids': ids(6, 5), 'labels': torch.randint(3, (6,), generator=g)} for _ in range(2)]\n"
    )
    done = run(
        *(tmp_path / name for name in "abc"),
        *("--data", f"{tmp_path}/my.py:data", "--points", 3, "--out", tmp_path / "out", "--json"),
    )
    assert done.code == 0, done.err
    assert set(json.loads(done.out)["values"]) == {"loss", "error"}
