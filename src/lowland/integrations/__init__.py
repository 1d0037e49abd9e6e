"""Edges to other libraries, each behind its own import."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Load a module of this wing when it is first asked for."""
    from importlib import import_module
    from pkgutil import iter_modules

    if name in {found.name for found in iter_modules(__path__)}:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
