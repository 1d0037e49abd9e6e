"""The files beside the code: they parse, say the version, and point at what is there."""

import re
import tomllib
from pathlib import Path

import pytest

import lowland

ROOT = Path(__file__).resolve().parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
YAML = [
    ".pre-commit-config.yaml",
    "CITATION.cff",
    ".github/workflows/tests.yml",
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")),
]


@pytest.mark.parametrize("name", YAML)
def test_yaml_parses(name: str) -> None:
    yaml = pytest.importorskip("yaml")
    assert isinstance(yaml.safe_load((ROOT / name).read_text(encoding="utf-8")), dict)


def test_one_version() -> None:
    assert lowland.__version__ == VERSION
    assert f"\nversion: {VERSION}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## {VERSION}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_workflow_runs_what_a_contributor_runs() -> None:
    text = (ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8")
    assert ".ci/run" in text and (ROOT / ".ci/run").exists()
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"run: make (\S+)", text):
        assert f"\n{target}:" in makefile, target
    oldest = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    assert f'"{oldest.removeprefix(">=")}"' in text
