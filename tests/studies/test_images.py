"""The study of images: what its methods do on digits and tiny networks, that its cells repeat, and what it refuses."""

import dataclasses
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("sklearn")

from lowland import SWA, Mixture, refresh_bn
from lowland.calibration import accuracy, brier, ece, nll
from lowland.studies.grid.cells import Cell, check_result
from lowland.studies.grid.configured import path_of
from lowland.studies.images import KIND, ImagesStudy, cells, from_mapping, read_config, run_cell
from lowland.studies.images import cell as cell_module
from lowland.studies.images.cell import images_of
from lowland.studies.images.config import counts_of, rates_of
from lowland.studies.images.evaluation import Candidate, Judge, Score
from lowland.studies.images.methods import AlongSWA, Clock, fge, sgd_schedule, snapshot_ensemble, swa_schedule
from lowland.studies.images.names import network_of
from lowland.studies.images.sets import Images
from lowland.studies.images.trajectory import Trajectory, seeded, shared_epochs
from lowland.studies.runs.randomness import one_thread
from lowland.studies.runs.settings import to_toml

TINY = {
    "data": {"sets": ["digits"], "counts": ["digits=60/40/50"]},
    "networks": {"names": ["cnn2x4", "vgg7x4"]},
    "training": {"members": 2, "epochs": 8, "batch_size": 20, "learning_rate": 0.05},
    "averages": {"learning_rate": 0.02, "rank": 3},
    "ensembles": {"snapshots": 2},
    "evaluation": {
        "samples": 2, "corruptions": ["noise-3"], "corrupted_images": 20, "train_images": 30, "curve_every": 4
    },
    "sensitivity": {"start": [5, 100], "every": [2], "rank": [2], "rate": [50]},
}  # fmt: skip
CELL = Cell("digits", "cnn2x4", 0)
STUDY = from_mapping(TINY)


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """One thread, as a cell has it: sums over several round differently."""
    with one_thread():
        yield


@pytest.fixture(scope="module")
def images() -> Images:
    return images_of(STUDY, CELL)


@pytest.fixture(scope="module")
def found() -> dict:
    before = torch.random.get_rng_state()
    result = run_cell(STUDY, CELL)
    assert torch.equal(torch.random.get_rng_state(), before)
    return result


def ended(study: ImagesStudy, images: Images, until: int, schedule: object, member: int = 0) -> Trajectory:
    run = Trajectory(study, CELL, images, member)
    run.walk(until, schedule)  # type: ignore[arg-type]
    return run


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def averaged(weights: list[dict[str, Tensor]], names: list[str]) -> dict[str, Tensor]:
    return {name: torch.stack([w[name].double() for w in weights]).mean(0).float() for name in names}


# A whole cell.


def test_a_cell_has_every_method_part_and_metric(found: dict) -> None:
    check_result(found, KIND, CELL)
    assert json.loads(json.dumps(found)) == found
    for parts in found["methods"].values():
        assert list(parts) == ["train", "validation", "test", "noise-3"]
        assert 0 <= parts["test"]["accuracy"] <= 1
    assert found["curves"]["SWA"]["epoch"] == [8, 10, 12] and found["curves"]["last iterate"]["epoch"] == [4, 8, 10, 12]
    assert found["chosen"]["SWA from epoch"] == 6
    line = found["landscape"]
    assert line["t"][0] == -0.5 and line["t"][-1] == 1.5 and len(line["t"]) == 13 and line["length"] > 0
    assert set(line["values"]) == {f"{part} {value}" for part in ("train", "test") for value in ("loss", "error")}
    assert len(found["trace"]) == 12 - 6 + 1 and found["trace"][0]["action"] == "first"
    assert [(row["value"], row["method"]) for row in found["sensitivity"]["start"]] == [
        (0.05, "SWA"), (0.05, "ASWA"), (1.0, "SWA"), (1.0, "ASWA")
    ]  # fmt: skip
    assert [row["value"] for row in found["sensitivity"]["rate"]] == [0.02, 0.02, 0.01, 0.01]
    assert [row["method"] for row in found["sensitivity"]["rank"]] == ["SWAG", "LAWA"]
    assert set(found["seconds"]) == {"training", "averaging", "evaluation"}


