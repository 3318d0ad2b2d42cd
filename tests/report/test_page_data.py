"""The data of the page against closed forms, published counts and ``explain``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.errors import InputError
from puzzle_search.explain.layers import explain
from puzzle_search.report.page.data import report_data
from puzzle_search.report.page.render import render_page
from puzzle_search.report.page.sources import find_sources
from puzzle_search.solve.question.setting import AskedSetting
from tests.pico import ROOT, run_here

CHILDREN = ROOT / "examples/llama-3.1-70b/children"
SPECS = [CHILDREN / f"{name}.yaml" for name in ("tps-6000", "nemotron-51b", "nemotron-49b")]
# Of the published configurations of Llama-3.1-70B, Nemotron-51B and Nemotron-Super-49B.
PUBLISHED = {
    "llama-3.1-70b": 70_553_706_496,
    "nemotron-51b": 51_501_015_040,
    "nemotron-49b": 49_867_145_216,
}
HIDDEN, FFN, KV, VOCABULARY, LAYERS = 8192, 28672, 8 * 128, 128256, 80


@pytest.fixture(scope="module")
def frontier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frontier") / "points"
    words = ("--points", 5, "--from", 2000, "--to", 9000, "--workers", 1)
    run_here("frontier", *words, "--out", folder)
    return folder


@pytest.fixture(scope="module")
def data(frontier: Path) -> dict[str, Any]:
    return report_data(find_sources([*SPECS, frontier]))


def named(data: dict[str, Any], name: str) -> dict[str, Any]:
    [child] = [child for child in data["children"] if child["name"] == name]
    return child


def test_parameters_are_the_published_counts(data: dict[str, Any]) -> None:
    for name, parameters in PUBLISHED.items():
        child = named(data, name)
        assert child["parameters"] == parameters
        blocks = sum(
            data["variants"][subblock][block[place]]["parameters"]
            for block in child["blocks"]
            for place, subblock in enumerate(("attention", "ffn"))
        )
        assert blocks + 2 * VOCABULARY * HIDDEN + HIDDEN == parameters


def test_memory_of_the_parent_is_the_closed_form(data: dict[str, Any]) -> None:
    cost = named(data, "llama-3.1-70b")["costs"][0]
    matrices = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * KV + 3 * HIDDEN * FFN  # fp8, a byte each
    outside = 2 * (2 * VOCABULARY * HIDDEN + HIDDEN)  # bf16: two tables, one norm
    assert cost["memory"]["weights"] == LAYERS * (matrices + 2 * 2 * HIDDEN) + outside
    tokens = cost["batch"] * (128 + 1024)
    assert cost["memory"]["kv"] == tokens * LAYERS * 2 * KV
    assert sum(cost["memory"].values()) <= data["setting"]["memory_limit_bytes"]
    assert cost["memory"]["activations"] > 0
    # 81,559 MiB, as the driver of an H100 tells.
    total = data["setting"]["memory_limit_bytes"] + data["setting"]["reserve_bytes"]
    assert total == 81_559 * 2**20


def test_bars_save_what_explain_says(data: dict[str, Any]) -> None:
    child = named(data, "tps-6000")
    cost = child["costs"][0]
    prices = data["scenarios"][0]["prices"][f"{cost['batch']}x{cost['tp']}"]
    sources = find_sources(SPECS)
    explained = explain(ArchitectureSpec.from_file(SPECS[0]), sources.setting)
    for block, told in zip(child["blocks"], explained.blocks, strict=True):
        for key, saved, tolerance in (
            ("time_us", told.saved_us, 20),  # five digits of about 500,000 us
            ("memory_bytes", told.saved_bytes, 1e5),
        ):
            bars = [prices["attention"][key], prices["ffn"][key]]
            left = sum(bar[block[place]] for place, bar in enumerate(bars))
            assert sum(bar[0] for bar in bars) - left == pytest.approx(saved, abs=tolerance)
    damages = [
        data["damage"][layer][f"{attention},{ffn}"]
        for layer, (attention, ffn, _) in enumerate(child["blocks"])
    ]
    assert sum(damages) == pytest.approx(child["score"], rel=1e-4)


def test_children_of_a_frontier_stand_where_they_were_solved(
    data: dict[str, Any], frontier: Path
) -> None:
    points = json.loads((frontier / "frontier.json").read_text())["points"]
    shown = [child for child in data["children"] if child["kind"] == "frontier"]
    assert len(shown) == len(points) == 5
    for child, point in zip(shown, points, strict=True):
        [cost] = child["costs"]
        assert child["status"] == "optimal"
        assert child["score"] == pytest.approx(point["score"], rel=1e-4)
        assert (cost["batch"], cost["tp"]) == (point["batch"], point["tp"])
        assert cost["tokens_per_second_per_gpu"] == pytest.approx(
            point["tokens_per_second_per_gpu"], rel=1e-4
        )
        assert len(child["blocks"]) == LAYERS


def test_a_child_says_what_it_was_solved_to_have(tmp_path: Path) -> None:
    spec = ArchitectureSpec.from_file(SPECS[0])
    other = {"input_len": 128, "output_len": 1024, "batch": 204, "tp": 1, "gpu": "h100",
             "tokens_per_second_per_gpu": 5432.1}  # fmt: skip
    ArchitectureSpec(parent=spec.parent, blocks=spec.blocks, solution={"scenarios": [other]}).write(
        tmp_path / "old.yaml"
    )
    [shown] = [c for c in report_data(find_sources([tmp_path / "old.yaml"]))["children"][1:]]
    assert shown["solved"] == [5432.1]
    assert shown["costs"][0]["batch"] == 204
    asked = find_sources([tmp_path / "old.yaml"], AskedSetting(tp="any"))
    assert report_data(asked)["children"][1]["solved"] == [None]


def test_no_point_of_a_serving_curve_is_beaten_in_both_rates(data: dict[str, Any]) -> None:
    for child in data["children"]:
        [cost] = child["costs"]
        users = [point[2] for point in cost["serving"]]
        rates = [point[3] for point in cost["serving"]]
        assert users == sorted(users, reverse=True)
        assert rates == sorted(rates)
        assert max(rates) >= cost["tokens_per_second_per_gpu"]


def test_a_child_with_variants_that_were_not_scored_has_no_score(tmp_path: Path) -> None:
    pairs = [("gqa_8", "mlp_256"), *[("gqa_8", "mlp_28672")] * 79]
    ArchitectureSpec.of("llama-3.1-70b", pairs).write(tmp_path / "narrow.yaml")
    data = report_data(find_sources([tmp_path / "narrow.yaml"]))
    assert named(data, "narrow")["score"] is None
    assert "0,1" not in data["damage"][0]
    assert data["damage"][1]["0,0"] == 0


def test_other_settings_move_children_to_their_fastest(frontier: Path) -> None:
    data = report_data(
        find_sources(
            [*SPECS, frontier],
            AskedSetting(
                tp="any",
                scenarios=(
                    "2048/128",
                    "128/1",
                ),
            ),
        )
    )
    assert [scenario["output_len"] for scenario in data["scenarios"]] == [128, 1]
    for child in data["children"]:
        assert (
            max(p[3] for p in child["costs"][0]["serving"])
            == (child["costs"][0]["tokens_per_second_per_gpu"])
        )
        # One output token: nobody waits for a second.
        assert child["costs"][1]["serving"] == []
        assert child["costs"][1]["tokens_per_second_per_user"] is None


def test_what_does_not_fit_has_no_cost() -> None:
    data = report_data(find_sources(SPECS, AskedSetting(gpu="rtx4090")))
    assert all(child["costs"] == [None] for child in data["children"])
    assert data["scenarios"][0]["prices"] == {}
    assert data["setting"]["evidence"]["cost"] == "datasheet"


def test_the_page_names_no_address_and_allows_none(data: dict[str, Any]) -> None:
    plotly = pytest.importorskip("plotly.offline", reason="pip install 'puzzle-search[report]'")
    hostile = data | {"name": "</script><script>alert(1)</script>"}
    page = render_page(hostile)
    own = page.replace(plotly.get_plotlyjs(), "")
    assert len(own) < len(page)
    assert not re.search(r"https?:|//\w+\.|\bsrc=|\bhref=|@import|url\(", own)
    assert "default-src 'none'" in own
    assert "<script>alert" not in own
    assert '"</script' not in own


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing.yaml"], "nothing.yaml"),
        (["empty"], "neither a run directory"),
        (["frontier.json"], "frontier/1"),
        ([str(SPECS[0]), "--gpu", "h1000"], "no cost model"),
        ([str(SPECS[0]), "--model", "stdlib-lm"], "shipped example"),
        ([str(SPECS[0]), "other.yaml"], "other"),
    ],
)
def test_what_cannot_be_shown_is_refused(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("frontier.json").write_text('{"points": []}')
    Path("empty").mkdir()
    ArchitectureSpec.of("other", [("gqa_8", "mlp_28672")] * 80).write("other.yaml")
    with pytest.raises(InputError, match=re.escape(said)):
        run_here("report", *words)
    assert not Path("report.html").exists()


def test_a_frontier_with_a_damaged_point_is_refused(frontier: Path, tmp_path: Path) -> None:
    whole = json.loads((frontier / "frontier.json").read_text())
    for change in ("blocks", "score"):
        damaged = whole | {"points": [dict(whole["points"][0]), *whole["points"][1:]]}
        del damaged["points"][0][change]
        (tmp_path / "frontier.json").write_text(json.dumps(damaged))
        with pytest.raises(InputError, match="point 1 is not whole"):
            find_sources([tmp_path])
