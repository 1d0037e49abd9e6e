"""A state file read by a process that has loaded no method yet."""

import subprocess
import sys
from pathlib import Path

import torch

from lowland import BEMA, EMA, SWAG, Mixture, save


def test_a_process_that_knows_no_method_reads_every_kind(tmp_path: Path) -> None:
    swag = SWAG(rank=2)
    for average in (BEMA(), EMA(0.9), swag):
        for value in (1.0, 2.0):
            average.update({"w": torch.full((2,), value)})
        save(average, tmp_path / f"{type(average).__name__}.safetensors")
    save(Mixture([swag, swag]), tmp_path / "Mixture.safetensors")
    code = (
        "import lowland, pathlib, sys; files = sorted(pathlib.Path(sys.argv[1]).iterdir());"
        "print([type(lowland.load(path)).__name__ for path in files])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "['BEMA', 'EMA', 'Mixture', 'SWAG']", done.stderr
