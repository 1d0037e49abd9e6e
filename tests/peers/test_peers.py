"""What the table says of each implementation, held as a test: ours is right, and the faults of others are still there.

The adapters of peers run in processes of their own and take seconds each: slow, and skipped where `make peers` has not
installed the package.
"""

import averages  # noqa: F401
import gaussians  # noqa: F401
import numpy as np
import pytest
import run
from known import EMA_TARGET, judge
from loading import PEERS

from problems import SECTIONS


def asked(name):
    answer = run.ask(name, offline=True)
    if "error" in answer:
        pytest.skip(f"{name} {answer['error']}")
    return answer


def verdicts(rows):
    return {
        row["setting"]: judge(np.array(row["mean"]), np.array(row["covariance"]), row["n"], row["block"])
        for row in rows
    }


def test_every_peer_answers_what_it_is_asked():
    assert {name: set(sections) for name, sections in SECTIONS.items()} == {
        name: set(peer.asks) for name, peer in PEERS.items()
    }


def test_ours_are_right():
    sections = SECTIONS["lowland"]
    found = verdicts(sections["swag"]())
    assert all(verdict.right for verdict in found.values()), found
    (average,) = sections["swa"]()
    assert (average["mean"], average["count"], average["reload"]) == (2.5, 4, "yes")
    assert all(row["error"] < 1e-3 and row["negative"] == 0 for row in sections["variance"]())


def test_our_average_of_a_bf16_model_arrives():
    (row,) = SECTIONS["lowland"]["ema"]()
    assert abs(row["share"] - EMA_TARGET) < 1e-3 and row["dtype"] == "float32"


def test_our_teacher_of_a_bf16_student_arrives():
    rows = SECTIONS["lowland"]["teacher"]()
    assert len(rows) == 4 and all(abs(row["share"] - 1) < 1e-3 and row["dtype"] == "float32" for row in rows), rows


@pytest.mark.slow
def test_trls_teacher_of_a_bf16_student_does_not():
    rows = asked("trl")["teacher"]
    if isinstance(rows, str):
        pytest.skip(rows)
    assert all(row["share"] < 0.9 and row["dtype"] == "bfloat16" for row in rows), rows
    assert min(row["share"] for row in rows) < 0.3


@pytest.mark.slow
def test_swa_gaussian_is_right_at_one_setting_only():
    found = verdicts(asked("swa-gaussian")["swag"])
    assert [setting for setting, verdict in found.items() if verdict.right] == ["scale=0.5, max_num_models=10"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torch-uncertainty", "lightning-uq-box", "dicee"])
def test_these_gaussians_are_wrong_at_every_setting_tried(name):
    found = verdicts(asked(name)["swag"])
    assert found and not any(verdict.right for verdict in found.values()), found


@pytest.mark.slow
def test_torch_uncertainty_counts_an_iterate_too_many():
    (row,) = asked("torch-uncertainty")["swa"]
    assert row["mean"] == pytest.approx(2.2) and row["count"] == 5 and row["reload"].startswith("no: RuntimeError")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torch", "timm", "ema-pytorch", "torch-ema", "diffusers"])
def test_bf16_averages_freeze_but_for_one(name):
    rows = {row["setting"]: row["share"] for row in asked(name)["ema"]}
    arrived = {setting for setting, share in rows.items() if abs(share - EMA_TARGET) < 5e-3}
    assert arrived == ({"ModelEmaV3"} if name == "timm" else set()), rows


def test_a_peer_that_cannot_be_had_keeps_its_rows(monkeypatch, tmp_path):
    monkeypatch.setattr("loading.FOLDER", tmp_path)
    answers = {name: run.ask(name, offline=True) for name in PEERS if PEERS[name].pins}
    page = run.write_up(answers, run.machine())
    assert page.count("not installed: run `make peers` first") == sum(len(PEERS[name].asks) + 1 for name in answers)


def test_errors_show_no_folder_of_this_machine(monkeypatch):
    def answer(*_, **__):
        return type("Done", (), {"returncode": 0, "stdout": f'{{"swag": "no {run.ROOT}/src/x.py"}}\n', "stderr": ""})

    monkeypatch.setattr(run.subprocess, "run", answer)
    assert run.ask("lowland") == {"swag": "no src/x.py"}
