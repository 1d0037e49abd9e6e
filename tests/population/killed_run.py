"""A population under torchrun that loses a rank and goes on from its checkpoint.

    torchrun --nproc-per-node N --max-restarts 1 -m tests.population.killed_run FOLDER STEPS RANK STEP

In the first attempt rank RANK is killed in the midst of STEP (-1: none is). FOLDER/end-K holds the end of member K,
FOLDER/lost-K when a rank that was left saw the error and what it said, FOLDER/killed when it was killed.
"""

from __future__ import annotations

import faulthandler
import json
import os
import shutil
import signal
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from lowland.population import WASH, Population, load_members, save_members

from .models import Net, train

RULE = WASH(p=0.2, optimizer_state=True)
EVERY = 4  # steps between checkpoints


def write(path: Path, text: str) -> None:
    path.with_suffix(".part").write_text(text)
    os.replace(path.with_suffix(".part"), path)


def main() -> None:
    folder, steps, victim, at = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    rank, first = dist.get_rank(), os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    model = Net(rank)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    population = Population(model, RULE, optimizers=optimizer, group=dist.group.WORLD)
    if (folder / "latest").exists():
        load_members(population, folder / (folder / "latest").read_text())

    def after(step: int) -> None:
        if step % EVERY == 0:
            name = f"step-{step}"
            save_members(population, folder / name)
            dist.barrier()
            if rank == 0:
                write(folder / "latest", name)
                for old in folder.glob("step-*"):
                    if old.name != name:
                        shutil.rmtree(old)
        if first and rank == victim and step == at:
            write(folder / "killed", str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        train([model], [optimizer], population, range(population.steps + 1, steps + 1), here=[rank], after=after)
    except RuntimeError as error:
        write(folder / f"lost-{rank}", json.dumps({"time": time.time(), "says": str(error)}))
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder / f"end-{rank}")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    faulthandler.dump_traceback_later(200, exit=True)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    main()
    dist.destroy_process_group()
