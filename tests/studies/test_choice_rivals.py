"""What the choice study holds SWAG against besides, and whether it could show its claim, on random models."""

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("peft")

from lowland.calibration import fit_temperature, nll
from lowland.studies.adapters.training import class_probabilities
from lowland.studies.choice import ChoiceStudy, read_config, run_choice_study
from lowland.studies.choice import questions as reading
from lowland.studies.choice.config import from_mapping
from lowland.studies.choice.questions import Question, as_questions, load_splits, prompt
from lowland.studies.choice.regime import Regime
from lowland.studies.choice.rivals import EPSILON, EXTRA, SCALES, ZERO
from lowland.studies.choice.scorers import load_scorer, set_scale, words_of
from lowland.studies.runs.folder import read_arrays, read_json

from .tiny_choice import prepare, settings


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("rivals"))


def with_rivals(home: Path) -> ChoiceStudy:
    study = read_config(home / "pairs.toml")
    return dataclasses.replace(
        study,
        training=dataclasses.replace(study.training, seeds=(1,), base_rate=2e-3),
        evaluation=dataclasses.replace(study.evaluation, rivals=True),
    )


@pytest.fixture(scope="module")
def finished(home: Path) -> Path:
    run_choice_study(with_rivals(home), home / "run")
    return home / "run"


def test_every_rival_is_judged_on_every_set(finished: Path) -> None:
    metrics = read_json(finished / "metrics.json")
    found: dict[str, Any] = metrics["rivals"]
    assert [ZERO, *EXTRA.values()] == [name for name in found if "test" in found[name]]
    assert all({"validation", "test", "other", "temperature"} <= set(found[name]) for name in (ZERO, *EXTRA.values()))
    assert "base, tuned rate" in metrics["methods"] and "deep ensemble, tuned rate" in metrics["methods"]
    assert found["last iterate"]["test"] != found[ZERO]["test"]
    assert (
        found["last iterate"]["test"]["mutual_information"] == 0 < found["SWAG, scale 2"]["test"]["mutual_information"]
    )


def test_what_is_chosen_for_a_rival_is_chosen_on_validation_questions(finished: Path) -> None:
    found = read_json(finished / "metrics.json")["rivals"]
    (fitted,) = found["SWAG, fitted scale"]["chosen"]
    assert fitted["scale"] in (0.0, *SCALES)
    for name in ("TFB", "TFB, SWAG's shape"):
        (chosen,) = found[name]["chosen"]
        assert chosen["scale"] > 0 and chosen["anchors_nll"] <= chosen["point_nll"] + EPSILON
    # The point of TFB is the base model: its NLL on the anchors is that of the base model's own file.
    arrays = read_arrays(finished / "stages" / "member-0" / "predictions-base.npz")
    labels = [q.answer for q in load_splits(with_rivals(finished.parent).data).validation]
    assert nll(arrays["validation"], labels) == pytest.approx(found["TFB"]["chosen"][0]["point_nll"], rel=1e-5)


def test_a_killed_study_finds_the_same_rivals(finished: Path) -> None:
    before = (finished / "metrics.json").read_bytes()
    stage = finished / "stages" / "member-0"
    for path in (finished / "metrics.json", stage / "rival-tfb.json", stage / "rival-double.json"):
        path.unlink()
    (stage / "rival-double.npz").unlink()
    run_choice_study(with_rivals(finished.parent), finished, resume=True)
    assert (finished / "metrics.json").read_bytes() == before


def test_verdict_and_report_say_whether_the_claim_could_be_asked(finished: Path) -> None:
    pytest.importorskip("matplotlib")
    from lowland.studies.report import write

    metrics = read_json(finished / "metrics.json")
    regime = metrics["regime"]
    told = Regime(**{key: regime[key] for key in ("train_accuracy", "untrained", "trained", "mutual_information")})
    assert regime["says"] == told.says() and all(sentence in metrics["verdict"] for sentence in told.says())
    assert 0 < regime["train_accuracy"] <= 1
    page = write(finished).read_text(encoding="utf-8")
    assert "TFB: NLL" in page and told.says()[0].split(":")[0] in page