def test_a_cell_repeats_whatever_the_threads_and_without_the_sensitivity(found: dict) -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(123)
    torch.set_num_threads(threads + 1)
    try:
        again = run_cell(
            dataclasses.replace(STUDY, sensitivity=from_mapping({"sensitivity": {"seeds": []}}).sensitivity), CELL
        )
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    assert again["sensitivity"] == {}
    for key in ("methods", "curves", "trace", "landscape", "chosen"):
        assert again[key] == found[key], key


def test_nothing_is_chosen_by_test_images(found: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoilt(study: ImagesStudy, cell: Cell) -> Images:
        given = images_of(study, cell)
        pixels, labels = given.test
        return dataclasses.replace(given, test=(1 - pixels.flip(0), labels))

    monkeypatch.setattr(cell_module, "images_of", spoilt)
    other = run_cell(STUDY, CELL)
    for method, parts in found["methods"].items():
        assert other["methods"][method]["validation"] == parts["validation"]
        assert other["methods"][method]["train"] == parts["train"]
    assert other["methods"]["SGD"]["test"] != found["methods"]["SGD"]["test"]
    assert (other["trace"], other["chosen"]) == (found["trace"], found["chosen"])


def test_another_seed_is_another_cell_on_the_same_test_images(found: dict, images: Images) -> None:
    other = Cell("digits", "cnn2x4", 1)
    again = images_of(STUDY, other)
    assert torch.equal(again.test[0], images.test[0]) and not torch.equal(again.train[0], images.train[0])
    assert not equal(Trajectory(STUDY, other, again, 0).weights(), Trajectory(STUDY, CELL, images, 0).weights())


def test_a_network_without_batchnorm() -> None:
    study = dataclasses.replace(STUDY, sensitivity=from_mapping({"sensitivity": {"seeds": []}}).sensitivity)
    check_result(run_cell(study, Cell("digits", "vgg7x4", 3)), KIND, Cell("digits", "vgg7x4", 3))


def test_a_run_that_diverges_is_named(images: Images) -> None:
    study = dataclasses.replace(STUDY, training=dataclasses.replace(STUDY.training, learning_rate=1e6))
    run = Trajectory(study, Cell("digits", "vgg7x4", 0), images, 0)
    with pytest.raises(RuntimeError, match=r"digits-vgg7x4-0 diverged in epoch \d.*lower"):
        run.walk(8, sgd_schedule(study, run.steps_per_epoch))


# Trajectories.


def test_a_branch_is_the_run_that_it_would_have_been(images: Images) -> None:
    run = Trajectory(STUDY, CELL, images, 0)
    plain, swa = sgd_schedule(STUDY, 3), swa_schedule(STUDY, CELL.model, 3)
    assert run.steps_per_epoch == 3
    leave = shared_epochs(plain, swa, 3, 8)
    assert leave == 4  # t = 3 / 6 is the last at the base rate, so epochs 0 to 3
    run.walk(leave, plain)
    state = run.state()
    run.walk(8, plain)
    end = run.weights()
    run.back_to(state)
    run.walk(8, swa)
    assert equal(run.weights(), ended(STUDY, images, 8, swa).weights())
    run.back_to(state)
    run.walk(8, plain)
    assert equal(run.weights(), end)  # momentum was put back, and not changed by the branch
    assert equal(end, ended(STUDY, images, 8, plain).weights())


def test_the_rates_are_those_of_the_published_schedules(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = torch.optim.SGD.step

    def noted(self: torch.optim.SGD, *args: object) -> object:
        rates.append(self.param_groups[0]["lr"])
        return step(self)

    monkeypatch.setattr(torch.optim.SGD, "step", noted)
    run = ended(STUDY, images, 8, sgd_schedule(STUDY, 3))
    assert rates[::3] == pytest.approx([0.05 * f for f in (1, 1, 1, 1, 1, 0.690625, 0.38125, 0.071875)])
    assert rates[1::3] == rates[::3]
    rates.clear()
    Trajectory(STUDY, CELL, images, 0).walk(12, swa_schedule(STUDY, CELL.model, 3))
    assert rates[::3] == pytest.approx([0.05] * 4 + [0.0375, 0.025] + [0.02] * 6)
    rates.clear()
    run.back_to(ended(STUDY, images, 6, sgd_schedule(STUDY, 3)).state())
    rates.clear()
    members = fge(STUDY, run, 8)
    half, low = 0.5 * 0.05, 0.005 * 0.05  # a cycle of 4 steps
    assert rates == pytest.approx([half, (half + low) / 2, low, (half + low) / 2] * 1 + [half, (half + low) / 2])
    assert members.count == 2  # the step that is taken next would be at the lowest rate
    rates.clear()
    again = Trajectory(STUDY, CELL, images, 0)
    assert snapshot_ensemble(STUDY, again).count == 2
    assert rates[11] == rates[23] == 0 and max(rates) < 0.05


def test_fge_begins_with_the_momentum_of_sgd_and_members_keep_their_statistics(images: Images) -> None:
    run = ended(STUDY, images, 6, sgd_schedule(STUDY, 3))
    begun = run.state()
    members = fge(STUDY, run, 8).members()
    assert any("running_mean" in name for name in members[0])
    run.back_to(begun)
    for buffer in run._optimiser.state.values():
        buffer["momentum_buffer"].zero_()
    assert not equal(dict(fge(STUDY, run, 8).members()[0]), dict(members[0]))
    judge = Judge(STUDY, CELL, images)
    alone = [judge.metrics("", Candidate(member, refresh=False))["test"]["nll"] for member in members]
    copy_of = Trajectory(STUDY, CELL, images, 0).model
    copy_of.load_state_dict(dict(members[0]), strict=False)
    x, y = judge.parts["test"]
    with torch.no_grad():
        probs = copy_of.eval()(x).softmax(1)
    assert alone[0] == pytest.approx(nll(probs, y), rel=1e-6)


# Averages, against what they are said to be.


def test_swa_is_the_mean_of_the_last_weights_of_epochs_with_fresh_statistics(images: Images) -> None:
    iterates: list[dict[str, Tensor]] = []
    run = Trajectory(STUDY, CELL, images, 0)
    run.walk(8, swa_schedule(STUDY, CELL.model, 3), after_epoch=lambda _: iterates.append(run.weights()))
    along = AlongSWA(STUDY, again := Trajectory(STUDY, CELL, images, 0), Clock(), (8,))
    along.add("SWA", SWA())
    again.walk(8, along.schedule, after_step=along.after_step, after_epoch=along.after_epoch)
    taken = along.at("SWA", 8)
    names = [name for name, _ in run.model.named_parameters()]
    mean = averaged(iterates[5:8], names)  # epochs 6, 7, 8
    for name, tensor in dict(taken.posterior).items():  # type: ignore[call-overload]
        torch.testing.assert_close(tensor, mean[name])
    judge = Judge(STUDY, CELL, images)
    before = again.weights()
    told = judge.metrics("SWA", taken)
    assert equal(again.weights(), before)
    own = Trajectory(STUDY, CELL, images, 0).model
    own.load_state_dict(mean, strict=False)
    refresh_bn(own, judge.statistics)
    x, y = judge.parts["test"]
    with torch.no_grad():
        probs = own.eval()(x).softmax(1)
    assert told["test"] == pytest.approx(
        {"accuracy": accuracy(probs, y), "nll": nll(probs, y), "ece": ece(probs, y, bins=20), "brier": brier(probs, y)},
        abs=1e-5,
    )


def test_methods_of_the_sgd_run(found: dict, images: Images) -> None:
    run, judge, told = Trajectory(STUDY, CELL, images, 0), Judge(STUDY, CELL, images), []
    iterates: list[dict[str, Tensor]] = []

    def look(epoch: int) -> None:
        iterates.append(run.weights())
        told.append(judge.metrics("", Candidate(run.weights(), refresh=False)))

    run.walk(8, sgd_schedule(STUDY, 3), after_epoch=look)
    best = min(range(8), key=lambda e: told[e]["validation"]["nll"])
    assert found["methods"]["SGD"] == told[-1]
    assert found["methods"]["best checkpoint"] == told[best] and found["chosen"]["best epoch"] == best + 1
    names = [name for name, _ in run.model.named_parameters()]
    lawa = judge.metrics("", Candidate(averaged(iterates[-5:], names), refresh=True))
    assert found["methods"]["LAWA"]["test"] == pytest.approx(lawa["test"], abs=1e-4)
    long = ended(STUDY, images, 12, sgd_schedule(STUDY, 3, 1.5))
    assert found["methods"]["SGD 1.5"] == judge.metrics("", Candidate(long.weights(), refresh=False))


def test_ensembles_average_probabilities(found: dict, images: Images) -> None:
    judge = Judge(STUDY, CELL, images)
    ends = [ended(STUDY, images, 8, sgd_schedule(STUDY, 3), member).weights() for member in (0, 1)]
    assert found["methods"]["deep ensemble"] == judge.metrics("", Candidate(Mixture(ends), refresh=False))
    probs, (x, y) = [], judge.parts["test"]
    for end in ends:
        model = Trajectory(STUDY, CELL, images, 0).model
        model.load_state_dict(end, strict=False)
        with torch.no_grad():
            probs.append(model.eval()(x).softmax(1))
    assert found["methods"]["deep ensemble"]["test"]["nll"] == pytest.approx(
        nll((probs[0] + probs[1]) / 2, y), rel=1e-5
    )


def test_gaussians_of_no_width_are_the_averages_that_they_stand_on() -> None:
    averages = dataclasses.replace(STUDY.averages, scale=0.0)
    still = dataclasses.replace(STUDY.sensitivity, seeds=())
    methods = run_cell(dataclasses.replace(STUDY, averages=averages, sensitivity=still), CELL)["methods"]
    for gaussian, average in (("SWAG 1.5", "SWA 1.5"), ("MultiSWAG 1.5", "MultiSWA 1.5")):
        for part in ("validation", "test", "noise-3"):
            assert methods[gaussian][part]["nll"] == pytest.approx(methods[average][part]["nll"], rel=1e-4)


def test_aswa_does_not_fall_in_validation_and_scores_are_remembered(found: dict, images: Images) -> None:
    assert all(b >= a for a, b in zip(*(found["curves"]["ASWA"]["validation"][s:] for s in (0, 1)), strict=False))
    best = max(max(d["running"], d["ahead"] or 0) for d in found["trace"])
    assert found["methods"]["ASWA 1.5"]["validation"]["accuracy"] == pytest.approx(best)
    judge, asked = Judge(STUDY, CELL, images), []
    judge.validation = lambda candidate, metric: asked.append(metric) or 0.25  # type: ignore[method-assign, func-returns-value]
    score = Score(judge, "nll")
    weights = {"w": torch.ones(2)}
    assert (score(weights), score({"w": torch.ones(2)}), score({"w": torch.zeros(2)})) == (-0.25,) * 3
    assert asked == ["nll", "nll"]


def test_statistics_are_found_on_all_training_images_under_the_transforms_of_training(images: Images) -> None:
    judge = Judge(STUDY, CELL, images)
    assert sum(map(len, judge.statistics)) == 60
    plain = dataclasses.replace(STUDY, training=dataclasses.replace(STUDY.training, augmentation="none"))
    still = torch.cat(Judge(plain, CELL, images).statistics)
    assert sorted(still.sum((1, 2, 3)).tolist()) == pytest.approx(
        sorted(((images.train[0] - images.mean[:, None, None]) / images.std[:, None, None]).sum((1, 2, 3)).tolist()),
        abs=1e-3,
    )
    assert not torch.equal(torch.cat(judge.statistics), still)


def test_a_seeded_block_leaves_the_global_stream_alone() -> None:
    before = torch.random.get_rng_state()
    with seeded(5):
        torch.rand(3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_clock_counts_inner_work_once() -> None:
    clock = Clock()
    with clock("outer"), clock("inner"):
        sum(range(300_000))
    assert clock.seconds["outer"] < clock.seconds["inner"]


# The configuration.


def test_names_of_networks_cells_and_counts() -> None:
    assert network_of("preresnet164") == ("preresnet", 164, None)
    assert network_of("mobilenetv2") == ("mobilenetv2", None, None)
    assert network_of("mobilenetv2x0.5") == ("mobilenetv2", None, 0.5)
    assert cells(ImagesStudy())[0].name == "mnist-cnn-0" and len(cells(ImagesStudy())) == 30
    assert counts_of(STUDY, "digits") == (60, 40, 50) and counts_of(STUDY, "own") == (0, 0, 0)
    assert rates_of(STUDY, "cnn2x4") == (0.05, 0.02)
    assert KIND.methods[0] == KIND.baseline and {name for pair in KIND.claims for name in pair} <= set(KIND.methods)
    assert list(KIND.parts) == ["test", *ImagesStudy().evaluation.corruptions]


def test_a_configuration_is_written_and_read(tmp_path: Path) -> None:
    assert from_mapping(tomllib.loads(to_toml(STUDY))) == STUDY
    path = tmp_path / "study.toml"
    path.write_text('[data]\nsets = ["own"]\npaths = ["own=pictures.npz"]\n[training]\nepochs = 8\n')
    study = read_config(path)
    assert path_of(study.data.paths, "own") == str(tmp_path / "pictures.npz") and study.training.epochs == 8
    with pytest.raises(FileNotFoundError, match="no configuration"):
        read_config(tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("section", "setting", "message"),
    [
        ("training", {"epochs": 3}, "training.epochs must be at least 4"),
        ("training", {"momentum": 1.0}, "below 1"),
        ("training", {"seeds": [1, 1]}, "different whole numbers"),
        ("training", {"augmentation": "some"}, '"usual" or "none"'),
        ("averages", {"start": 1.0}, "between 0 and 1"),
        ("averages", {"start": 0.99}, "leaves no epoch"),
        ("averages", {"rank": 1}, "at least 2"),
        ("averages", {"every": "often"}, "averages.every must be like"),
        ("averages", {"every": "9 epochs"}, "lower it"),
        ("averages", {"score": "ece"}, "averages.score"),
        ("ensembles", {"fge_low": 2.0}, "fge_low"),
        ("ensembles", {"snapshots": 99}, "at most"),
        ("ensembles", {"fge_cycle": 0.0}, "positive"),
        ("evaluation", {"corruptions": ["noise-9"]}, "severity 1 to 5"),
        ("evaluation", {"corruptions": ["fog-1"]}, "noise"),
        ("networks", {"names": ["resnet"]}, "is no network"),
        ("data", {"counts": ["mnist=1/2"]}, "data.counts"),
        ("data", {"paths": ["cifar10"]}, "data.paths"),
        ("data", {"sets": ["My Set"], "paths": ["My Set=a.npz"]}, "words of"),
        ("sensitivity", {"rank": [1]}, "sensitivity.rank"),
    ],
)
def test_what_is_out_of_range_is_refused(section: str, setting: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_mapping({section: setting})
