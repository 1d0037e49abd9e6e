"""The study of decays at 122 million weights, in pieces for short loans of a GPU: repeat it until it says "all done".

Measured: what `decay_seeds.py` measures, by the same code, with a byte-level transformer of 17 layers of 768 and a
context of 1024, in bfloat16 and compiled (GPT-2 small has 124 million, of which 38 million are its vocabulary): nats a
byte on held-out text after a constant rate, three decays of it, the merges that stand for them, EMA tails, and what
validation text chooses. Claims: arXiv 2507.17634, 2505.12082.

    python benchmarks/decay_gpu.py --data FOLDER     at most nine minutes a call, a seed after the other
    python benchmarks/decay_gpu.py --dry-run         a toy of the same on a CPU; its figures say nothing

FOLDER holds text files, about a gigabyte (6,000 steps see 400 MB); those in FOLDER/shift are the shifted set. A call
that ends in the middle of a run leaves it in runs/decay-gpu and the next one goes on, exactly on a CPU and, as far as
its kernels are deterministic, on a GPU. A seed wants 25 GB of disk and 50 GB of the device's memory. Copy
runs/decay-gpu to take the work to another machine. Results: benchmarks/results/decay_gpu.md and .json, once every seed
is done.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from decay_seeds import more
from grids import write
from safetensors.torch import load_file, save_file

from lowland import EMA
from lowland.ema import half_life
from lowland.studies import report
from lowland.studies.decay import KIND, DecayStudy, cells, from_mapping
from lowland.studies.decay.cell import DECAYS, Branches
from lowland.studies.grid import Cell, run_grid
from lowland.studies.runs.randomness import own_randomness
from lowland.weights import Weights, clone_of, copy_to, weights_of

ROOT = Path(__file__).resolve().parents[1]
SIZES: dict[str, Any] = {
    "model": {"names": ["large"], "layers": 17, "heads": 12, "context": 1024},
    "training": {
        **{"steps": 6000, "decay_steps": 1500, "batch_size": 64, "learning_rate": 6e-4, "warmup": 300},
        "seeds": [0, 1, 2],
    },
    "merging": {"every": 50, "windows": [20, 50, 100], "half_lives": [100, 250, 500]},
    "evaluation": {"rows": 512, "batch_size": 16},
}
TOY: dict[str, Any] = {
    "model": {"names": ["tiny"], "layers": 1, "heads": 4, "context": 16},
    "training": {"steps": 30, "decay_steps": 20, "batch_size": 8, "warmup": 5, "seeds": [0]},
    "merging": {"every": 2, "windows": [50, 100], "half_lives": [5, 10]},
    "evaluation": {"rows": 16},
}
BEFORE, CONSTANT = "before", "constant"
CHUNK = 10  # steps between looks at the clock
JUDGING = 300.0  # seconds that a call must have left to judge a seed, which is done in one go


class Slices:
    """The branches of one cell, trained in slices that end at a deadline."""

    def __init__(self, study: DecayStudy, cell: Cell, folder: Path, device: str, compiled: bool) -> None:
        self.study, self.folder = study, folder
        self.run = Branches(study, cell, device)
        if compiled:
            self.run.forward = torch.compile(self.run.model)
        folder.mkdir(parents=True, exist_ok=True)

    def advance(self, deadline: float) -> dict[str, Any] | None:
        """Work until the monotonic clock reads `deadline`; return the result once all is done."""
        given, run = self.study.training, self.run
        branch = range(given.steps, given.steps + given.decay_steps)
        phases: list[tuple[str, range, Callable[[int], float]]] = [(BEFORE, range(given.steps), run.warming)]
        phases += [(shape, branch, run.falling(shape)) for shape in DECAYS]
        phases += [(CONSTANT, branch, lambda step: 1.0)]
        for name, steps, rate in phases:
            if not self._trained(name, steps, rate, deadline):
                return None
        if time.monotonic() + JUDGING > deadline:
            return None
        found: dict[str, Weights] = {BEFORE: self._weights(BEFORE), CONSTANT: self._weights(CONSTANT)}
        found |= {f"decayed {shape}": self._weights(shape) for shape in DECAYS}
        marks = range(given.steps + self.study.merging.every, branch.stop + 1, self.study.merging.every)
        kept = [found[BEFORE], *(self._on_device(load_file(self._kept(mark))) for mark in marks)]
        tails = {steps: tail.mean() for steps, tail in self._tails(self._state(CONSTANT)["tails"]).items()}
        with run.clock("evaluation"):
            return run.judged(found, kept, tails)

    def _trained(self, name: str, steps: range, rate: Callable[[int], float], deadline: float) -> bool:
        """Train a phase from where it stands; return whether it is at its end."""
        run, file = self.run, self.folder / f"{name}.pt"
        optimiser = run.optimiser()
        state = self._state(name) if file.exists() else None
        if state is None and name != BEFORE:
            state = {**self._state(BEFORE), "tails": None}
        done = steps.start if state is None else int(state["step"])
        if state is not None:
            run.seconds |= {what: max(run.seconds[what], seconds) for what, seconds in state["seconds"].items()}
        if file.exists() and done == steps.stop:
            return True
        if state is not None:
            copy_to(run.model, state["model"])
            optimiser.load_state_dict(state["optimiser"])
        tails = self._tails(state["tails"] if state else None) if name == CONSTANT else {}
        longest, saved = 0.0, time.monotonic()

        def after(step: int) -> None:
            for tail in tails.values():
                tail.update(run.model)
            mark = step + 1
            if name == CONSTANT and (mark - steps.start) % self.study.merging.every == 0:
                weights = {key: tensor.detach().cpu().contiguous() for key, tensor in weights_of(run.model).items()}
                replaced(self._kept(mark), lambda part: save_file(weights, part))

        def save() -> None:
            held = {
                "step": done,
                "model": clone_of(weights_of(run.model)),
                "optimiser": optimiser.state_dict(),
                "tails": {count: tail.state_dict() for count, tail in tails.items()},
                "seconds": dict(run.seconds),
            }
            replaced(file, lambda part: torch.save(held, part))

        while done < steps.stop:
            if time.monotonic() + longest > deadline:
                save()
                return False
            begun = time.monotonic()
            end = min(done + CHUNK, steps.stop)
            with run.clock("training"):
                run.train(optimiser, range(done, end), rate, after)
            done, longest = end, max(longest, time.monotonic() - begun)  # the first one compiles
            if time.monotonic() - saved > 120:
                save()
                saved = time.monotonic()
        save()
        return True

    def _state(self, name: str) -> dict[str, Any]:
        state = torch.load(self.folder / f"{name}.pt", map_location=self.run.device, weights_only=True)
        return dict(state)

    def _weights(self, name: str) -> Weights:
        weights: Weights = self._state(name)["model"]
        return weights

    def _tails(self, states: dict[int, Any] | None) -> dict[int, EMA]:
        tails = {steps: EMA(half_life(steps)) for steps in self.study.merging.half_lives}
        for steps, state in (states or {}).items():
            tails[steps].load_state_dict(state)
        return tails

    def _kept(self, step: int) -> Path:
        return self.folder / f"step-{step}.safetensors"

    def _on_device(self, weights: Weights) -> dict[str, torch.Tensor]:
        return {name: tensor.to(self.run.device) for name, tensor in weights.items()}


def replaced(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside and rename: a killed call leaves no half file under the name."""
    part = path.with_name(f"{path.name}.part")
    write(part)
    os.replace(part, path)


