"""The public names, held by a list: adding one here is a decision."""

import ast
import importlib
from pathlib import Path
from types import ModuleType

import pytest

import lowland

PUBLIC = {
    *("SWA", "EMA", "Snapshots", "SWAG", "ASWA", "Mixture"),
    *("weights_of", "copy_to", "applied"),
    *("refresh_bn", "predict"),
    *("save", "load"),
}
# Public by their own names: the files and wings of the folder.
SUBMODULES = {
    *("weights", "averager", "arithmetic.kernels"),
    *("swa", "ema", "snapshots", "swag", "aswa", "mixture", "soup", "cycles"),
    *("batchnorm", "calibration", "predict", "files", "checkpoints", "landscape"),
    *("retroactive", "doctor", "figures", "integrations", "studies", "linear"),
}


def test_the_root_names_exactly_the_public_list() -> None:
    named = {
        name for name, value in vars(lowland).items() if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert named == PUBLIC, f"missing {sorted(PUBLIC - named)}, unexpected {sorted(named - PUBLIC)}"


def test_the_root_holds_import_lines_and_nothing_else() -> None:
    body = ast.parse(Path(lowland.__file__).read_text()).body
    assert isinstance(body[0], ast.Expr), "the module's docstring comes first"
    for node in body[1:]:
        assert isinstance(node, ast.ImportFrom) and node.level == 1, f"line {node.lineno} is no `from .x import`"
        assert all(alias.asname == alias.name for alias in node.names), f"line {node.lineno}: write `X as X`"


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_is_documented(name: str) -> None:
    doc = getattr(lowland, name).__doc__ or ""
    assert len(doc.strip()) > 20 and ">>>" in doc, f"lowland.{name} wants a docstring with an example that runs"


@pytest.mark.parametrize("name", sorted(SUBMODULES))
def test_every_public_submodule_is_documented(name: str) -> None:
    module = importlib.import_module(f"lowland.{name}")
    assert (module.__doc__ or "").strip(), f"lowland.{name} wants a docstring"


def test_the_package_is_typed() -> None:
    assert (Path(lowland.__file__).parent / "py.typed").exists()
