"""What a run was made with and on: packages, machine, hashes, memory."""

from __future__ import annotations

import hashlib
import os
import platform
import resource
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("lowland", "torch", "transformers", "peft", "accelerate", "tokenizers", "numpy", "safetensors")


def clean(folder: Path) -> None:
    """Remove what a process that was killed while it wrote left behind."""
    for left in list(folder.rglob(".*.part")):
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


def versions(dataset_hash: str, home: Path | None) -> dict[str, Any]:
    """Return what versions.json holds: packages, machine, and the hashes of the data and of the model's folder."""
    return {
        "python": platform.python_version(),
        **machine(PACKAGES),
        "threads": torch.get_num_threads(),
        "dataset_sha256": dataset_hash,
        "model_sha256": _folder_hash(home) if home is not None else "not a local folder",
    }


def machine(packages: Sequence[str]) -> dict[str, Any]:
    """Return the versions of packages, and the machine."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return {
        "packages": found,
        "machine": {
            "system": platform.system(),
            "processor": platform.machine(),
            "cores": os.cpu_count() or 0,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        },
    }


def _folder_hash(home: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(
        p for pattern in ("config.json", "tokenizer.json", "vocab.txt", "*.safetensors") for p in home.glob(pattern)
    ):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def peak_memory() -> float:
    """Return the largest memory of this process so far in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)
