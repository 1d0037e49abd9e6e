"""`lowland choose`: what it prints, writes and keeps; killed and given again; what it refuses."""

from __future__ import annotations

import json
import re
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lowland.retroactive import Candidate

from .test_checkpoints import Run, run  # noqa: F401  (a fixture)

STEPS = [10, 20, 30, 40, 50, 60]
# A score is minus the distance of the only weight to 3; with EXAMPLES one for each of five wishes near 3.
SCORE = """
import json, os, struct, sys
from pathlib import Path
path = Path(sys.argv[1])
file = path / "model.safetensors" if path.is_dir() else path
data = file.read_bytes()
size = struct.unpack("<Q", data[:8])[0]
begin, end = json.loads(data[8:8 + size])["w"]["data_offsets"]
w = struct.unpack("<f", data[8 + size + begin:8 + size + begin + 4])[0]
log = Path(__file__).with_name("asked.txt")
asked = log.read_text().split() if log.exists() else []
if len(asked) == int(os.environ.get("FAILS_AFTER", 999)):
    sys.exit("no more")
log.write_text(" ".join([*asked, repr(w)]))
if len(sys.argv) > 2:
    print("five numbers follow")
    for wish in (2.0, 2.5, 3.0, 3.5, 4.0):
        print(-abs(w - wish))
else:
    print("distance", -abs(w - 3))
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    # The equal average of the last four, 3.0, is what the score wants.
    for step, w in zip(STEPS, (9.0, 7.0, 1.0, 6.0, 0.0, 5.0), strict=True):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        save_file({"w": torch.tensor([w]), "n": torch.tensor([step])}, folder / "model.safetensors")
        (folder / "config.json").write_text("{}")
    (tmp_path / "score.py").write_text(SCORE)
    return tmp_path


def command(home: Path, more: str = "") -> str:
    return f"{sys.executable} {home / 'score.py'} {{}} {more}".strip()


def test_it_writes_the_best_average_and_says_what_it_is(run: Run, home: Path) -> None:  # noqa: F811
    done = run("choose", home / "run", "--score", command(home), "--out", home / "out", "--figure", home / "a.svg")
    assert done.code == 0, done.err
    w = load_file(home / "out" / "model.safetensors")
    assert w["w"].item() == pytest.approx(3.0) and w["n"].item() == 60 and (home / "out" / "config.json").exists()
    assert "linear over 4" in done.out and "chosen" in done.out
    assert "It stands for a linear decay of the rate that begins at step 30." in done.out
    assert "The last checkpoint scores -2.0000, the best single one" in done.out
    assert "The best of many scores is too high" in done.out
    asked = (home / "asked.txt").read_text().split()
    assert f"The score command ran {len(asked)} times." in done.out
    kept = json.loads((home / "out" / "lowland_choice.json").read_text())
    assert kept["winner"]["coefficients"] == pytest.approx(Candidate("linear", 4).coefficients(STEPS))
    assert kept["winner"]["score"] == pytest.approx(0.0) and len(kept["tried"]) == len(asked)
    assert (home / "a.svg").read_text().startswith("<svg xmlns")
    assert sorted(path.name for path in home.iterdir()) == ["a.svg", "asked.txt", "out", "run", "score.py"]


def test_stopped_it_goes_on_and_asks_nothing_twice(
    run: Run,  # noqa: F811
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = run("choose", home / "run", "--score", command(home), "--out", home / "whole", "--json")
    wanted = json.loads(whole.out)
    (home / "asked.txt").unlink()
    for fails in (3, 7):
        monkeypatch.setenv("FAILS_AFTER", str(fails))
        stopped = run("choose", home / "run", "--score", command(home), "--out", home / "out", "--json")
        assert stopped.code == 2 and "the score command failed with exit code 1" in stopped.err
        assert not (home / "out").exists()
    monkeypatch.delenv("FAILS_AFTER")
    again = json.loads(run("choose", home / "run", "--score", command(home), "--out", home / "out", "--json").out)
    assert again["tried"] == wanted["tried"] and again["winner"] == wanted["winner"]
    assert again["runs"] == wanted["runs"] - 7 and len((home / "asked.txt").read_text().split()) == wanted["runs"]
    one, two = (home / name / "model.safetensors" for name in ("whole", "out"))
    assert one.read_bytes() == two.read_bytes()


def test_a_changed_checkpoint_is_scored_anew(
    run: Run,  # noqa: F811
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FAILS_AFTER", "5")
    run("choose", home / "run", "--score", command(home), "--out", home / "out")
    monkeypatch.delenv("FAILS_AFTER")
    save_file({"w": torch.tensor([3.0]), "n": torch.tensor([60])}, home / "run" / "checkpoint-60" / "model.safetensors")
    done = run("choose", home / "run", "--score", command(home), "--out", home / "out", "--json")
    assert json.loads(done.out)["chosen"] == "the last checkpoint"


def test_with_examples_the_expected_score_is_told(run: Run, home: Path) -> None:  # noqa: F811
    score = command(home, "examples")
    done = run("choose", home / "run", "--score", score, "--examples", "--out", home / "out")
    assert done.code == 0, done.err
    assert "On examples that did not choose it, what is chosen so is expected to score" in done.out
    assert "±" in done.out and "tied" in done.out
    more = ["--examples", "--groups", "w,n", "--json"]
    grouped = run("choose", home / "run", "--score", score, *more, "--out", home / "g")
    assert grouped.code == 0, grouped.err
    assert json.loads(grouped.out)["expected"] is not None


def test_a_loss_is_turned_round_and_a_soup_may_win(run: Run, home: Path) -> None:  # noqa: F811
    lower = home / "lower.py"
    lower.write_text(SCORE.replace('print("distance", -abs(w - 3))', 'print("loss", abs(w - 3.5))'))
    # Of 6 and 1, which no last average holds alone, the mean is 3.5.
    done = run(
        "choose", home / "run", "--score", f"{sys.executable} {lower} {{}}", "--lower-is-better", "--windows", "2",
        "--blends", "1", "--soup", "--out", home / "out", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    found = json.loads(done.out)
    best, soup = found["winner"]["score"], found["soup"]
    assert best >= 0 and soup["taken"] == (soup["score"] < best)
    w = load_file(home / "out" / "model.safetensors")["w"].item()
    assert abs(w - 3.5) == pytest.approx(min(soup["score"], best))


def test_the_soup_is_a_row_of_the_table_whether_it_wins_or_not(run: Run, home: Path) -> None:  # noqa: F811
    lost = run("choose", home / "run", "--score", command(home), "--soup", "--out", home / "out")
    row = next(line for line in lost.out.splitlines() if "greedy soup of" in line)
    assert "chosen" not in row and "chosen" in lost.out
    arguments = ["--windows", "1", "--shapes", "linear", "--soup", "--card", "--out", home / "won"]
    won = run("choose", home / "run", "--score", command(home), *arguments)
    assert "it is taken" in won.out and "It stands for" not in won.out
    assert "no expected score" in (home / "won" / "README.md").read_text()
    assert run("verify", home / "won").code == 0


def test_a_winner_has_a_card_and_is_verified(run: Run, home: Path) -> None:  # noqa: F811
    more = ["--examples", "--groups", "w", "--card", "--windows", "4", "--shapes", "linear"]
    done = run("choose", home / "run", "--score", command(home, "examples"), *more, "--out", home / "out")
    assert done.code == 0, done.err
    text = (home / "out" / "README.md").read_text()
    assert "Chosen by `lowland choose` as " in text and "On examples that did not choose it" in text
    assert "| coefficient |" in text and "SHA-256" in text
    told = run("verify", home / "out")
    assert told.code == 0 and "equal bit for bit" in told.out
    assert (
        "Of tensors that fit `w`" in text
        or not json.loads((home / "out" / "lowland_choice.json").read_text())["winner"]["groups"]
    )


def test_a_winner_in_one_file_has_its_scores_beside_it(run: Run, home: Path) -> None:  # noqa: F811
    done = run("choose", home / "run", "--score", command(home), "--out", home / "out.safetensors")
    assert done.code == 0, done.err
    kept = json.loads((home / "out.safetensors.choice.json").read_text())
    assert kept["winner"]["score"] == pytest.approx(0.0)
    assert run("verify", home / "out.safetensors").code == 0


def test_a_distributed_run_is_chosen_from_and_handed_back_as_it_was(run: Run, tmp_path: Path) -> None:  # noqa: F811
    import torch.distributed.checkpoint as checkpoint

    from ..checkpoints.layouts import dcp

    for step, w in ((10, 9.0), (20, 2.0), (30, 4.0)):
        content = {"model": {"w": torch.tensor([w])}, "optim": {"m": torch.ones(3)}}
        dcp(tmp_path / "run" / f"step-{step}", content)
    # The command sees one form only, that of the winner; averages are worth more than single checkpoints.
    score = tmp_path / "score.sh"
    score.write_text('#!/bin/sh\ntest -f "$1/$2" || exit 1\ncase $1 in */step-*) echo 0;; *.choose/*) echo 1;; esac\n')
    score.chmod(0o755)
    few = ["--windows", "2", "--shapes", "linear", "--blends", "1"]
    asked = f"{score} {{}} .metadata"
    done = run("choose", tmp_path / "run", "--score", asked, *few, "--as", "dcp", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    held = {"model": {"w": torch.zeros(1)}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpoint.load(held, checkpoint_id=tmp_path / "out", no_dist=True)
    assert held["model"]["w"].item() == 3.0
    assert run("verify", tmp_path / "out").code == 0
    # Without --as the winner is safetensors: single checkpoints are copied for the command.
    asked = f"{score} {{}} model.safetensors"
    done = run("choose", tmp_path / "run", "--score", asked, *few, "--out", tmp_path / "safe", "--json")
    assert done.code == 0, done.err
    assert {row["score"] for row in json.loads(done.out)["tried"]} == {1.0}


def test_scores_of_an_output_that_is_there_are_swept(run: Run, home: Path) -> None:  # noqa: F811
    """A process that was killed after it wrote the winner has left its scores."""
    for name, command_name in (("chosen", "choose"), ("soup", "soup")):
        arguments = [command_name, home / "run", "--score", command(home), "--out", home / name]
        assert run(*arguments).code == 0
        left = home / f".{name}.{command_name}"
        left.mkdir()
        (left / "scores.json").write_text("{}")
        again = run(*arguments)
        assert again.code == 2 and "is there already" in again.err and not left.exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--score", "python eval.py"], r"--score wants \{\}"),
        (["--windows", "9"], "windows must hold 1 to 6 checkpoints"),
        (["--shapes", "steep"], "a decay is one of linear"),
        (["--groups", "w"], "overfit a single score"),
        (["--examples"], "--examples wants a number for each example"),
        (["--score", "no-such-command {}"], "cannot be run"),
    ],
)
def test_what_is_refused(run: Run, home: Path, more: list[str], message: str) -> None:  # noqa: F811
    arguments = ["--score", command(home), *more] if "--score" not in more else more
    done = run("choose", home / "run", *arguments, "--out", home / "out")
    assert done.code == 2 and len(done.err.strip().splitlines()[-1]) < 400
    assert re.search(message, " ".join(done.err.split()))
    assert not (home / "out").exists()
