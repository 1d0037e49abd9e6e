"""Inputs that lie elsewhere are fetched once, and averaged as those that lie here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lowland import cli
from lowland.cli.remote import local


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_folders_and_files_of_a_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec = pytest.importorskip("fsspec")
    elsewhere = fsspec.filesystem("memory")
    for step in (1, 2):
        save_file({"w": torch.full((2,), float(step))}, tmp_path / "w.safetensors")
        elsewhere.pipe(f"/run/checkpoint-{step}/model.safetensors", (tmp_path / "w.safetensors").read_bytes())
        elsewhere.pipe(f"/run/checkpoint-{step}/config.json", b"{}")
    monkeypatch.setattr(sys, "argv", ["lowland", "average", "memory://run", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert not left.value.code
    assert load_file(tmp_path / "out" / "model.safetensors")["w"].tolist() == [1.5, 1.5]
    (folder,) = local(["memory://run"])
    assert sorted(p.name for p in Path(folder).iterdir()) == ["checkpoint-1", "checkpoint-2"]
    (file,) = local(["memory://run/checkpoint-1/model.safetensors"])
    assert load_file(file)["w"].tolist() == [1.0, 1.0]
    monkeypatch.setattr(type(elsewhere), "get_file", None)  # fetched once: nothing is asked for again
    assert local(["memory://run"]) == [folder]
    with pytest.raises(FileNotFoundError, match="there is nothing under memory://none"):
        local(["memory://none"])


def test_names_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    asked: list[tuple[str, Any]] = []

    def fetched(name: str, revision: str | None, ignore_patterns: list[str]) -> str:
        asked.append((name, revision))
        assert "optimizer*" in ignore_patterns
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", fetched)
    assert local(["hf://org/name", "hf://org/name@step-3", "here"]) == [str(tmp_path), str(tmp_path), "here"]
    assert asked == [("org/name", None), ("org/name", "step-3")]
    with pytest.raises(ValueError, match="hf://organisation/name"):
        local(["hf://name"])


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for package, item in (("fsspec", "s3://bucket/run"), ("huggingface_hub", "hf://org/name")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=rf"read by {package}: pip install 'lowland\[remote\]'"):
            local([item])
