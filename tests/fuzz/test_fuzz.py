"""Every reader, fed with a few changed files; ``make fuzz`` feeds thousands."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from puzzle_search.checkpoint import load_decoder, load_tokenizer
from puzzle_search.cost.fitting.operator_tables import gpus_and_engines
from puzzle_search.data.sources import files_below
from puzzle_search.errors import InputError
from puzzle_search.files import Journal
from puzzle_search.pipeline.status import run_status
from puzzle_search.profile.engines.results import Results
from puzzle_search.profile.sampling.readings import Readings
from puzzle_search.score.results import ScoreJournal
from puzzle_search.solve.question.run_folder import RunFolder
from tests.fuzz.__main__ import fuzz
from tests.fuzz.attempt import nonsense
from tests.fuzz.readers import READERS, read_distill_folder
from tests.fuzz.valid_files import (
    MADE_FROM,
    copied,
    distill_folder,
    engine_results,
    operator_tables,
    readings,
    run_folder,
    score_journal,
    tokenizer,
)
from tests.pico import Pico


def test_no_reader_breaks() -> None:
    found = fuzz(list(READERS), range(8), jobs=2)
    assert {name: told["cases"] for name, told in found.items() if told["cases"]} == {}
    for name, told in found.items():
        assert sum(told["outcomes"].values()) == 8, name
        assert told["outcomes"]["refused"], name


@pytest.mark.parametrize("value", [float("nan"), -1, 1e30, [{"seconds": float("inf")}], "\x1b[2J"])
def test_nonsense_is_found(value: Any) -> None:
    assert list(nonsense({"size": value}, ""))
    assert not list(nonsense({"size": [1, 2.5, None, True, "words"], "raw": value}, ""))


def edit(file: Path, line: int, **changes: Any) -> None:
    """Set or drop (None) keys of a line of JSON, the first of which is 1."""
    lines = file.read_text().splitlines()
    entry = json.loads(lines[line - 1])
    for key, value in changes.items():
        *above, last = key.split("__")
        place = entry
        for name in above:
            place = place[int(name) if name.isdecimal() else name]
        if value is None:
            del place[last]
        else:
            place[last] = value
    lines[line - 1] = json.dumps(entry)
    file.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    "changes",
    [{"value": None}, {"attention": ["gqa_1"]}, {"attention": "gqa_0"}, {"first_layer": -1},
     {"value__kl": "x"}, {"value__kl": float("nan")}, {"value__kl": 1e30},
     {"last_layer": 10**30}, {"stderr__kl": -1}, {"more": 1}],
)  # fmt: skip
def test_a_damaged_line_of_scores(tmp_path: Path, pico: Pico, changes: dict[str, Any]) -> None:
    score_journal(tmp_path, pico)
    file = tmp_path / "journal.jsonl"
    edit(file, 2, **changes)
    with pytest.raises(InputError, match=r"journal\.jsonl"):
        ScoreJournal(Journal(file), {"metrics": ["kl"]})


@pytest.mark.parametrize(("column", "value"), [("tokens", "9" * 30), ("value", "1e30")])
def test_numbers_that_nothing_has(tmp_path: Path, pico: Pico, column: str, value: str) -> None:
    READERS["scores"].prepare(tmp_path, pico)
    file = tmp_path / "scores.csv"
    rows = list(csv.DictReader(file.open()))
    rows[1][column] = value
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=rf"row 3: {column} is "):
        READERS["scores"].read(tmp_path, pico)


@pytest.mark.parametrize(
    "changes",
    [{"group": True}, {"group__seconds": -1.0}, {"readings": 1}, {"readings__0__us": []},
     {"readings__0__us": [-1.0]}, {"readings__0__us": [1e30]},
     {"readings__0__part": None}, {"readings__0__point": "x"},
     {"readings__0__point__context": 0}, {"readings__0__subject": {}}],
)  # fmt: skip
def test_a_damaged_line_of_readings(tmp_path: Path, pico: Pico, changes: dict[str, Any]) -> None:
    readings(tmp_path, pico)
    edit(tmp_path / "journal.jsonl", 3, **changes)
    with pytest.raises(InputError, match=r"journal\.jsonl, line 3"):
        Readings(Journal(tmp_path / "journal.jsonl"), MADE_FROM)


@pytest.mark.parametrize(
    ("line", "changes"),
    [(2, {"identity": None}), (3, {"seconds": None}), (3, {"seconds": [float("inf")]}),
     (3, {"point": None}), (3, {"point__batch": None}), (4, {"stack": []}),
     (5, {"blocks": -1}), (5, {"too_large": None})],
)  # fmt: skip
def test_a_damaged_line_of_an_engines_profile(
    tmp_path: Path, pico: Pico, line: int, changes: dict[str, Any]
) -> None:
    engine_results(tmp_path, pico)
    edit(tmp_path / "journal.jsonl", line, **changes)
    with pytest.raises(InputError, match=rf"journal\.jsonl, line {line}"):
        Results(Journal(tmp_path / "journal.jsonl"), MADE_FROM)


@pytest.mark.parametrize(
    ("file", "line", "changes"),
    [("metrics.jsonl", 2, {"step": None}), ("metrics.jsonl", 2, {"step": 7}),
     ("metrics.jsonl", 2, {"step": 1.0}), ("metrics.jsonl", 2, {"held_out_loss": float("nan")}),
     ("metrics.jsonl", 2, {"held_out_loss": []}),
     ("checkpoints/step_000000002/state.json", 1, {"position__document": -1})],
)  # fmt: skip
def test_a_damaged_distillation(
    tmp_path: Path, pico: Pico, file: str, line: int, changes: dict[str, Any]
) -> None:
    distill_folder(tmp_path, pico)
    edit(tmp_path / "run" / file, line, **changes)
    with pytest.raises(InputError, match=f"{file}.* damaged"):
        read_distill_folder(tmp_path, pico)


@pytest.mark.parametrize(
    ("file", "changes"),
    [("solve/solution.json", {"scenarios": None}), ("solve/solution.json", {"scenarios": 3}),
     ("bench/bench.json", {"parent": 1.5}), ("score/done.json", {"seconds": "x"}),
     ("score/done.json", {"seconds": -1}), ("journal.jsonl", {"time": None})],
)  # fmt: skip
def test_a_damaged_stage_of_a_run(
    tmp_path: Path, pico: Pico, file: str, changes: dict[str, Any]
) -> None:
    run_folder(tmp_path, pico)
    edit(tmp_path / "run" / file, 1, **changes)
    with pytest.raises(InputError, match="is damaged"):
        run_status(tmp_path / "run")


@pytest.mark.parametrize(
    ("file", "changes"),
    [("report.json", {"rows": None}), ("bench/bench.json", {"parent__ttft_ms": float("inf")})],
)
def test_damaged_figures_of_a_run(
    tmp_path: Path, pico: Pico, file: str, changes: dict[str, Any]
) -> None:
    run_folder(tmp_path, pico)
    edit(tmp_path / "run" / file, 1, **changes)
    with pytest.raises(InputError, match="is damaged"):
        RunFolder.open(tmp_path / "run").measured()


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ("toy,vllm,1.0,a,bfloat16,1,1024,1024,1e300", "row 12 has a size or time"),
        ("toy,,1.0,a,bfloat16,1,1024,1024,1", "row 12 has an empty cell"),
        ("toy,vllm,1.0,a,bfloat16,2,3,4,5\n" * 2, "row 13 has what another row has"),
        ("toy,vllm,1.0,a,bfloat16,1,1024,1024,1,1", "no whole table"),
        ("\xff", "no whole table"),
    ],
)
def test_damaged_operator_tables(tmp_path: Path, pico: Pico, row: str, named: str) -> None:
    operator_tables(tmp_path, pico)
    with (tmp_path / "gemm.csv").open("ab") as file:
        file.write(row.encode("latin-1") + b"\n")
    with pytest.raises(InputError, match=rf"gemm\.csv.*{named}"):
        gpus_and_engines(tmp_path)


@pytest.mark.parametrize("length", [{}, "x"])
def test_a_tokenizer_of_a_length_that_is_no_number(
    tmp_path: Path, pico: Pico, length: object
) -> None:
    tokenizer(tmp_path, pico)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": length}))
    with pytest.raises(InputError, match="cannot be read"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("changes", [{"initializer_range": "x"}, {"dtype": "FLOAT32"}])
def test_settings_that_transformers_does_not_take(
    tmp_path: Path, pico: Pico, changes: dict[str, Any]
) -> None:
    copied("config.json", "model.safetensors")(tmp_path, pico)
    # Frequencies of any but the plain kind are transformers' own.
    changes = changes | {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}
    config = json.loads((tmp_path / "config.json").read_text()) | changes
    config.pop("rope_parameters", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="transformers cannot read the config"):
        load_decoder(tmp_path)


def test_a_layer_of_puzzletron_that_is_none(tmp_path: Path, pico: Pico) -> None:
    READERS["Puzzletron"].prepare(tmp_path, pico)
    file = tmp_path / "puzzle" / "subblock_stats.json"
    stats = json.loads(file.read_text())
    for value, key in (([], "parent_layer_index"), (10**30, "num_params")):
        stats[0]["subblocks"][0] |= {"parent_layer_index": 0, "num_params": 700, key: value}
        file.write_text(json.dumps(stats))
        with pytest.raises(InputError, match=f"{key} is "):
            READERS["Puzzletron"].read(tmp_path, pico)


def test_a_path_that_is_too_long(tmp_path: Path, pico: Pico) -> None:
    READERS["recipe"].prepare(tmp_path, pico)
    file = tmp_path / "recipe.yaml"
    file.write_text(file.read_text().replace("space.yaml", "x" * 5000))
    with pytest.raises(InputError, match=r"space: .*does not exist"):
        READERS["recipe"].read(tmp_path, pico)


def test_records_that_are_nested_without_end(tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text("[" * 5000 + "]" * 5000)
    with pytest.raises(InputError, match="line 1: not JSON"):
        list(files_below(tmp_path / "text.jsonl"))
