"""The laws of the layout, kept by walking the imports of every source file."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "lowland"

# Lowest first: a module or package imports only from the rows above its own. A package's files may import each other.
ROWS: list[tuple[str, set[str]]] = [
    ("0 shards", {"shards"}),
    ("0 threads and files", {"background", "tensorfile"}),
    ("0 random numbers", {"philox"}),
    ("0 compiled loops", {"kernels"}),
    ("0 names", {"selection"}),
    ("0 tensors", {"weights", "moments"}),
    ("0 updates", {"passes", "reading", "slots"}),
    ("0 draws", {"gaussian"}),
    ("1 seam", {"averager", "scores", "acceptance"}),
    ("1 drawing", {"posteriors"}),
    ("2 methods", {"swa", "ema", "snapshots", "swag", "aswa", "mixture", "soup", "cycles", "population", "linear"}),
    ("3 batches and probabilities", {"batches", "probabilities"}),
    ("3 what predictions are", {"predictive", "selective", "temperature", "bn_statistics"}),
    ("3 using weights", {"batchnorm", "control_variate", "calibration", "files", "landscape"}),
    ("3 whole checkpoints and members", {"checkpoints", "snapshot_files"}),
    ("3 running draws", {"plans", "bn_draws"}),
    ("3 predicting", {"predict"}),
    ("3 growing ensembles", {"accumulation"}),
    ("3 profiles in time", {"profiles"}),
    ("3 recording averages", {"records"}),
    ("3 after training", {"retroactive", "recorder"}),
    ("3 diagnosing", {"doctor"}),
    ("4 integrations", {"integrations", "report"}),
    ("4 studies", {"studies"}),
    ("4 command line", {"cli"}),
]
RANK = {name: rank for rank, (_, names) in enumerate(ROWS) for name in names}
LAYER = {name: int(title[0]) for title, names in ROWS for name in names}
METHOD_MODULES = {name for name, layer in LAYER.items() if layer == 2}
METHOD_CLASSES = {"SWA", "EMA", "Snapshots", "SWAG", "ASWA", "Mixture"}
# What a file below layer 4 may import besides the standard library and lowland.
CORE = {"torch", "numpy", "safetensors"}
# What compiled loops may import besides, at the first call that needs it.
COMPILERS = {"numba", "llvmlite", "triton"}

FILES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")
LOWER = [path for path in FILES if LAYER.get(path.relative_to(SOURCE).with_suffix("").parts[0], 4) < 4]


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
def test_every_file_has_a_layer(path: Path) -> None:
    assert unit_of(path) in RANK, f"{name_of(path)} stands in no row of ROWS: give it one"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_imports_only_from_lower_layers(path: Path) -> None:
    unit = unit_of(path)
    for line, other in own_imports(path):
        if other == "lowland":
            assert LAYER[unit] == 4, f"{name_of(path)}:{line} imports the public face from below it"
        elif other != unit:
            assert RANK[other] < RANK[unit], f"{name_of(path)}:{line} (layer {LAYER[unit]}) imports {other}"


@pytest.mark.parametrize("path", [path for path in FILES if LAYER.get(unit_of(path)) == 2], ids=name_of)
def test_methods_never_import_each_other(path: Path) -> None:
    others = {module for _, module in own_imports(path)} & (METHOD_MODULES - {unit_of(path)})
    assert not others, f"{name_of(path)} imports {sorted(others)}"


@pytest.mark.parametrize("path", [path for path in FILES if LAYER.get(unit_of(path)) == 3], ids=name_of)
def test_layer_three_names_no_method(path: Path) -> None:
    for line, other in own_imports(path):
        assert other not in METHOD_MODULES, f"{name_of(path)}:{line} imports {other}"
    for node in ast.walk(ast.parse(path.read_text())):
        name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None
        assert name not in METHOD_CLASSES, f"{name_of(path)} names {name}"


@pytest.mark.parametrize("path", LOWER, ids=name_of)
def test_optional_packages_stay_at_the_edge(path: Path) -> None:
    for line, name in imports(path):
        root = name.split(".")[0]
        allowed = root in sys.stdlib_module_names or root in CORE or root == "lowland"
        allowed |= unit_of(path) == "kernels" and root in COMPILERS
        assert allowed, f"{name_of(path)}:{line} imports {root}, which only layer 4 may"


@pytest.mark.parametrize("path", LOWER, ids=name_of)
def test_fused_arithmetic_and_global_randomness(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Attribute):
            continue
        where = f"{name_of(path)}:{node.lineno}"
        if unit_of(path) != "moments":
            assert not node.attr.startswith("_foreach_"), f"{where}: only moments.py calls torch.{node.attr}"
        if isinstance(node.value, ast.Name) and node.value.id == "torch":
            assert node.attr not in {"manual_seed", "seed"}, f"{where}: randomness is a generator argument"


def outside() -> list[Path]:
    """Files that may use public names only: layer 4, tests of behaviour, examples, benchmarks."""
    edges = [path for path in FILES if LAYER.get(unit_of(path)) == 4]
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
