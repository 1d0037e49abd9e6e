"""How every speed in benchmarks/ is measured; a script imports this, compares and writes.

* `realtime()` first: the timed windows run at real-time priority (SCHED_FIFO) where the system permits it, and each is
  followed by a sleep, so that neighbours keep their share. Every window notes how long our threads waited for a core.
* `compare()` runs all contenders in every round, in random order, each right after a run of the limit. A ratio to the
  limit is the median over such pairs; a ratio to another contender is the median over rounds.
* `triad(numel)` is the limit of anything bound by memory: a = b + s c, 12 bytes an element, by the fastest code found.
* `peak_extra(fn)` is what a call adds to the resident memory of the process at its highest.
* `write()` leaves results/<name>.md and .json with the machine, the versions, the date, the command and the checks.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
sys.path.append(str(ROOT))

from benchmarks import pages  # noqa: E402
from benchmarks.triads import Triad, fastest  # noqa: E402

Check = tuple[str, str, str, bool]  # what is claimed, what was wanted, what was got, whether it holds
_STATE: dict[str, Any] = {"realtime": False, "quick": False, "device": "cpu", "out": None}


def arguments(description: str | None, **extra: Any) -> argparse.Namespace:
    """Read --quick, --out and --threads, and what `extra` names with its default; then go real-time.

    --quick is for trying a script: the script may choose less, and results go to runs/ and not to results/.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a short run to try the script; not written to results/")
    parser.add_argument("--out", type=Path, help="folder for the result files")
    parser.add_argument("--threads", type=int, help="threads of torch; default all cores")
    for name, default in extra.items():
        parser.add_argument(f"--{name.replace('_', '-')}", default=default, type=type(default))
    options = parser.parse_args()
    torch.set_num_threads(options.threads or os.cpu_count() or 1)
    realtime()
    _STATE.update(quick=options.quick, out=options.out)
    return options


def realtime(priority: int = 1) -> bool:
    """Ask for SCHED_FIFO for every thread there is; later ones inherit it. Return whether it was granted."""
    try:
        for thread in os.listdir("/proc/self/task"):
            os.sched_setscheduler(int(thread), os.SCHED_FIFO, os.sched_param(priority))
        _STATE["realtime"] = True
    except (AttributeError, OSError):
        _STATE["realtime"] = False
    return bool(_STATE["realtime"])


def triad(numel: int, device: str = "cpu") -> Triad:
    """Return a = b + s c over `numel` floats by the fastest of torch, numba and C with streaming stores found here."""
    return fastest(numel, device)


@dataclass
class Row:
    """What was measured of one contender; `times` and `limits` hold one number a round."""

    name: str
    times: list[float]  # seconds of one call
    limits: list[float] = field(default_factory=list)  # time over the limit measured right before
    waiting: list[float] = field(default_factory=list)  # share of the window in which our threads waited for a core
    calls: int = 1  # calls in a timed window
    baseline: str | None = None
    ratio: float | None = None  # time over the baseline's of the same round, median

    @property
    def seconds(self) -> float:
        return statistics.median(self.times)

    @property
    def iqr(self) -> float:
        """Distance between the quartiles, in seconds; 0 for a single round."""
        return spread(self.times)

    @property
    def limit(self) -> float | None:
        """How many times the limit: the median of pairs."""
        return statistics.median(self.limits) if self.limits else None

    def over(self, other: Row) -> float:
        """Return this time over the other's, the median over rounds: 2.0 is twice as slow."""
        return statistics.median(own / its for own, its in zip(self.times, other.times, strict=True))

    def shown(self) -> dict[str, str]:
        cells = {"contender": self.name, "median ms": f"{self.seconds * 1e3:.4g}", "IQR ms": f"{self.iqr * 1e3:.2g}"}
        if self.limits:
            cells["over limit"] = f"{self.limit:.2f}"
            cells["IQR of it"] = f"{spread(self.limits):.2g}"
        if self.ratio is not None:
            cells[f"time over {self.baseline}"] = f"{self.ratio:.3g}"
        return cells | {"rounds": str(len(self.times)), "waited": f"{statistics.median(self.waiting or [0]):.1%}"}

    def raw(self) -> dict[str, Any]:
        """Everything, for the JSON file."""
        middle = {"median_s": self.seconds, "iqr_s": self.iqr, "over_limit": self.limit, "over_baseline": self.ratio}
        rest = {"baseline": self.baseline, "calls": self.calls, "times_s": self.times, "over_limits": self.limits}
        return {"name": self.name, **middle, **rest, "waiting": self.waiting}


