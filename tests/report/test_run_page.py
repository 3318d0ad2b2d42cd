"""The page of a run directory: its own profile, and what it measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from puzzle_search.errors import InputError
from puzzle_search.pipeline.recipes.recipe import read_recipe
from puzzle_search.pipeline.run import run_recipe
from puzzle_search.report.page.data import report_data
from puzzle_search.report.page.render import render_page
from puzzle_search.report.page.sources import find_sources
from tests.pico import Pico, run_here
from tests.pipeline.test_run import write_recipe
from tests.report.browser import opened, started


@pytest.fixture(scope="module")
def run(pico: Pico, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shown")
    changes: dict[str, Any] = {"solve": {"rounds": 1}, "profile": {"batches": [1, 2, 4]}}
    run_recipe(read_recipe(write_recipe(pico, folder, **changes)), folder / "pico-run")
    return folder / "pico-run"


def test_predictions_are_those_of_the_run(run: Path) -> None:
    data = report_data(find_sources([run]))
    rows = {row["what"]: row for row in json.loads((run / "report.json").read_text())["rows"]}
    parent, child = data["children"]
    [before], [cost] = parent["costs"], child["costs"]
    assert child["kind"] == "run"
    assert data["name"] == "pico-run"
    # The scalar of the run makes the parent right, and knows nothing of the child.
    measured = data["measured"]["serving"]["parent"]
    bench = json.loads((run / "bench" / "bench.json").read_text())["parent"]
    assert measured[3] == bench["tokens_per_second"]
    if before["batch"] == bench["batch"]:
        assert before["tokens_per_second_per_gpu"] == pytest.approx(measured[3], rel=1e-4)
    assert cost["tokens_per_second_per_gpu"] == pytest.approx(
        rows["child throughput"]["predicted"], rel=1e-4
    )
    assert sum(cost["memory"][part] for part in ("weights", "kv")) == pytest.approx(
        1e6 * rows["child memory"]["predicted"], abs=1
    )
    assert data["measured"]["rows"] == list(rows.values())
    assert len(data["measured"]["rounds"]) >= 1
    assert data["setting"]["evidence"] == {"scores": "measured", "cost": "measured"}


def test_a_run_that_is_not_done_shows_what_it_has(run: Path, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    shutil.copytree(run, begun)
    for name in ("bench", "evaluate"):
        shutil.rmtree(begun / name)
    (begun / "report.json").unlink()
    data = report_data(find_sources([begun]))
    assert data["measured"]["rows"] is None
    assert data["children"][1]["costs"][0] is not None
    shutil.rmtree(begun / "solve")
    with pytest.raises(InputError, match=r"no solve/architecture\.yaml yet"):
        find_sources([begun])
    with pytest.raises(InputError, match="one run"):
        find_sources([run, run])


def test_the_frontier_of_a_run_goes_around_its_child(run: Path, tmp_path: Path) -> None:
    words = ("--points", 4, "--to", "score=inf", "--workers", 1)
    run_here("frontier", run, *words, "--out", tmp_path / "line")
    data = report_data(find_sources([run, tmp_path / "line"]))
    line = [child for child in data["children"] if child["kind"] == "frontier"]
    assert len(line) >= 2
    assert all(child["status"] == "optimal" for child in line)
    # It begins no worse than the parent, and ends no slower than the child that the run chose.
    assert line[0]["score"] <= 0
    [chosen] = [child for child in data["children"] if child["kind"] == "run"]
    fastest = line[-1]["costs"][0]["tokens_per_second_per_gpu"]
    assert fastest >= chosen["costs"][0]["tokens_per_second_per_gpu"] * (1 - 1e-6)


@pytest.mark.browser
def test_what_was_measured_is_shown(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("plotly", reason="pip install 'puzzle-search[report]'")
    file = tmp_path / "run.html"
    file.write_text(render_page(report_data(find_sources([run]))), encoding="utf-8")
    rows = json.loads((run / "report.json").read_text())["rows"]
    with started() as browser, opened(browser, file) as (page, wrong):
        shown = page.locator("#predicted-table tbody tr")
        assert [text.split("\t")[0] for text in shown.all_inner_texts()] == [
            row["what"] for row in rows
        ]
        assert "held-out tokens" in page.locator("#measured").inner_text()
        assert page.locator("#quality-table tbody tr").count() == 5
        assert "one-shot" in page.locator("#rounds").inner_text()
        assert wrong == []