def advanced(study: DecayStudy, cell: Cell, state: Path, device: str, compiled: bool, deadline: float) -> bool:
    """Go on with a cell; return whether its result is there."""
    result = state / f"{cell.name}.json"
    if result.exists():
        return True
    with own_randomness():
        folder = state / cell.name
        found = Slices(study, cell, folder, device, compiled).advance(deadline)
    if found is None:
        return False
    replaced(result, lambda part: part.write_text(json.dumps(found) + "\n"))
    for file in folder.iterdir():  # gigabytes, and what they were for is there
        file.unlink()
    folder.rmdir()
    return True


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of text files, about a gigabyte")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which a call stops; default 9")
    parser.add_argument("--state", type=Path, help="folder of what is done; default runs/decay-gpu")
    parser.add_argument("--device", default="cuda", help='default "cuda"')
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--dry-run", action="store_true", help="a toy on the CPU; results stay in the state's folder")
    given = parser.parse_args()
    if given.dry_run:
        given.device, given.eager = "cpu", True
    elif not given.device.startswith("cuda") or not torch.cuda.is_available():
        parser.error("there is no CUDA device here: try --dry-run")
    elif given.data is None:
        parser.error("122 million weights want more text than is packaged: --data FOLDER")
    given.state = given.state or ROOT / "runs" / ("decay-gpu-dry" if given.dry_run else "decay-gpu")
    return given


def main() -> int:
    given = read_arguments()
    deadline = time.monotonic() + 60 * given.minutes
    sizes = TOY if given.dry_run else SIZES
    if given.data is not None:
        sizes = {**sizes, "data": {"sets": ["own"], "paths": [f"own={given.data.resolve()}"]}}
    study = from_mapping(sizes)
    given.state.mkdir(parents=True, exist_ok=True)
    torch.backends.cudnn.deterministic = True
    left = list(cells(study))
    for cell in list(left):
        print(f"{cell.name}: {deadline - time.monotonic():.0f} s are left", flush=True)
        if not advanced(study, cell, given.state, given.device, not given.eager, deadline):
            break
        left.remove(cell)
    if left:
        print(f"call again: {', '.join(cell.name for cell in left)} left", flush=True)
        return 0

    def found(study: DecayStudy, cell: Cell) -> dict[str, Any]:
        result: dict[str, Any] = json.loads((given.state / f"{cell.name}.json").read_text())
        return result

    folder = given.state / "study"
    run_grid(study, KIND, cells(study), found, folder, build=from_mapping, resume=True)
    report.write(folder)
    device = "a CPU, a toy" if given.dry_run else torch.cuda.get_device_name()
    notes = [f"On {device}, in bfloat16 with weights in float32."]
    out = given.state / "results" if given.dry_run else None
    write(KIND, folder, "decay_gpu", "python benchmarks/decay_gpu.py", notes, ("scipy",), out=out, more=more)
    print("all done", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
