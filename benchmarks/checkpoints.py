"""Ten checkpoints of 2 GB averaged: time over reading them once and writing the result, and peak memory.

Checkpoints of a Llama layout in two safetensors shards are made in a temporary folder and removed afterwards. Every
contender runs in a process of its own, which starts with none of the files' pages in memory: files are synced, dropped
with posix_fadvise(DONTNEED), and the pages that stay are counted by mincore (the notes say how many). Times are those
of the work, without starting Python and imports. Writing ends with fsync for the
limit and for us. The limit reads with plain preads of 4 MB into one buffer, by one and by three threads; the faster of
the two in the same round counts. Peak memory is VmHWM of the process, Python and torch (about 0.3 GB) included.

timm's avg_checkpoints.py is a script of its repository that its package lacks: its loop (float64 sums on
`timm.models.load_state_dict`, float32 result) is repeated here. mergekit runs `merge_method: linear` by its own CLI.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from harness import ROOT, arguments, peer, write

SELF = Path(__file__).resolve()
HIDDEN, INNER, VOCABULARY = 2048, 5632, 32000


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(layers):
        base = f"model.layers.{layer}"
        found |= {f"{base}.self_attn.{x}_proj.weight": (HIDDEN, HIDDEN) for x in "qkvo"}
        found |= {f"{base}.mlp.{x}_proj.weight": (INNER, HIDDEN) for x in ("gate", "up")}
        found[f"{base}.mlp.down_proj.weight"] = (HIDDEN, INNER)
        found |= {f"{base}.{x}_layernorm.weight": (HIDDEN,) for x in ("input", "post_attention")}
    return found | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}


def make(home: Path, count: int, layers: int, dtype: str) -> list[Path]:
    import torch
    from safetensors.torch import save_file

    kind = getattr(torch, dtype)
    noise = torch.randn(VOCABULARY * HIDDEN + 1000 * count).mul_(0.02).to(kind)
    named = shapes(layers)
    names = list(named)
    config = {
        **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN},
        **{"intermediate_size": INNER, "num_hidden_layers": layers, "num_attention_heads": 16},
        **{"num_key_value_heads": 16, "vocab_size": VOCABULARY, "torch_dtype": dtype, "tie_word_embeddings": False},
    }
    made = []
    for number in range(count):
        folder = home / f"checkpoint-{number}"
        folder.mkdir()
        weight_map: dict[str, str] = {}
        for part, own in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), start=1):
            file = f"model-{part:05d}-of-00002.safetensors"
            tensors = {}
            for name in own:
                numel = torch.Size(named[name]).numel()
                tensors[name] = noise[1000 * number : 1000 * number + numel].view(named[name])
            # Views of one memory: a clone each, one shard at a time.
            save_file({n: t.clone() for n, t in tensors.items()}, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(own, file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        (folder / "config.json").write_text(json.dumps(config))
        made.append(folder)
    return made


def files(folders: list[Path]) -> list[Path]:
    return [file for folder in folders for file in sorted(folder.glob("*.safetensors"))]


def drop(folders: list[Path]) -> float:
    """Drop the files' pages and return the share that stays."""
    held = total = 0
    libc = ctypes.CDLL(None, use_errno=True)
    for path in files(folders):
        with path.open("r+b") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as view:
                pages = -(-len(view) // mmap.PAGESIZE)
                flags = (ctypes.c_ubyte * pages)()
                anchor = ctypes.c_char.from_buffer(view)
                libc.mincore(ctypes.c_void_p(ctypes.addressof(anchor)), ctypes.c_size_t(len(view)), flags)
                del anchor
                held += bytes(flags).count(1)
                total += pages
    return held / total


# Contenders: each in its own process.


def read_and_write(folders: list[Path], out: Path, threads: int) -> None:
    """Read every file once and write as many bytes as one checkpoint has."""
    todo = [(path, start) for path in files(folders) for start in range(0, path.stat().st_size, 1 << 26)]
    lock = threading.Lock()

    def read() -> None:
        buffer = memoryview(bytearray(1 << 22))
        while True:
            with lock:
                if not todo:
                    return
                path, start = todo.pop(0)
            handle = os.open(path, os.O_RDONLY)
            for offset in range(start, start + (1 << 26), 1 << 22):
                if os.preadv(handle, [buffer], offset) == 0:
                    break
            os.close(handle)

    readers = [threading.Thread(target=read) for _ in range(threads)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    content = os.urandom(1 << 22)
    with out.open("wb", buffering=0) as sink:
        for _ in range(sum(path.stat().st_size for path in files(folders[:1])) >> 22):
            sink.write(content)
        os.fsync(sink.fileno())


def ours(folders: list[Path], out: Path) -> None:
    from lowland import SWA, checkpoints

    checkpoints.average(folders, out, checkpoints.through(SWA))


def timm_loop(folders: list[Path], out: Path) -> None:
    import torch
    from timm.models import load_state_dict

    average: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}
    for folder in folders:
        state = {k: v for file in files([folder]) for k, v in load_state_dict(str(file), use_ema=False).items()}
        for key, value in state.items():
            if key not in average:
                average[key] = value.clone().to(dtype=torch.float64)
                counts[key] = 1
            else:
                average[key] += value.to(dtype=torch.float64)
                counts[key] += 1
    most = torch.finfo(torch.float32)
    final = {}
    for key, value in average.items():
        value.div_(counts[key])
        final[key] = value.clamp(most.min, most.max).to(torch.float32)
    torch.save(final, out)


def mergekit_linear(folders: list[Path], out: Path) -> None:
    import contextlib

    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    models = [{"model": str(folder), "parameters": {"weight": 1.0}} for folder in folders]
    config = {"merge_method": "linear", "models": models, "dtype": "bfloat16"}
    with contextlib.redirect_stdout(sys.stderr):
        run_merge(
            MergeConfiguration.model_validate(config),
            str(out),
            MergeOptions(copy_tokenizer=False, lazy_unpickle=True, write_model_card=False, quiet=True),
        )


def child(what: str, home: Path, out: Path) -> None:
    if what == "timm":
        peer("timm")
        import timm.models  # noqa: F401
    if what == "mergekit":
        sys.path.insert(0, str(ROOT / ".peers" / "mergekit"))
        import mergekit.merge  # noqa: F401
    folders = sorted(home.glob("checkpoint-*"))
    if what == "lowland":
        import torch

        import lowland.checkpoints  # noqa: F401

        torch.set_num_threads(os.cpu_count() or 1)
    begin = time.perf_counter()
    if what.startswith("read"):
        read_and_write(folders, out, int(what[-1]))
    else:
        {"lowland": ours, "timm": timm_loop, "mergekit": mergekit_linear}[what](folders, out)
    seconds = time.perf_counter() - begin
    peak = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    print(json.dumps({"seconds": seconds, "peak": peak * 1024}))


def measured(what: str, home: Path, folders: list[Path], limit: float) -> dict[str, float | str]:
    stays = drop(folders)
    out = home / "out"
    command = [sys.executable, "-W", "ignore", str(SELF), "child", what, str(home), str(out)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        if done.returncode:
            return {"failed": (done.stderr.strip().splitlines() or ["no word"])[-1][:160]}
        return {**json.loads(done.stdout.splitlines()[-1]), "resident": stays}
    except subprocess.TimeoutExpired:
        return {"failed": f"not finished in {limit:.0f} s"}
    finally:
        shutil.rmtree(out, ignore_errors=True) if out.is_dir() else out.unlink(missing_ok=True)


LIMITS = ("read 1", "read 3")
LABELS = {
    "read 1": "read once with 1 thread, write the result",
    "read 3": "read once with 3 threads, write the result",
    "lowland": "lowland average",
    "timm": "timm, loop of avg_checkpoints.py",
    "mergekit": "mergekit 0.1.5, linear",
}


def main() -> None:
    options = arguments(__doc__, rounds=2, checkpoints=10, layers=17, limit=120.0)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # what was made is removed
    home = Path(tempfile.mkdtemp(prefix="lowland-checkpoints-", dir=os.environ.get("TMPDIR", "/var/tmp")))
    tables, checks, notes, stays = {}, [], [], 0.0
    try:
        for dtype, layers in (("bfloat16", options.layers), ("float32", max(1, round(options.layers * 7 / 17)))):
            layers = 1 if options.quick else layers
            room = shutil.disk_usage(home).free / 1e9
            wanted = 1.5 * options.checkpoints * (2 if dtype == "bfloat16" else 4) * (131e6 + layers * 51.4e6) / 1e9
            if room < wanted:
                raise SystemExit(f"{wanted:.0f} GB of disk are wanted in {home.parent}, {room:.0f} are free")
            folders = make(home, options.checkpoints, layers, dtype)
            size = sum(path.stat().st_size for path in files(folders)) / 1e9
            runs: dict[str, list[dict[str, float | str]]] = {what: [] for what in LABELS}
            for number in range(options.rounds):
                order = [*LIMITS, "lowland"] if number % 2 == 0 else ["lowland", *reversed(LIMITS)]
                for what in order:
                    runs[what].append(measured(what, home, folders, 120))
            if dtype == "bfloat16":
                for what in ("timm", "mergekit"):
                    runs[what].append(measured(what, home, folders, options.limit))
            wrong = [f"{what}: {run['failed']}" for what, all_ in runs.items() for run in all_ if "failed" in run]
            notes += [f"{dtype}: {line}" for line in wrong]
            rows = []
            limits = [min(float(runs[what][n]["seconds"]) for what in LIMITS) for n in range(options.rounds)]
            for what, label in LABELS.items():
                good = [run for run in runs[what] if "seconds" in run]
                if not good:
                    continue
                seconds = [float(run["seconds"]) for run in good]
                stays = max(stays, *(float(run["resident"]) for run in good))
                ratios = [own / limit for own, limit in zip(seconds, limits, strict=False)]
                rows.append({
                    "contender": label,
                    "seconds": " ".join(f"{s:.1f}" for s in seconds),
                    "over the limit of its round": f"{statistics.median(ratios):.2f}",
                    "peak memory": f"{max(float(run['peak']) for run in good) / 1e9:.2f} GB",
                })  # fmt: skip
                if what == "lowland":
                    ratio, peak = statistics.median(ratios), max(float(run["peak"]) for run in good) / 1e9
                    checks.append((f"{dtype}, time over the limit", "<= 1.3", f"{ratio:.2f}", ratio <= 1.3))
                    checks.append((f"{dtype}, peak memory", "< 1 GB", f"{peak:.2f} GB", peak < 1))
            tables[f"{options.checkpoints} checkpoints, {dtype}, {size:.1f} GB in all"] = rows
            for folder in folders:
                shutil.rmtree(folder)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    notes.append(f"at most {stays:.1%} of the files' pages were in memory when a contender began")
    notes.append("timm and mergekit ran once, after the rounds, and are set against the limit of the first round")
    write("checkpoints", "Averaging checkpoint folders", tables, notes, checks, packages=("safetensors", "timm"))


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    else:
        main()