def compare(
    contenders: Mapping[str, Callable[[], object]],
    *,
    limit: Callable[[], object] | None = None,
    vectors: Mapping[str, float] | None = None,
    baseline: str | None = None,
    prepare: Mapping[str, Callable[[], object]] | None = None,
    rounds: int = 8,
    calls: int | Mapping[str, int] | None = None,
    window: float = 0.05,
    budget: float | None = None,
    seed: int = 0,
    device: str | None = None,
) -> list[Row]:
    """Time all contenders in interleaved rounds of random order, the limit right before each.

    Args:
        contenders: each is called once untimed first.
        limit: what the ratio to the limit is taken against, such as `triad(numel)`; None for no such ratio.
        vectors: how many vectors of the triad's length each contender must move; its limit is then that share of the
            triad's three. A contender that is not named has no ratio to the limit. None: the limit's own time.
        baseline: the contender that every time is also divided by.
        prepare: what to call, untimed, before each window of a contender.
        calls: calls in a window, one number for all or one for each name; None: as many as fill `window` seconds.
        budget: seconds after which no further round is begun (but at least two are run).
        device: "cuda" times with events on the device; None: the one that `gpu.py` set, else the CPU.
    """
    if not contenders or rounds < 1:
        raise ValueError(f"compare needs a contender and a round, got {len(contenders)} and {rounds}")
    if baseline is not None and baseline not in contenders:
        raise ValueError(f"the baseline {baseline!r} is no contender: {list(contenders)}")
    device = device or str(_STATE["device"])
    prepare = prepare or {}
    rows = {name: Row(name, [], baseline=baseline) for name in contenders}
    for name, row in rows.items():
        wanted = calls.get(name) if isinstance(calls, Mapping) else calls
        prepare.get(name, _nothing)()
        contenders[name]()
        row.calls = wanted or _calls(contenders[name], prepare.get(name, _nothing), window, device)
    limit_calls = _calls(limit, _nothing, window / 2, device) if limit else 0
    order, chance = list(contenders), random.Random(seed)
    begun = time.perf_counter()
    for done in range(rounds):
        if budget is not None and done >= 2 and time.perf_counter() - begun > budget:
            break
        chance.shuffle(order)
        for name in order:
            row = rows[name]
            prepare.get(name, _nothing)()
            paired = limit is not None and (vectors is None or name in vectors)
            before = _window(limit, limit_calls, device)[0] if limit and paired else 0.0
            seconds, waited = _window(contenders[name], row.calls, device)
            row.times.append(seconds)
            row.waiting.append(waited)
            if paired:
                row.limits.append(over_limit(seconds, before, None if vectors is None else vectors[name]))
    for row in rows.values():
        row.ratio = row.over(rows[baseline]) if baseline else None
    return list(rows.values())


def over_limit(seconds: float, triad_seconds: float, vectors: float | None) -> float:
    """Return a time over the limit's: a triad moves 3 vectors, so `vectors` of them take vectors / 3 of its time."""
    return seconds / (triad_seconds * (1.0 if vectors is None else vectors / 3))


