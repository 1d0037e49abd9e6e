"""Configurations: what is read, what is refused and in which words."""

from pathlib import Path
from typing import Any

import pytest

from lowland.studies.runs.settings import differences, period, to_toml
from lowland.studies.text import TextStudy, demo, from_mapping, read_config

EXAMPLE = Path(__file__).parents[2] / "examples" / "text_study.toml"


def test_every_default_is_written_out_and_read_back() -> None:
    import tomllib

    for study in (TextStudy(), demo(full=True), demo(seed=3, members=2)):
        assert from_mapping(tomllib.loads(to_toml(study))) == study


def test_the_demo_is_what_its_page_says() -> None:
    small, full = demo(), demo(full=True)
    assert (small.data.train_texts, small.data.test_texts, len(small.training.seeds)) == (600, 800, 3)
    assert (small.training.epochs, small.swag.start, small.swag.rank) == (8, 2, 20)
    assert (full.data.train_texts, full.data.test_texts, len(full.training.seeds)) == (0, 0, 15)
    assert not set(demo(seed=0).training.seeds) & set(demo(seed=1).training.seeds)


def test_own_files_are_used_whole_unless_counts_are_given(tmp_path: Path) -> None:
    config = tmp_path / "my.toml"
    config.write_text('[data]\ntrain = "a.csv"\ntest_texts = 7\n', encoding="utf-8")
    study = read_config(config)
    assert (study.data.name, study.data.train_texts, study.data.test_texts) == ("", 0, 7)
    assert study.data.train == str(tmp_path / "a.csv")


def test_all_and_auto_mean_an_empty_list() -> None:
    study = from_mapping({"lora": {"layers": "all", "targets": "auto"}})
    assert (study.lora.layers, study.lora.targets) == ((), ())


def test_differences_are_named() -> None:
    assert differences(demo(), demo(members=2)) == ["training.seeds ((1, 2, 3), (1, 2))"]


@pytest.mark.parametrize(
    ("every", "expected"), [("epoch", (1, "epoch")), ("2 epochs", (2, "epoch")), ("7step", (7, "step"))]
)
def test_periods(every: str, expected: tuple[int, str]) -> None:
    assert period(every) == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tranining": {}}, r"\[tranining\] is no section.*training"),
        ({"data": 3}, r"data must be a section"),
        ({"training": {"epochs": "8"}}, r"training.epochs must be int, got '8' \(str\)"),
        ({"training": {"epochs": 8.5}}, r"training.epochs must be int, got 8.5"),
        ({"training": {"epochs": True}}, r"training.epochs must be int, got True"),
        ({"training": {"epochs": 0}}, r"training.epochs must be at least 1, got 0"),
        ({"training": {"seeds": [1, 1]}}, r"training.seeds must be different"),
        ({"training": {"seeds": []}}, r"training.seeds must be different"),
        ({"training": {"seeds": [0.5]}}, r"training.seeds must be a list of int"),
        ({"training": {"learning_rate": -1}}, r"training.learning_rate must be positive.*-1"),
        ({"training": {"learning_rate": float("nan")}}, r"training.learning_rate must be positive"),
        ({"swag": {"rank": -1}}, r"swag.rank must be 0 .* or at least 2, got -1"),
        ({"swag": {"rank": 1}}, r"swag.rank must be 0 .* or at least 2, got 1"),
        ({"swag": {"start": 8}}, r"swag.start must come before the last epoch, got start 8 of 8"),
        ({"swag": {"every": "0 steps"}}, r"swag.every must be like"),
        ({"swag": {"momentum": 1.0}}, r"swag.momentum must be at least 0 and below 1"),
        ({"evaluation": {"level": 1.0}}, r"evaluation.level must lie between"),
        ({"model": {"pooling": "max"}}, r'model.pooling must be "mean" or "cls"'),
        ({"model": {"encoder": ""}}, r"model.encoder must name a folder, a hub model, or .packaged., got ''"),
        ({"lora": {"layers": [-1]}}, r"lora.layers must count layers from 0, got \[-1\]"),
        ({"data": {"name": "insults", "train": "x.csv"}}, r"data takes either"),
        ({"data": {"name": ""}}, r"data takes either"),
        ({"data": {"name": "insults", "test": "x.csv"}}, r"brings its own splits"),
    ],
)
def test_mistakes_are_named(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        from_mapping(given)


def test_no_toml_is_said(tmp_path: Path) -> None:
    config = tmp_path / "my.toml"
    config.write_text("epochs = = 3", encoding="utf-8")
    with pytest.raises(ValueError, match=r"my.toml is no TOML file"):
        read_config(config)
    with pytest.raises(FileNotFoundError, match="there is no configuration"):
        read_config(tmp_path / "absent.toml")


def test_the_example_is_a_configuration() -> None:
    study = read_config(EXAMPLE)
    assert study.data.train.endswith("comments.csv")
