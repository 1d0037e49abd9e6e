"""The recipes of docs/decay.md, run as they stand there on folders with the keys of the trainers that they name."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ..checkpoints.layouts import dcp
from .test_checkpoints import Run, run  # noqa: F401  (a fixture)

PAGE = Path(__file__).parents[2] / "docs" / "decay.md"
STEPS = range(100, 1001, 100)
TITAN = ["tok_embeddings.weight", "layers.0.attention.wq.weight", "norm.weight", "output.weight"]
MEGATRON = [
    "embedding.word_embeddings.weight",
    "decoder.layers.self_attention.linear_qkv.weight",
    "output_layer.weight",
]
# It loads nothing: what a candidate is worth is that it is a distributed checkpoint, and an average.
EVAL = """
import sys
from pathlib import Path
path = Path(sys.argv[1])
assert (path / ".metadata").is_file(), path
print(float("choose" in str(path)))
"""


def commands(heading: str) -> list[list[str]]:
    """The commands below a heading of the page."""
    text = PAGE.read_text().split(f"### {heading}", 1)[1].split("\n## ", 1)[0].split("\n### ", 1)[0]
    (block,) = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    found = [shlex.split(line) for line in block.splitlines()]
    assert found and all(words[0] == "lowland" for words in found)
    return [[word.replace("python ", f"{sys.executable} ") for word in words[1:]] for words in found]


def layers(step: int, names: list[str]) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(step)
    return {name: torch.randn(6, 4, generator=g) for name in names}


def titan(folder: Path, step: int) -> None:
    names = ["tok_embeddings.weight", "layers.0.attention.wq.weight", "norm.weight", "output.weight"]
    moments = {
        name: {"exp_avg": full, "step": torch.tensor(float(step))} for name, full in layers(-step, names).items()
    }
    beside: dict[str, Any] = {"optimizer": {"state": moments, "param_groups": {"lr": 0.1}}}
    beside |= {"lr_scheduler": {"last_epoch": step}, "dataloader": {"dp_rank_0": b"x"}}
    dcp(folder, {**layers(step, names), **beside, "train_state": {"step": torch.tensor(step)}})


def megatron(folder: Path, step: int) -> None:
    names = [
        "embedding.word_embeddings.weight",
        "decoder.layers.self_attention.linear_qkv.weight",
        "output_layer.weight",
    ]
    content: dict[str, Any] = layers(step, names)
    for kind in ("exp_avg", "exp_avg_sq", "fp32_param"):
        content |= {f"optimizer.state.{kind}.{name}": tensor for name, tensor in layers(-step, names).items()}
    content["decoder.layers.mlp._extra_state/shard_0_1"] = f"amax of {step}"
    content["rng_state/shard_0_1"] = f"random at {step}"
    dcp(folder, content)
    (folder / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist", "common_backend": "torch"}))
    torch.save({"args": argparse.Namespace(), "iteration": step, "checkpoint_version": 3.0}, folder / "common.pt")


def loaded(folder: Path, like: dict[str, Any]) -> dict[str, Any]:
    import torch.distributed.checkpoint as checkpoint

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpoint.load(like, checkpoint_id=folder, no_dist=True)
    return like


def follow(run: Run, heading: str) -> None:  # noqa: F811
    for words in commands(heading):
        done = run(*words)
        assert done.code == 0, (words, done.err)


@pytest.mark.filterwarnings("ignore")
def test_torchtitan(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.chdir(tmp_path)
    Path("eval.py").write_text(EVAL)
    for step in STEPS:
        titan(Path("outputs/checkpoint") / f"step-{step}", step)
    follow(run, "torchtitan")
    names = TITAN
    got = loaded(Path("merged/step-1000"), {name: torch.zeros(6, 4) for name in names})
    for name in names:
        wanted = torch.stack([layers(step, names)[name] for step in (700, 800, 900, 1000)]).mean(0)
        torch.testing.assert_close(got[name], wanted)
    record = json.loads(Path("merged/step-1000/lowland_merge.json").read_text())
    assert sorted(record["account"]["averaged"]) == sorted(names)
    assert {left["name"] for left in record["account"]["left"]} >= {"optimizer", "train_state"}
    assert json.loads(Path("shipped/step-1000/lowland_choice.json").read_text())["winner"]["score"] == 1.0
    loaded(Path("shipped/step-1000"), {name: torch.zeros(6, 4) for name in names})


@pytest.mark.filterwarnings("ignore")
def test_megatron(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.chdir(tmp_path)
    Path("eval.py").write_text(EVAL)
    for step in STEPS:
        megatron(Path("checkpoints") / f"iter_{step:07d}", step)
    Path("checkpoints/latest_checkpointed_iteration.txt").write_text("1000")
    follow(run, "Megatron-LM (`torch_dist`)")
    out = Path("merged/iter_0001000")
    names = [
        "embedding.word_embeddings.weight",
        "decoder.layers.self_attention.linear_qkv.weight",
        "output_layer.weight",
    ]
    extra = "decoder.layers.mlp._extra_state/shard_0_1"
    got = loaded(out, {**{name: torch.zeros(6, 4) for name in names}, extra: ""})
    rates = [1 - (place / 5) ** 0.5 for place in range(5)]
    shares = [*(a - b for a, b in zip(rates, rates[1:], strict=False)), rates[-1]]
    for name in names:
        rows = [layers(step, names)[name] for step in (600, 700, 800, 900, 1000)]
        torch.testing.assert_close(got[name], sum(s * row for s, row in zip(shares, rows, strict=True)))
    assert got[extra] == "amax of 1000"
    last = Path("checkpoints/iter_0001000")
    assert (out / "common.pt").read_bytes() == (last / "common.pt").read_bytes()
    assert json.loads((out / "metadata.json").read_text())["sharded_backend"] == "torch_dist"
    held = json.loads((out / "lowland_merge.json").read_text())["account"]
    assert sorted(held["averaged"]) == sorted(names) and held["carried"] == [extra]
    assert (Path("shipped/iter_0001000") / "common.pt").is_file()
