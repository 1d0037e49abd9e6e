"""Everything that wants a GPU, in pieces that fit short loans of one: repeat the command until it says "all done".

    python benchmarks/gpu.py --data cifar10_jpeg.npz     at most nine minutes a call; finished pieces are not repeated
    python benchmarks/gpu.py --dry-run                   every piece at toy size on a CPU; its figures say nothing

1. `tests`: what is marked `gpu`.  2. `updates`, `draws`, `batchnorm`, `prediction`: beside the triad, a copy and the
peers that can be had (`gpu_speeds.py`).  3. `vgg16-1` ...: VGG16 and PreResNet-110 on CIFAR-10 at the papers' settings,
in bfloat16, channels last and compiled; SGD, SGD of 1.5 budgets, SWA, SWAG (`gpu_training.py`), a seed a piece.

A piece of training that meets the end of the call is left in a file and goes on from there in the next, exactly on a
CPU and, as far as its kernels are deterministic, on a GPU. Every call merges what is there into result files: means
over seeds, and deep ensembles and MultiSWAG of the seeds that are done. The state lies in runs/gpu; copy that folder to
take the work to another machine. The first calls in a fresh process compile for a minute.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import gpu_speeds
import gpu_training
import harness
import torch
from gpu_merge import merged

ROOT = Path(__file__).resolve().parents[1]
AT_LEAST = {"tests": 60.0, "updates": 240.0, "draws": 150.0, "batchnorm": 90.0, "prediction": 150.0}  # seconds
TO_COMPILE = 150.0  # seconds that a slice of training must have left to begin


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="cifar10_jpeg.npz, or an .npz of images and labels")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which a call stops; default 9")
    parser.add_argument("--seeds", type=int, default=3, help="of each network; default 3")
    parser.add_argument("--only", nargs="*", help="pieces by name; default all")
    parser.add_argument("--state", type=Path, default=None, help="folder of what is done; default runs/gpu")
    parser.add_argument("--out", type=Path, default=None, help="folder of the result files; default benchmarks/results")
    parser.add_argument("--device", default="cuda", help='default "cuda"')
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--dry-run", action="store_true", help="toy sizes on the CPU")
    options = parser.parse_args()
    if options.dry_run:
        options.device = "cpu"
    elif not options.device.startswith("cuda") or not torch.cuda.is_available():
        parser.error("there is no CUDA device here: try --dry-run")
    kind = "gpu-dry" if options.dry_run else "gpu"
    options.state = options.state or ROOT / "runs" / kind
    options.out = options.out or (options.state / "results" if options.dry_run else harness.RESULTS)
    return options


def pieces(seeds: int) -> list[str]:
    training = [f"{name}-{seed}" for seed in range(1, seeds + 1) for name in gpu_training.RECIPES]
    return ["tests", *gpu_speeds.MEASURES, *training]


def run_tests(state: Path, seconds: float) -> bool:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/test_gpu.py", "-p", "no:cacheprovider"]
    begun = time.monotonic()
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=max(30.0, seconds))
    last = next((line for line in reversed(ran.stdout.splitlines()) if " in " in line), "no summary")
    told = {"rc": ran.returncode, "summary": last.strip("= "), "seconds": time.monotonic() - begun}
    if ran.returncode:
        print(ran.stdout[-6000:], ran.stderr[-2000:], sep="\n")
    finish(state, "tests", told)
    return True


def finish(state: Path, name: str, told: dict[str, Any]) -> None:
    told = {**told, "date": date.today().isoformat(), "device": device_name()}
    gpu_training.replace(state / f"{name}.json", lambda part: part.write_text(json.dumps(told, indent=1) + "\n"))


def device_name() -> str:
    return torch.cuda.get_device_name() if harness._STATE["device"] != "cpu" else "cpu"


def one(name: str, options: argparse.Namespace, deadline: float) -> bool:
    """Do a piece, or a slice of it; return whether it is finished."""
    if name == "tests":
        return run_tests(options.state, deadline - time.monotonic())
    if name in gpu_speeds.MEASURES:
        begun = time.monotonic()
        gpu_speeds.measure(name, options.device, options.dry_run, options.out)
        finish(options.state, name, {"seconds": time.monotonic() - begun})
        return True
    network, seed = name.rsplit("-", 1)
    recipe = (gpu_training.TOYS if options.dry_run else gpu_training.RECIPES)[network]
    compiled = not options.eager
    done = gpu_training.Job(
        network, recipe, int(seed), options.pictures(), options.state / name, compiled=compiled
    ).advance(deadline)
    if done:
        finish(options.state, name, {"compiled": compiled})
    return done


def main() -> int:
    begun = time.monotonic()
    options = read_arguments()
    deadline = begun + 60 * options.minutes
    options.state.mkdir(parents=True, exist_ok=True)
    harness._STATE.update(device=options.device, out=options.out, quick=options.dry_run)
    torch.backends.cudnn.deterministic = True
    known: list[gpu_training.Pictures] = []

    def pictures() -> gpu_training.Pictures:
        if not known:
            if options.dry_run:
                known.append(gpu_training.toy(options.device))
            elif options.data is None:
                raise SystemExit("training wants --data cifar10_jpeg.npz; --only names the pieces that do not")
            else:
                known.append(gpu_training.cifar(options.data, options.device))
        return known[0]

    options.pictures = pictures
    everything = pieces(options.seeds)
    wanted = options.only or everything
    unknown = sorted(set(wanted) - set(everything))
    if unknown:
        raise SystemExit(f"there is no piece {unknown[0]!r}: choose from {', '.join(everything)}")
    left = [name for name in wanted if not (options.state / f"{name}.json").exists()]
    for name in list(left):
        at_least = 0.0 if options.dry_run else AT_LEAST.get(name, TO_COMPILE)
        if deadline - time.monotonic() < at_least:
            break
        print(f"{name}: {deadline - time.monotonic():.0f} s are left", flush=True)
        if not one(name, options, deadline):
            break
        left.remove(name)
    merged(options.state, options.out, gpu_training.TOYS if options.dry_run else gpu_training.RECIPES)
    print("all done" if not left else f"call again: {', '.join(left)} left", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
