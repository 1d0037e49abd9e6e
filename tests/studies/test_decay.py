"""The study of decays: the coefficients against the decay that they stand for, and a small cell."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from lowland.soup import weighted
from lowland.studies.decay import KIND, DecayStudy, from_mapping, read_config, run_cell
from lowland.studies.decay.config import Data, Evaluation, Merging, Model, Training
from lowland.studies.decay.shapes import RATES, SHAPES, coefficients, rate_at
from lowland.studies.decay.texts import read
from lowland.studies.grid import Cell
from lowland.studies.grid.cells import check_result

STUDY = DecayStudy(
    model=Model(("tiny",), layers=1, context=16),
    training=Training((0,), steps=30, decay_steps=20, batch_size=8, warmup=5),
    merging=Merging(every=2, windows=(50, 100), half_lives=(5, 10)),
    evaluation=Evaluation(rows=16),
)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 4, 30])
def test_coefficients_sum_to_one_and_none_is_negative(shape: str, count: int) -> None:
    found = coefficients(shape, count)
    assert len(found) == count + 1 and sum(found) == pytest.approx(1) and min(found) >= 0


def test_coefficients_by_hand() -> None:
    # Rates at the middles of two stretches: 1 - sqrt(1/4) = 1/2 and 1 - sqrt(3/4) = 0.133975.
    assert coefficients("minus-sqrt", 2) == pytest.approx([0.5, 0.366025, 0.133975], abs=1e-6)
    # (1 + cos(pi / 4)) / 2 = 0.853553 and 0.146447.
    assert coefficients("cosine", 2) == pytest.approx([0.146447, 0.707107, 0.146447], abs=1e-6)


@pytest.mark.parametrize("shape", RATES)
def test_where_gradients_do_not_depend_on_the_weights_the_average_is_the_decay(shape: str) -> None:
    g = torch.Generator().manual_seed(0)
    steps = torch.randn(12, 3, generator=g, dtype=torch.float64)  # minus rate times gradient, at the full rate
    run = [{"w": steps[:count].sum(0)} for count in range(13)]
    merged = weighted(run, coefficients(shape, 12))["w"]
    decayed = sum(rate_at(shape, (i + 0.5) / 12) * steps[i] for i in range(12))
    assert torch.allclose(merged, torch.as_tensor(decayed), atol=1e-12)


def test_a_cell_holds_every_method_and_is_the_same_twice() -> None:
    cell = Cell("stdlib", "tiny", 0)
    state = torch.random.get_rng_state()
    first, second = run_cell(STUDY, cell), run_cell(STUDY, cell)
    assert torch.equal(state, torch.random.get_rng_state())
    check_result(first, KIND, cell)
    assert first["methods"] == second["methods"] and first["sensitivity"] == second["sensitivity"]
    nll = {method: parts["test"]["nll"] for method, parts in first["methods"].items()}
    assert nll["oracle"] <= nll["merged, chosen"]
    assert nll["constant"] < nll["before"] < 5.6  # it learns: log(256) is 5.55
    decays = [nll[f"decayed {shape}"] for shape in ("linear", "minus-sqrt", "cosine")]
    assert len(set(decays)) == 3 and max(decays) < nll["before"]
    rows = first["sensitivity"]["window"]
    assert {(row["value"], row["method"]) for row in rows} == {(w, s) for w in (50, 100) for s in SHAPES}
    # The average over the whole decay is the row of the table.
    (linear,) = (row["test"] for row in rows if (row["value"], row["method"]) == (100, "linear"))
    assert linear == pytest.approx(nll["merged linear"], abs=1e-6)


def test_texts_of_ones_own(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"{number:02d}.txt").write_text(f"text {number:02d}. " * 40)
    (tmp_path / "shift").mkdir()
    (tmp_path / "shift" / "other.txt").write_text("anders " * 100)
    found = read("own", tmp_path, 16, 8)
    numbers = {
        part: {
            number
            for row in getattr(found, part).tolist()
            for number in re.findall(r"text (\d\d)", bytes(row).decode())
        }
        for part in ("train", "validation", "test")
    }
    assert not numbers["train"] & numbers["test"] and not numbers["validation"] & numbers["test"]
    assert b"anders" in bytes(found.shift.flatten().tolist())
    with pytest.raises(ValueError, match="rows of 17 bytes for validation, wanted 999"):
        read("own", tmp_path, 16, 999)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        read("own", tmp_path / "none", 16, 8)


def test_bad_settings_are_named(tmp_path: Path) -> None:
    for given, message in [
        ({"model": {"names": ["huge"]}}, "there is no model 'huge': take tiny, small, medium, large"),
        ({"data": {"sets": ["mine"]}}, "data.sets has 'mine', which is no packaged text"),
        ({"merging": {"windows": [33, 100]}}, "a window of 33 % of 300 steps holds no whole number of checkpoints"),
        ({"merging": {"windows": [50]}}, "merging.windows must have 100"),
        ({"model": {"heads": 5}}, "model.heads must divide the width"),
        ({"training": {"steps": 0}}, "training.steps must be at least 1, got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            from_mapping(given)
    file = tmp_path / "study.toml"
    file.write_text('[data]\nsets = ["own"]\npaths = ["own=texts"]\n')
    assert read_config(file).data.paths == (f"own={tmp_path / 'texts'}",)


def test_a_run_that_diverges_says_so() -> None:
    wild = dataclasses.replace(STUDY, training=dataclasses.replace(STUDY.training, learning_rate=1e30))
    with pytest.raises(RuntimeError, match="diverged at step .*lower training.learning_rate"):
        run_cell(wild, Cell("stdlib", "tiny", 0))


def test_defaults_are_those_of_the_page() -> None:
    assert Data() == DecayStudy().data and len(DecayStudy().training.seeds) == 8
