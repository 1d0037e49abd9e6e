"""The commands on shards: what they print, write and refuse."""

import csv
import json
import sys

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="needs lowland[linear]")

from lowland import cli
from lowland.linear import ACOWALogisticRegression, from_bytes, shards_in, write_shard
from tests.linear.toy import drawn, parts_of


@pytest.fixture
def lowland(monkeypatch, capsys):
    from rich.console import Console

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["lowland", "linear", *map(str, arguments)])
        monkeypatch.setattr(cli.screen, "out", Console(width=140))
        monkeypatch.setattr(cli.screen, "err", Console(stderr=True, width=160))
        with pytest.raises(SystemExit) as left:
            cli.main()
        printed = capsys.readouterr()
        return int(left.value.code or 0), printed.out, printed.err

    return run


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "shards"
    place.mkdir()
    for k, (X, y) in enumerate(parts_of(*drawn(rows=300, columns=30), 3)):
        write_shard(place / f"{k}.parquet", X, np.array(["no", "yes"])[y])
    return place


def test_fit_and_predict(lowland, folder, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(f"word{k}" for k in range(30)))
    model = tmp_path / "model.safetensors"
    code, out, err = lowland("fit", folder, "--lambda", "0.02", "--out", model, "--names", tmp_path / "names.txt")
    assert code == 0, err
    assert "features have a coefficient" in out and "round 2: 3 of 3" in err
    fitted, names = from_bytes(model.read_bytes())
    direct = ACOWALogisticRegression(0.02, random_state=0).fit_partitions(shards_in(folder))
    np.testing.assert_array_equal(fitted.coef_, direct.coef_)
    assert names[int(direct.support_[0])] == f"word{direct.support_[0]}"
    code, out, err = lowland("predict", model, folder, "--out", tmp_path / "said.csv", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["rows"] == 300 and told["accuracy"] > 0.8
    with (tmp_path / "said.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 300 and {row["class"] for row in rows} == {"no", "yes"}
    assert rows[0]["shard"] == "0.parquet" and 0.5 <= float(rows[0]["probability"]) <= 1


def test_path_writes_a_figure_and_a_page(lowland, folder, tmp_path):
    pytest.importorskip("matplotlib", reason="needs lowland[plot]")
    options = ("--lambdas", "1e-1:1e-2:3", "--methods", "naive,OWA,ACOWA", "--full", "--out", tmp_path / "path")
    code, out, err = lowland("path", folder, *options)
    assert code == 0, err
    assert "accuracy on rows that no machine had" in out and "ACOWA" in out
    found = json.loads((tmp_path / "path" / "path.json").read_text())
    assert list(found) == ["naive", "OWA", "ACOWA", "full data"] and len(found["OWA"]) == 3
    assert all(one["non-zeros"] <= two["non-zeros"] for one, two in zip(found["OWA"], found["OWA"][1:], strict=False))
    page = (tmp_path / "path" / "report.html").read_text()
    assert "Accuracy against non-zeros" in page and "full data" in page and "<svg" in page
    assert (tmp_path / "path" / "path.svg").read_text().startswith("<svg xmlns")
    assert sorted(one.name for one in (tmp_path / "path").iterdir()) == ["path.json", "path.svg", "report.html"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("fit", "{folder}", "--out", "{tmp}/m", "--method", "best"), "--method must be one of naive, debiased"),
        (("fit", "{tmp}/none", "--out", "{tmp}/m"), "is no folder"),
        (("fit", "{tmp}", "--out", "{tmp}/m"), "no shard in"),
        (("fit", "{folder}", "--out", "{tmp}/m", "--features", "7"), "a place lies outside 0 .. 6"),
        (("fit", "{folder}", "--out", "{tmp}/no/m"), "does not exist"),
        (("fit", "{folder}", "--out", "{tmp}/m", "--scheduler", "nowhere"), "no Dask scheduler answers at nowhere"),
        (("fit", "{folder}", "--out", "{tmp}/m", "--lambda", "-1"), "lambda_ must be positive"),
        (("predict", "{folder}/0.parquet", "{folder}", "--out", "{tmp}/m"), "no model of lowland.linear"),
        (("path", "{folder}", "--lambdas", "1:2", "--out", "{tmp}/m"), "--lambdas must be FROM:TO:COUNT"),
        (("path", "{folder}", "--methods", "magic", "--out", "{tmp}/m"), "there is no method 'magic'"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(lowland, folder, tmp_path, arguments, says):
    if "--scheduler" in arguments:
        pytest.importorskip("distributed", reason="needs lowland[linear]")
    code, _, err = lowland(*(word.format(folder=folder, tmp=tmp_path) for word in arguments))
    assert code == 2 and says in err
    assert [one.name for one in tmp_path.iterdir()] == ["shards"]
