"""What the demo's job costs, part by part, and what each way of saving gives.

Measured on the demo's own texts, one thread, CPU time of the process (so other work on the machine matters little),
best of `REPEATS`: tokens with and without batches of like length; a pass of a text through the model in float32, with
products in bfloat16 (autocast), with torch's "medium" float32 products, and all in bfloat16, each with its divergence
from float32 after an epoch of training; a training step's cost a text in float32 and under autocast; adapters in the
upper two layers over cached lower ones. From these the CPU seconds of the whole job.
Run: python benchmarks/demo_cost.py. Results: benchmarks/results/demo_cost.json and .md.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the list of peers lies among the tests
import torch
from pages import machine, versions

from lowland import weights_of
from lowland.studies.adapters.classifier import adapt, load_encoder
from lowland.studies.adapters.predicting import fast_bfloat16
from lowland.studies.adapters.tokens import Buckets, Tokens, tokenise
from lowland.studies.text import demo
from lowland.studies.text.datasets import load_splits
from lowland.weights import trainable

RESULTS, REPEATS, EVERY = Path(__file__).parent / "results", 2, 8


def timed(call: Callable[[], Any], repeats: int = REPEATS) -> tuple[float, Any]:
    best, found = float("inf"), None
    for _ in range(repeats):
        begun = time.process_time()
        found = call()
        best = min(best, time.process_time() - begun)
    return best, found


def padded(tokens: Tokens, order: list[int], size: int) -> int:
    """Tokens that a pass in this order computes."""
    return sum(int(tokens.batch(order[i : i + size])["input_ids"].numel()) for i in range(0, len(order), size))


def padding(parts: dict[str, Tokens], size: int) -> dict[str, dict[str, int]]:
    found = {}
    for name, tokens in parts.items():
        order = sorted(range(len(tokens)), key=lambda row: len(tokens.ids[row]))
        found[name] = {
            "texts": len(tokens),
            "own": sum(map(len, tokens.ids)),
            "by length": padded(tokens, order, size),
            "as they come": padded(tokens, list(range(len(tokens))), size),
        }
    lengths = [len(ids) for ids in parts["train"].ids]
    buckets = list(Buckets(lengths, size, torch.Generator().manual_seed(0)))
    found["train"]["in training's buckets"] = padded(parts["train"], buckets, size)
    return found


def main() -> None:
    torch.set_num_threads(1)
    study = demo()
    splits, size = load_splits(study.data), study.evaluation.batch_size
    encoder, tokenizer, _ = load_encoder(study.model)
    upper = copy.deepcopy(encoder)
    length = study.model.max_length
    parts = {name: tokenise(tokenizer, getattr(splits, name).texts, length) for name in ("train", "validation", "test")}
    saved = padding(parts, size)
    adapted = adapt(encoder, study.model, study.lora, len(splits.names), [parts["train"]], size)
    adapted.reset(torch.Generator().manual_seed(0))
    model, labels = adapted.model.train(), torch.tensor(splits.train.labels)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=study.training.learning_rate)
    batches = parts["train"].batches(size)

    def epoch(half: bool, some: slice) -> None:
        for rows, batch in batches[some]:
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss = model(**batch, labels=labels[rows])["loss"]
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()

    few = slice(None, None, EVERY)
    number = sum(len(rows) for rows, _ in batches[few])
    epoch(False, slice(None))
    step = {
        name: timed(lambda half=half: epoch(half, few), 2)[0] / number
        for name, half in (("float32", False), ("bfloat16", True))
    }
    adapted.write(weights_of(model, trainable))
    merged, items = adapted.merged, parts["test"].batches(size)[::EVERY]
    seen = sum(len(rows) for rows, _ in items)

    def passed(one: torch.nn.Module, half: bool = False) -> torch.Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            return torch.cat([one(**batch)["logits"].double() for _, batch in items]).log_softmax(-1)

    pass_of, kl = {}, {}
    seconds, exact = timed(lambda: passed(merged))
    pass_of["float32"] = seconds / seen

    def compared(name: str, call: Callable[[], torch.Tensor]) -> None:
        taken, rough = timed(call)
        each = (exact.exp() * (exact - rough)).sum(1)
        pass_of[name], kl[name] = taken / seen, {"mean": float(each.mean()), "largest": float(each.max())}

    compared("products in bfloat16", lambda: passed(merged, True))
    torch.set_float32_matmul_precision("medium")
    compared('float32, precision "medium"', lambda: passed(merged))
    torch.set_float32_matmul_precision("highest")
    whole = copy.deepcopy(merged).bfloat16()
    compared("all in bfloat16", lambda: passed(whole))
    top = adapt(
        upper, study.model, dataclasses.replace(study.lora, layers=(4, 5)), len(splits.names), [parts["test"]], size
    )
    items = parts["test"].batches(size)[::EVERY]
    pass_of["upper two layers, lower ones cached"] = timed(lambda: passed(top.merged))[0] / seen

    members, epochs = len(study.training.seeds), study.training.epochs
    second = epochs - study.swag.start
    texts = {
        "training": saved["train"]["texts"] * (epochs + second) * members,
        "looks after epochs": study.training.monitor_texts * (epochs + second) * members,
        "draws": (saved["validation"]["texts"] + saved["test"]["texts"]) * study.evaluation.samples * members,
        "other predictions": (saved["validation"]["texts"] + saved["test"]["texts"]) * 3 * members,
    }

    def job(predicting: str) -> dict[str, float]:
        costs = {"training": step["float32"], "looks after epochs": pass_of["float32"]}
        found = {name: count * costs.get(name, pass_of[predicting]) for name, count in texts.items()}
        return {**found, "all": sum(found.values())}

    jobs = {"float32": job("float32"), "products in bfloat16": job("products in bfloat16")}
    tuned = saved["train"]["texts"] * epochs * members * step["float32"]
    content = {
        "padding": saved,
        "milliseconds a text": {
            "pass": {name: 1000 * value for name, value in pass_of.items()},
            "training": {name: 1000 * value for name, value in step.items()},
        },
        "kl": kl,
        "fast_bfloat16": fast_bfloat16(),
        "texts": texts,
        "job_seconds": jobs,
        "tuned_base_seconds": tuned,
        "date": date.today().isoformat(),
        "machine": machine(),
        "versions": versions(),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "demo_cost.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "demo_cost.md").write_text(page(content), encoding="utf-8")
    print(page(content))


def page(content: dict[str, Any]) -> str:
    cost = content["milliseconds a text"]
    lines = [
        "# What the demo's job costs",
        "",
        f"CPU time of one thread, best of {REPEATS}; {content['machine']['cpu']}, {content['date']}; "
        "`python benchmarks/demo_cost.py`.",
        "",
        "| a pass of a text | CPU ms | KL from float32, nats a text: mean, largest |",
        "|---|---|---|",
    ]
    for name, value in cost["pass"].items():
        kl = content["kl"].get(name)
        apart = "" if kl is None else "{mean:.1e}, {largest:.1e}".format(**kl)
        lines.append(f"| {name} | {value:.2f} | {apart} |")
    lines += ["", "| a text in a training step | CPU ms |", "|---|---|"]
    lines += [f"| {name} | {value:.2f} |" for name, value in cost["training"].items()]
    lines += ["", "| tokens | their own | by length | as they come | in training's buckets |", "|---|---|---|---|---|"]
    for name, one in content["padding"].items():
        buckets = one.get("in training's buckets", "")
        lines.append(f"| {name} | {one['own']} | {one['by length']} | {one['as they come']} | {buckets} |")
    parts = list(next(iter(content["job_seconds"].values())))
    lines += [
        "",
        "CPU seconds of the whole job, computed from the above:",
        "",
        "| predictions in | " + " | ".join(parts) + " |",
    ]
    lines.append("|---|" + "---|" * len(parts))
    for name, one in content["job_seconds"].items():
        lines.append(f"| {name} | " + " | ".join(f"{one[part]:.0f}" for part in parts) + " |")
    lines += ["", f'The row "base, tuned rate" would add {content["tuned_base_seconds"]:.0f} CPU seconds of training.']
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
