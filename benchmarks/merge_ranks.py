"""How long a merge of a gigabyte takes beside one read of its inputs and one write, by one process and by two.

    python benchmarks/merge_ranks.py           two minutes, 3 GB of disk
    python benchmarks/merge_ranks.py --quick

Four checkpoints of 268 MB in float32 are averaged into safetensors, and into a distributed checkpoint (`--as dcp`,
which reads and writes the output once more), by `python -m lowland average` and by `torchrun --nproc-per-node 2 -m
lowland average`. Beside them: plain reads of every file by two threads and one write with fsync. Times are those of the
work; starting Python, imports and the rendezvous of the processes are in "seconds from the start". Cold: the files'
pages were dropped (posix_fadvise) and the share that stayed is told; warm: they were read just before. The best of the
rounds counts for each, as other work runs beside. "Of that, for nothing": the same command on checkpoints of 64 kB, in
which numba is imported and its kernels are loaded; the last column leaves it out.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import harness
import torch
from safetensors.torch import save_file

import checkpoints

COUNT, TENSORS = 4, 16


def make(home: Path, form: str, numel: int) -> list[Path]:
    """Checkpoints of 16 tensors."""
    import torch.distributed.checkpoint as distributed

    found = []
    for step in range(1, COUNT + 1):
        g = torch.Generator().manual_seed(step)
        noise = torch.randn(numel, generator=g)
        weights = {f"layers.{n}.weight": noise.roll(n).view(-1, 1024) for n in range(TENSORS)}
        folder = home / form / f"step-{step}"
        folder.mkdir(parents=True)
        if form == "dcp":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                distributed.save({"model": weights}, checkpoint_id=folder, no_dist=True)
        else:
            save_file(weights, folder / "model.safetensors")
        found.append(folder)
    return found


def files(folders: list[Path]) -> list[Path]:
    return [
        file for folder in folders for file in sorted(folder.iterdir()) if file.suffix in (".safetensors", ".distcp")
    ]


def prepare(folders: list[Path], cold: bool) -> float:
    """Drop the files' pages, or read them; return the share that is in memory."""
    if cold:
        return checkpoints.drop(folders)
    for path in files(folders):
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass
    return 1.0


def measured(folders: list[Path], out: Path, ranks: int, form: str) -> tuple[float, float]:
    """Seconds of the work, and from the start of the command to its end; no ranks: read and write plainly."""
    begun = time.perf_counter()
    if not ranks:
        checkpoints.read_and_write(folders, out, 2)
        out.unlink()
        return (time.perf_counter() - begun,) * 2
    start = [sys.executable, "-W", "ignore"]
    if ranks > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    more = ["--as", "dcp"] if form == "dcp" else []
    command = [*start, "-m", "lowland", "average", *map(str, folders), "--out", str(out), "--json", *more]
    threads = str(max(1, (os.cpu_count() or 1) // ranks))
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    seconds = time.perf_counter() - begun
    shutil.rmtree(out, ignore_errors=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    told = json.loads(done.stdout[done.stdout.index("{") :])
    return float(told["seconds"]), seconds


def main() -> None:
    options = harness.arguments(__doc__, rounds=2)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # what was made is removed
    checkpoints.files = files  # type: ignore[assignment]
    numel = 1 << 18 if options.quick else 1 << 22
    tables, checks, stayed = {}, [], 0.0
    labels = {0: "read once by 2 threads, write once", 1: "lowland average", 2: "lowland average, 2 ranks"}
    for form in ("safetensors", "dcp"):
        home = Path(tempfile.mkdtemp(prefix="lowland-ranks-", dir="/tmp"))
        try:
            folders = make(home, form, numel)
            size = sum(path.stat().st_size for path in files(folders)) / 1e9
            little = make(home / "little", form, 1 << 10)
            fixed = {
                ranks: min(measured(little, home / "out", ranks, form)[0] for _ in range(2)) if ranks else 0.0
                for ranks in labels
            }
            for cold in (True, False):
                best: dict[int, tuple[float, float]] = {}
                for _ in range(1 if options.quick else options.rounds):
                    for ranks in labels:
                        share = prepare(folders, cold)
                        stayed = max(stayed, share) if cold else stayed
                        took = measured(folders, home / "out", ranks, form)
                        best[ranks] = min(best.get(ranks, took), took)
                state = "cold" if cold else "warm"
                limit = best[0][0]
                tables[f"{form}, {size:.2f} GB read, {size / COUNT:.2f} GB written, {state}"] = [
                    {
                        "contender": label,
                        "seconds": f"{best[ranks][0]:.2f}",
                        "over read and write": f"{best[ranks][0] / limit:.2f}",
                        "seconds from the start": f"{best[ranks][1]:.2f}",
                        "of that, for nothing": f"{fixed[ranks]:.2f}",
                        "over read and write, without": f"{(best[ranks][0] - fixed[ranks]) / limit:.2f}",
                    }
                    for ranks, label in labels.items()
                ]
                if form == "safetensors":
                    for ranks in (1, 2):
                        ratio = best[ranks][0] / limit
                        claim = f"{state}, {labels[ranks]}, over one read and one write"
                        checks.append((claim, "<= 1.5", f"{ratio:.2f}", ratio <= 1.5))
                        ratio = (best[ranks][0] - fixed[ranks]) / limit
                        claim = f"{state}, {labels[ranks]}, without what it takes for nothing"
                        checks.append((claim, "<= 1.5", f"{ratio:.2f}", ratio <= 1.5))
        finally:
            shutil.rmtree(home, ignore_errors=True)
    notes = [
        f"Cold: at most {stayed:.1%} of the files' pages were in memory when a contender began.",
        "Two ranks have a thread each, one rank has two threads: on two cores they share the same processors and disk.",
        "checkpoints.md has the same for 20 GB, where what it takes for nothing is lost in the rest.",
        "A distributed checkpoint is written by torch's planner from a stage that holds the average: the output is "
        "written, read and written again, by the first rank alone.",
    ]
    harness.write(
        "merge_ranks", "A merge beside one read and one write", tables, notes, checks, packages=["safetensors"]
    )


if __name__ == "__main__":
    main()
