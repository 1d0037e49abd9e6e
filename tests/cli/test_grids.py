"""The commands of grid studies: what they print, write and refuse."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("scipy", reason="the statistics of a study need scipy")

from lowland import cli

LINKS = """
[data]
graphs = ["nations"]
train_triples = 50
[model]
names = ["distmult", "complex"]
dimension = 8
[training]
seeds = [0, 1]
epochs = 3
[queries]
number = 3
kinds = ["2p"]
[evaluation]
curve_every = 1
[sensitivity]
seeds = []
"""


@pytest.fixture
def lowland(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    from rich.console import Console

    def run(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lowland", *map(str, arguments)])
        monkeypatch.setattr(cli.screen, "out", Console(width=100))
        monkeypatch.setattr(cli.screen, "err", Console(stderr=True, width=160))
        with pytest.raises(SystemExit) as left:
            cli.main()
        printed = capsys.readouterr()
        return int(left.value.code or 0), printed.out, printed.err

    return run


def test_links_prints_the_table_the_claims_and_what_next(lowland: Any, tmp_path: Path) -> None:
    pytest.importorskip("pykeen", reason="link prediction needs lowland[links]")
    (tmp_path / "few.toml").write_text(LINKS)
    options = ("--config", tmp_path / "few.toml", "--out", tmp_path / "run", "--jobs", "1")
    code, out, err = lowland("study", "links", *options)
    assert code == 0, err
    for word in (
        "nations: MRR on test links, 2 seeds",
        "last iterate",
        "ASWA",
        "complex",
        "Wilcoxon",
        "lowland study links",
    ):
        assert word in out
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names >= {"cells", "config.toml", "metrics.json", "timings.json", "versions.json", "report.html"}
    code, out, _ = lowland("study", "links", *options, "--resume", "--json")
    assert code == 0 and json.loads(out)["seeds"] == [0, 1]
    code, out, err = lowland("report", tmp_path / "run")
    assert code == 0 and "report.html" in out, err


def test_options_take_the_place_of_settings(lowland: Any, tmp_path: Path) -> None:
    pytest.importorskip("pykeen", reason="link prediction needs lowland[links]")
    (tmp_path / "few.toml").write_text(LINKS)
    code, out, err = lowland(
        "study", "links", "--config", tmp_path / "few.toml", "--out", tmp_path / "run", "--models", "distmult",
        "--seeds", "1", "--jobs", "1", "--json",
    )  # fmt: skip
    assert code == 0, err
    told = json.loads(out)
    assert told["pairs"] == [["nations", "distmult"]] and told["seeds"] == [0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("links", "--graphs", "yago"), "yago"),
        (("links", "--seeds", "0"), "--seeds must be at least 1"),
        (("images", "--networks", "transformer"), "transformer"),
        (("images", "--sets", "cifar10"), "cifar10"),
        (("images", "--jobs", "0", "--sets", "digits"), "jobs must be at least 1"),
    ],
)
def test_a_mistake_is_one_line(lowland: Any, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    code, _, err = lowland("study", *arguments, "--out", tmp_path / "run")
    assert code == 2 and message in err and "Traceback" not in err
    assert not (tmp_path / "run" / "config.toml").exists()
