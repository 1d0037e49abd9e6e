"""The cost of one update of an average and of a SWAG, ours and every peer's, beside the limit of the memory.

Timed is what a user calls with the model in hand (`averager.update(model)`, the peer's own verb), on tensors of real
shapes: 1M (a ResNet-20 of width 32), lora (24 layers, q k v o, A 8x1024 and B 1024x8), 25M (ResNet-50), 110M
(BERT-base). All in interleaved rounds, the triad right before each. The limit is what must move at the triad's speed:
3 vectors for a mean (read weights, read and write the mean), 5 for a diagonal, 6 for low-rank (and one column written).
Ours refuse what is not finite, which reads the weights once more; the rows "no check" leave that out, as all peers do.
What one read costs alone is the row of torch.aminmax.

Many small tensors have a limit of their own: loops in C over a table of their addresses that is ready (`pointers.py`),
with no Python, no model and no check around them. They are held against updates of lora back to back, when everything
lies in the cache, and after other memory has been walked, as between the steps of a training run.

SWAG has two phases: while a column is free, and when the oldest deviation is overwritten. Both are timed; the slower
one counts. Peers' columns are set directly, so that they are full from the start. At 110M the SWAGs do not fit in
memory together: in each round every one is built, timed and freed, in random order.
"""

from __future__ import annotations

import copy
import gc
import itertools
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import pointers
import torch
from harness import Row, arguments, compare, peak_extra, peer, triad, write
from torch import nn

from lowland import EMA, SWA, SWAG
from lowland.arithmetic import kernels

RANK = 20
DECAY = 0.999
PEERS = ("swa-gaussian", "torch-uncertainty", "timm", "ema-pytorch", "torch-ema")


# Models: nested modules of the shapes named above.


def nested(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> nn.Module:
    root = nn.Module()
    for name, shape in shapes.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module._modules[part]  # type: ignore[assignment]
        module.register_parameter(last, nn.Parameter(torch.randn(shape).to(dtype)))
    return root


def resnet20(width: int = 32) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"conv.weight": (width, 3, 3, 3)}
    shapes |= {f"bn.{kind}": (width,) for kind in ("weight", "bias")}
    before = width
    for stage in range(3):
        now = width * 2**stage
        for block in range(3):
            for conv in (1, 2):
                name = f"layer{stage}.{block}"
                shapes[f"{name}.conv{conv}.weight"] = (now, before, 3, 3)
                shapes |= {f"{name}.bn{conv}.{kind}": (now,) for kind in ("weight", "bias")}
                before = now
    return shapes | {"fc.weight": (10, before), "fc.bias": (10,)}


def resnet50() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 7, 7), "bn1.weight": (64,), "bn1.bias": (64,)}
    before = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage
        for block in range(blocks):
            name = f"layer{stage + 1}.{block}"
            convs = [(width, before, 1), (width, width, 3), (4 * width, width, 1)]
            for index, (out, into, size) in enumerate(convs, start=1):
                shapes[f"{name}.conv{index}.weight"] = (out, into, size, size)
                shapes |= {f"{name}.bn{index}.{kind}": (out,) for kind in ("weight", "bias")}
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (4 * width, before, 1, 1)
                shapes |= {f"{name}.downsample.1.{kind}": (4 * width,) for kind in ("weight", "bias")}
            before = 4 * width
    return shapes | {"fc.weight": (1000, 2048), "fc.bias": (1000,)}


def lora(inner: int = 1024, rank: int = 8) -> dict[str, tuple[int, ...]]:
    return {
        f"model.layers.{layer}.self_attn.{which}_proj.lora_{part}.default.weight": shape
        for layer in range(24)
        for which in "qkvo"
        for part, shape in (("A", (rank, inner)), ("B", (inner, rank)))
    }


def bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig())


def size_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# Contenders: functions without arguments that make one update.


def started(swag: SWAG, model: nn.Module) -> SWAG:
    """Fill all columns: a fresh page of memory costs its first writer more than the update."""
    for _ in range(max(2, swag.rank)):
        swag.update(model)
    return swag


def plain(update: Callable[[], object]) -> Callable[[], object]:
    def call() -> None:
        with kernels.disabled():
            update()

    return call


def unchecked(swag: SWAG, update: Callable[[], object]) -> Callable[[], object]:
    def call() -> None:
        swag.check_finite = False
        update()
        swag.check_finite = True

    return call


