"""Pictures for print, read back from their files."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from puzzle_search.errors import InputError
from puzzle_search.report import plots
from puzzle_search.report.figures import frontier_figure, layers_figure, serving_figure
from puzzle_search.report.page.data import report_data
from puzzle_search.report.page.sources import find_sources
from tests.pico import ROOT, run_here

pytest.importorskip("matplotlib")
CHILDREN = ROOT / "examples/llama-3.1-70b/children"
SPECS = [CHILDREN / "tps-6000.yaml", CHILDREN / "nemotron-51b.yaml"]


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    return report_data(find_sources(SPECS))


def words(svg: Path) -> str:
    root = ElementTree.parse(svg).getroot()
    return " | ".join("".join(node.itertext()) for node in root.iterfind(".//{*}text"))


def bars(svg: Path) -> list[float]:
    """Heights of the filled rectangles, in points."""
    found = []
    for path in ElementTree.parse(svg).getroot().iterfind(".//{*}path"):
        corners = re.findall(r"[ML] ([\d.]+) ([\d.]+)", path.get("d", ""))
        if len(corners) == 4 and "clip-path" in path.attrib:
            heights = [float(y) for _, y in corners]
            found.append(max(heights) - min(heights))
    return found


def test_the_frontier_names_children_and_evidence(data: dict[str, Any], tmp_path: Path) -> None:
    frontier_figure(data, tmp_path / "a.svg")
    said = words(tmp_path / "a.svg")
    for word in ("tps-6000", "nemotron-51b", "128/1024", "scores reconstructed, cost published"):
        assert word in said


def test_bars_of_layers_are_in_proportion(data: dict[str, Any], tmp_path: Path) -> None:
    layers_figure(data, tmp_path / "a.svg", name=None, unit="parameters")
    said = words(tmp_path / "a.svg")
    blocks = data["children"][1]["blocks"]
    kept = sum(data["variants"]["ffn"][block[1]]["change"] == "kept" for block in blocks)
    assert f"{kept} kept" in said
    assert f"{80 - kept} narrower" in said
    heights = bars(tmp_path / "a.svg")
    assert len(heights) == 2 * 2 * 80  # attention and FFN, left and saved
    # The highest bars of the second panel are whole FFNs; a width of 7168 is a quarter of them.
    ffn = heights[2 * 80 :]
    whole = max(ffn)
    assert any(height == pytest.approx(whole / 4, rel=0.01) for height in ffn)


def test_serving_has_a_curve_for_every_child(data: dict[str, Any], tmp_path: Path) -> None:
    serving_figure(data, tmp_path / "a.svg")
    said = words(tmp_path / "a.svg")
    assert all(name in said for name in ("llama-3.1-70b", "tps-6000", "nemotron-51b"))


def test_colours_are_those_of_the_page() -> None:
    css = (Path(plots.__file__).parent / "page" / "page.css").read_text(encoding="utf-8")
    light = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", css.partition("@media")[0]))
    assert light | plots.CHANGES == light
    assert [light["parent"], light["child"], light["ink"]] == [
        plots.PARENT, plots.CHILD, plots.INK
    ]  # fmt: skip


@pytest.mark.parametrize("what", ["frontier", "layers", "serving"])
def test_png_is_fit_for_print(what: str, tmp_path: Path) -> None:
    run_here("plot", what, *SPECS, "--out", tmp_path / "new" / "a.png")
    content = (tmp_path / "new" / "a.png").read_bytes()
    width, _ = struct.unpack(">II", content[16:24])
    assert width == int(6.9 * 220)
    assert len(content) < 150_000


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("pie", SPECS[0], "--out", "a.png"), "picture 'pie'"),
        (("layers", SPECS[0], "--out", "a.png", "--unit", "colour"), "unit 'colour'"),
        (("layers", SPECS[0], "--out", "a.png", "--child", "nobody"), "'nobody'"),
        (("layers", SPECS[0], "--out", "a.pdf"), r"\.png or \.svg"),
        (("layers", SPECS[0], "--out", "a.png", "--gpu", "rtx4090"), "does not fit rtx4090"),
        (("serving", SPECS[0], "--out", "a.png", "--gpu", "rtx4090"), "nothing is served"),
        (("frontier", SPECS[0], "--out", "a.png", "--gpu", "rtx4090"), "score and a throughput"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    words: tuple[Any, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said):
        run_here("plot", *words)
    assert list(tmp_path.iterdir()) == []
