"""Which learning rates the study of links should use, judged on validation triples alone, by a seed that no study uses.

Measured: for each graph, scoring function and rate of Adam, the filtered MRR on the validation triples at every fifth
of 200 epochs: the best one, its epoch and the last one. The rate of a scoring function is the one with the best mean
over the graphs of the best MRR; test triples are not looked at.
Run: python benchmarks/links_tune.py
Results: benchmarks/results/links_tune.json and .md.
"""

from __future__ import annotations

import json
import time
from datetime import date
from typing import Any

import torch
from harness import ROOT
from pages import machine, versions

from lowland.studies.links.config import LinksStudy
from lowland.studies.links.graphs import Graph, Tails, load_graph
from lowland.studies.links.ranking import Ranking
from lowland.studies.links.scorers import Scorer
from lowland.studies.links.training import epochs

RESULTS = ROOT / "benchmarks" / "results"
SEED = 1000
RATES = (0.001, 0.003, 0.01, 0.03, 0.1)
EPOCHS = 200
EVERY = 5  # epochs


def run(study: LinksStudy, graph: Graph, model: str, rate: float) -> dict[str, Any]:
    torch.manual_seed(SEED)
    begun = time.process_time()
    scorer = Scorer(model, graph, dimension=study.model.dimension, spread=study.model.spread)
    seen = torch.cat([graph.train, graph.validation])  # test triples are not even left out of the ranks
    ranking, generator = Ranking(graph, graph.validation, seen), torch.Generator().manual_seed(SEED)
    steps = epochs(
        scorer, Tails(graph.both_ways), learning_rate=rate, batch_size=study.training.batch_size, generator=generator
    )
    curve = []
    for epoch in range(1, EPOCHS + 1):
        next(steps)
        if epoch % EVERY == 0:
            scorer.eval()
            curve.append(ranking.metrics(scorer)["mrr"])
    best = max(range(len(curve)), key=curve.__getitem__)
    found = {
        "best": curve[best],
        "epoch": EVERY * (best + 1),
        "last": curve[-1],
        "seconds": time.process_time() - begun,
    }
    return {"graph": graph.name, "model": model, "rate": rate} | found


def chosen(rows: list[dict[str, Any]]) -> dict[str, float]:
    means: dict[str, dict[float, float]] = {}
    for row in rows:
        means.setdefault(row["model"], {}).setdefault(row["rate"], 0.0)
        means[row["model"]][row["rate"]] += row["best"]
    return {model: max(own, key=own.__getitem__) for model, own in means.items()}


def page(content: dict[str, Any]) -> str:
    lines = [
        "# Learning rates of the study of links, on validation triples",
        "",
        f"Seed {SEED}, {content['epochs']} epochs; {content['date']}, {content['machine']['cpu']}, one thread, "
        f"{content['seconds'] / 60:.1f} CPU-minutes. Best validation MRR (its epoch), and the last. "
        "Command: `python benchmarks/links_tune.py`.",
        "",
        "| graph | model | " + " | ".join(f"{rate:g}" for rate in RATES) + " |",
        "|---" * (2 + len(RATES)) + "|",
    ]
    pairs = dict.fromkeys((row["graph"], row["model"]) for row in content["rows"])
    for pair in pairs:
        own = [row for row in content["rows"] if (row["graph"], row["model"]) == pair]
        cells = [f"{row['best']:.3f} ({row['epoch']}), {row['last']:.3f}" for row in own]
        lines.append(f"| {pair[0]} | {pair[1]} | " + " | ".join(cells) + " |")
    lines += ["", "Chosen: " + ", ".join(f"{model} {rate:g}" for model, rate in content["chosen"].items()) + "."]
    return "\n".join(lines) + "\n"


def main() -> None:
    torch.set_num_threads(1)
    study = LinksStudy()
    rows = []
    for name in study.data.graphs:
        graph = load_graph(name)
        for model in study.model.names:
            for rate in RATES:
                rows.append(run(study, graph, model, rate))
                print(json.dumps(rows[-1]), flush=True)
    content = {
        "date": date.today().isoformat(),
        "seed": SEED,
        "epochs": EPOCHS,
        "machine": machine(),
        "versions": versions(("pykeen",)),
        "seconds": sum(row["seconds"] for row in rows),
        "chosen": chosen(rows),
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "links_tune.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "links_tune.md").write_text(page(content), encoding="utf-8")


if __name__ == "__main__":
    main()
