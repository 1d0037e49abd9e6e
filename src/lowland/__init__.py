"""Averaged weights, Gaussian posteriors over weights, and what to do with them.

A name or a wing is loaded when it is first asked for: `lowland.doctor` is there after `import lowland`, and a command
line that only prints its help never loads torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import batchnorm as batchnorm
    from . import calibration as calibration
    from . import checkpoints as checkpoints
    from . import cycles as cycles
    from . import doctor as doctor
    from . import figures as figures
    from . import integrations as integrations
    from . import landscape as landscape
    from . import retroactive as retroactive
    from . import soup as soup
    from . import weights as weights
    from .arithmetic import kernels as kernels
    from .aswa import ASWA as ASWA
    from .batchnorm import refresh_bn as refresh_bn
    from .bema import BEMA as BEMA
    from .ema import EMA as EMA
    from .files import load as load
    from .files import save as save
    from .mixture import Mixture as Mixture
    from .predict import predict as predict
    from .snapshots import Snapshots as Snapshots
    from .swa import SWA as SWA
    from .swag import SWAG as SWAG
    from .weights import applied as applied
    from .weights import copy_to as copy_to
    from .weights import weights_of as weights_of

    __version__: str

_NAMES = {
    **{
        "SWA": "swa",
        "EMA": "ema",
        "BEMA": "bema",
        "Snapshots": "snapshots",
        "SWAG": "swag",
        "ASWA": "aswa",
        "Mixture": "mixture",
    },
    **{"weights_of": "weights", "copy_to": "weights", "applied": "weights"},
    **{"refresh_bn": "batchnorm", "predict": "predict", "load": "files", "save": "files"},
}


def _wings() -> list[str]:
    from pkgutil import iter_modules

    return [found.name for found in iter_modules(__path__) if not found.name.startswith("_")]


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(__name__)
    except PackageNotFoundError:  # read from a folder, never installed
        return "unknown"


class _Door(ModuleType):
    """The package, in which `predict` is the function, also once the wing of that name has been loaded."""

    @property
    def predict(self) -> Any:
        return import_module("lowland.predict").predict

    @predict.setter
    def predict(self, wing: ModuleType) -> None:
        """Importing a wing sets it as an attribute of its package: this one is found in `sys.modules`."""


sys.modules[__name__].__class__ = _Door


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(import_module(f"{__name__}.{_NAMES[name]}"), name)
    elif name == "kernels":
        value = import_module(f"{__name__}.arithmetic.kernels")
    elif name == "__version__":
        value = _version()
    elif not name.startswith("_") and name in _wings():
        value = import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*_NAMES, *_wings(), "kernels", "__version__"} - {"cli"})
