"""The commands on checkpoints: what they write, print and refuse."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import lowland
from lowland import SWAG, cli

from ..checkpoints.checkpoint_kinds import sharded, single, weights_at


class Done(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def command(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["lowland", *map(str, arguments)])
        monkeypatch.setattr(cli.screen, "out", Console(width=200))
        monkeypatch.setattr(cli.screen, "err", Console(stderr=True, width=200))
        with pytest.raises(SystemExit) as left:
            cli.main()
        printed = capsys.readouterr()
        return Done(int(left.value.code or 0), printed.out, printed.err)

    return command


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for step in (900, 100, 2000):
        sharded(tmp_path / f"checkpoint-{step}", weights_at(step))
    return tmp_path


def bias(folder: Path) -> torch.Tensor:
    return next(
        t for f in sorted(folder.glob("*.safetensors")) for name, t in load_file(f).items() if name == "layer.bias"
    )


def mean(*pairs: tuple[float, int]) -> torch.Tensor:
    total = sum(share * weights_at(step)["layer.bias"].double() for share, step in pairs)
    assert isinstance(total, torch.Tensor)
    return total.half()


@pytest.mark.parametrize(
    ("options", "pairs"),
    [
        ([], [(1 / 3, 100), (1 / 3, 900), (1 / 3, 2000)]),
        (["--last", 2], [(0.5, 900), (0.5, 2000)]),
        (["--ema", 0.25], [(0.0625, 100), (0.1875, 900), (0.75, 2000)]),
        (["--half-life", 1], [(0.25, 100), (0.25, 900), (0.5, 2000)]),
    ],
    ids=["uniform", "last", "ema", "half-life"],
)
def test_average(run: Run, home: Path, options: list[object], pairs: list[tuple[float, int]]) -> None:
    done = run("average", home, "--out", home / "out", *options)
    assert done.code == 0, done.err
    torch.testing.assert_close(bias(home / "out"), mean(*pairs))
    places = [done.out.index(f"checkpoint-{step}") for _, step in pairs]
    assert places == sorted(places) and "lowland info" in done.out


def test_weights_keep_the_order_given(run: Run, home: Path) -> None:
    inputs = [home / "checkpoint-2000", home / "checkpoint-100"]
    done = run("average", *inputs, "--weights", "3,1", "--out", home / "out", "--dtype", "float32", "--json")
    content = json.loads(done.out)
    assert content["inputs"] == list(map(str, inputs)) and content["bytes_written"] > 0
    assert bias(home / "out").dtype == torch.float32
    torch.testing.assert_close(bias(home / "out").half(), mean((0.75, 2000), (0.25, 100)))


def test_dry_run_writes_nothing(run: Run, home: Path) -> None:
    before = sorted(home.rglob("*"))
    done = run("average", home, "--out", home / "out", "--dry-run")
    assert "would take about" in done.out and "read" in done.out and "Nothing was written" in done.out
    content = json.loads(run("posterior", home, "--out", home / "p.safetensors", "--dry-run", "--json").out)
    assert content["dry_run"] and content["estimate"]["seconds"] > 0 and content["bytes_written"] > 0
    assert sorted(home.rglob("*")) == before


SCORE = """
import json, sys
from pathlib import Path
from safetensors.torch import load_file
path = Path(sys.argv[1])
with open(path.parents[0 if path.name.startswith("checkpoint") else 2] / "asked.txt", "a") as file:
    file.write(path.name + "\\n")
