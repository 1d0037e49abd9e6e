"""Choice studies on random models: questions as files write them, scorers, the folder, resuming, shifted questions."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("peft")

from lowland.studies.choice import ChoiceStudy, read_config, run_choice_study
from lowland.studies.choice.config import from_mapping, small
from lowland.studies.choice.questions import Question, as_questions, load_splits, prompt, question_of, read_questions
from lowland.studies.choice.scorers import load_scorer
from lowland.studies.choice.shifted import detection, uncertainty
from lowland.studies.choice.study import NINE
from lowland.studies.runs.folder import read_json
from lowland.studies.runs.settings import to_toml

from .tiny_choice import KINDS, prepare, settings, write_questions


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("choice"))


@pytest.fixture(scope="module", params=KINDS)
def finished(home: Path, request: pytest.FixtureRequest) -> Path:
    before = torch.random.get_rng_state()
    run_choice_study(read_config(home / f"{request.param}.toml"), home / f"run-{request.param}")
    assert torch.equal(torch.random.get_rng_state(), before)
    return home / f"run-{request.param}"


# Questions.


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "options": ["x y", "z"], "answer": 1},
        {"question": " q ", "options": "A. x  y\nB. z", "answer": "B. z"},
        {"question": "q", "options": "A) x y\nB) z ", "answer": "z"},
        {"question": "q", "options": ["A. x y", "B. z"], "answer": "B"},
    ],
)
def test_every_way_of_writing_a_question(row: dict) -> None:
    assert question_of(row) == Question("q", ("x y", "z"), 1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q", "options": ["x"], "answer": 0}, "wanted 2 to 10"),
        ({"question": "q", "options": ["x", "x"], "answer": 0}, "different texts"),
        ({"question": "q", "options": ["x", "y"], "answer": "z"}, "wanted one of the options"),
        ({"question": "q", "options": ["x", "y"], "answer": 2}, "wanted one of the options"),
        ({"question": " ", "options": ["x", "y"], "answer": 0}, "empty"),
    ],
)
def test_what_is_no_question_is_refused(row: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        question_of(row)


def test_a_bad_row_is_named(tmp_path: Path) -> None:
    path = write_questions(tmp_path / "q.jsonl", 3, 0)
    path.write_text(path.read_text() + '{"question": "q", "options": ["x", "y"]}\n')
    with pytest.raises(ValueError, match=r"line 4: it lacks 'answer'"):
        read_questions(str(path))
    with pytest.raises(FileNotFoundError, match="commonsenseqa"):
        read_questions(str(tmp_path / "absent.jsonl"))


def test_splits_share_no_question_and_repeat(home: Path) -> None:
    data = read_config(home / "pairs.toml").data
    one, other = load_splits(data), load_splits(data)
    assert one == other
    texts = [{q.text for q in part} for part in (one.train, one.validation, one.test)]
    assert sum(map(len, texts)) == len(set.union(*texts)) == 60
    assert len(one.test) == round(0.34 * 60) and len(one.validation) == 12
    assert list(one.shifted) == ["other"]


def test_the_prompt_names_every_option() -> None:
    text = prompt(Question("Where?", ("here", "there"), 0))
    assert text.splitlines()[1:] == ["Where?", "Choices:", "A. Here", "B. There", "Answer:"]


# Scorers.


def test_right_padding_changes_no_letter(home: Path) -> None:
    """A prompt's scores do not depend on the longer prompts beside it."""
    study = read_config(home / "letters.toml")
    scorer, tokenizer, _ = load_scorer(study.model, 3)
    questions = load_splits(study.data).train[:6]
    tokens = as_questions(questions, tokenizer, "letters", 80, 3)
    assert len({len(ids) for ids in tokens.ids}) > 1
    together = scorer.eval()(**tokens.batch(range(6)))["logits"]
    alone = torch.cat([scorer(**tokens.batch([row]))["logits"] for row in range(6)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_letters_are_the_language_models_own_scores(home: Path) -> None:
    from transformers import AutoModelForCausalLM

    study = read_config(home / "letters.toml")
    scorer, tokenizer, folder = load_scorer(study.model, 3)
    question = load_splits(study.data).train[0]
    whole = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = tokenizer(prompt(question), return_tensors="pt")["input_ids"]
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in "ABC"]
    expected = whole(ids).logits[0, -1, letters]
    got = scorer.eval()(**as_questions([question], tokenizer, "letters", 80, 3).batch([0]))["logits"][0]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_options_that_are_not_there_get_no_probability(home: Path, kind: str) -> None:
    study = read_config(home / f"{kind}.toml")
    scorer, tokenizer, _ = load_scorer(study.model, 4)
    questions = [*load_splits(study.data).train[:2], *load_splits(study.data).shifted["other"][:2]]
    logits = scorer.eval()(**as_questions(questions, tokenizer, kind, 80, 4).batch(range(4)))["logits"]
    probs = logits.softmax(-1)
    assert probs.shape == (4, 4) and not probs.isnan().any()
    assert (probs[:2, 3] == 0).all() and (probs[2:, 2:] == 0).all() and (probs[2:, :2] > 0).all()


def test_a_prompt_that_would_be_cut_is_refused(home: Path) -> None:
    study = read_config(home / "letters.toml")
    _, tokenizer, _ = load_scorer(study.model, 3)
    with pytest.raises(ValueError, match="raise it"):
        as_questions(load_splits(study.data).train, tokenizer, "letters", 10, 3)


# The study.


def test_the_folder_holds_what_it_should(finished: Path) -> None:
    metrics = read_json(finished / "metrics.json")
    assert tuple(metrics["methods"]) == NINE
    assert tuple(metrics["shifted"]["other"]["methods"]) == NINE
    assert (metrics["n_train"], metrics["n_validation"], metrics["n_test"]) == (28, 12, 20)
    assert metrics["labels"] == ["A", "B", "C"]
    told = metrics["shifted"]["other"]["detection"]
    assert set(told) == set(NINE) - {"temperature-scaled base"}
    assert set(told["base"]) == {"entropy"} and "disagreement" in told["MultiSWAG"]
    assert all(0 <= v <= 1 for one in told.values() for score in one.values() for v in score.values())
    with np.load(finished / "probabilities.npz") as arrays:
        assert arrays["test_multiswag"].shape == (20, 3)
        np.testing.assert_allclose(arrays["test_members_mc_dropout"].sum(-1), 1)
    history = read_json(finished / "history.json")["members"]
    assert [len(member["adamw"]["loss"]) for member in history] == [8, 8]
    rates = history[0]["swag"]["lr"]
    assert rates[0] == pytest.approx(5e-3) and rates[-1] == pytest.approx(1e-3)
    assert (finished / "adapters" / "member-1" / "swa" / "adapter_model.safetensors").is_file()
    assert len((finished / "predictions.csv").read_text().splitlines()) == 21


def test_dropout_draws_differ_and_change_nothing_else(finished: Path) -> None:
    with np.load(finished / "probabilities.npz") as arrays:
        assert not np.allclose(arrays["test_members_mc_dropout"], arrays["test_members_base"])


def test_a_killed_study_ends_as_one_that_was_not(home: Path, tmp_path: Path) -> None:
    """Stages of the second member and of the end are taken away, as a kill would leave the folder."""
    study = read_config(home / "pairs.toml")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_choice_study(study, whole)
    shutil.copytree(whole, broken)
    for path in (broken / "metrics.json", *(broken / "stages" / "member-1").glob("predictions-*")):
        path.unlink()
    (broken / "stages" / "member-1" / "swag.json").unlink()
    (broken / "stages" / ".cut.part").write_text("half a file")
    run_choice_study(study, broken, resume=True)
    for name in ("metrics.json", "history.json", "predictions.csv"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes(), name
    assert not (broken / "stages" / ".cut.part").exists()


def test_the_report_shows_the_shift(finished: Path) -> None:
    pytest.importorskip("matplotlib")
    from lowland.studies.report import write

    page = write(finished).read_text(encoding="utf-8")
    assert "Shifted: other" in page and "MC dropout" in page and "disagreement" in page
    # A choice study asks questions: no word of texts, nor of what the demonstration's are like.
    shown = re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL)
    assert not re.search(r"\btexts?\b|abusive", shown, flags=re.IGNORECASE) and "Leaving questions to a human" in shown
    assert "A guess is right in" in shown


def test_the_report_says_how_often_a_guess_is_right() -> None:
    pytest.importorskip("matplotlib")
    from types import SimpleNamespace

    from lowland.studies.report.tables import guessing

    def said(low: float, **more: float) -> str:
        methods = {"SWA": {"accuracy": {"low": 0.1}}, "SWAG": {"accuracy": {"low": low}}}
        return guessing(SimpleNamespace(methods=tuple(methods), metrics={"methods": methods, **more}))  # type: ignore[arg-type]

    assert said(0.3, chance=0.2) == "A guess is right in 20.0% of them."
    assert "their differences say little" in said(0.15, chance=0.2)
    assert said(0.15) == ""


def test_settings_survive_the_file_and_mistakes_are_named(home: Path, tmp_path: Path) -> None:
    import tomllib

    for study in (small("pairs", seed=3), small("letters"), read_config(home / "letters.toml")):
        assert from_mapping(tomllib.loads(to_toml(study))) == study
    for section, key, value, message in (
        ("model", "kind", "sentences", "pairs"),
        ("swag", "start", 9, "before the last epoch"),
        ("training", "warmup", 1.0, "training.warmup must be at least 0 and below 1, got 1.0"),
        ("data", "nothing", 1, "no setting"),
    ):
        given = settings(home, "pairs")
        given[section][key] = value
        with pytest.raises(ValueError, match=message):
            from_mapping(given)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "x").write_text("")
    with pytest.raises(ValueError, match="not empty"):
        run_choice_study(ChoiceStudy(), tmp_path / "run")


