"""The header of a state file: the one place that reads it, and the one error of what is none.

A state file is a safetensors file whose metadata hold, as JSON under the key `lowland`, the class of what was saved,
its settings, counts and scalars, and the names of its slots and tensors; of a mixture the same for each component.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

KEY = "lowland"
_DEEPEST = 16  # mixtures within mixtures
_FIELDS: dict[str, type] = {"count": int, "settings": dict, "scalars": dict, "slots": list, "names": list}


def header_of(metadata: Mapping[str, str] | None) -> dict[str, Any] | None:
    """Return what `lowland.save` wrote about a file in its metadata, or None where another program wrote it.

    Raises:
        ValueError: it is damaged: no JSON, or without a class, or lacking what a state of that class has.

    >>> header_of({"lowland": '{"class": "weights", "names": ["w"]}'}), header_of({"format": "pt"})
    ({'class': 'weights', 'names': ['w']}, None)
    >>> header_of({"lowland": '{"class": "SWA"}'})
    Traceback (most recent call last):
    ...
    ValueError: its header of lowland is damaged: SWA lacks count, settings, scalars, slots, names
    """
    text = (metadata or {}).get(KEY)
    if text is None:
        return None
    try:
        header = json.loads(text)
    except (ValueError, RecursionError, TypeError) as error:
        raise ValueError(f"its header of lowland is damaged: it is no JSON ({error})") from None
    _check(header, 0)
    return dict(header)


def written(header: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata that hold a header.

    >>> written({"class": "weights", "names": []})
    {'lowland': '{"class": "weights", "names": []}'}
    """
    return {KEY: json.dumps(header)}


def _check(header: Any, depth: int) -> None:
    if not isinstance(header, dict) or not isinstance(header.get("class"), str) or depth > _DEEPEST:
        raise ValueError("its header of lowland is damaged: it names no class")
    kind = header["class"]
    if "components" in header:
        parts = header["components"]
        if not isinstance(parts, list) or not parts:
            raise ValueError(f"its header of lowland is damaged: {kind} has no components")
        for part in parts:
            _check(part, depth + 1)
        return
    fields = {"names": list} if kind == "weights" else _FIELDS
    lacking = [
        name
        for name, wanted in fields.items()
        if not isinstance(header.get(name), wanted) or isinstance(header.get(name), bool)
    ]
    if lacking:
        raise ValueError(f"its header of lowland is damaged: {kind} lacks {', '.join(lacking)}")
    strange = [name for field in ("names", "slots") for name in header.get(field, ()) if not isinstance(name, str)]
    if strange:
        raise ValueError(f"its header of lowland is damaged: {strange[:3]} are no names")
