"""The memory of every averager: what it holds a parameter, and what an update takes beside that."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from lowland import ASWA

from .conformance import AVERAGERS
from .problems import walk

# Bytes a parameter for float32 weights, with the ranks and lengths of the conformance list: 3.
HELD = {
    "SWA": 4,
    "EMA": 4,
    "EMA-warmup": 4,
    "EMA-power": 4,
    "EMA-own": 4,
    "BEMA": 12,
    "BEMA-older": 12,
    "ASWA": 4,
    "SWAG": 8 + 4 * 3,
    "SWAG-bfloat16": 8 + 2 * 3,
    "SWAG-diagonal": 8,
    "Snapshots": 4 * 3,
}
# ASWA makes the weights shown, the look-ahead average, and a copy for its score to write into.
BESIDE = {"ASWA": 12}
MB = 1_000_000


def test_every_averager_is_in_the_table() -> None:
    assert AVERAGERS.keys() == HELD.keys()


@pytest.mark.parametrize("name", HELD)
def test_bytes_per_parameter(name: str) -> None:
    averager, path = AVERAGERS[name](), walk(5)
    assert averager.bytes_per_parameter() == HELD[name]
    for weights in path:
        averager.update(weights)
        tensors = [tensor for slot in averager.state_dict()["slots"].values() for tensor in slot.values()]
        held = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        assert held == HELD[name] * sum(tensor.numel() for tensor in path[0].values())
        assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == len(tensors)
    # Snapshots keep the model's dtype, everything else float32.
    half = averager.bytes_per_parameter(torch.bfloat16)
    assert half == (HELD[name] // 2 if name == "Snapshots" else HELD[name])


def peak(reset: bool = False) -> int:
    """The most memory that this process has had since the last reset, in bytes."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", [name for name in HELD if not name.startswith("EMA-")])
def test_an_update_takes_sixteen_megabytes_beside_at_most(name: str, dtype: torch.dtype) -> None:
    # A float32 temporary of the size of this tensor would be 32 MB.
    numel = 8_000_000
    # The score of the list takes memory of its own.
    averager = ASWA(lambda weights: 0.0) if name == "ASWA" else AVERAGERS[name]()
    weights = {"w": torch.ones(numel, dtype=dtype)}
    for _ in range(2):  # the first allocates, the second compiles
        averager.update(weights)
    for _ in range(3):  # until columns are overwritten
        before = peak(reset=True)
        averager.update(weights)
        assert peak() - before <= 16 * MB + BESIDE.get(name, 0) * numel
    assert averager.count == 5
