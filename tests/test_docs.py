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

from .chromium import Browser, executable

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


def test_the_walk_is_the_way_that_is_taken() -> None:
    """The rooms that docs/walk.md lists are those that its calls enter, in that order; compiled ones where they run."""
    from lowland import kernels

    page = (DOCS / "walk.md").read_text(encoding="utf-8")
    walked: dict[str, list[str]] = {}
    found: dict[str, object] = {}
    exec(compile(next(blocks(DOCS / "walk.md"))[1], "walk.md", "exec"), found)
    for heading, name in (("average.update", "update"), ("predict(", "prediction")):
        section = next(part for part in page.split("\n## ") if part.startswith(f"`{heading}"))
        listed = re.findall(r"^\| `([\w/]+\.py)` \|", section, re.M)
        walked[name] = listed
        met = found[name]
        assert isinstance(met, list) and len(listed) > 3
        if not kernels.available():
            listed = [room for room in listed if "kernels/" not in room]
        assert [room for room in met if room in listed] == listed, f"{name} enters {met}"
    assert all((SOURCE / room).exists() for rooms in walked.values() for room in rooms)


def test_the_home_page_leads_to_every_wing() -> None:
    """From Home one link leads to the first page of every part of the navigation."""
    home = set(re.findall(r"\]\(([\w/-]+\.md)", (DOCS / "index.md").read_text(encoding="utf-8")))
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1]
    parts = re.findall(r"^  - ([^:\n]+):\n((?: {6}.*\n?)+)", navigation, re.M)
    wanted = ["Start", "Choose", "Loops", "Checkpoints", "Posteriors and prediction", "Landscapes", "Populations"]
    assert [name for name, _ in parts] == [*wanted, "Evidence", "Reference"]
    for name, pages in parts:
        first = re.search(r"([\w/-]+\.md)", pages)
        assert first is not None and first[1] in home, f"Home links nothing of {name}"


@pytest.mark.browser
@pytest.mark.skipif(executable() is None, reason="no Chromium is installed (apt-get install chromium)")
def test_the_worker_of_the_search_runs_where_there_is_no_server(tmp_path: Path) -> None:
    """What docs/javascripts puts in the place of `Worker` over file:// answers, loads scripts, and keeps the order."""
    (tmp_path / "more.js").write_text("self.twice = x => 2 * x;")
    (tmp_path / "worker.js").write_text(
        "addEventListener('message', async event => { await importScripts('more.js'); postMessage(twice(event.data)) })"
    )
    shim = (DOCS / "javascripts" / "iframe-worker.js").read_text(encoding="utf-8")
    (tmp_path / "page.html").write_text(
        f"<!doctype html><title>p</title><body><script>{shim}</script><script>"
        "window.got = []; const w = new Worker('worker.js'); w.onmessage = e => got.push(e.data);"
        "w.postMessage(3); setTimeout(() => w.postMessage(4), 200)</script>"
    )
    with Browser(tmp_path / "profile") as browser:
        browser.open(tmp_path / "page.html", 800)
        waited = "new Promise(done => { setInterval(() => got.length > 1 && done(got), 20) })"
        assert browser.evaluate(waited) == [6, 8]
