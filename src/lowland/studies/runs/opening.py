"""How every study begins: the folder is looked at, and what was run in it is not run again."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .folder import read_json, require_space, write_bytes, write_json
from .settings import differences, to_toml
from .versions import clean, versions


def read_configured(folder: Path, build: Callable[[dict[str, Any]], Any]) -> Any:
    """Read the configuration of a run folder and build the study from it.

    Raises:
        ValueError: it holds none, or that of another kind of study.
    """
    path = folder / "config.toml"
    if not path.is_file():
        raise ValueError(f"{folder} holds no study (no config.toml): name the folder that a study wrote")
    try:
        return build(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}): run the study again") from None


def check_folder(study: Any, folder: Path, resume: bool, build: Callable[[dict[str, Any]], Any]) -> None:
    """Refuse a folder that holds something else than the beginning of this study.

    Raises:
        ValueError: it is a file, is not empty and is not to be resumed, or holds a study with other settings.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: name a folder for the run")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not resume:
        raise ValueError(f"{folder} is not empty: continue what it holds with --resume, or name another folder")
    there = read_configured(folder, build)
    found = differences(there, study)
    if found:
        raise ValueError(
            f"{folder} holds a study with other settings (there, here): {', '.join(found[:5])}; name another folder"
        )


def finished(study: Any, folder: Path, resume: bool, build: Callable[[dict[str, Any]], Any]) -> dict[str, Any] | None:
    """Return what metrics.json holds if this study was run here to its end, and else see that there is room for it.

    Raises:
        ValueError: as `check_folder`.
        OSError: the disk is full.
    """
    check_folder(study, folder, resume, build)
    if (folder / "metrics.json").exists():  # written last
        metrics: dict[str, Any] = read_json(folder / "metrics.json")
        return metrics
    require_space(folder, 50 + 5 * len(study.training.seeds))
    return None


def begin(study: Any, folder: Path, dataset_hash: str, home: Path | None) -> None:
    """Write the configuration and the versions, and sweep away what a killed process left.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clean(folder)
    write_bytes(folder / "config.toml", to_toml(study).encode())
    write_json(folder / "versions.json", versions(dataset_hash, home))
