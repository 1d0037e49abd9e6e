"""Every Python block of the README and of the site runs, and the site covers what is public."""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import lowland
from lowland.studies.config import from_mapping

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


def directives() -> dict[str, str]:
    """What the API pages generate, and on which page."""
    found = {}
    for page in sorted((DOCS / "api").glob("*.md")):
        for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE):
            found[name] = page.name
    return found


# Subpackages whose modules are public one by one; the others are public as a whole.
PUBLIC_INSIDE = {"integrations", "population", "linear", "landscape"}


def public_modules() -> list[str]:
    source = Path(lowland.__file__).parent
    names = []
    for path in sorted(source.iterdir()):
        name = path.stem
        if name.startswith("_") or not (path.suffix == ".py" or (path / "__init__.py").exists()):
            continue
        names.append(f"lowland.{name}")
        if path.is_dir() and name in PUBLIC_INSIDE:
            names += [f"lowland.{name}.{file.stem}" for file in sorted(path.glob("[!_]*.py"))]
    return names


@pytest.mark.parametrize("name", [name for name in public_modules() if name != "lowland.cli"])
def test_every_public_module_has_an_api_page(name: str) -> None:
    assert name in directives(), f"write docs/api/{name.split('.')[1]}.md with the line '::: {name}'"


def public_names() -> list[str]:
    return [
        name for name, value in vars(lowland).items() if not name.startswith("_") and not isinstance(value, ModuleType)
    ]


@pytest.mark.parametrize("name", public_names())
def test_every_public_name_is_on_an_api_page(name: str) -> None:
    home = getattr(lowland, name).__module__
    assert home in directives(), f"lowland.{name} lives in {home}, which no page of docs/api generates"


def test_no_api_page_is_of_a_module_that_is_gone() -> None:
    gone = sorted(set(directives()) - set(public_modules()))
    assert not gone, f"these have an API page and no module: {gone}"


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
