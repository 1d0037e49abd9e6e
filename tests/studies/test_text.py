"""A whole text study on a random encoder: what its folder holds, that it repeats, and that it survives being killed."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("peft")

import lowland
from lowland import weights_of
from lowland.calibration import summary
from lowland.studies.adapters import predicting
from lowland.studies.adapters.classifier import adapt, load_encoder
from lowland.studies.adapters.comparison import COMBINED, METHODS
from lowland.studies.adapters.config import Lora, Model
from lowland.studies.adapters.outputs import key_of
from lowland.studies.adapters.tokens import fitting_length, tokenise
from lowland.studies.runs.folder import read_arrays, read_json, require_space, write_bytes, write_json
from lowland.studies.text import from_mapping, read_config, read_study, review_texts, run_text_study
from lowland.weights import trainable

from .tiny_study import prepare, settings


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def finished(home: Path) -> Path:
    before = torch.random.get_rng_state()
    run_text_study(read_config(home / "study.toml"), home / "run")
    assert torch.equal(torch.random.get_rng_state(), before)
    return home / "run"


def test_the_folder_holds_what_it_should(finished: Path) -> None:
    metrics = read_json(finished / "metrics.json")
    assert tuple(metrics["methods"]) == METHODS
    names = ("accuracy", "precision", "recall", "f1", "nll", "ece", "brier", "mcc")
    assert all(tuple(values) == names for values in metrics["methods"].values())
    assert all(v["low"] <= v["high"] for values in metrics["methods"].values() for v in values.values())
    assert (metrics["n_train"], metrics["n_validation"], metrics["n_test"]) == (66, 30, 40)
    assert metrics["labels"] == ["fine", "foul"] and len(metrics["temperature"]) == 2
    assert {len(own) for own in metrics["members"].values()} == {2}
    history = read_json(finished / "history.json")["members"]
    assert [len(member["adamw"]["loss"]) for member in history] == [10, 10]
    assert [len(member["swag"]["validation"]) for member in history] == [1, 1]
    assert history[0]["adamw"]["lr"][0] == pytest.approx(2e-3) and history[0]["swag"]["lr"] == [0.02] * 5
    timings = read_json(finished / "timings.json")
    assert timings["total_seconds"] == pytest.approx(sum(row["seconds"] for row in timings["phases"]))
    assert timings["sampling"]["draws"] == 4 and timings["peak_memory_mb"] > 0
    versions = read_json(finished / "versions.json")
    assert len(versions["dataset_sha256"]) == len(versions["model_sha256"]) == 64 and versions["threads"] >= 1
    head = read_arrays(finished / "head_samples.npz")
    assert head["names"].shape == (2,) and head["samples"].shape == (2, 300, 2) and head["means"].shape == (2, 2)
    assert read_study(finished) == read_config(finished.parent / "study.toml")
    assert not list(finished.rglob("*.part"))


def test_the_numbers_are_those_of_the_probabilities(finished: Path) -> None:
    metrics, arrays = read_json(finished / "metrics.json"), read_arrays(finished / "probabilities.npz")
    labels = arrays["test_labels"]
    for method in METHODS:
        key = method.lower().replace("-", "_").replace(" ", "_")
        members = arrays.get(f"test_members_{key}", arrays[f"test_{key}"][None])
        expected = np.mean([summary(probs, labels, bins=10)["nll"] for probs in members])
        assert metrics["methods"][method]["nll"]["value"] == pytest.approx(expected, abs=1e-12)
        assert arrays[f"validation_{key}"].shape == (30, 2)
    for whole, part in (("multiswag", "swag"), ("multiswa", "swa"), ("deep_ensemble", "base")):
        assert np.allclose(arrays[f"test_{whole}"], arrays[f"test_members_{part}"].mean(0), atol=1e-12)


def test_the_posterior_and_the_adapters_are_what_was_evaluated(finished: Path) -> None:
    from lowland.averager import draws
    from lowland.studies.adapters.classifier import adapt, load_encoder
    from lowland.studies.adapters.tokens import tokenise
    from lowland.studies.adapters.training import class_probabilities
    from lowland.studies.runs.randomness import stream
    from lowland.studies.text.datasets import load_splits

    study = read_study(finished)
    splits = load_splits(study.data)
    encoder, tokenizer, _ = load_encoder(study.model)
    tokens = tokenise(tokenizer, splits.test.texts, 16)
    classifier = adapt(encoder, study.model, study.lora, 2, [tokens])
    arrays = read_arrays(finished / "probabilities.npz")
    mixture = lowland.load(finished / "posterior.safetensors")
    assert [component.count for component in mixture.components] == [5, 5]
    each = []
    for weights in draws(mixture.components[1], 2, stream(2, "draws")):
        classifier.write(weights)
        each.append(class_probabilities(classifier.merged, tokens, 32))
    assert np.allclose(torch.stack(each).mean(0), arrays["test_members_swag"][1], atol=1e-12)
    # A PEFT folder, read by PEFT itself.
    from peft import PeftModel
    from peft.utils import load_peft_weights

    folder = finished / "adapters" / "member-0" / "base"
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 8
    assert len(load_peft_weights(str(folder), device="cpu")) == 10
    bare = load_encoder(study.model)[0]
    from lowland.studies.adapters.classifier import TextClassifier

    peft = PeftModel.from_pretrained(TextClassifier(bare, 32, 2, "mean", 0.0), str(folder)).eval()
    assert np.allclose(class_probabilities(peft, tokens, 32), arrays["test_members_base"][0], atol=1e-5)


@pytest.mark.slow
def test_the_same_configuration_gives_the_same_bytes_whatever_was_done_before(finished: Path, home: Path) -> None:
    torch.manual_seed(123)
    again = home / "again"
    run_text_study(read_study(finished), again)
    for name in ("metrics.json", "predictions.csv", "history.json"):
        assert (again / name).read_bytes() == (finished / name).read_bytes()
    (again / "stages" / "member-0" / ".epoch-1.safetensors.x.part").write_bytes(b"cut off")
    # And so does every stage that is lost alone.
    for lost in (
        "member-0/swag.json",
        "member-1/adamw.json",
        "member-1/predictions-swag.npz",
        "member-0/predictions-early.npz",
    ):
        (again / "stages" / lost).unlink()
        (again / "metrics.json").unlink()
        run_text_study(read_study(finished), again, resume=True)
        assert (again / "metrics.json").read_bytes() == (finished / "metrics.json").read_bytes()
    assert not list(again.rglob("*.part"))


def test_a_folder_with_another_study_is_refused(finished: Path, home: Path) -> None:
    study = read_study(finished)
    with pytest.raises(ValueError, match="is not empty: continue what it holds with --resume"):
        run_text_study(study, finished)
    other = from_mapping(settings(home, seeds=[1, 2, 3]))
    with pytest.raises(ValueError, match=r"other settings \(there, here\): training.seeds \(\(1, 2\), \(1, 2, 3\)\)"):
        run_text_study(other, finished, resume=True)
    (home / "foreign").mkdir(exist_ok=True)
    (home / "foreign" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no study"):
        run_text_study(study, home / "foreign", resume=True)
    with pytest.raises(ValueError, match="is a file"):
        run_text_study(study, home / "train.csv")


def test_bad_data_leaves_nothing_behind(home: Path, tmp_path: Path) -> None:
    study = from_mapping({**settings(home), "data": {"train": str(home / "train.csv"), "label": "lable"}})
    with pytest.raises(ValueError, match="has no column 'lable', it has 'text', 'label'"):
        run_text_study(study, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_diverged_phase_says_so(home: Path, tmp_path: Path) -> None:
    given = settings(home)
    study = from_mapping(
        {**given, "swag": {**given["swag"], "learning_rate": 1e38}, "training": {**given["training"], "clip": 1e38}}
    )
    with pytest.raises((RuntimeError, ValueError), match="lower the learning rate"):
        run_text_study(study, tmp_path / "run")


def test_the_length_of_texts_is_chosen_from_the_training_texts(home: Path, tmp_path: Path) -> None:
    given = settings(home, seeds=[1], epochs=1)
    given["model"].pop("max_length")
    given["swag"]["start"] = 0
    metrics = run_text_study(from_mapping(given), tmp_path / "run")
    assert metrics["cut"]["training"] == [0, 66] and 8 <= metrics["max_length"] <= 14, "the longest text, not more"
    tokens = fitting_length([20] * 99 + [24_202], most=64)
    assert tokens == 64, "one long text costs little: only the encoder's positions cut it"
    assert fitting_length([300] * 100, most=512) == 128 and fitting_length([3], most=512) == 4


def test_too_few_snapshots_are_refused(home: Path, tmp_path: Path) -> None:
    given = settings(home)
    study = from_mapping({**given, "swag": {**given["swag"], "every": "4 steps"}})
    with pytest.raises(ValueError, match=r"would take 1 snapshot in its 5 steps .*needs at least 2: lower swag.every"):
        run_text_study(study, tmp_path / "run")


def test_upper_layers_only_and_cls_pooling_run_too(home: Path, tmp_path: Path) -> None:
    given = settings(home, seeds=[1])
    model = {**given["model"], "pooling": "cls"}
    study = from_mapping({**given, "model": model, "lora": {"layers": [1]}})
    metrics = run_text_study(study, tmp_path / "run")
    assert 0 < metrics["methods"]["MultiSWAG"]["nll"]["value"] < 2
    # One member: the ensembles are that member.
    methods = metrics["methods"]
    assert methods["deep ensemble"]["nll"]["value"] == pytest.approx(methods["base"]["nll"]["value"])


def test_every_method_answers_new_texts_as_it_did_the_test_texts(finished: Path, tmp_path: Path) -> None:
    arrays, metrics = read_arrays(finished / "probabilities.npz"), read_json(finished / "metrics.json")
    with (finished / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    texts = [row["text"] for row in rows]
    own = shutil.copytree(finished, tmp_path / "run")
    for method in METHODS:
        key, member = key_of(method), metrics["shipped"]["members"].get(method, 0)
        expected = arrays.get(f"test_members_{key}", arrays[f"test_{key}"][None])[
            member if method not in COMBINED else 0
        ]
        write_json(own / "metrics.json", {**metrics, "shipped": {**metrics["shipped"], "method": method}})
        shipped = review_texts(own, texts)  # the run ships this one
        assert shipped.method == method and not shipped.why
        assert np.allclose(shipped.probs.numpy(), expected, atol=1e-5)
        asked = review_texts(finished, texts, method=method.upper().replace("-", " "))
        assert asked.method == method and torch.equal(asked.probs, shipped.probs)
    said = review_texts(finished, texts)
    assert said.method == metrics["shipped"]["method"]
    assert np.allclose(
        said.probs.numpy(), [[float(row[f"p_{name}"]) for name in said.names] for row in rows], atol=1e-5
    )
    assert np.allclose(said.expected_entropy.numpy(), [float(row["expected_entropy"]) for row in rows], atol=1e-5)
    with pytest.raises(ValueError, match="no method 'median': name one of base, early-stopped base"):
        review_texts(finished, texts, method="median")
    old = {key: value for key, value in metrics.items() if key not in ("shipped", "tried", "optimism")}
    write_json(own / "metrics.json", {**old, "chosen": {"early_stop_epoch": metrics["chosen"]["early_stop_epoch"]}})
    shutil.rmtree(own / "weights")
    answered = review_texts(own, texts)
    assert answered.method == "MultiSWAG" and "older than the choice" in answered.notes()[0]
    with pytest.raises(ValueError, match="base.safetensors is missing, so base cannot answer"):
        review_texts(own, texts, method="base")


def test_the_second_phase_is_chosen_on_validation_texts(home: Path, tmp_path: Path) -> None:
    own = settings(home, seeds=[1, 2], epochs=3, base_rate=1e-3)
    own["swag"] |= {"other_rates": [0.3], "other_starts": [2]}
    own["evaluation"] |= {"other_scales": [0.5]}
    metrics = run_text_study(from_mapping(own), tmp_path / "run")
    tried, chosen = metrics["tried"], metrics["chosen"]
    rates = {one["learning_rate"]: one["nll"] for one in tried if one["start"] == 1 and one["scale"] == 0}
    assert set(rates) == {0.02, 0.3} and chosen["learning_rate"] == min(rates, key=rates.__getitem__)
    starts = {o["start"]: o["nll"] for o in tried if o["learning_rate"] == chosen["learning_rate"] and o["scale"] == 0}
    assert set(starts) == {1, 2} and chosen["start"] == min(starts, key=starts.__getitem__)
    scales = {one["scale"]: one["nll"] for one in tried if one["scale"] > 0}
    assert set(scales) == {0.5, 1.0} and chosen["scale"] == min(scales, key=scales.__getitem__)
    timings = read_json(tmp_path / "run" / "timings.json")["phases"]
    assert sum(row["seconds"] for row in timings if row["phase"] == "search") > 0
    # All members took the choice, and its draws are what was looked at.
    history = read_json(tmp_path / "run" / "history.json")["members"]
    assert [one["swag"]["lr"][0] for one in history] == [chosen["learning_rate"]] * 2
    assert [len(one["swag"]["validation"]) for one in history] == [3 - chosen["start"]] * 2
    arrays = read_arrays(tmp_path / "run" / "probabilities.npz")
    drawn = summary(arrays["validation_members_swag"][0], arrays["validation_labels"])["nll"]
    assert drawn == pytest.approx(scales[chosen["scale"]], abs=1e-9)
    # The base model at a rate of its own has its rows.
    assert [one["tuned"]["lr"][0] for one in history] == [1e-3] * 2
    assert list(metrics["methods"])[:2] == ["base", "base, tuned rate"]
    assert np.allclose(arrays["test_deep_ensemble_tuned_rate"], arrays["test_members_base_tuned_rate"].mean(0))
    assert review_texts(tmp_path / "run", ["the dog was warm"], method="base, tuned rate").method == "base, tuned rate"
    # Cut off and gone on with, it chooses the same.
    again = shutil.copytree(tmp_path / "run", tmp_path / "again")
    for path in (again / "metrics.json", *(again / "stages" / "member-0").glob("*scale-0.5.npz")):
        path.unlink()
    assert run_text_study(from_mapping(own), again, resume=True) == metrics


@pytest.mark.parametrize(
    ("fast", "close", "taken"), [(True, 1e-3, "bfloat16"), (True, 0.0, "float32"), (False, 1e-3, "float32")]
)
def test_bfloat16_is_taken_where_it_changes_nothing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: bool, close: float, taken: str
) -> None:
    encoder, tokenizer, _ = load_encoder(Model(encoder=str(home / "encoder")))
    tokens = tokenise(
        tokenizer, [f"the dog was {word} {index}" for index, word in enumerate(["warm", "cold"] * 20)], 16
    )
    adapted = adapt(encoder, Model(encoder=str(home / "encoder")), Lora(), 2, [tokens])
    adapted.reset(torch.Generator().manual_seed(0))
    weights = weights_of(adapted.model, trainable)
    monkeypatch.setattr(predicting, "fast_bfloat16", lambda: fast)
    monkeypatch.setattr(predicting, "CLOSE", close)
    found = predicting.products_for(adapted, weights, tokens, 8)
    assert found["products"] == taken and (found["kl"] is None) == (not fast)
    exact, rough = (
        predicting.predicted(adapted, weights, {"own": tokens}, 8, products=kind)["own"].probs
        for kind in ("float32", found["products"])
    )
    assert torch.equal(exact, rough) == (taken == "float32")
    assert float((exact * (exact / rough).log()).sum(1).mean()) <= 1e-4


def test_own_files_are_searched_and_the_packaged_set_is_not() -> None:
    own = from_mapping({"data": {"train": "a.csv"}})
    assert (own.swag.other_rates, own.swag.other_starts, own.evaluation.other_scales) == (
        (0.008, 0.05),
        (4,),
        (0.5, 2.0),
    )
    short = {"training": {"epochs": 1}, "swag": {"start": 0, "other_rates": []}, "evaluation": {"other_scales": []}}
    said = from_mapping({"data": {"train": "a.csv"}, **short})
    assert (said.swag.other_rates, said.swag.other_starts, said.evaluation.other_scales) == ((), (), ())
    assert from_mapping({"data": {"name": "insults"}}).swag.other_rates == ()
    with pytest.raises(ValueError, match="swag.start must come before the last epoch, got start 9 of 8 epochs"):
        from_mapping({"swag": {"other_starts": [9]}})
    with pytest.raises(ValueError, match="swag.other_rates must be positive numbers"):
        from_mapping({"swag": {"other_rates": [0.0]}})


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.json"
    write_bytes(target, b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*a.json: the disk is full .*as it was; make room"):
        write_bytes(target, b"new")
    assert target.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(OSError, match=r"needs about 1000000000000 MB"):
        require_space(tmp_path / "absent" / "run", 1e12)


@pytest.mark.slow
def test_a_killed_study_ends_with_the_same_bytes(finished: Path, home: Path) -> None:
    """SIGKILL at random moments, again and again, until the study is through."""
    target = home / "killed"
    command = [sys.executable, "-m", "lowland.cli", "study", "text", "--config", str(home / "study.toml")]
    command += ["--out", str(target), "--resume"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    rng = random.Random(0)
    # After so many of its files have appeared, and a moment more, it is killed.
    for files in (1, 4, 9, 14, None):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
        while files is not None and process.poll() is None and len(list(target.glob("stages/*/*"))) < files:
            time.sleep(0.005)
        if files is not None:
            time.sleep(rng.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
        _, errors = process.communicate(timeout=900)
        assert process.returncode == (0 if files is None else -signal.SIGKILL), errors.decode()
        assert (target / "metrics.json").exists() is (files is None)
    for name in ("metrics.json", "predictions.csv", "history.json"):
        assert (target / name).read_bytes() == (finished / name).read_bytes()
    shutil.rmtree(target)
