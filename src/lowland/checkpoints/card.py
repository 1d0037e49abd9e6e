"""The card of a merge: what it was made of and how, for whoever finds the folder later."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .layout import Checkpoint


def hashes_of(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the SHA-256 of each file of a checkpoint that holds tensors."""
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(sha256, checkpoint.files)
        return {os.path.relpath(file, folder): value for file, value in zip(checkpoint.files, found, strict=True)}


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def card(record: Mapping[str, Any], scores: Sequence[float] | None = None, notes: Sequence[str] = ()) -> str:
    """Return the text of a card for the record of a merge, in Markdown; `notes` are further sentences of it.

    >>> text = card({"method": {"name": "SWA"}, "inputs": ["a", "b"], "lowland": "1", "account": {"averaged": ["w"]}})
    >>> print(text.splitlines()[0], "|", text.splitlines()[4])
    # Average of 2 checkpoints | | checkpoint | coefficient |
    """
    method, inputs = dict(record["method"]), list(record["inputs"])
    coefficients = method.pop("coefficients", None)
    if coefficients and method.get("normalise"):
        total = sum(coefficients)
        coefficients = [c / total for c in coefficients]
    groups = method.pop("groups", ())
    told = ", ".join(f"{key} {value}" for key, value in method.items() if key not in ("name", "normalise"))
    lines = [
        f"# Average of {len(inputs)} checkpoints" if len(inputs) != 1 else "# Copy of one checkpoint",
        "",
        f"Made by lowland {record.get('lowland', '')} with `{method['name']}`{f' ({told})' if told else ''}.",
        "",
        "| checkpoint | coefficient |" + (" score alone |" if scores else ""),
        "| --- | --- |" + (" --- |" if scores else ""),
    ]
    shares = coefficients or ["equal" if method["name"] in ("SWA", "uniform") else "see above"] * len(inputs)
    for place, (path, share) in enumerate(zip(inputs, shares, strict=True)):
        shown = f"{share:.9g}" if isinstance(share, float) else str(share)
        lines.append(f"| {_cell(path)} | {shown} |" + (f" {scores[place]:.9g} |" if scores else ""))
    for pattern, own in groups:
        lines += ["", f"Of tensors that fit {_cell(pattern)}: {', '.join(f'{c:.9g}' for c in own)}."]
    if notes:
        lines += ["", *notes]
    account = record.get("account", {})
    lines += ["", f"{len(account.get('averaged', []))} tensors are averaged."]
    if account.get("carried"):
        lines.append(f"Carried along as in the last checkpoint: {', '.join(map(_cell, account['carried'][:20]))}.")
    if account.get("left"):
        lines.append(f"Left out: {', '.join(_cell(left['name']) for left in account['left'][:20])}.")
    if record.get("hashes"):
        lines += ["", "| ingredient | SHA-256 |", "| --- | --- |"]
        for path, files in record["hashes"].items():
            lines += [f"| {_cell(path)}: {_cell(file)} | `{value}` |" for file, value in files.items()]
    lines += [
        "",
        "`lowland verify` with this folder makes it again from the checkpoints and compares every tensor.",
        "",
    ]
    return "\n".join(lines)


def _cell(text: object) -> str:
    """A name in a table: no markup and no line breaks."""
    plain = "".join(c if c.isprintable() else "?" for c in str(text))
    return "`" + plain.replace("|", "\\|").replace("`", "'") + "`"
