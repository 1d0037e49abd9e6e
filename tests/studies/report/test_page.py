import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from tests.fake_run import METHODS, build

pytest.importorskip("matplotlib", reason="the report needs lowland[plot]")
pytest.importorskip("jinja2", reason="the report needs lowland[plot]")

from lowland.studies import report

VOID = {"wbr", "meta", "br", "img", "input", "hr", "link"}


class Outline(HTMLParser):
    """Tags, attributes and text as a browser would read them; checks that all that opens also closes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("report") / "run", texts=120)


@pytest.fixture(scope="module")
def page(run_folder: Path) -> str:
    return report.write(run_folder).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def outline(page: str) -> Outline:
    return Outline(page)


def test_write_returns_the_file_in_the_run_folder(run_folder: Path, page: str) -> None:
    assert (run_folder / "report.html").read_text(encoding="utf-8") == page
    assert (run_folder / "report.html").stat().st_mode & 0o777 == 0o644
    assert len(page.encode()) < 2_000_000
    assert [path.name for path in run_folder.glob(".report-*")] == []


def test_same_folder_same_bytes(run_folder: Path, page: str, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(run_folder, copy)
    assert report.write(copy).read_text(encoding="utf-8") == page


def test_every_tag_closes_and_ids_are_unique(outline: Outline) -> None:
    assert outline.open == []
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_every_reference_has_its_target_in_its_own_figure(page: str) -> None:
    for figure in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        ids = set(re.findall(r' id="([^"]+)"', figure))
        used = set(re.findall(r'(?:url\(|href=")#([^")]+)', figure))
        assert used <= ids
    anchors = set(re.findall(r'<a href="#([^"]+)"', page))
    assert anchors and anchors <= set(re.findall(r' id="([^"]+)"', page))


def test_nothing_is_loaded_from_elsewhere(page: str, outline: Outline) -> None:
    assert not {"script", "link", "img", "iframe", "image", "object", "embed"} & {tag for tag, _ in outline.tags}
    assert "@import" not in page and "@font-face" not in page
    for _, attributes in outline.tags:
        for key in ("href", "src", "xlink:href"):
            assert (attributes.get(key) or "#").startswith("#")
        assert not any(key.startswith("on") for key in attributes)
    addresses = [address for address in re.findall(r"url\(([^)]*)\)", page)]
    assert all(address.startswith("#") for address in addresses)


def test_texts_of_strangers_stay_texts(page: str, outline: Outline) -> None:
    assert "<script" not in page and "<img" not in page and "\x00" not in page and "\x1b" not in page
    assert page.count("<main>") == page.count("</main>") == page.count("<h1>") == 1
    joined = "".join(outline.texts)
    assert "{{ 7 * 7 }}" in joined and "49" not in [text.strip() for text in outline.texts]
    assert "the <accuracies> of all methods overlap." in joined
    assert "Another sentence says how far that goes." in joined


def test_all_methods_and_one_best_per_column(outline: Outline) -> None:
    rows = [attributes for attributes in outline.attributes("th") if attributes.get("scope") == "row"]
    assert len(rows) >= len(METHODS)
    assert sum(attributes.get("class") == "best" for attributes in outline.attributes("td")) == 8


def test_figures_are_named_and_described(outline: Outline) -> None:
    plots = outline.attributes("svg")
    assert len(plots) == 4 + 4 + 2 + 2 + 1 + 1
    for plot in plots:
        assert plot["role"] == "img" and len(plot["aria-label"] or "") > 40
    assert outline.attributes("html")[0]["lang"] == "en"
    assert outline.tags.count(("title", {})) == 1 + len(plots)


def test_colours_follow_the_page(page: str) -> None:
    figures = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    fixed = re.sub(r"var\([^)]*\)", "", figures)
    assert re.findall(r"(?:fill|stroke): #[0-9a-f]{6}", fixed) == []
    declared = set(re.findall(r"(--[a-z0-9]+):", page))
    assert set(re.findall(r"var\((--[a-z0-9]+)", page)) <= declared


def test_folded_texts_are_closed_and_warned_about(page: str) -> None:
    assert "<details open" not in page
    assert page.index('class="warning"') < page.index("<details>")


def test_a_table_says_where_intervals_overlap(run_folder: Path) -> None:
    from lowland.studies.report import tables
    from lowland.studies.report.run import read

    run = read(run_folder)
    cells = {method: cells for method, cells in tables.results(run)}
    nll = tables.METRICS.index("nll")
    assert cells["MultiSWAG"][nll].best and not cells["MultiSWAG"][nll].overlaps
    assert cells["MultiSWA"][nll].overlaps and not cells["base"][nll].overlaps
    first, *rest = tables.overlap_sentences(run)
    assert first.startswith("In Precision, Recall, F1, Accuracy, Brier and MCC every interval overlaps")
    assert any(sentence.startswith("In NLL the interval of MultiSWAG (best)") for sentence in rest)


def test_a_difference_says_which_side_of_zero(run_folder: Path) -> None:
    from lowland.studies.report import tables
    from lowland.studies.report.run import read

    rows = dict(tables.differences(read(run_folder)))
    assert list(rows) == list(METHODS[:-1])
    words = {
        rival: dict(zip(tables.PAIRED, (cell.word for cell in cells), strict=True)) for rival, cells in rows.items()
    }
    assert words["base"] == {
        "f1": "undecided",
        "accuracy": "undecided",
        "nll": "better",
        "ece": "better",
        "brier": "better",
    }
    assert words["MultiSWA"]["ece"] == "worse"
    assert rows["base"][tables.PAIRED.index("nll")].value == "−0.196"


def test_the_mean_curve_of_members_is_their_mean() -> None:
    from lowland.calibration.metrics import selective_risk
    from lowland.studies.report.plots import at, mean_risk

    one = selective_risk([[0.9, 0.1], [0.8, 0.2]], [0, 1])  # risk 0, then 1/2
    other = selective_risk([[0.8, 0.2], [0.9, 0.1]], [0, 1])  # risk 1, then 1/2
    mean = mean_risk([one, other])
    assert [at(mean, c) for c in (0.5, 1.0)] == [0.5, 0.5]


def test_histories_are_averaged_in_blocks_and_survive_a_gap() -> None:
    from lowland.studies.report.plots import blocks

    steps, losses = blocks([1, 2, 3, 4], [1.0, 3.0, float("nan"), 5.0], 2)
    assert steps.tolist() == [1.5, 4.0] and losses.tolist() == [2.0, 5.0]
    steps, losses = blocks([], [], 2)
    assert len(steps) == len(losses) == 0


def test_text_is_shortened_and_made_visible() -> None:
    from lowland.studies.report.tables import shortened

    assert shortened("\x00a\x1b\x7f\n") == "\u2400a\u241b\u2421\n"
    assert shortened("half \ud83d") == "half \ufffd"
    assert shortened("x" * 1000) == "x" * 700 + "… (300 more characters)"


@pytest.mark.parametrize("members, classes", [(1, 2), (9, 4)])
def test_other_sizes(tmp_path: Path, members: int, classes: int) -> None:
    run = build(tmp_path, members=members, classes=classes, texts=40)
    assert Outline(report.write(run).read_text(encoding="utf-8")).open == []


FILES = (
    "config.toml", "versions.json", "metrics.json", "timings.json", "history.json", "probabilities.npz",
    "predictions.csv", "head_samples.npz",
)  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(run_folder: Path, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(run_folder, tmp_path / "run")
    (copy / name).unlink()
    (copy / "report.html").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match=re.escape(f"{copy / name} is missing")) as caught:
        report.write(copy)
    assert "\n" not in str(caught.value)
    assert not (copy / "report.html").exists()


@pytest.mark.parametrize("keep", [0, 0.4, 0.97])
@pytest.mark.parametrize("name", [name for name in FILES if name != "config.toml"])
def test_a_truncated_file_is_named(run_folder: Path, tmp_path: Path, name: str, keep: float) -> None:
    copy = shutil.copytree(run_folder, tmp_path / "run")
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ValueError, match=re.escape(str(copy / name))) as caught:
        report.write(copy)
    assert "\n" not in str(caught.value)


def test_a_broken_value_is_named(run_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run_folder, tmp_path / "run")
    metrics = json.loads((copy / "metrics.json").read_text())
    metrics["methods"]["SWAG"]["nll"]["low"] = "much"
    (copy / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(ValueError, match=r"metrics\.json .*methods\.SWAG\.nll\.low is 'much', wanted a number"):
        report.write(copy)
    del metrics["methods"]["MultiSWAG"]
    metrics["methods"]["SWAG"]["nll"]["low"] = 0.3
    (copy / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(ValueError, match=r"metrics\.json has no 'MultiSWAG'"):
        report.write(copy)


def test_arrays_of_wrong_shape_are_named(run_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run_folder, tmp_path / "run")
    np.savez(copy / "head_samples.npz", names=["a", "b"], samples=np.zeros((3, 300)), means=np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"head_samples\.npz .*wanted \(M, S, 2\)"):
        report.write(copy)


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a run folder"):
        report.write(tmp_path / "none")


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_a_missing_package_says_what_to_install(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    for name in [name for name in sys.modules if name.startswith("lowland.studies.report.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"the report needs {package}: pip install 'lowland\[plot\]'"):
        report.write(run_folder)


def test_importing_the_report_loads_no_extra() -> None:
    import subprocess

    code = "import sys, lowland.studies.report; print('matplotlib' in sys.modules or 'jinja2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_page_says_what_is_shipped_and_how_it_was_chosen(run_folder: Path, page: str, tmp_path: Path) -> None:
    text = " ".join(Outline(page).texts)
    assert "What to ship, and how it was chosen" in text and "leave the choice uncertain" in text
    assert "that MultiSWA is least certain of" in text
    metrics = json.loads((run_folder / "metrics.json").read_text(encoding="utf-8"))
    for row in metrics["shipped"]["rows"]:
        assert f"{row['nll']:.3f}" in text
    old = shutil.copytree(run_folder, tmp_path / "old")
    kept = {key: value for key, value in metrics.items() if key not in ("shipped", "tried", "optimism")}
    (old / "metrics.json").write_text(json.dumps(kept), encoding="utf-8")
    before = report.write(old).read_text(encoding="utf-8")
    assert 'id="ship"' not in before and "that MultiSWAG is least certain of" in before
    (old / "metrics.json").write_text(json.dumps({**metrics, "tried": 3}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"metrics.json cannot be read \(tried is of type int, wanted list\)"):
        report.write(old)
