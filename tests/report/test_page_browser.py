"""The page as people use it, in headless Chromium, from disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.report.page.data import report_data
from puzzle_search.report.page.render import render_page
from puzzle_search.report.page.sources import find_sources
from puzzle_search.solve.question.setting import AskedSetting
from tests.pico import ROOT, run_here
from tests.report.browser import DESKTOP, PHONE, opened, started

pytestmark = pytest.mark.browser
FRAME = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
CHILDREN = ROOT / "examples/llama-3.1-70b/children"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with started() as browser:
        yield browser


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A page of two specs and a frontier in two scenarios, and its data."""
    pytest.importorskip("plotly", reason="pip install 'puzzle-search[report]'")
    folder = tmp_path_factory.mktemp("page")
    words = ("--points", 5, "--from", 2000, "--to", 9000, "--workers", 1)
    run_here("frontier", *words, "--out", folder / "points")
    specs = [CHILDREN / "tps-6000.yaml", CHILDREN / "nemotron-51b.yaml", folder / "points"]
    data = report_data(
        find_sources(
            specs,
            AskedSetting(
                scenarios=(
                    "128/1024",
                    "2048/128",
                )
            ),
        )
    )
    (folder / "report.html").write_text(render_page(data), encoding="utf-8")
    return folder / "report.html", data


def kinds(data: dict[str, Any], name: str) -> str:
    """What the legend of attention says of a child, by its data."""
    [child] = [child for child in data["children"] if child["name"] == name]
    changes = [data["variants"]["attention"][block[0]]["change"] for block in child["blocks"]]
    said = {"kept": "kept", "reduced": "fewer heads", "linear": "linear", "dropped": "dropped"}
    return "".join(f"{changes.count(key)} {word}" for key, word in said.items() if key in changes)


def test_a_click_on_the_frontier_changes_every_picture(
    browser: Any,
    written: tuple[Path, dict[str, Any]],
) -> None:
    file, data = written
    with opened(browser, file) as (page, wrong):
        legend = page.locator("#attention-legend")
        assert kinds(data, "tps-6000") in legend.inner_text().replace("\n", "")
        heights = "() => [...document.getElementById('ffn').data[0].y]"
        before, throughput = page.evaluate(heights), page.locator("#summary dd").first.inner_text()
        assert len(before) == 80
        point = page.locator("#frontier .points path").nth(4).bounding_box()
        page.mouse.click(point["x"] + point["width"] / 2, point["y"] + point["height"] / 2)
        assert page.locator("#child option:checked").inner_text() == "points 5"
        assert kinds(data, "points 5") in legend.inner_text().replace("\n", "")
        assert page.evaluate(heights) != before
        assert page.locator("#summary dd").first.inner_text() != throughput
        assert "points 5" in page.locator("#serving").inner_text()
        assert "points 5" in page.locator("#memory").inner_text()
        assert page.url.endswith("#show=points%205")
        assert wrong == []


def test_everything_can_be_reached_by_keyboard(
    browser: Any, written: tuple[Path, dict[str, Any]]
) -> None:
    with opened(browser, written[0]) as (page, wrong):
        focused = []
        for _ in range(6):
            page.keyboard.press("Tab")
            focused.append(
                page.evaluate("document.activeElement.id || document.activeElement.value")
            )
        assert focused[:4] == ["child", "walk", "scenario", "time"]
        page.locator("#walk").focus()
        page.keyboard.press("Home")
        page.evaluate(FRAME)
        assert page.locator("#child option:checked").inner_text() == "points 1"
        page.keyboard.press("ArrowRight")
        page.evaluate(FRAME)
        assert page.locator("#child option:checked").inner_text() == "points 2"
        page.locator("input[value=time]").focus()
        page.keyboard.press("ArrowRight")
        assert "Weights and KV cache" in page.locator("#layers-note").inner_text()
        page.keyboard.press("ArrowRight")
        bars = page.evaluate("() => document.getElementById('ffn').data.map(t => t.y[79])")
        assert sum(bars) == pytest.approx(704.651264)  # millions, 3 x 8192 x 28672 and a norm
        page.select_option("#scenario", label="2048/128")
        assert "2048/128" in page.locator("#frontier").inner_text()
        assert wrong == []


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_it_fits_the_screen_in_light_and_dark(
    browser: Any, written: tuple[Path, dict[str, Any]], size: tuple[int, int], tmp_path: Path
) -> None:
    papers = set()
    for scheme in ("light", "dark"):
        with opened(browser, written[0], size=size, scheme=scheme) as (page, wrong):
            assert page.evaluate("document.documentElement.scrollWidth") == size[0]
            papers.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            page.screenshot(path=tmp_path / f"{scheme}.png", full_page=True)
            assert wrong == []
        assert (tmp_path / f"{scheme}.png").stat().st_size > 50_000
    assert len(papers) == 2


def test_a_change_of_scheme_is_followed(browser: Any, written: tuple[Path, dict[str, Any]]) -> None:
    colour = "() => document.getElementById('serving').data.at(-1).marker.color"
    with opened(browser, written[0]) as (page, wrong):
        light = page.evaluate(colour)
        page.emulate_media(color_scheme="dark")
        for _ in range(50):
            if page.evaluate(colour) != light:
                break
            page.wait_for_timeout(100)
        assert page.evaluate(colour) != light
        assert wrong == []


def test_what_is_not_there_is_said(
    browser: Any, written: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    pairs = [("gqa_8", "mlp_256"), *[("gqa_8", "mlp_28672")] * 79]
    ArchitectureSpec.of("llama-3.1-70b", pairs).write(tmp_path / "narrow.yaml")
    data = report_data(find_sources([tmp_path / "narrow.yaml"], AskedSetting(gpu="rtx4090")))
    data["setting"]["evidence"]["scores"] = data["setting"]["scores_from"] = None
    (tmp_path / "page.html").write_text(render_page(data), encoding="utf-8")
    with opened(browser, tmp_path / "page.html") as (page, wrong):
        assert page.locator("#summary").inner_text().count("does not fit") == 2
        assert "does not fit rtx4090" in page.locator("#layers-note").inner_text()
        assert "does not fit rtx4090" in page.locator("#serving-note").inner_text()
        assert "narrow" in page.locator("#frontier-note").inner_text()
        assert "No score table" in page.locator("#subtitle").inner_text()
        assert "Nothing on this page was measured" in page.locator("#measured").inner_text()
        page.check("input[value=parameters]", force=True)
        assert "Parameters of every block" in page.locator("#layers-note").inner_text()
        assert page.evaluate("document.getElementById('ffn').data[0].y.length") == 80
        assert wrong == []


def test_names_from_files_are_text(
    browser: Any, written: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    data = json.loads(json.dumps(written[1]))
    evil = "</script><img src=x onerror=document.title='broken'>"
    data["children"][1]["name"] = evil
    (tmp_path / "page.html").write_text(render_page(data), encoding="utf-8")
    with opened(browser, tmp_path / "page.html") as (page, wrong):
        assert page.locator("#child option:checked").inner_text() == evil
        assert page.title() == "llama-3.1-70b on h100"
        assert page.locator("img").count() == 0
        assert wrong == []