def spread(values: Sequence[float]) -> float:
    """Return the distance between the quartiles; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low


def _nothing() -> None:
    pass


def _calls(fn: Callable[[], object], prepare: Callable[[], object], window: float, device: str) -> int:
    """As many calls as fill the window, 1000 at most."""
    prepare()
    seconds = _window(fn, 1, device)[0]
    return max(1, min(1000, round(window / max(seconds, 1e-7))))


def _window(fn: Callable[[], object], calls: int, device: str) -> tuple[float, float]:
    """Seconds of a call and the share of time our threads waited for a core; then sleep as long, 1 s at most."""
    cuda = device.startswith("cuda")
    collecting = gc.isenabled()
    gc.disable()
    try:
        if cuda:
            torch.cuda.synchronize()
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            events[0].record()
        run, wait = _schedstat()
        start = time.perf_counter()
        for _ in range(calls):
            fn()
        if cuda:
            events[1].record()
            torch.cuda.synchronize()
        elapsed = time.perf_counter() - start
        ran, waited = _schedstat()
    finally:
        if collecting:
            gc.enable()
    # At least 10 ms: OpenMP's threads spin for a while after a loop and would hold the next contender's core.
    time.sleep(min(1.0, max(0.01, elapsed)))
    busy, idle = ran - run, waited - wait
    seconds = events[0].elapsed_time(events[1]) / 1e3 if cuda else elapsed
    return seconds / calls, idle / (busy + idle) if busy + idle > 0 else 0.0


def _schedstat() -> tuple[int, int]:
    """Nanoseconds that our threads ran and that they waited for a core, so far."""
    ran = waited = 0
    for thread in Path("/proc/self/task").glob("*"):
        try:
            own = (thread / "schedstat").read_text().split()
        except OSError:  # the thread has ended, or the system keeps no such file
            continue
        ran, waited = ran + int(own[0]), waited + int(own[1])
    return ran, waited


def peak_extra(fn: Callable[[], object], device: str | None = None) -> int:
    """Return the bytes that a call adds to resident memory at its highest, its result included.

    On a CPU: VmHWM, reset before the call, less VmRSS after free memory went back to the system (malloc_trim). Call
    once before to leave out what is allocated once. On cuda: the allocator's peak less what is allocated before.
    """
    gc.collect()
    device = device or str(_STATE["device"])
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = fn()
        torch.cuda.synchronize()
        extra = torch.cuda.max_memory_allocated() - before
    else:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
        kept = fn()
        extra = _resident("VmHWM") - before
    del kept
    return max(0, extra)


def _resident(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}: resident memory is measured on Linux only")


def peer(name: str) -> str:
    """Install a peer of tests/peers/loading.py and make it importable; return why it cannot be had, or ''."""
    from tests.peers.loading import install, prepare

    trouble = install(name)
    if not trouble:
        prepare(name)
    return trouble


def machine() -> dict[str, Any]:
    """Return what the numbers depend on: CPU, cores, memory, system, threads, and the GPU in use."""
    found = pages.machine() | {"threads": torch.get_num_threads(), "real-time priority": _STATE["realtime"]}
    if str(_STATE["device"]).startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name()
    return found


def command() -> str:
    """Return the command line; of absolute paths the last part only, as the rest is of this machine."""
    told = [Path(word).name if os.path.isabs(word) else word for word in sys.argv[1:]]
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *told])


def write(
    name: str,
    title: str,
    tables: Mapping[str, Sequence[Row] | Sequence[Mapping[str, object]]],
    notes: Sequence[str] = (),
    checks: Sequence[Check] = (),
    *,
    packages: Iterable[str] = (),
) -> Path:
    """Write results/<name>.md and .json (on a GPU <name>-cuda), print the page, and return the .md's path.

    Args:
        tables: by heading: rows of `compare`, or rows of your own as mappings from column to cell.
        checks: (what is claimed, what was wanted, what was got, whether it holds).
        packages: distributions whose versions are told beside torch's and numba's: every contender's.
    """
    if _STATE["device"] != "cpu":
        name = f"{name}-{str(_STATE['device']).split(':')[0]}"
    folder = _STATE["out"] or (ROOT / "runs" / "bench-quick" if _STATE["quick"] else RESULTS)
    folder.mkdir(parents=True, exist_ok=True)
    known = {
        "title": title,
        "date": date.today().isoformat(),
        "command": command(),
        "machine": machine(),
        "versions": pages.versions(packages),
        "notes": list(notes),
    }
    held = [dict(zip(("claim", "wanted", "got", "ok"), check, strict=True)) for check in checks]
    raw = {head: [row.raw() if isinstance(row, Row) else dict(row) for row in rows] for head, rows in tables.items()}
    shown = {head: [row.shown() if isinstance(row, Row) else row for row in rows] for head, rows in tables.items()}
    text = pages.page(known, shown, held)
    (folder / f"{name}.json").write_text(json.dumps({**known, "checks": held, "tables": raw}, indent=1) + "\n")
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)
    return folder / f"{name}.md"
