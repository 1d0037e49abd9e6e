"""The cost of draws from a low-rank SWAG, ours and the peers', beside the limit of the memory.

Timed is what a user calls: `swag.sample(n)`, the same into tensors that are there (`draws_into`), and the peers'
`sample`, which makes one draw and writes it into a model (torch-uncertainty: into a new one). Rank 20, all columns
held, tensors of real shapes: 1M (ResNet-20 of width 32), lora (192 small tensors), 25M (ResNet-50). All in
interleaved rounds, the triad right before each. A ratio is of times a draw, the median over rounds. The limit of ours
is what must move at the triad's speed: mean, second moment and columns once, each draw once. Peers have none, as they
move far more.

Checked beside the speed: what a call holds beside its result, and that chunks, threads, shards and compiled or plain
code give the same bits. `--large 1` adds 110M elements (BERT-base) at rank 10, in about 10 GB.
"""

from __future__ import annotations

import copy
import gc
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from harness import Check, arguments, compare, peak_extra, peer, triad, write
from torch import Tensor, nn
from updates import bert, lora, nested, resnet20, resnet50, size_of

import lowland.arithmetic.gaussian
from lowland import SWAG
from lowland.arithmetic import kernels, philox

RANK = 20
MANY = 30
PEERS = ("swa-gaussian", "torch-uncertainty")
FULL = "swa-gaussian sample(cov=True)"


def collected(model: nn.Module, rank: int, dtype: str = "float32") -> SWAG:
    """A SWAG whose columns are all in use; the second moment has been added to once."""
    swag = SWAG(rank=rank, deviations_dtype=dtype)
    swag.update(model)
    for column in swag._slots["deviations"].values():
        for row in column:  # one row at a time: the noise of all of them would be as large as the state
            row.copy_(torch.randn(row.shape) * 1e-3)
    for base in swag._base().values():
        base.fill_(1e-5)
    swag._updates = rank + 1
    return swag


def official(model: nn.Module, rank: int) -> Any:
    from swag.posteriors import SWAG as Official

    swag = Official(lambda: copy.deepcopy(model), no_cov_mat=False, max_num_models=rank)
    swag.collect_model(model)
    for module, name, *_ in swag.params:
        size = getattr(module, f"{name}_mean").numel()
        setattr(module, f"{name}_cov_mat_sqrt", torch.full((rank, size), 1e-3))
    swag.n_models.fill_(rank)
    swag.cov_mat_rank = rank
    return swag


def uncertainty(model: nn.Module, rank: int) -> Any:
    from torch_uncertainty.methods import SWAG as Peer

    swag = Peer(model, cycle_start=0, cycle_length=1, max_num_models=rank, num_estimators=0)
    for epoch in (1, 2):
        swag.update_wrapper(epoch)
    for key, value in swag.swag_stats.items():
        if key.endswith("covariance_sqrt"):
            swag.swag_stats[key] = torch.full((rank, value.shape[1]), 1e-3)
    swag.num_avgd_models += rank
    return swag


def targets(swag: SWAG, n: int) -> dict[str, Tensor]:
    return {name: torch.zeros(n, *mean.shape) for name, mean in swag._slots["mean"].items()}


def contenders(
    model: nn.Module, rank: int, troubles: dict[str, str]
) -> tuple[dict[str, Callable[[], object]], dict[str, int], dict[str, float]]:
    """What is timed, how many draws each call makes, and how many vectors ours must move."""
    full, half = collected(model, rank), collected(model, rank, "bfloat16")
    out = targets(full, MANY)
    first = {name: tensor[:1] for name, tensor in out.items()}
    calls: dict[str, Callable[[], object]] = {
        f"lowland draws_into, {MANY} rows": lambda: full.draws_into(out),
        f"lowland sample({MANY})": lambda: full.sample(MANY),
        f"lowland draws_into, {MANY} rows, bfloat16 deviations": lambda: half.draws_into(out),
        f"zeros into fresh tensors of {MANY} draws": lambda: [torch.zeros_like(t).fill_(0) for t in out.values()],
        "lowland draws_into, 1 row": lambda: full.draws_into(first),
        "lowland sample()": lambda: full.sample(),
        "lowland draws_into, 1 row, bfloat16 deviations": lambda: half.draws_into(first),
    }
    draws = {name: MANY if str(MANY) in name else 1 for name in calls}
    vectors = {
        name: (rank / 2 if "bfloat16" in name else rank) + 2 + n for name, n in draws.items() if "zeros" not in name
    }
    if not troubles["swa-gaussian"]:
        theirs = official(model, rank)
        calls[FULL] = lambda: theirs.sample(1.0, cov=True)
        calls["swa-gaussian sample(cov=True, block=True)"] = lambda: theirs.sample(1.0, cov=True, block=True)
    if not troubles["torch-uncertainty"]:
        other = uncertainty(model, rank)
        calls["torch-uncertainty sample"] = lambda: other.sample(1.0)
    return calls, draws, vectors