def updating(update: Callable[[nn.Module], object], model: nn.Module) -> Callable[[], object]:
    return lambda: update(model)


def own_means(model: nn.Module) -> dict[str, Callable[[], object]]:
    return {
        "lowland SWA": updating(SWA().update, model),
        "lowland EMA": updating(EMA(DECAY).update, model),
        "lowland SWA, no check": updating(SWA(check_finite=False).update, model),
        "lowland EMA, no check": updating(EMA(DECAY, check_finite=False).update, model),
    }


def means(model: nn.Module, troubles: dict[str, str], fast_only: bool = False) -> dict[str, Callable[[], object]]:
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

    found = own_means(model) | {"lowland SWA, plain torch": plain(updating(SWA().update, model))}
    if fast_only:  # what takes seconds at 1 GB is left out there, and what is the same call again
        del found["lowland EMA"], found["lowland EMA, no check"]
    else:
        weights = [parameter.detach() for parameter in model.parameters()]
        found["torch.aminmax, one read of the weights"] = lambda: [torch.aminmax(tensor) for tensor in weights]
    for name, options in (
        ("torch AveragedModel", {}),
        ("torch AveragedModel, get_swa_multi_avg_fn", {"multi_avg_fn": get_swa_multi_avg_fn()}),
        ("torch AveragedModel, get_ema_multi_avg_fn", {"multi_avg_fn": get_ema_multi_avg_fn(DECAY)}),
    ):
        if options or not fast_only:
            found[f"{name}, no check"] = updating(AveragedModel(model, **options).update_parameters, model)
    if not troubles["timm"]:
        from timm.utils import ModelEmaV3

        found["timm ModelEmaV3, no check"] = updating(ModelEmaV3(model, decay=DECAY).update, model)
    if not troubles["ema-pytorch"]:
        from ema_pytorch import EMA as PeerEMA

        for name, foreach in (("ema-pytorch EMA", False), ("ema-pytorch EMA, use_foreach", True)):
            if fast_only and not foreach:
                continue
            averaged = PeerEMA(model, beta=DECAY, update_after_step=0, update_every=1, use_foreach=foreach)
            found[f"{name}, no check"] = averaged.update
    if not troubles["torch-ema"] and not fast_only:
        from torch_ema import ExponentialMovingAverage

        averaged = ExponentialMovingAverage(model.parameters(), decay=DECAY)
        found["torch-ema ExponentialMovingAverage, no check"] = averaged.update
    for update in found.values():
        update()
        update()
    return found


def gaussians(model: nn.Module, troubles: dict[str, str], large: bool) -> list[Callable[[], dict[str, Any]]]:
    """Makers of groups of contenders; those of a group share their statistics."""

    def ours() -> dict[str, Callable[[], object]]:
        swag = started(SWAG(rank=RANK), model)

        def phase(counts: range) -> Callable[[], object]:
            at = itertools.cycle(counts)

            def update() -> None:
                swag._updates = next(at)
                swag.update(model)

            return update

        # An update takes the column after its count, and the next one the next.
        free, full = phase(range(2, RANK)), phase(range(2 * RANK, 3 * RANK))
        return {
            "lowland SWAG, columns free": free,
            "lowland SWAG, columns full": full,
            "lowland SWAG, columns full, no check": unchecked(swag, full),
            "lowland SWAG, columns free, plain torch": plain(free),
            "lowland SWAG, columns full, plain torch": plain(full),
        }

    def rounded() -> dict[str, Callable[[], object]]:
        swag = started(SWAG(rank=RANK, deviations_dtype="bfloat16"), model)
        return {"lowland SWAG bfloat16": lambda: swag.update(model)}

    groups: list[Callable[[], dict[str, Any]]] = [ours, rounded]
    if not troubles["swa-gaussian"]:
        groups.append(lambda: {"swa-gaussian collect_model, no check": official(model, RANK)})
    if not troubles["torch-uncertainty"] and not large:
        groups.append(lambda: {"torch-uncertainty update_wrapper, no samples, no check": uncertainty(model)})
    return groups


def all_gaussians(model: nn.Module, troubles: dict[str, str]) -> dict[str, Callable[[], object]]:
    return {name: update for group in gaussians(model, troubles, large=False) for name, update in group().items()}


