"""Figures of landscapes say what they show, follow their page, and are written as SVG and PNG."""

from __future__ import annotations

import json
import math
import re
import struct
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="figures need lowland[plot]")

from lowland.figures.landscape import levels_of, line_drawing, plane_drawing, rays_drawing, spectrum_drawing
from lowland.figures.landscape_page import write_page
from lowland.figures.looks import Drawing
from lowland.landscape import Grid, Rays, Spectrum, Walk, spectrum_of

ABOUT = {"data": "digits", "model": "mlp <2>", "n": "5 seeds", "refresh": "none", "normalisation": "filter"}


def grid() -> Grid:
    x = torch.linspace(-1, 2, 9, dtype=torch.float64)
    loss = x[None] ** 2 + (x[:, None] - 1) ** 2 + 0.01
    values = {f"{part} {what}": loss * k for k, (part, what) in enumerate(
        [("train", "loss"), ("train", "error"), ("test", "loss"), ("test", "error")], start=1)}  # fmt: skip
    values["train loss"] = values["train loss"].clone()
    values["train loss"][0, 0], values["train loss"][-1, -1] = math.nan, math.inf
    places = tuple(x.tolist())
    points = {"SGD": (0.0, 0.0), "last": (1.5, 0.0), "SWA": (0.7, 1.1)}
    draws = ((0.1, 0.9), (0.3, 1.2), (-0.2, 1.1), (0.4, 0.8))
    return Grid(places, places, values, loss > -1, points, about=ABOUT, draws=draws)


def walks() -> dict[str, Walk]:
    t = tuple(k / 4 - 0.5 for k in range(9))
    return {
        str(seed): Walk(t, {"train loss": tuple((a - 0.2 * seed) ** 2 for a in t), "test error": t}, (1.0,) * 8)
        for seed in (1, 2)
    }


def some_rays() -> dict[str, Rays]:
    rows = torch.tensor([[0.1, 0.2, 0.4], [0.1, 0.3, 0.5]], dtype=torch.float64)
    return {name: Rays((0.0, 1.0, 2.0), {"loss": rows * k}, dict(ABOUT)) for k, name in enumerate(("SGD", "SWA"), 1)}


def spectra() -> dict[str, Spectrum]:
    d = torch.tensor([-1.0, 0.0, 0.1, 5.0])
    w = {"w": torch.zeros(4)}
    g = torch.Generator().manual_seed(0)
    return {n: spectrum_of(lambda v: {"w": d * v["w"]}, w, steps=4, probes=2, generator=g) for n in ("SGD", "SWA")}


def drawings() -> list[Drawing]:
    return [
        plane_drawing(grid(), ["train loss", "test error"]),
        line_drawing(walks(), "train loss", "test error", ABOUT, ("SWA", "SGD")),
        rays_drawing(some_rays()),
        spectrum_drawing(spectra(), ABOUT),
    ]


def test_every_figure_says_its_numbers_and_its_caption() -> None:
    for drawing in drawings():
        root = ElementTree.fromstring(drawing.svg("f"))
        text = " ".join("".join(node.itertext()) for node in root.iter() if node.tag.endswith("text"))
        for said in ("digits", "mlp <2>", "5 seeds"):
            assert said in re.sub(r"\s+", " ", text) and said in root.attrib["aria-label"]
    plane = drawings()[0].alt
    assert "SWA at (0.7, 1.1)" in plane and "test error lowest 0.04 at (0, 1)" in plane
    assert "1: train loss lowest" in drawings()[1].alt and "at 0.2; 1: test error lowest -0.5" in drawings()[1].alt
    assert "top eigenvalues 5" in drawings()[3].alt


def test_marks_and_dashes_tell_series_apart_without_colour() -> None:
    svg = rays_drawing(some_rays()).svg("f")
    assert "--c0" in svg and "--c1" in svg and "stroke-dasharray" in svg
    assert "#0500" not in plane_drawing(grid()).svg("f")  # no marker colour is left


@pytest.mark.parametrize("dark", [False, True])
def test_png_and_svg_files(tmp_path: Path, dark: bool) -> None:
    drawing = drawings()[2]
    png = drawing.write(tmp_path / "rays.png", dark=dark).read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", png[16:24])
    assert (width, height) == (1240, 760)
    assert drawing.write(tmp_path / "rays.svg").read_text().startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    with pytest.raises(ValueError, match="svg or .png"):
        drawing.write(tmp_path / "rays.pdf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rays.png", "rays.svg"]


def test_an_svg_file_has_dark_colours_for_a_dark_page(tmp_path: Path) -> None:
    text = drawings()[2].write(tmp_path / "rays.svg").read_text()
    (dark,) = re.findall(r"@media \(prefers-color-scheme: dark\) \{ svg\.plot \{ ([^}]*) \}", text)
    used = set(re.findall(r"var\((--\w+),", text))
    assert used and used <= set(re.findall(r"(--\w+):", dark))
    assert ElementTree.fromstring(text).tag.endswith("svg")
    assert "prefers-color-scheme" not in drawings()[2].svg("f")  # within a page the page says which


def test_a_line_over_many_magnitudes_has_a_logarithmic_axis() -> None:
    walk = Walk((0.0, 0.5, 1.0), {"train loss": (1e-4, 0.5, 30.0), "test error": (0.3, 0.2, 0.1)}, (1.0, 1.0))
    marks = re.findall(r">([^<>]*)</text>", line_drawing({"": walk}, "train loss", "test error").svg("f"))
    assert {"0.001", "0.1", "10"} <= set(marks) and not any("$" in mark for mark in marks)


def test_levels_are_dense_where_values_are_low() -> None:
    levels = levels_of(grid().values["train loss"].numpy())
    assert levels == sorted(levels) and len(set(levels)) == len(levels)
    steps = [b - a for a, b in zip(levels[1:], levels[2:], strict=False)]
    assert steps == sorted(steps)
    flat = levels_of(torch.ones(3, 3).numpy())
    assert flat[0] < 1 < flat[1]
    plane_drawing(Grid((0.0, 1.0), (0.0, 1.0), {"loss": torch.ones(2, 2)}, torch.ones(2, 2) > 0)).svg("flat")


def test_the_page_holds_its_numbers_and_nothing_from_elsewhere(tmp_path: Path) -> None:
    page = write_page(
        {"A </script> plane": grid(), "Line": walks(), "Spectra": spectra()}, tmp_path / "p.html", about=ABOUT
    )
    text = page.read_text()
    assert "http" not in text.lower() and text.count("</script>") == 2 and "mlp &lt;2&gt;" in text
    data = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.S)[1])  # type: ignore[index]
    assert data["items"][0]["values"]["train loss"][0][0] is None
    assert data["items"][0]["values"]["test loss"][4][3] == pytest.approx(float(grid().values["test loss"][4, 3]))
    assert len(text) < 100_000
    with pytest.raises(ValueError, match="at least one"):
        write_page({}, tmp_path / "p.html")
