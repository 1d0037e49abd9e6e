"""The first example of the page runs, on a folder of Parquet shards."""

import re
from pathlib import Path

from lowland.linear import write_shard
from tests.linear.toy import drawn, parts_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "linear.md"


def test_the_first_example(tmp_path, monkeypatch, capsys):
    code = re.search(r"^```\w+\n(from .*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)[1]
    assert len([line for line in code.splitlines() if line]) <= 5
    (tmp_path / "clicks").mkdir()
    for k, (X, y) in enumerate(parts_of(*drawn(), 3)):
        write_shard(tmp_path / "clicks" / f"{k}.parquet", X, y)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    assert names["model"].score(*drawn()) > 0.8
    assert "[0 1]" in capsys.readouterr().out