# Knowing what one does not know.


def test_detection_equals_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(0)
    inside = (torch.rand(50, generator=generator) * 10).round() / 10  # with ties
    outside = (torch.rand(70, generator=generator) * 10).round() / 10 + 0.1
    truth = np.r_[np.zeros(50), np.ones(70)]
    scores = torch.cat([inside, outside]).double().numpy()
    got = detection(inside, outside)
    assert got["auroc"] == pytest.approx(metrics.roc_auc_score(truth, scores))
    assert got["aupr_out"] == pytest.approx(metrics.average_precision_score(truth, scores))
    assert got["aupr_in"] == pytest.approx(metrics.average_precision_score(1 - truth, -scores))


def test_uncertainties_by_hand() -> None:
    """METHODS 17.11: entropy 0.610864, mutual information 0.101749 nats; the second draw votes for the first class."""
    draws = torch.tensor([[[0.9, 0.1]], [[0.5, 0.5]]], dtype=torch.float64)
    mean = draws.mean(0)
    expected = -(draws * draws.log()).sum(-1).mean(0)
    found = uncertainty(mean, expected, torch.tensor([[0.75, 0.25]], dtype=torch.float64), [2])
    assert found["entropy"].item() == pytest.approx(0.610864 / math.log(2), abs=1e-6)
    assert found["mutual information"].item() == pytest.approx(0.101749 / math.log(2), abs=1e-6)
    assert found["disagreement"].item() == 0.25


def test_the_command_line(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from lowland.cli import app

    monkeypatch.chdir(tmp_path)
    arguments = ["study", "choice", "--config", str(home / "pairs.toml"), "--out", "run", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert tuple(json.loads(result.stdout)["methods"]) == NINE
    assert CliRunner().invoke(app, ["report", "run"]).exit_code == 0