@pytest.mark.parametrize(
    ("regime", "starts"),
    [
        (Regime(0.99, 1.0, 2.2, 0.03), ["The claim can be asked here"]),
        (Regime(0.99, 1.0, 2.2, 0.009), ["The posterior is a point"]),
        (Regime(0.45, 1.5, 1.6, 0.001), ["The posterior is a point", "The overconfidence was there before"]),
        (Regime(0.45, 1.5, 2.0, 0.02), ["The claim can be asked here"]),
        (Regime(0.60, 1.5, 1.05, 0.02), ["The base model is not overconfident"]),
    ],
)
def test_the_sentences_of_a_regime(regime: Regime, starts: list[str]) -> None:
    says = regime.says()
    assert len(says) == len(starts) and all(s.startswith(start) for s, start in zip(says, starts, strict=True))


def test_at_the_scale_of_the_untrained_model_its_training_questions_want_no_temperature(home: Path) -> None:
    study = read_config(home / "pairs.toml")
    scorer, tokenizer, _ = load_scorer(study.model, 3)
    part = load_splits(study.data).train
    train, labels = as_questions(part, tokenizer, "pairs", 16, 3), [question.answer for question in part]
    scale = set_scale(scorer, train, labels, 8)
    assert scale == scorer.scale > 0 and fit_temperature(
        class_probabilities(scorer, train, 8), labels
    ) == pytest.approx(1, abs=1e-4)


def test_how_options_are_padded_changes_no_score(home: Path) -> None:
    study = read_config(home / "pairs.toml")
    scorer, tokenizer, _ = load_scorer(study.model, 3)
    long = Question("mountain " * 9, ("river", "mountain", "forest"), 1)
    part = [long, *load_splits(study.data).train[:3], Question("river", ("mountain " * 9, "river", "a"), 1)]
    questions = as_questions(part, tokenizer, "pairs", 16, 3)
    with torch.no_grad():
        together = scorer.eval()(**questions.batch(range(5)))["logits"]
        alone = torch.cat([scorer(**questions.batch([row]))["logits"] for row in range(5)])
    assert torch.allclose(together, alone, atol=1e-4)


def test_options_that_are_words_are_asked_without_letters(home: Path, tmp_path: Path) -> None:
    rows = [{"question": f"question {i}", "options": ["one", "of"], "answer": i % 2} for i in range(40)]
    (tmp_path / "words.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    given = settings(home, "letters")
    given["data"] = {"train": str(tmp_path / "words.jsonl"), "shifted": [], "validation_questions": 8}
    given["model"]["kind"] = "words"
    given["training"]["seeds"] = [1]
    if importlib.util.find_spec("laplace") is not None:
        given["evaluation"]["rivals"] = True
    metrics = run_choice_study(from_mapping(given), tmp_path / "run")
    assert set(metrics["methods"]["base"]) >= {"nll", "ece"} and "cosine_scale" not in metrics
    if importlib.util.find_spec("laplace") is not None:
        assert metrics["rivals"]["Laplace, head"]["test"]["mutual_information"] > 0
    with pytest.raises(ValueError, match='"words" wants the same options in every question'):
        words_of([Question("q", ("No", "Yes"), 0), Question("q", ("Yes", "No"), 0)])
    assert prompt(Question("q?", ("No", "Yes"), 0), lettered=False) == "q?\nAnswer:"


def test_packaged_texts_are_asked_about_when_they_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = (["hello\nyou", "x" * 301, "bad"], ["neutral", "neutral", "insulting"])
    monkeypatch.setattr(reading, "load_packaged", lambda name: (texts, None))
    first, second = reading.read_questions("insults")
    assert first == Question("Comment: hello you\nIs this comment an insult?", ("No", "Yes"), 0)
    assert second.answer == 1
