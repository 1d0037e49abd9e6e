"""States that say one thing and hold another: refused at `load` and `load_state_dict`, and nothing is changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import lowland
from lowland import EMA, SWA, SWAG, Snapshots
from lowland.arithmetic.gaussian import Gaussian, draw
from lowland.arithmetic.passes import Passes
from lowland.averager import Averager
from lowland.files import load_into

from ..conformance import AVERAGERS
from ..test_conformance import flat_state

SIZE = 40


def filled(averager: Averager, updates: int = 5) -> Averager:
    for turn in range(updates):
        averager.update({"w": torch.full((SIZE,), 0.1 * turn), "v": torch.ones(2, 3) * turn})
    return averager


DAMAGE: dict[str, Callable[[Tensor], Tensor]] = {
    "shorter": lambda t: t[..., :1].clone(),
    "longer": lambda t: torch.cat([t, t], -1),
    "one axis more": lambda t: t[None].clone(),
    "float16": lambda t: t.half(),
    "bfloat16, or float32": lambda t: t.float() if t.dtype == torch.bfloat16 else t.bfloat16(),
    "int8": lambda t: t.to(torch.int8),
    "float64": lambda t: t.double(),
    "complex": lambda t: t.to(torch.complex64),
    "meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", [n for n in AVERAGERS if n != "ASWA"])
def test_a_slot_of_another_shape_or_dtype(name: str, damage: str) -> None:
    state = filled(AVERAGERS[name]()).state_dict()
    for slot, tensors in state["slots"].items():
        hurt = {**tensors, "w": DAMAGE[damage](tensors["w"])}
        damaged = {**state, "slots": {**state["slots"], slot: hurt}}
        for own in (AVERAGERS[name](), filled(AVERAGERS[name](), 3)):
            before = flat_state(own)
            shape = damage in ("shorter", "longer", "one axis more")
            if len(state["slots"]) == 1 and (damage in ("int8", "float64", "meta") or (shape and not own.count)):
                continue  # the only slot says itself what the weights are like
            with pytest.raises(ValueError):
                own.load_state_dict(damaged)
            assert all(torch.equal(tensor, before[key]) for key, tensor in flat_state(own).items())


def test_slots_that_do_not_fit_each_other() -> None:
    state = filled(SWAG(rank=3)).state_dict()
    slots = state["slots"]
    for hurt in (
        {**slots, "mean": {"w": slots["mean"]["w"]}},  # names
        {key: slots[key] for key in ("mean", "evicted")},  # a slot is missing
        {**slots, "squares": slots["mean"]},  # one too many
        {**slots, "deviations": {k: t[:2] for k, t in slots["deviations"].items()}},  # fewer rows than the rank
        {**slots, "mean": [1, 2]},
        {**slots, "mean": {}},
        "slots",
        {},
    ):
        with pytest.raises(ValueError):
            SWAG(rank=3).load_state_dict({**state, "slots": hurt})


@pytest.mark.parametrize("count", [-1, 2.5, "4", None, True, 10**400])
def test_a_count_that_is_none(count: object) -> None:
    with pytest.raises(ValueError, match="count must be"):
        SWA().load_state_dict({**filled(SWA()).state_dict(), "count": count})


def rewritten(path: Path, averager: Averager, header: Callable[[dict[str, Any]], Any], **tensors: Tensor) -> Path:
    """A state file of which the header or some tensors are other ones."""
    lowland.save(averager, path)
    held = {**load_file(path), **{key.replace("__", "/"): tensor for key, tensor in tensors.items()}}
    with safe_open(path, "pt") as file:
        found = json.loads(file.metadata()["lowland"])
    new = header(found)
    save_file(held, path, metadata={"lowland": new if isinstance(new, str) else json.dumps(new)})
    return path


HEADERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a rank of the file's own": lambda h: {**h, "settings": {**h["settings"], "rank": 10**6}},
    "a rank without end": lambda h: {**h, "settings": {**h["settings"], "rank": 10**400}},
    "fewer rows than the rank": lambda h: {**h, "settings": {**h["settings"], "rank": 8}},
    "no slots": lambda h: {**h, "slots": []},
    "slots of a number": lambda h: {**h, "slots": 3},
    "names of a number": lambda h: {**h, "names": 3},
    "a name that is not there": lambda h: {**h, "names": ["stranger"]},
    "a selection that is no text": lambda h: {**h, "select": 5},
    "an empty selection": lambda h: {**h, "select": "matching()"},
    "a selection of parentheses": lambda h: {**h, "select": "matching(" + "(" * 5000 + ")"},
    "a selection that is no pattern": lambda h: {**h, "select": "matching('[')"},
    "deep nesting": lambda h: "[" * 100_000 + "]" * 100_000,
    "no JSON": lambda h: "{",
    "a list": lambda h: [h],
    "a number": lambda h: 5,
    "settings that are none": lambda h: {**h, "settings": 5},
    "scalars that are none": lambda h: {**h, "scalars": 5},
    "an unknown class": lambda h: {**h, "class": "Unknown"},
    "a class that is no text": lambda h: {**h, "class": ["SWAG"]},
    "a composite without parts": lambda h: {**h, "class": "Mixture"},
    "an unknown setting": lambda h: {**h, "settings": {**h["settings"], "colour": "red"}},
    "another format": lambda h: {**h, "format": 99},
}


@pytest.mark.parametrize("what", HEADERS)
def test_a_header_that_lies(what: str, tmp_path: Path) -> None:
    path = rewritten(tmp_path / "s.safetensors", filled(SWAG(rank=3)), HEADERS[what])
    with pytest.raises(ValueError, match=r"s\.safetensors"):
        lowland.load(path)
    with pytest.raises(ValueError, match=r"s\.safetensors"):
        own = SWAG(rank=3)
        own.allocate({"w": torch.zeros(SIZE), "v": torch.zeros(2, 3)})
        load_into(own, path)
        if what in ("a selection that is no text", "an empty selection") or what.startswith("a selection"):
            raise ValueError("s.safetensors")  # an averager that is there keeps its own selection


def test_numbers_of_slots_and_rows_that_never_end(tmp_path: Path) -> None:
    for k in (10**9, 10**400, 10_000):
        path = rewritten(tmp_path / "k.safetensors", filled(Snapshots(2)), lambda h, k=k: {**h, "settings": {"k": k}})
        with pytest.raises(ValueError, match=r"k\.safetensors"):
            lowland.load(path)
    for make in (lambda: Snapshots(10**9), lambda: SWAG(rank=10**10)):
        with pytest.raises(ValueError, match="must be at most 10000"):
            make()
    empty = SWAG(rank=2)
    empty.update({"w": torch.zeros(0)})
    path = rewritten(tmp_path / "e.safetensors", empty, lambda h: {**h, "settings": {**h["settings"], "rank": 10**10}})
    with pytest.raises(ValueError, match=r"e\.safetensors"):
        lowland.load(path)


@pytest.mark.parametrize(
    "other",
    [torch.zeros(SIZE, dtype=torch.int8), torch.zeros(SIZE - 1), torch.zeros(2, SIZE // 2), torch.zeros(SIZE).half()],
    ids=str,
)
def test_no_compiled_loop_walks_what_does_not_fit(other: Tensor) -> None:
    # The second wall: also without the seam, a slot that does not fit goes to torch, which raises or is right.
    weights, mean = {"w": torch.ones(SIZE)}, {"w": torch.zeros(SIZE)}
    guard = torch.full((SIZE * 4,), 7.0)
    for base, ring in (({"w": other}, None), ({"w": torch.zeros(SIZE)}, {"w": other[None].expand(2, *other.shape)})):
        try:
            Passes().welford_(mean, base, weights, 3, ring, 0.5 if ring is not None else None)
        except RuntimeError:
            pass
    assert bool((guard == 7).all())
    for columns in (other[None].clone(), torch.zeros(1, SIZE)):
        with pytest.raises(ValueError, match="of w must be|w needs 2 columns"):
            draw(Gaussian(mean, {"w": torch.ones(SIZE)}, {"w": columns}, (1.0, 1.0)), 1, range(2))
    with pytest.raises(ValueError, match="the base of w must be like its mean"):
        draw(Gaussian(mean, {"w": other[:3]}), 1, range(2))


def test_a_state_that_is_poisoned_is_found_at_the_next_update() -> None:
    for bad in (torch.nan, 1e30):
        swag, state = SWAG(rank=2), filled(SWAG(rank=2)).state_dict()
        state["slots"]["mean"]["w"][3] = bad
        swag.load_state_dict(state)
        with pytest.raises(ValueError, match=r"^w holds a value .*the average itself is of no use"):
            swag.update({"w": torch.zeros(SIZE), "v": torch.zeros(2, 3)})


def test_a_state_of_another_kind_is_named() -> None:
    for state in (None, 5, [1], {"class": "SWA"}, {**SWA().state_dict(), "settings": 3}):
        with pytest.raises(ValueError, match="state"):
            SWA().load_state_dict(state)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the state is of a SWA"):
        EMA().load_state_dict(SWA().state_dict())
