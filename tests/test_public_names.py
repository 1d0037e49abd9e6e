"""The public names, held by a list: adding one here is a decision."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import lowland

PUBLIC = {
    *("SWA", "EMA", "BEMA", "Snapshots", "SWAG", "ASWA", "Mixture"),
    *("weights_of", "copy_to", "applied"),
    *("refresh_bn", "predict"),
    *("save", "load"),
}
# Public by their own names: the files and wings of the folder.
SUBMODULES = {
    *("weights", "averager", "arithmetic.kernels"),
    *("swa", "ema", "bema", "teacher", "snapshots", "swag", "aswa", "mixture", "soup", "cycles"),
    *("population", "linear"),
    *("batchnorm", "calibration", "predict", "files", "checkpoints", "landscape"),
    *("retroactive", "doctor", "figures", "integrations", "studies", "linear"),
}


def test_the_root_names_exactly_the_public_list() -> None:
    named = {
        name for name in dir(lowland) if not name.startswith("_") and not isinstance(getattr(lowland, name), ModuleType)
    }
    assert named == PUBLIC, f"missing {sorted(PUBLIC - named)}, unexpected {sorted(named - PUBLIC)}"


def test_type_checkers_see_the_names_that_are_loaded_when_asked_for() -> None:
    """What stands under TYPE_CHECKING in the root, and where it is really taken from, are the same."""
    tree = ast.parse(Path(lowland.__file__).read_text())
    seen = {
        alias.name: node.module
        for part in tree.body
        if isinstance(part, ast.If)
        for node in part.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    }
    for name, home in seen.items():
        value = getattr(lowland, name)
        expected = importlib.import_module(f"lowland.{home or name}")
        assert value is (getattr(expected, name) if home else expected), name
    assert {name for name, home in seen.items() if home} == PUBLIC | {"kernels"}


def test_wings_are_reachable_listed_and_loaded_only_when_asked_for() -> None:
    script = (
        "import sys, lowland; listed = dir(lowland); assert 'torch' not in sys.modules; "
        "assert {'doctor', 'checkpoints', 'landscape', 'integrations', 'predict', 'SWA'} <= set(listed), listed; "
        "assert 'cli' not in listed; print(lowland.__version__); "
        "lowland.doctor, lowland.checkpoints, lowland.landscape, lowland.integrations.swa_utils, lowland.figures; "
        "assert not {'transformers', 'peft', 'lightning', 'matplotlib', 'numba'} & set(sys.modules); "
        "import lowland.predict.prediction; assert callable(lowland.predict); "
        "from lowland import predict; assert callable(predict)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == lowland.__version__
    with pytest.raises(AttributeError, match="has no attribute 'philox'"):
        _ = lowland.philox


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