def timed(
    name: str, model: nn.Module, rank: int, troubles: dict[str, str], rounds: int
) -> tuple[list[dict[str, object]], dict[str, float]]:
    """A table by draw, and how many times faster than the official sampler each is, a draw."""
    calls, draws, vectors = contenders(model, rank, troubles)
    size = size_of(model)
    rows = compare(calls, limit=triad(size), vectors=vectors, rounds=rounds, window=0.02)
    known = {row.name: row for row in rows}
    table, faster = [], {}
    for row in rows:
        n = draws.get(row.name, 1)
        cells: dict[str, object] = {"contender": row.name, "ms a draw": f"{row.seconds / n * 1e3:.4g}"}
        cells["IQR ms"] = f"{row.iqr / n * 1e3:.2g}"
        if FULL in known:
            faster[row.name] = statistics.median(
                theirs * n / own for theirs, own in zip(known[FULL].times, row.times, strict=True)
            )
            cells["times as fast as the official"] = f"{faster[row.name]:.3g}"
        cells["normals M/s"] = f"{size * n / row.seconds / 1e6:.4g}"
        cells["over limit of the memory"] = "" if row.limit is None else f"{row.limit:.2f}"
        table.append(cells | {"rounds": len(row.times), "waited": f"{statistics.median(row.waiting):.1%}"})
    del calls, rows
    gc.collect()
    return table, faster


def ours(model: nn.Module, rank: int, block: bool) -> int:
    swag = collected(model, rank)
    out = targets(swag, MANY)
    return max(peak_extra(lambda: swag.tempered(1.0, block=block).draws_into(out)) for _ in range(3))


def memory(model: nn.Module, rank: int, troubles: dict[str, str]) -> tuple[list[dict[str, object]], int]:
    """Peak memory of one call beside what it returns or writes into."""
    own = ours(model, rank, block=False)
    block = ours(model, rank, block=True)
    rows: list[dict[str, object]] = [
        {"contender": f"lowland draws_into, {MANY} rows", "MB": f"{own / 1e6:.1f}"},
        {"contender": f"lowland draws_into, {MANY} rows, block=True", "MB": f"{block / 1e6:.1f}"},
    ]
    if not troubles["swa-gaussian"]:
        theirs = official(model, rank)
        theirs.sample(1.0, cov=True)
        rows.append({"contender": FULL, "MB": f"{peak_extra(lambda: theirs.sample(1.0, cov=True)) / 1e6:.1f}"})
        half = peak_extra(lambda: theirs.sample(1.0, cov=True, block=True)) / 1e6
        rows.append({"contender": "swa-gaussian sample(cov=True, block=True)", "MB": f"{half:.1f}"})
        del theirs
    if not troubles["torch-uncertainty"]:
        other = uncertainty(model, rank)
        other.sample(1.0)
        extra = peak_extra(lambda: other.sample(1.0)) / 1e6
        rows.append({"contender": "torch-uncertainty sample, its new model included", "MB": f"{extra:.1f}"})
    gc.collect()
    return rows, max(own, block)


def normals(rounds: int, size: int = 1 << 24) -> tuple[list[dict[str, object]], float]:
    """Standard normals into memory that is there."""
    from lowland.arithmetic.kernels import draws as fast

    out, piece = torch.zeros(size), 1 << 17

    def part(start: int) -> None:
        fast.normals(out.data_ptr() + 4 * start, 0, 1, 2, 3, 0, 1, start, piece, 0)

    parts = [(start,) for start in range(0, size, piece)]
    few = 1 << 20
    calls: dict[str, Callable[[], object]] = {
        "lowland kernel, all threads": lambda: kernels.run(part, parts),
        "lowland kernel, one thread": lambda: [part(*one) for one in parts],
        "lowland.arithmetic.philox.normals, plain torch": lambda: philox.normals(1, 3, range(1), 0, few),
        "torch.randn": lambda: torch.randn(size, out=out),
    }
    rows = compare(calls, baseline="torch.randn", rounds=rounds, window=0.02)
    counts = {name: few if "plain" in name else size for name in calls}
    rates = {row.name: counts[row.name] / row.seconds / 1e6 for row in rows}
    return [{"how": name, "M/s": f"{rate:.4g}"} for name, rate in rates.items()], rates["lowland kernel, all threads"]


