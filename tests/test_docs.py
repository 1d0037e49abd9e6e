"""Every Python block of the README and of the site runs, and the site covers what is public."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import lowland
from lowland.studies.text import from_mapping

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
BLOCK = re.compile(r"^( *)```python[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


def page_name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path) -> Iterator[tuple[int, str]]:
    """The Python blocks of a page: the line of each one's first statement, and its text without indentation."""
    text = path.read_text()
    for match in BLOCK.finditer(text):
        indent, code = match.groups()
        yield text.count("\n", 0, match.start(2)) + 1, re.sub(f"^{indent}", "", code, flags=re.MULTILINE)


@pytest.mark.parametrize("path", [path for path in PAGES if any(blocks(path))], ids=page_name)
def test_python_blocks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one page share their names, top to bottom, and run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    # A module of its own, so that classes defined in a block can be found again by name.
    page = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", page)
    for line, code in blocks(path):
        # Line numbers of a traceback are those of the page.
        exec(compile("\n" * (line - 1) + code, str(path), "exec"), vars(page))


def test_configurations_are_read() -> None:
    pages = [
        (path, toml) for path in PAGES for toml in re.findall(r"^```toml\n(.*?)^```", path.read_text(), re.M | re.S)
    ]
    assert pages
    for path, toml in pages:
        study = from_mapping(tomllib.loads(toml))
        assert study.data.train, f"{page_name(path)}: the example names no file"


def directives() -> dict[str, tuple[str, list[str]]]:
    """What the API pages generate: on which page, and the members that it names."""
    found = {}
    for page in sorted((DOCS / "api").glob("*.md")):
        for name, members in re.findall(r"^::: (\S+)$((?:\n {4,}.*)*)", page.read_text(), re.MULTILINE):
            found[name] = (page.name, re.findall(r"^ {8}- (\S+)$", members, re.MULTILINE))
    return found


SOURCE = Path(lowland.__file__).parent
# Wings whose rooms are doors of their own, since each stands for another library or another study.
SIDE_BY_SIDE = {"integrations", "studies"}
# Rooms there that no user opens.
INSIDE = {
    *("studies.runs", "studies.adapters", "studies.packaged", "studies.tables"),
    # Of the command line nothing is imported, and of the arithmetic only its switch.
    *("cli", "arithmetic", "arguments"),
}
DOORS = {"lowland.arithmetic.kernels"}


def doors() -> list[str]:
    """Every module that a user may import: a file at the top, the face of a wing, a room of those side by side."""
    names = []
    for path in sorted(SOURCE.iterdir()):
        if path.stem.startswith("_") or not (path.suffix == ".py" or (path / "__init__.py").exists()):
            continue
        names.append(path.stem)
        if path.name in SIDE_BY_SIDE:
            rooms = sorted(room.stem for room in path.iterdir() if not room.name.startswith((".", "_")))
            names += [
                f"{path.name}.{room}" for room in rooms if (path / room).is_dir() or (path / f"{room}.py").exists()
            ]
    return sorted({f"lowland.{name}" for name in names if name not in INSIDE} | DOORS)


def face(name: str) -> list[str]:
    """What a wing's face hands on."""
    path = SOURCE.joinpath(*name.split(".")[1:], "__init__.py")
    if not path.exists():
        return []
    lines = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ImportFrom) and node.level]
    return [alias.asname or alias.name for node in lines for alias in node.names]


@pytest.mark.parametrize("name", doors())
def test_every_door_has_an_api_page(name: str) -> None:
    assert name in directives(), f"write docs/api/{name.split('.')[1]}.md with the line '::: {name}'"


@pytest.mark.parametrize("name", [name for name in doors() if face(name) and name not in DOORS])
def test_the_page_of_a_wing_names_what_its_face_hands_on(name: str) -> None:
    assert sorted(directives()[name][1]) == sorted(face(name)), f"the members of '::: {name}' are those of its face"


def test_every_public_name_is_on_an_api_page() -> None:
    for name in dir(lowland):
        value = getattr(lowland, name)
        if name.startswith("_") or isinstance(value, ModuleType):
            continue
        home = value.__module__.split(".")
        assert f"lowland.{home[1]}" in directives(), f"lowland.{name} lives in {value.__module__}, which has no page"


def test_no_api_page_is_of_a_module_that_is_no_door() -> None:
    assert sorted(set(directives()) - set(doors())) == []


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    missing = [
        path for page in sorted(DOCS.rglob("*.md")) if (path := page.relative_to(DOCS).as_posix()) not in navigation
    ]
    assert not missing, f"mkdocs.yml does not list {missing}"


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_relative_links_lead_somewhere(path: Path) -> None:
    prose = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose):
        if "://" not in target and not target.startswith("mailto:"):
            assert (path.parent / target).exists(), f"{page_name(path)} links to {target}, which is not there"
