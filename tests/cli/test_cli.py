"""The command line: what it prints, writes and refuses."""

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("peft")

from lowland import cli

from ..studies.tiny_study import prepare


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = prepare(tmp_path_factory.mktemp("cli"))
    from lowland.studies.text import read_config, run_text_study

    run_text_study(read_config(folder / "study.toml"), folder / "run")
    return folder


class Done:
    """What a command left: exit code, standard output, standard error."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def lowland(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    from rich.console import Console

    def run(*arguments: Any) -> Done:
        monkeypatch.setattr(sys, "argv", ["lowland", *map(str, arguments)])
        # The consoles of the module hold the streams of its import.
        monkeypatch.setattr(cli.screen, "out", Console(width=160))
        monkeypatch.setattr(cli.screen, "err", Console(stderr=True, width=160))
        with pytest.raises(SystemExit) as left:
            cli.main()
        printed = capsys.readouterr()
        return Done(int(left.value.code or 0), printed.out, printed.err)

    return run


def test_study_prints_table_verdict_and_what_next(lowland: Any, home: Path) -> None:
    done = lowland("study", "text", "--config", home / "study.toml", "--out", home / "run", "--resume")
    assert done.code == 0, done.err
    for word in (
        "temperature-scaled base",
        "MultiSWAG",
        "macro F1",
        "NLL",
        "ECE",
        "Brier",
        "2 members, 66 training, 40 test",
    ):
        assert word in done.out
    assert "draws of SWAG" in done.out and "lowland predict" in done.out


def test_study_prints_json(lowland: Any, home: Path) -> None:
    done = lowland("study", "text", "--config", home / "study.toml", "--out", home / "run", "--resume", "--json")
    content = json.loads(done.out)
    assert content["folder"] == str(home / "run") and set(content["methods"]["SWAG"]["nll"]) == {"value", "low", "high"}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_predict_flags_the_doubtful(lowland: Any, home: Path) -> None:
    target = home / "out.csv"
    done = lowland("predict", home / "run", "--input", home / "test.csv", "--risk", "0.2", "--output", target)
    assert done.code == 0, done.err
    assert "of 40 texts go to a person" in done.out or "all 40 texts go to a person" in done.out
    rows = table(target)
    assert len(rows) == 40 and {row["review"] for row in rows} <= {"yes", "no"}
    for row in rows:
        assert float(row["p_fine"]) + float(row["p_foul"]) == pytest.approx(1, abs=2e-6)
        assert float(row["mutual_information"]) == pytest.approx(
            float(row["entropy"]) - float(row["expected_entropy"]), abs=3e-6
        )
    # The study's own test texts, classified anew, get the study's own probabilities.
    study = table(home / "run" / "predictions.csv")
    own = {row["text"]: float(row["p_foul"]) for row in study}
    assert all(float(row["p_foul"]) == pytest.approx(own[row["text"]], abs=2e-6) for row in rows)
    sharper = [float(row["confidence"]) for row in rows if row["review"] == "no"]
    doubtful = [float(row["confidence"]) for row in rows if row["review"] == "yes"]
    assert not sharper or not doubtful or max(doubtful) <= min(sharper)


def test_predict_says_what_was_cut_and_how_sure_the_risk_is(lowland: Any, home: Path, tmp_path: Path) -> None:
    source = tmp_path / "new.csv"
    source.write_text(
        "id,text,index\n7,the dog was good,a\n8,=1+1,b\n9,,c\n10," + "the cat is warm " * 20 + ",d\n", encoding="utf-8"
    )
    done = lowland("predict", home / "run", "--input", source, "--risk", "0.5")
    assert done.code == 0, done.err
    said = " ".join(done.out.split())
    assert "1 of 4 new texts were cut at 16 tokens (model.max_length)." in said
    assert "1 text is empty and go to a person." not in said and "1 text is empty and goes to a person." in said
    assert "validation texts" in said and "leave a risk of up to" in said
    rows = table(tmp_path / "new.predictions.csv")
    assert [row["id"] for row in rows] == ["7", "8", "9", "10"] and [row["input_index"] for row in rows] == list("abcd")
    assert rows[1]["text"] == "'=1+1" and rows[2]["review"] == "yes"
    done = lowland("predict", home / "run", "--input", source)
    assert done.code == 2 and "is there: name another file with --output, or replace it with --overwrite" in done.err
    done = lowland("predict", home / "run", "--input", source, "--risk", "0.5", "--overwrite", "--json")
    content = json.loads(done.out)
    assert content["cut"] == {"texts": 1, "max_length": 16} and sum(content["classes"].values()) == 4
    checked = content["validation"]
    assert checked["texts"] == 30 and checked["wrong"] <= checked["answered"] / 2
    assert checked["wrong"] / checked["answered"] < checked["risk_bound"] <= 1


def test_predict_knows_the_column_of_the_study(lowland: Any, home: Path, tmp_path: Path) -> None:
    from lowland.studies.text.review import check_run

    assert check_run(home / "run").data.text == "text"
    other = tmp_path / "run"
    shutil.copytree(home / "run", other, ignore=shutil.ignore_patterns("stages", "adapters", "*.html"))
    config = (other / "config.toml").read_text(encoding="utf-8")
    (other / "config.toml").write_text(config.replace('text = "text"', 'text = "comment"'), encoding="utf-8")
    (tmp_path / "new.csv").write_text("comment,text\nthe dog was good,7\n", encoding="utf-8")
    done = lowland("predict", other, "--input", tmp_path / "new.csv", "--json")
    assert done.code == 0, done.err
    assert table(tmp_path / "new.predictions.csv")[0]["text"] == "the dog was good"
    done = lowland("predict", other, "--input", home / "test.csv")
    assert "the study's column is 'comment'; --column names another" in done.err
    # A wrong run comes before a wrong column.
    assert "holds no study" in lowland("predict", home, "--input", tmp_path / "new.csv", "--column", "no").err


@pytest.mark.slow
def test_a_study_says_what_it_cut_and_chooses_the_length_itself(lowland: Any, home: Path, tmp_path: Path) -> None:
    done = lowland("study", "text", "--config", home / "study.toml", "--out", home / "run", "--resume")
    assert "were cut at" not in done.out
    config = (home / "study.toml").read_text(encoding="utf-8")
    short = tmp_path / "short.toml"
    short.write_text(config.replace("max_length = 16", "max_length = 6").replace("[1, 2]", "[1]"), encoding="utf-8")
    done = lowland("study", "text", "--config", short, "--out", tmp_path / "short")
    assert done.code == 0, done.err
    assert "texts were cut at 6 tokens (model.max_length)" in " ".join(done.out.split())
    assert "texts were cut at 6 tokens" in " ".join(done.err.split()), "said before the training, too"
    assert "1 member," in done.out and "1 members" not in done.out
    metrics = json.loads((tmp_path / "short" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["max_length"] == 6 and metrics["cut"]["test"][1] == 40 and metrics["cut"]["test"][0] > 0
    assert "texts were cut at 6 tokens" in (tmp_path / "short" / "report.html").read_text(encoding="utf-8")


def test_data_list_shows_size_and_licence(lowland: Any) -> None:
    done = lowland("data", "list", "--json")
    assert {item["name"] for item in json.loads(done.out)} >= {"insults", "hutto-movies", "r52"}
    assert "licence" in lowland("data", "list").out


def test_info_says_what_a_state_file_holds(lowland: Any, home: Path) -> None:
    done = lowland("info", home / "run" / "posterior.safetensors", "--json")
    content = json.loads(done.out)
    assert content["class"] == "Mixture" and [part["updates"] for part in content["parts"]] == [5, 5]
    assert "Mixture" in lowland("info", home / "run" / "posterior.safetensors").out
    weights = home / "run" / "stages" / "member-0" / "epoch-0.safetensors"
    assert json.loads(lowland("info", weights, "--json").out)["class"] == "weights"


def errors(home: Path) -> list[tuple[list[Any], str]]:
    empty = home / "empty.csv"
    empty.touch()
    bad = home / "bad.toml"
    bad.write_text("[training]\nepochs = 0\n", encoding="utf-8")
    wrong = home / "wrong.toml"
    text = (home / "study.toml").read_text(encoding="utf-8")
    wrong.write_text(text.replace(str(home / "encoder"), str(home / "no-encoder")), encoding="utf-8")
    (home / "no-encoder").mkdir(exist_ok=True)
    return [
        (["study", "text", "--config", home / "none.toml"], "there is no configuration"),
        (["study", "text", "--config", bad, "--out", home / "x"], "training.epochs must be at least 1, got 0"),
        (["study", "text", "--config", wrong, "--out", home / "x"], "cannot be loaded"),
        (["study", "text", "--config", home / "study.toml", "--out", home / "run"], "is not empty"),
        (["predict", home / "run", "--input", home / "test.csv", "--column", "txt"], "has no column 'txt'"),
        (["predict", home / "run", "--input", empty], "is empty"),
        (["predict", home / "run", "--input", home / "none.csv"], "there is no file"),
        (["predict", home / "run", "--input", home / "test.csv", "--risk", "1.5"], "must lie in [0, 1), got 1.5"),
        (["predict", home, "--input", home / "test.csv"], "holds no study"),
        (["predict", home / "run", "--input", home / "test.csv", "--output", home / "test.csv"], "is the input"),
        (
            ["predict", home / "run", "--input", home / "test.csv", "--output", home / "no" / "o.csv"],
            "folder that exists",
        ),
        (["report", home], "holds no study"),
        (["info", home / "train.csv"], "is no checkpoint"),
        (["info", home / "none"], "there is no file"),
        (["data", "get", "nonsense"], "there is no packaged set 'nonsense'"),
        (["demo", "--members", "0", "--out", home / "x"], "members must be at least 1, got 0"),
        (["demo", "--epochs", "1", "--out", home / "x"], "swag.start must come before the last epoch"),
    ]


@pytest.mark.parametrize("case", range(17))
def test_mistakes_are_one_line_and_exit_code_2(lowland: Any, home: Path, case: int) -> None:
    arguments, words = errors(home)[case]
    done = lowland(*arguments)
    assert done.code == 2 and not done.out
    assert done.err.startswith("error: ") and words in done.err
    assert done.err.count("\n") == 1 and "Traceback" not in done.err
    assert not (home / "x").exists() and not list(home.glob("*.predictions.csv"))


def test_debug_shows_the_trace(lowland: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lowland", "info", str(home / "none"), "--debug"])
    with pytest.raises(FileNotFoundError, match="there is no file"):
        cli.main()
