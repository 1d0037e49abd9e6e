"""A rank of a population is killed at a random step, five times: how long to the error, and is the job the same job.

Measured: seconds from the kill to the error that the rank left prints, and to the end of the whole job; whether the
restarted job (torchrun --max-restarts 1, checkpoints every four steps) ends with the members and the momenta of one
process that was never interrupted, bit for bit. Two ranks over gloo on one machine, WASH+Opt.
Run: python benchmarks/population_killed.py [RUNS]   Results: benchmarks/results/population_killed.md and .json
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pages import machine, table, versions
from tests.population.killed_run import RULE
from tests.population.models import Net, train
from tests.population.test_killed import torchrun

from lowland.population import Population

RANKS, STEPS = 2, 14
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    chance = random.Random(0)
    models = [Net(place) for place in range(RANKS)]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9) for model in models]
    train(models, optimizers, Population(models, RULE, optimizers=optimizers), range(1, STEPS + 1))
    rows: list[dict[str, object]] = []
    for _ in range(runs):
        victim, at = chance.randrange(RANKS), chance.randrange(1, STEPS)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            begun = time.time()
            torchrun(folder, RANKS, STEPS, victim, at)
            done, killed = time.time(), float((folder / "killed").read_text())
            lost = json.loads((folder / f"lost-{1 - victim}").read_text())
            same = True
            for rank, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
                end = torch.load(folder / f"end-{rank}", weights_only=True)
                same &= all(torch.equal(end["model"][key], t) for key, t in model.state_dict().items())
                for key, state in optimizer.state_dict()["state"].items():
                    same &= torch.equal(end["optimizer"]["state"][key]["momentum_buffer"], state["momentum_buffer"])
        rows.append(
            {
                "killed": f"rank {victim} in step {at}",
                "seconds to the error": f"{lost['time'] - killed:.3f}",
                "seconds of the job": f"{done - begun:.1f}",
                "ends bit for bit as the uninterrupted one": "yes" if same else "no",
                "says": lost["says"],
            }
        )
        print(rows[-1])
    about = machine()
    known = {"date": date.today().isoformat(), "command": f"python benchmarks/population_killed.py {runs}"}
    lines = [
        "# A rank killed at a random step",
        "",
        f"{known['date']}, {about['cpu']}, {about['cores']} cores, with other work beside. torch {torch.__version__}. "
        f"Command: `{known['command']}`. {RANKS} ranks, {STEPS} steps, a checkpoint every four.",
        "",
        *table([{key: value for key, value in row.items() if key != "says"} for row in rows]),
        "",
        f"The error: {rows[0]['says']}",
    ]
    (RESULTS / "population_killed.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    result = {**known, "machine": about, "versions": versions(()), "runs": rows}
    (RESULTS / "population_killed.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