def official(model: nn.Module, rank: int) -> Callable[[], object]:
    from swag.posteriors import SWAG as Official

    # It takes the parameters away from the model that it is given the maker of.
    swag = Official(lambda: copy.deepcopy(model), no_cov_mat=rank == 0, max_num_models=rank)
    swag.collect_model(model)
    if rank:
        for module, name, *_ in swag.params:
            size = getattr(module, f"{name}_mean").numel()
            setattr(module, f"{name}_cov_mat_sqrt", torch.full((rank, size), 1e-3))
        swag.n_models.fill_(rank)
        swag.cov_mat_rank = rank
    return lambda: swag.collect_model(model)


def uncertainty(model: nn.Module) -> Callable[[], object]:
    from torch_uncertainty.methods import SWAG as Peer

    swag = Peer(model, cycle_start=0, cycle_length=1, max_num_models=RANK, num_estimators=0)
    epochs = itertools.count(1)
    for _ in range(2):
        swag.update_wrapper(next(epochs))
    for key, value in swag.swag_stats.items():
        if key.endswith("covariance_sqrt"):
            swag.swag_stats[key] = torch.full((RANK, value.shape[1]), 1e-3)
    swag.num_avgd_models += RANK
    return lambda: swag.update_wrapper(next(epochs))


def diagonals(model: nn.Module, troubles: dict[str, str]) -> dict[str, Callable[[], object]]:
    swag = started(SWAG(rank=0), model)
    found: dict[str, Callable[[], object]] = {"lowland SWAG(rank=0)": lambda: swag.update(model)}
    if not troubles["swa-gaussian"]:
        found["swa-gaussian collect_model, no_cov_mat, no check"] = official(model, 0)
    return found


def one_by_one(groups: list[Callable[[], dict[str, Any]]], limit: Callable[[], object], rounds: int) -> list[Row]:
    """As `compare`, for groups of contenders that do not fit in memory together."""
    merged: dict[str, Row] = {}
    order, chance = list(range(len(groups))), random.Random(0)
    for _ in range(rounds):
        chance.shuffle(order)
        for place in order:
            group = groups[place]()
            rows = compare(group, limit=limit, vectors=dict.fromkeys(group, 6.0), rounds=3, calls=1, budget=8.0)
            del group
            gc.collect()
            for row in rows:
                total = merged.setdefault(row.name, Row(row.name, [], calls=1))
                total.times += [statistics.median(row.times)]
                total.limits += [statistics.median(row.limits)]
                total.waiting += [statistics.median(row.waiting)]
    return list(merged.values())


# What is compared.


def small_or_middle(name: str, model: nn.Module, troubles: dict[str, str], rounds: int) -> dict[str, list[Row]]:
    limit = triad(size_of(model))
    tables = {}
    for kind, vectors, make in (
        ("mean", 3.0, means),
        ("diagonal", 5.0, diagonals),
        ("low-rank", 6.0, all_gaussians),
    ):
        contenders = make(model, troubles)
        lengths = dict.fromkeys(contenders, vectors)
        # Where they do not fit in the cache, an untimed call first: a system may take back memory that lay idle.
        prepare = contenders if size_of(model) > 1 << 24 else None
        tables[f"{name}: {kind}"] = compare(
            contenders, limit=limit, vectors=lengths, prepare=prepare, rounds=rounds, window=0.02
        )
        del contenders
        gc.collect()
    return tables


