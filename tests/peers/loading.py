"""Released packages, unmodified, each in a folder of its own under .peers/ that git ignores.

A package is installed without its dependencies (torch is the project's), at the versions written here. Dependencies
that its averaging code does execute are installed beside it; modules that are only imported on the way there and never
run (image transforms, data frames, a tokeniser) are stood in for by stubs, and the table names them.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import shutil
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / ".peers"
INSTALL_SECONDS = 240


@dataclass(frozen=True)
class Peer:
    """What to ask, what to install, and what to stand in for.

    asks: the kinds of section it has, so that a peer that cannot be had keeps its rows. stubs: modules replaced by
    empty ones. bare: packages whose __init__ is skipped, so that a method file loads without the package's other
    methods. newer_python: the package asks for a newer Python than the oldest this project runs on.
    """

    asks: tuple[str, ...]
    pins: tuple[str, ...] = ()
    stubs: tuple[str, ...] = ()
    bare: tuple[str, ...] = ()
    newer_python: bool = False

    @property
    def manner(self) -> str:
        """How the code was loaded, for the table."""
        parts = ["method file alone" if self.bare else "imported whole"]
        if self.stubs:
            parts.append(f"stubs for {' and '.join(self.stubs)}")
        if self.newer_python:
            parts.append("requires-python overridden")
        return ", ".join(parts)


_LIGHTNING = ("lightning==2.6.6",)
_REQUESTS = ("requests==2.34.2", "urllib3==2.8.0", "certifi==2026.10.18", "charset-normalizer==3.5.2")

PEERS = {
    "lowland": Peer(("swag", "swa", "ema", "variance", "teacher")),
    "torch": Peer(("swa", "ema")),
    "trl": Peer(("teacher",)),  # the project's own environment has it, with all that its trainers import
    "swa-gaussian": Peer(
        ("swag", "variance"),
        ("swa-gaussian==0.1.9", "gpytorch==1.13", "linear-operator==0.6.1", "jaxtyping==0.3.11"),
        stubs=("torchvision",),
    ),
    "torch-uncertainty": Peer(
        ("swag", "swa", "variance"),
        ("torch-uncertainty==0.13.0", *_LIGHTNING, "einops==0.8.2"),
        stubs=("torchvision",),
    ),
    "lightning-uq-box": Peer(
        ("swag", "variance"),
        ("lightning-uq-box==0.4.0", *_LIGHTNING, "omegaconf==2.4.0", "h5py==3.16.0", "jsonargparse==4.53.0"),
        stubs=("torchvision",),
        bare=("lightning_uq_box.uq_methods",),
        newer_python=True,
    ),
    "dicee": Peer(("swag", "variance"), ("dicee==0.3.3", *_LIGHTNING, *_REQUESTS), stubs=("polars", "tiktoken")),
    "timm": Peer(("ema",), ("timm==1.0.31",), stubs=("torchvision",)),
    "ema-pytorch": Peer(("ema",), ("ema-pytorch==0.8.3",)),
    "torch-ema": Peer(("ema",), ("torch-ema==0.3",)),
    "diffusers": Peer(("ema",), ("diffusers==0.42.1", "importlib-metadata==10.2.0", "zipp==4.1.2", *_REQUESTS)),
}


def install(name: str, offline: bool = False) -> str:
    """Install a peer unless it is there; return what went wrong, or ''. Offline: only look whether it is there."""
    peer, target = PEERS[name], FOLDER / name
    wanted = "\n".join((f"python {sys.version_info.major}.{sys.version_info.minor}", *peer.pins))
    stamp = target / "pins.txt"
    if not peer.pins or (stamp.exists() and stamp.read_text() == wanted):
        return ""
    if offline:
        return "not installed: run `make peers` first"
    partial = FOLDER / f"{name}.partial"
    for old in (target, partial):
        shutil.rmtree(old, ignore_errors=True)
    partial.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--target", str(partial)]
    command += ["--ignore-requires-python"] if peer.newer_python else []
    # The project's constraints are about its own environment.
    environment = {key: value for key, value in os.environ.items() if key != "PIP_CONSTRAINT"}
    try:
        done = subprocess.run(
            [*command, *peer.pins], env=environment, capture_output=True, text=True, timeout=INSTALL_SECONDS
        )
    except subprocess.TimeoutExpired:
        shutil.rmtree(partial)
        return f"not installed: no answer in {INSTALL_SECONDS} s"
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        shutil.rmtree(partial)
        reason = (errors or done.stderr.splitlines() or ["pip failed"])[-1]
        return f"not installed: {reason.removeprefix('ERROR: ')}"
    (partial / "pins.txt").write_text(wanted)
    partial.rename(target)
    return ""


def prepare(name: str) -> None:
    """Make a peer importable in this process: its folder first on the path, its stubs last in line."""
    peer = PEERS[name]
    if not peer.pins:
        return
    sys.path.insert(0, str(FOLDER / name))
    sys.meta_path.append(_Stubs(peer.stubs))
    for package in peer.bare:
        module = types.ModuleType(package)
        module.__path__ = [str(FOLDER / name / package.replace(".", "/"))]
        sys.modules[package] = module


class _Anything(type):
    """A class that has every attribute, can be called, subclassed and subscripted, and does nothing."""

    def __getattr__(cls, name: str) -> object:
        return _anything(name)


def _anything(name: str) -> object:
    if name.startswith("__"):
        raise AttributeError(name)
    return _Anything(name, (), {"__init__": lambda *_, **__: None, "__class_getitem__": lambda cls, _: cls})


class _Stub(types.ModuleType):
    def __getattr__(self, name: str) -> object:
        value = _anything(name)
        setattr(self, name, value)
        return value


class _Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the named modules and all below them; comes last, so that what is installed wins."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def find_spec(self, fullname, path=None, target=None):  # type: ignore[no-untyped-def]
        if fullname.split(".")[0] not in self.names:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec):  # type: ignore[no-untyped-def]
        module = _Stub(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module):  # type: ignore[no-untyped-def]
        pass
