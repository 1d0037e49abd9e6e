"""The laws of the layout, kept by walking the imports of every source file."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "lowland"

# One row a floor, lowest first: a file or wing imports only from the rows above its own. A wing's files may import each
# other.
FLOORS: list[set[str]] = [
    {"arguments"},
    {"weights", "calibration", "cycles", "linear"},
    {"arithmetic"},
    {"averager"},
    {"swa", "ema", "bema", "teacher", "snapshots", "swag", "aswa", "mixture", "soup", "population"},
    {"files", "batchnorm"},
    {"predict", "checkpoints"},
    {"retroactive", "landscape"},
    {"doctor", "integrations", "figures"},
    {"studies"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, names in enumerate(FLOORS) for name in names}
METHODS = FLOORS[4] | {"cycles", "linear"}
METHOD_CLASSES = {"SWA", "EMA", "BEMA", "Snapshots", "SWAG", "ASWA", "Mixture"}
# What uses weights and names no method.
VERBS = {"files", "batchnorm", "predict", "checkpoints", "landscape", "retroactive", "doctor", "calibration"}
# What may see the public face of the library, and every optional package.
EDGES = {"integrations", "figures", "studies", "cli", "__main__"}
# What a file may import besides the standard library and lowland, and what some wings may, where a call needs it.
CORE = {"torch", "numpy", "safetensors"}
OPTIONAL = {
    "arithmetic": {"numba", "llvmlite", "triton"},
    "doctor": {"scipy"},
    "linear": {"sklearn", "scipy", "joblib", "dask", "distributed", "pyarrow", "threadpoolctl"},
}

FILES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")
LOWER = [path for path in FILES if path.relative_to(SOURCE).with_suffix("").parts[0] not in EDGES]


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def unit_of(path: Path) -> str:
    """The module or package directly under `lowland` that a file belongs to."""
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Every import of a file, wherever it stands, as line and absolute dotted name."""
    package = ["lowland", *path.relative_to(SOURCE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            for alias in node.names:
                yield node.lineno, ".".join([*base, *([node.module] if node.module else []), alias.name])


def own_imports(path: Path) -> Iterator[tuple[int, str]]:
    """Imports of lowland's own modules: line and the unit; `from lowland import SWA` counts as its public face."""
    for line, name in imports(path):
        parts = name.split(".")
        if parts[0] == "lowland":
            yield line, parts[1] if len(parts) > 1 and parts[1] in RANK else "lowland"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_file_stands_on_a_floor(path: Path) -> None:
    assert unit_of(path) in RANK, f"{name_of(path)} stands in no row of FLOORS: give it one"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_imports_only_from_lower_floors(path: Path) -> None:
    unit = unit_of(path)
    for line, other in own_imports(path):
        if other == "lowland":
            assert unit in EDGES, f"{name_of(path)}:{line} imports the public face from below it"
        elif other != unit:
            assert RANK[other] < RANK[unit], f"{name_of(path)}:{line} (floor {RANK[unit]}) imports {other}"


@pytest.mark.parametrize("path", [path for path in FILES if unit_of(path) in METHODS], ids=name_of)
def test_methods_never_import_each_other(path: Path) -> None:
    others = {module for _, module in own_imports(path)} & (METHODS - {unit_of(path)})
    assert not others, f"{name_of(path)} imports {sorted(others)}"


@pytest.mark.parametrize("path", [path for path in FILES if unit_of(path) in VERBS], ids=name_of)
def test_what_uses_weights_names_no_method(path: Path) -> None:
    for line, other in own_imports(path):
        assert other not in METHODS, f"{name_of(path)}:{line} imports {other}"
    for node in ast.walk(ast.parse(path.read_text())):
        name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None
        assert name not in METHOD_CLASSES, f"{name_of(path)} names {name}"


@pytest.mark.parametrize("path", LOWER, ids=name_of)
def test_optional_packages_stay_at_the_edge(path: Path) -> None:
    allowed = set(sys.stdlib_module_names) | CORE | {"lowland"} | OPTIONAL.get(unit_of(path), set())
    for line, name in imports(path):
        assert name.split(".")[0] in allowed, f"{name_of(path)}:{line} imports {name}, which only an edge may"


STUDIES = sorted((SOURCE / "studies").rglob("*.py"))


@pytest.mark.parametrize("path", STUDIES, ids=name_of)
def test_the_wing_of_studies_is_sealed(path: Path) -> None:
    """Studies import the library as a user does, so that they could be a package of their own."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            depth = len(path.relative_to(SOURCE).parent.parts)
            assert node.level <= depth, f"{name_of(path)}:{node.lineno} leaves studies/: import from lowland"


@pytest.mark.parametrize("path", STUDIES, ids=name_of)
def test_no_study_imports_another(path: Path) -> None:
    own = path.relative_to(SOURCE / "studies").parts[0]
    alone = {"text", "choice", "images", "links", "linear", "decay"}
    for line, name in imports(path):
        parts = name.split(".")
        if own in alone and parts[:2] == ["lowland", "studies"] and len(parts) > 2:
            assert parts[2] not in alone - {own}, f"{name_of(path)}:{line} imports {name}: what two need lies below"


@pytest.mark.parametrize("path", LOWER, ids=name_of)
def test_fused_arithmetic_and_global_randomness(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Attribute):
            continue
        where = f"{name_of(path)}:{node.lineno}"
        if name_of(path) != "arithmetic/moments.py":
            assert not node.attr.startswith("_foreach_"), f"{where}: only moments.py calls torch.{node.attr}"
        if isinstance(node.value, ast.Name) and node.value.id == "torch":
            assert node.attr not in {"manual_seed", "seed"}, f"{where}: randomness is a generator argument"


def outside() -> list[Path]:
    """Files that may use public names only: the edges, tests of behaviour, examples, benchmarks."""
    edges = [path for path in FILES if unit_of(path) in EDGES]
    folders = [ROOT / "tests", ROOT / "examples", ROOT / "benchmarks"]
    return edges + sorted(path for folder in folders for path in folder.rglob("*.py") if ".peers" not in path.parts)


@pytest.mark.parametrize("path", outside(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_outside_uses_public_names_only(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "lowland"):
            private = [alias.name for alias in node.names if alias.name.startswith("_")]
            assert not private, f"{path.name}:{node.lineno} imports {private}"


def test_the_root_imports_torch_and_nothing_optional() -> None:
    # What torch loads by itself is torch's business: only what lowland adds is looked at.
    script = (
        "import sys, torch; before = set(sys.modules); import lowland; "
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT / "src")
    added = set(run.stdout.split()) - set(sys.stdlib_module_names)
    assert added <= CORE | {"lowland"}, f"importing lowland also loads {sorted(added - CORE - {'lowland'})}"