def large(name: str, model: nn.Module, troubles: dict[str, str], rounds: int) -> dict[str, list[Row]]:
    limit = triad(size_of(model))
    contenders = means(model, troubles)
    tables = {
        f"{name}: mean": compare(
            contenders, limit=limit, vectors=dict.fromkeys(contenders, 3.0), prepare=contenders, rounds=rounds, calls=2
        )
    }
    del contenders
    gc.collect()
    groups = gaussians(model, troubles, large=True)
    tables[f"{name}: low-rank"] = one_by_one(groups, limit, max(2, rounds * 3 // 8))
    return tables


ELSEWHERE = 1 << 26  # floats: more than any cache holds
LORA_TABLES = tuple(f"lora: beside C loops, {when}" for when in ("back to back", "after other memory was walked"))
LOOPS = {"mean": "C loop, mean", "column": "C loop, SWAG with columns free", "evict": "C loop, SWAG with columns full"}


def beside_loops(model: nn.Module, rounds: int) -> dict[str, list[Row]]:
    """Our updates of many small tensors beside C loops over a table of their addresses."""
    loops = pointers.loops(dict(model.named_parameters()), RANK)
    alone = dict.fromkeys(PEERS, "left out here")
    own = gaussians(model, alone, large=True)[0]() | own_means(model)
    contenders: dict[str, Callable[[], object]] = {LOOPS[name]: loop for name, loop in loops.items()}
    contenders |= {name: update for name, update in own.items() if "plain" not in name}
    limit = triad(size_of(model))
    vectors = dict.fromkeys((name for name in contenders if "SWAG" not in name), 3.0)
    other = torch.zeros(ELSEWHERE)

    def walk() -> None:
        other.add_(1.0)

    return {
        LORA_TABLES[0]: compare(contenders, limit=limit, vectors=vectors, rounds=rounds, window=0.02),
        LORA_TABLES[1]: compare(
            contenders,
            limit=limit,
            vectors=vectors,
            prepare=dict.fromkeys(contenders, walk),
            rounds=5 * rounds,
            calls=1,
        ),
    }


def dtypes(rounds: int) -> list[Row]:
    """ResNet-50 in half precision: 2 bytes of weights are read, the averages stay float32."""
    contenders: dict[str, Callable[[], object]] = {}
    vectors: dict[str, float] = {}
    shapes = resnet50()
    for dtype in (torch.bfloat16, torch.float16):
        model = nested(shapes, dtype)
        swa, swag = SWA(), started(SWAG(rank=RANK, deviations_dtype="bfloat16"), model)
        short = str(dtype).removeprefix("torch.")
        contenders[f"lowland SWA, {short} weights"] = lambda swa=swa, model=model: swa.update(model)
        contenders[f"lowland SWAG bfloat16, {short} weights"] = lambda swag=swag, model=model: swag.update(model)
        vectors |= {f"lowland SWA, {short} weights": 2.5, f"lowland SWAG bfloat16, {short} weights": 5.0}
    return compare(contenders, limit=triad(size_of(model)), vectors=vectors, rounds=rounds, calls=2)


def overhead(model: nn.Module, troubles: dict[str, str], rounds: int) -> list[Row]:
    """192 tensors of 8 elements: the cost of Python and of calls alone."""
    contenders = means(model, troubles) | all_gaussians(model, troubles)
    return compare(contenders, rounds=rounds, window=0.02)


def first_updates(model: nn.Module, troubles: dict[str, str], updates: int = 25) -> list[dict[str, object]]:
    """A run's first updates from nothing, memory of the columns not yet touched."""
    rows: list[dict[str, object]] = []

    def timed(name: str, begin: Callable[[], Callable[[], object]]) -> None:
        start = time.perf_counter()
        update = begin()
        for _ in range(updates):
            update()
        rows.append({"contender": name, "updates": updates, "seconds in all": time.perf_counter() - start})

    def ours() -> Callable[[], object]:
        swag = SWAG(rank=RANK)
        return lambda: swag.update(model)

    def theirs() -> Callable[[], object]:
        from swag.posteriors import SWAG as Official

        swag = Official(lambda: copy.deepcopy(model), no_cov_mat=False, max_num_models=RANK)
        return lambda: swag.collect_model(model)

    timed("lowland SWAG", ours)
    if not troubles["swa-gaussian"]:
        timed("swa-gaussian collect_model, no check", theirs)
    return rows


def extra(model: nn.Module) -> list[dict[str, object]]:
    """Resident memory that one update adds at its highest."""
    rows: list[dict[str, object]] = []
    for name, make in (
        ("SWA", SWA),
        ("EMA", EMA),
        ("SWAG(rank=2)", lambda: started(SWAG(rank=2), model)),
        ("SWAG(rank=2), bfloat16", lambda: started(SWAG(rank=2, deviations_dtype="bfloat16"), model)),
    ):
        for path in ("kernels", "plain torch"):
            averager = make()
            update = lambda averager=averager: averager.update(model)  # noqa: E731
            update = update if path == "kernels" else plain(update)
            for _ in range(3):
                update()
            rows.append({"averager": name, "path": path, "MB": peak_extra(update) / 1e6})
            del averager, update
    return rows


def checks(tables: dict[str, Any], memory: list[dict[str, object]]) -> list[tuple[str, str, str, bool]]:
    found = []

    def row(table: str, name: str) -> Row:
        return next(row for row in tables[table] if row.name == name)

    def slower(table: str) -> Row:
        return max((row(table, f"lowland SWAG, columns {phase}") for phase in ("free", "full")), key=lambda r: r.limit)

    def add(claim: str, wanted: float, got: float, most: bool = True) -> None:
        holds = got <= wanted if most else got >= wanted
        found.append((claim, f"{'<=' if most else '>='} {wanted:g}", f"{got:.2f}", holds))

    for size, limit, ratio in (("25M", 1.5, 25), ("110M", 1.5, 25), ("lora", 3.0, 20)):
        table = f"{size}: low-rank"
        worst = slower(table)
        other = row(table, "swa-gaussian collect_model, no check")
        add(f"SWAG at {size}, the slower phase, over the limit", limit, worst.limit or 0.0)
        add(f"official collect_model at {size} over it", ratio, other.over(worst), False)
    for where in LORA_TABLES:
        held = {known.name for known in tables[where]}
        for names, loop, most in (
            (("SWA", "EMA", "SWA, no check", "EMA, no check"), "mean", 2.0),
            (("SWAG, columns free",), "column", 1.7),
            (("SWAG, columns full", "SWAG, columns full, no check"), "evict", 1.7),
        ):
            for name in names if LOOPS[loop] in held else ():
                ratio = row(where, f"lowland {name}").over(row(where, LOOPS[loop]))
                add(f"{name} at {where.replace('lora: beside C loops', 'lora over its C loop')}", most, ratio)
    for size in ("25M", "110M"):
        table = f"{size}: mean"
        peers = [r for r in tables[table] if r.name.startswith(("torch Av", "timm", "ema-pytorch"))]
        for method in ("SWA", "EMA"):
            best = min(peers, key=lambda r: r.seconds)
            for check in ("", ", no check"):
                own = row(table, f"lowland {method}{check}")
                add(f"{method}{check} at {size} over the limit", 1.35, own.limit or 0.0)
                add(f"{method}{check} at {size} over the fastest peer ({best.name})", 1.0, own.over(best))
    tiny = "192 tensors of 8 elements"
    for name in ("lowland SWA", "lowland SWAG, columns full"):
        add(f"{name} on {tiny}, us", 250, row(tiny, name).seconds * 1e6)
    worst_memory = max(float(str(entry["MB"])) for entry in memory)
    add("extra memory of an update at 110M, MB, the most of all methods and paths", 16, worst_memory)
    return found


if __name__ == "__main__":
    options = arguments(__doc__)
    short = options.quick
    torch.manual_seed(0)
    # First of all, as in a training script: later, Python's heap is full of holes, and a walk over a model is a walk
    # over all of it.
    tiny, adapters, small = nested({name: (8,) for name in lora()}), nested(lora()), nested(resnet20())
    troubles = {name: peer(name) for name in PEERS}
    for name, trouble in troubles.items():
        if trouble:
            print(f"{name}: {trouble}")
    rounds = 3 if short else 6
    tables: dict[str, Any] = {}
    tables["192 tensors of 8 elements"] = overhead(tiny, troubles, rounds + 2)
    tables |= small_or_middle("lora", adapters, troubles, rounds)
    tables |= beside_loops(adapters, rounds)
    tables |= small_or_middle("1M", small, troubles, rounds)
    del tiny, adapters, small
    middle = nested(resnet50())
    tables |= small_or_middle("25M", middle, troubles, rounds)
    tables["25M: half precision"] = dtypes(rounds)
    tables["25M: from nothing"] = first_updates(middle, troubles)
    del middle
    gc.collect()
    big = bert()
    print("110M", flush=True)
    tables |= large("110M", big, troubles, rounds)
    memory = extra(big)
    tables["Extra memory of an update at 110M"] = memory
    del big
    gc.collect()
    whole = nested({"embedding.weight": (32_768, 8_192)})
    tables["1 GB tensor: mean"] = compare(
        (contenders := means(whole, troubles, fast_only=True)),
        limit=triad(size_of(whole)),
        vectors=dict.fromkeys(contenders, 3.0),
        prepare=contenders,
        rounds=rounds + 2,
        calls=2,
    )
    notes = [f"{name} could not be had: {trouble}" for name, trouble in troubles.items() if trouble]
    write(
        "updates", "One update of an average", tables, notes, checks(tables, memory), packages=[*PEERS, "transformers"]
    )
