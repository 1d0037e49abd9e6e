"""The ingredients of a merge, found again: where the record says they lie, beside the output, in runs that were moved,
and by their hashes under whatever name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .card import hashes_of, sha256
from .layout import Checkpoint, is_file_name
from .sources import open_checkpoint

_DEEPEST = 3  # folders below a run in which checkpoints are looked for


def found_again(
    record: Mapping[str, Any], target: Path, runs: Sequence[str | Path] = ()
) -> tuple[list[Checkpoint], list[str]]:
    """Open the ingredients of a record, and say which of them have changed.

    A path is taken as it is, from the output's folder, and from each of `runs` by its last parts. Where the record
    holds hashes, an ingredient is what has them: one that was moved or renamed is found among the checkpoints of
    `runs` and beside the output, and one that has changed is named.

    Raises:
        FileNotFoundError: an ingredient is found nowhere; the message names it.
    """
    known: dict[str, dict[str, str]] = {
        str(path): dict(files) for path, files in dict(record.get("hashes", {})).items()
    }
    homes = [Path(run) for run in runs] + [target.absolute().parent]
    for home in homes[:-1]:
        if not home.exists():
            raise FileNotFoundError(f"there is no folder {home} to look for ingredients in")
    hashed: dict[Path, str] = {}  # of files, each read once

    def fits(path: Path, files: Mapping[str, str]) -> bool:
        return all(
            _hash(file, hashed) == value for file, value in zip(_files(path, files), files.values(), strict=True)
        )

    opened, changed = [], []
    for path in record["inputs"]:
        asked = record.get("asked", {}).get(path, {})
        files = known.get(path, {})
        places = list(dict.fromkeys(_places(Path(path), homes)))
        place = next((place for place in places if fits(place, files)), None) if files else next(iter(places), None)
        if place is None and files:
            place = next((other for other in _candidates(homes, files, target) if fits(other, files)), None)
        if place is None and not places:
            told = f" (SHA-256 {next(iter(files.values()))[:12]}...)" if files else ""
            raise FileNotFoundError(
                f"the ingredient {path}{told} is gone: verify needs all; name the folder in which it lies now with "
                "--run, or give the command from the folder that it was named from"
            )
        if place is None:
            place = places[0]
            own = hashes_of(open_checkpoint(place, **asked))
            changed += [
                f"the ingredient {path}/{file} has changed" for file, value in files.items() if own.get(file) != value
            ]
        opened.append(open_checkpoint(place, **asked))
    return opened, changed


def _places(path: Path, homes: Sequence[Path]) -> Iterator[Path]:
    """Where an ingredient may lie by its name."""
    if path.exists():
        yield path
    for home in homes:
        if home.name == path.name and home.exists():
            yield home
        for depth in range(len(path.parts), 0, -1):
            inside = Path(*path.parts[-depth:])
            if not inside.is_absolute() and ".." not in inside.parts and (home / inside).exists():
                yield home / inside


def _candidates(homes: Sequence[Path], files: Mapping[str, str], target: Path) -> Iterator[Path]:
    """What has files of an ingredient's names: folders, or files of its suffix where it is a single file."""
    single = is_file_name(Path(next(iter(files)))) if len(files) == 1 else False
    for home in homes:
        for folder in _folders(home, _DEEPEST):
            if folder == target.absolute():
                continue
            if all((folder / file).is_file() for file in files):
                yield folder
            if single:
                suffix = Path(next(iter(files))).suffix
                yield from sorted(file for file in folder.iterdir() if file.is_file() and file.suffix == suffix)


def _folders(home: Path, deep: int) -> Iterator[Path]:
    if not home.is_dir():
        return
    yield home
    if deep:
        for inner in sorted(home.iterdir()):
            if inner.is_dir() and not inner.is_symlink() and not inner.name.startswith("."):
                yield from _folders(inner, deep - 1)


def _files(path: Path, files: Mapping[str, str]) -> list[Path]:
    """The files of an ingredient, if it is this one: the one file itself, or those in its folder."""
    if not path.is_file():
        return [path / file for file in files]
    alone = len(files) == 1 and not path.name.endswith(".json")
    return [path] if alone else [path.parent / file for file in files]  # named by its index of shards


def _hash(file: Path, hashed: dict[Path, str]) -> str:
    if file not in hashed:
        hashed[file] = sha256(file) if file.is_file() else ""
    return hashed[file]