# The same bits.


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)


def invariant(model: nn.Module, rank: int, name: str) -> list[Check]:
    swag, n = collected(model, rank), 3

    def made() -> dict[str, Tensor]:
        return swag.sample(n, generator=torch.Generator().manual_seed(0))

    whole, threads, found = made(), torch.get_num_threads(), {}
    pieces, work = lowland.arithmetic.gaussian.PIECE, lowland.arithmetic.gaussian.WORK
    lowland.arithmetic.gaussian.PIECE = 5 * 192
    found["pieces of 960 elements"] = equal(made(), whole)
    lowland.arithmetic.gaussian.PIECE = pieces
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        found[f"{count} threads"] = equal(made(), whole)
    torch.set_num_threads(threads)
    with kernels.disabled():
        lowland.arithmetic.gaussian.WORK = work // 4
        found["plain torch, in chunks of its own"] = equal(made(), whole)
        lowland.arithmetic.gaussian.WORK = work
    for ranks in (1, 2, 8):
        found[f"{ranks} shards"] = all(equal(*shard_of(swag, whole, rank, ranks)) for rank in range(ranks))
    one_by_one = list(swag.draws(n, generator=torch.Generator().manual_seed(0)))
    found["one draw at a time"] = equal({key: torch.stack([w[key] for w in one_by_one]) for key in whole}, whole)
    return [
        (f"{name}: the same bits with {what}", "equal", "equal" if ok else "differ", ok) for what, ok in found.items()
    ]


def shard_of(
    swag: SWAG, whole: dict[str, Tensor], rank: int, ranks: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What one rank draws and what it should; the other ranks do not exist, as nothing is communicated."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
    try:
        mesh = init_device_mesh("cpu", (ranks,))
        part = SWAG(rank=swag.rank)
        part._updates = swag.count
        for slot, named in swag._slots.items():
            dim = int(slot == "deviations")
            part._kept[slot] = {
                name: distribute_tensor(tensor, mesh, [Shard(dim)], src_data_rank=None)
                for name, tensor in named.items()
            }
        drawn = part.sample(3, generator=torch.Generator().manual_seed(0))
        wanted = {
            name: distribute_tensor(t, mesh, [Shard(1)], src_data_rank=None).to_local() for name, t in whole.items()
        }
        return {name: tensor.to_local() for name, tensor in drawn.items()}, wanted  # type: ignore[attr-defined]
    finally:
        dist.destroy_process_group()


def main() -> None:
    options = arguments(__doc__, large=0)
    troubles = {name: peer(name) for name in PEERS}
    notes = [f"{name}: not measured, {why}" for name, why in troubles.items() if why]
    rounds = 3 if options.quick else 8
    tables: dict[str, list[Any]] = {}
    checks: list[Check] = []
    tables["Normals, 16M float32"], rate = normals(rounds)
    checks.append(("normals on all threads", ">= 440 M/s", f"{rate:.0f} M/s", rate >= 440))
    best = f"lowland draws_into, {MANY} rows"
    sizes = {"1M": nested(resnet20()), "lora": nested(lora()), "25M": nested(resnet50())}
    if options.quick:
        del sizes["25M"]
    for name, model in sizes.items():
        table, faster = timed(name, model, RANK, troubles, rounds)
        tables[f"{name}: {size_of(model) / 1e6:.2f}M elements, rank {RANK}"] = table
        if FULL in faster and name != "1M":
            for call in (best, f"lowland sample({MANY})"):
                got = faster[call]
                checks.append(
                    (f"{name}: {call} against the official sampler, a draw", ">= 20 times", f"{got:.1f}", got >= 20)
                )
        rows, extra = memory(model, RANK, troubles)
        tables[f"{name}: peak memory of a call beside its result"] = rows
        checks.append((f"{name}: memory beside the result", "<= 16 MB", f"{extra / 1e6:.1f} MB", extra <= 16e6))
    for name in ("1M", "lora"):
        checks += invariant(sizes[name], RANK, name)
    sizes.clear()
    if options.large:
        model = bert()
        table, _ = timed("110M", model, 10, dict.fromkeys(PEERS, "left out for its memory"), 3)
        tables["110M, rank 10"] = table
    notes.append(
        "Draws of the peers are one a call; so is their rate. Targets of `draws_into` are written over at each call."
    )
    notes.append(
        "sample(30) takes fresh memory for its result; the row of zeros is what the system takes for that alone."
    )
    notes.append("The torch-uncertainty sampler draws independently for each tensor, as block=True does.")
    write("draws", "Draws from SWAG", tables, notes, checks, packages=PEERS)


if __name__ == "__main__":
    main()