steps = [t for f in path.glob("*.safetensors") for n, t in load_file(f).items() if n == "scale"]
print("loss of 3 batches:", abs(steps[0].item() - float(sys.argv[2])))
"""


def test_soup_by_a_command(run: Run, home: Path) -> None:
    script = home / "score.py"
    script.write_text(SCORE)
    scales = {step: weights_at(step)["scale"].item() for step in (100, 900, 2000)}
    middle = (scales[100] + scales[2000]) / 2
    command = f"{sys.executable} {script} {{}} {middle}"
    done = run("soup", home, "--score", command, "--lower-is-better", "--out", home / "out", "--json")
    assert done.code == 0, done.err
    content = json.loads(done.out)

    def loss(values: list[float]) -> float:
        return abs(sum(values) / len(values) - middle)

    found = lowland.soup.search(3, lambda members: -loss([scales[(100, 900, 2000)[m]] for m in members]))
    assert content["kept"] == [str(home / f"checkpoint-{(100, 900, 2000)[m]}") for m in found.members]
    assert content["score"] == pytest.approx(-found.trials[found.members[-1]], abs=1e-12)
    torch.testing.assert_close(
        bias(home / "out"), mean(*((1 / len(found.members), (100, 900, 2000)[m]) for m in found.members))
    )
    assert not list(home.glob(".*"))


def test_scores_are_asked_once(run: Run, home: Path) -> None:
    script = home / "score.py"
    script.write_text(SCORE + "sys.exit(3) if 'out' in path.parts[-1] and not (path.parents[2] / 'go').exists() else 0")
    command = f"{sys.executable} {script} {{}} 0"
    done = run("soup", home, "--score", command, "--lower-is-better", "--out", home / "out")
    assert done.code == 2 and "the score command failed with exit code 3" in done.err
    (home / "go").touch()
    done = run("soup", home, "--score", command, "--lower-is-better", "--out", home / "out")
    assert done.code == 0, done.err
    asked = (home / "asked.txt").read_text().split()
    assert all(asked.count(f"checkpoint-{step}") == 1 for step in (100, 900, 2000))
    assert "greedy soup" in done.out and not list(home.glob(".*"))


def test_posterior_and_draws(run: Run, home: Path) -> None:
    done = run("posterior", home, "--out", home / "p.safetensors", "--select", "layer|embed")
    assert done.code == 0, done.err
    swag = lowland.load(home / "p.safetensors")
    assert isinstance(swag, SWAG) and swag.rank == 3 and swag.count == 3
    like = home / "checkpoint-2000"
    done = run("sample", home / "p.safetensors", "--like", like, "-n", 2, "--out", home / "draws", "--scale", 0.5)
    assert done.code == 0, done.err
    drawn = swag.tempered(0.5).sample(2, generator=torch.Generator().manual_seed(0))["layer.bias"].half()
    for number in range(2):
        assert torch.equal(bias(home / "draws" / f"sample-{number}"), drawn[number])


def test_info_of_a_checkpoint(run: Run, home: Path) -> None:
    content = json.loads(run("info", home / "checkpoint-100", "--json").out)
    assert content["class"] == "sharded safetensors" and len(content["parts"]) == 2
    done = run("info", home / "checkpoint-100")
    assert "7 tensors" in done.out and "model-00001-of-00002.safetensors" in done.out


def test_mistakes_are_one_line(run: Run, home: Path) -> None:
    single(home / "other", {"w": torch.ones(1)})
    out = ["--out", home / "out"]
    score = ["--score", "false {}"]
    for arguments, words in (
        (["average", home / "none", *out], "there is no checkpoint"),
        (["average", home, home / "other", *out], "tensors are named differently"),
        (["average", home, *out, "--ema", 1.5], "decay must lie in [0, 1], got 1.5"),
        (["average", home, *out, "--half-life", 0], "--half-life wants a positive number"),
        (["average", home, *out, "--ema", 0.5, "--weights", "1"], "exclude each other"),
        (["average", home, *out, "--weights", "1,2"], "one number for each of 3 checkpoints, got 2"),
        (["average", home, *out, "--weights", "1,b,2"], "wants numbers with commas"),
        (["average", home, *out, "--last", 4], "must lie between 1 and the number of checkpoints, 3; got 4"),
        (["average", home, *out, "--dtype", "int8"], "--dtype must be one of"),
        (["average", home, "--out", home / "other"], "is there already"),
        (["soup", home, *out, "--score", "python"], "--score wants {} where"),
        (["soup", home, *out, *score], "the score command failed with exit code 1"),
        (["soup", home, *out, "--score", "echo none"], "--score wants {}"),
        (["soup", home, *out, "--score", "true {}"], "printed no number"),
        (["posterior", home / "other", "--out", home / "p.safetensors"], "at least 2 checkpoints, got 1"),
        (["posterior", home, *out], "a state is one file"),
        (["sample", home / "none", "--like", home / "other", *out], "there is no file"),
        (["info", home], "holds no checkpoint"),
    ):
        done = run(*arguments)
        assert done.code == 2 and words in done.err, (arguments, done.err)
        assert done.err.startswith("error: ") and done.err.count("\n") == 1
    assert not (home / "out").exists()


@pytest.mark.parametrize(
    ("options", "pairs"),
    [
        (["--decay", "linear"], [(800 / 2850, 100), (1100 / 2850, 900), (1 / 3, 2000)]),
        (["--over", "2ckpt"], [(0.5, 900), (0.5, 2000)]),
        (["--over", "60%"], [(0.5, 900), (0.5, 2000)]),
        (["--over", "1000step"], [(1.0, 2000)]),
        (["--decay", "minus-sqrt", "--over", "2ckpt"], [(0.5**0.5, 900), (1 - 0.5**0.5, 2000)]),
        (["--blend", 0.5], [(1 / 6, 100), (1 / 6, 900), (2 / 3, 2000)]),
        (["--ema", 0.25, "--blend", 0.5], [(1 / 32, 100), (3 / 32, 900), (0.875, 2000)]),
        (["--raw-weights=-1,0.5,2"], [(-1.0, 900), (0.5, 100), (2.0, 2000)]),
        (["--weights", "1,1,2", "--blend", 2], [(0.5, 900), (0.5, 100), (0.0, 2000)]),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value[0], str) else "",
)
def test_coefficients_of_a_decay(
    run: Run, home: Path, options: list[object], pairs: list[tuple[float, int]], tmp_path: Path
) -> None:
    given = [home / f"checkpoint-{step}" for step in (900, 100, 2000)]
    done = run("average", *given, "--out", home / "out", "--dtype", "float32", "--json", *options)
    assert done.code == 0, done.err
    wanted = sum(share * weights_at(step)["layer.bias"].double() for share, step in pairs)
    assert isinstance(wanted, torch.Tensor)
    torch.testing.assert_close(bias(home / "out"), wanted.float())


def test_coefficients_are_shown_and_recorded(run: Run, home: Path) -> None:
    done = run("average", home, "--decay", "(1-x)^2", "--out", home / "out")
    assert "coefficient" in done.out and "in place of a (1-x)^2 decay" in done.out
    record = json.loads((home / "out" / "lowland_merge.json").read_text())
    assert sum(record["method"]["coefficients"]) == pytest.approx(1)
    (home / "rates.txt").write_text("100 1\n900 0.5\n2000 0.25\n")
    done = run("average", home, "--decay", home / "rates.txt", "--out", home / "two", "--json")
    assert json.loads(done.out)["coefficients"] == [0.5, 0.25, 0.25]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--decay", "sqrt"], "a decay is one of"),
        (["--decay", "linear", "--ema", 0.5], "--ema and --decay exclude each other"),
        (["--over", "half"], "--over wants a share such as 20%"),
        (["--over", "7ckpt"], "there are 3 checkpoints"),
        (["--over", "200%"], "wants a part of the run"),
        (["--over", "2ckpt", "--last", 2], "--last and --over exclude each other"),
        (["--over", "2ckpt", "--raw-weights", "1,2,3"], "--over and --raw-weights exclude each other"),
        (["--weights=1,-1,0"], "a positive sum"),
        (["--raw-weights", "1,nan,0"], "finite numbers"),
        (["--blend", "nan"], "a blend must be a finite number"),
    ],
)
def test_options_of_an_average_that_do_not_fit(run: Run, home: Path, options: list[object], words: str) -> None:
    done = run("average", home, "--out", home / "out", *options)
    assert done.code == 2 and words in done.err and not list(home.glob(".out*"))


def test_the_closing_lines_say_what_became_of_everything(run: Run, tmp_path: Path) -> None:
    for step in (0, 1):
        content = {
            "state_dict": {"w": torch.full((2,), float(step))},
            "state_dict_ema": {"w": torch.ones(2)},
            "epoch": 3,
        }
        torch.save(content, tmp_path / f"checkpoint-{step}.ckpt")
    done = run("average", tmp_path / "checkpoint-*", "--out", tmp_path / "new" / "mean.ckpt")
    assert done.code == 0, done.err
    assert "1 tensor averaged. Carried along as in the last input: epoch." in done.out
    assert "Left out: state_dict_ema (1 tensor, --key state_dict_ema takes it)." in done.out
    content = json.loads(run("info", tmp_path / "checkpoint-0.ckpt", "--json").out)
    assert content["left"][0]["name"] == "state_dict_ema" and content["names"]["w"]["shape"] == [2]
    done = run(
        *("average", tmp_path, "--key", "state_dict_ema", "--out", tmp_path / "ema.ckpt", "--json"),
    )
    assert [left["name"] for left in json.loads(done.out)["left"]] == ["state_dict"]
    assert torch.load(tmp_path / "ema.ckpt")["state_dict_ema"]["w"].tolist() == [1.0, 1.0]
    assert (tmp_path / "ema.ckpt.merge.json").is_file()
