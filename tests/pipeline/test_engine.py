"""A recipe from a GGUF file to a child's, in an engine: a closed form stands in for llama.cpp."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from puzzle_search.errors import InputError, MissingDependencyError
from puzzle_search.export import plan_export, write_export
from puzzle_search.pipeline.recipes.recipe import read_recipe
from puzzle_search.pipeline.run import RunResult, run_recipe
from puzzle_search.pipeline.status import run_status
from tests.pico import Pico, run_here
from tests.pipeline.test_run import write_recipe
from tests.profile.engine_stub import attention_us, ffn_us

GGUFReader = pytest.importorskip("gguf", reason="pip install gguf").GGUFReader
pytest.importorskip("xllamacpp", reason="pip install xllamacpp")
STUB = Path(__file__).parents[1] / "profile" / "engine_stub.py"
SPACE = """\
format: puzzle-search.search-space/1
attention: [gqa_2, gqa_1, no_op]
ffn: [mlp_512, mlp_256]
"""
STAGES = [
    "import", "text", "profile", "baseline", "library", "score", "solve", "build", "export",
    "evaluate", "bench", "generate",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def stub() -> Iterator[None]:
    """Every worker is a stand-in."""
    with pytest.MonkeyPatch.context() as patch:
        for user in ("profile.engines.measure", "evaluate.engine_bench", "engines.gguf_text"):
            command = [sys.executable, str(STUB), "{}"]
            patch.setattr(f"puzzle_search.{user}.worker_command", lambda *_, c=command: c)
        yield


@pytest.fixture(scope="module")
def file(pico: Pico, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small parent in GGUF, as it would be downloaded."""
    file = tmp_path_factory.mktemp("download") / "model.gguf"
    write_export(plan_export(pico.parent, "llama.cpp", dtype="f32"), pico.parent, file)
    return file


def recipe(pico: Pico, folder: Path, model: Path, **changes: Any) -> Path:
    written = write_recipe(pico, folder)
    (folder / "space.yaml").write_text(SPACE)
    plain = yaml.safe_load(written.read_text()) | {
        "parent": str(model),
        "space": "space.yaml",
        "scenario": "64/64",
        "engine": {"name": "llama.cpp"},
        "profile": {"batches": [1, 4]},
        "data": {"source": "self:16000", "length": 32},
    }
    plain["evaluate"]["source"] = str(pico.corpus)
    written.write_text(yaml.safe_dump(plain | changes))
    return written


@pytest.fixture(scope="module")
def finished(
    pico: Pico, file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, RunResult]:
    folder = tmp_path_factory.mktemp("engine")
    result = run_recipe(read_recipe(recipe(pico, folder, file)), folder / "run")
    return folder, result


def read(folder: Path, *parts: str) -> Any:
    return json.loads(folder.joinpath("run", *parts).read_text())


def decode_us(file: Path, batch: int) -> float:
    """What the stand-in takes for a step in the middle of the output, without its constant part."""
    fields = GGUFReader(file).fields
    blocks = fields["general.architecture"].contents()
    heads, widths = (
        fields[f"{blocks}.{key}"].contents()
        for key in ("attention.head_count_kv", "feed_forward_length")
    )
    count = fields[f"{blocks}.block_count"].contents()
    spread = ([value] * count if isinstance(value, int) else value for value in (heads, widths))
    return sum(
        (attention_us(head, [(1, 96)] * batch) if head else 0)
        + (ffn_us(width, batch) if width else 0)
        for head, width in zip(*spread, strict=True)
    )


def test_it_ends_with_a_file_as_fast_as_asked(finished: tuple[Path, RunResult]) -> None:
    folder, result = finished
    assert result.served == folder / "run" / "export" / "model.gguf"
    bench = read(folder, "bench", "bench.json")
    speedup = bench["child"]["tokens_per_second"] / bench["parent"]["tokens_per_second"]
    assert speedup >= 1.1 * 0.99
    rows = {row["what"]: row for row in read(folder, "report.json")["rows"]}
    assert rows["speed-up"]["predicted"] == pytest.approx(speedup, rel=0.02)
    parent = folder / "run" / "baseline" / "model.gguf"
    batch = bench["parent"]["batch"]
    assert decode_us(result.served, batch) < decode_us(parent, batch)


def test_the_file_is_of_the_named_type_and_the_engine_loads_the_child(
    finished: tuple[Path, RunResult],
) -> None:
    folder, result = finished
    types = {tensor.tensor_type.name for tensor in GGUFReader(result.served).tensors}
    assert types == {"Q8_0", "F32"}
    kept = yaml.safe_load((folder / "run" / "recipe.yaml").read_text())
    assert kept["solve"]["portable"] == "llama.cpp"


def test_the_engine_writes_the_samples(finished: tuple[Path, RunResult]) -> None:
    _, result = finished
    [sample] = result.samples
    path, _, body = sample["completion"].partition(": ")
    assert path == "/v1/completions"
    asked = json.loads(body)
    assert (asked["prompt"], asked["max_tokens"], asked["temperature"]) == ("abc", 4, 0.0)


def test_a_second_run_does_nothing_again(
    finished: tuple[Path, RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = finished
    monkeypatch.setattr("puzzle_search.imports.gguf.convert.GgufSource", None)
    run = folder / "run"
    for written in (folder / "recipe.yaml", run / "recipe.yaml"):
        result = run_recipe(read_recipe(written), run)
        assert result.skipped == STAGES
        assert result.removed == []


def test_a_run_of_an_engine_says_what_it_gave_and_is_asked(
    finished: tuple[Path, RunResult], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, result = finished
    gave = {stage.name: stage.gave for stage in run_status(folder / "run").stages}
    assert list(gave) == STAGES
    assert gave["export"] == f"file of {result.served.stat().st_size / 1e6:,.1f} MB"
    run_here("solve", folder / "run", "--json")
    answer = json.loads(capsys.readouterr().out)
    assert answer["score"] == read(folder, "solve", "solution.json")["score"]


def test_other_text_takes_its_stage_along(
    pico: Pico, file: Path, finished: tuple[Path, RunResult], tmp_path: Path
) -> None:
    folder, _ = finished
    other = recipe(pico, tmp_path, file, data={"source": str(pico.corpus), "length": 32})
    result = run_recipe(read_recipe(other), folder / "run")
    assert result.skipped[:3] == ["import", "profile", "baseline"]
    assert "text" in result.removed
    assert "library" not in result.skipped


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"engine": {"name": "llama.cpp", "dtype": "q3_k"}}, r"engine\.dtype"),
        ({"engine": {"name": "sglang"}}, r"engine\.name"),
        ({"solve": {"target_speedup": 2.0, "portable": "vllm"}}, r"solve\.portable: vllm, but"),
        ({"profile": {"batches": [1], "max_minutes": 1.0}}, r"profile\.max_minutes"),
        ({"data": {"source": "self:few"}}, r"data\.source: data source 'self:few'"),
        ({"evaluate": {"tokens": 512, "source": "self"}}, r"evaluate\.source: what a parent"),
        ({"parent": "package:no_such_package/model.gguf"}, "no_such_package is no Python package"),
        ({"parent": "package:gguf/nothing.gguf"}, r"parent: \S*gguf/nothing\.gguf does not exist"),
    ],
)
def test_what_cannot_be_is_refused_by_its_key(
    pico: Pico, file: Path, tmp_path: Path, changes: dict[str, Any], where: str
) -> None:
    with pytest.raises(InputError, match=where):
        read_recipe(recipe(pico, tmp_path, file, **changes))


def test_what_the_engine_cannot_do_is_refused_before_the_first_stage(
    pico: Pico, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = read_recipe(recipe(pico, tmp_path / "short", pico.parent, scenario="8/8"))
    with pytest.raises(InputError, match="shorter than the 40 decode steps"):
        run_recipe(short, tmp_path / "run")
    chat = {"prompts": ["a"], "chat": True}
    with pytest.raises(InputError, match="has no chat template"):
        run_recipe(
            read_recipe(recipe(pico, tmp_path / "chat", pico.parent, generate=chat)),
            tmp_path / "run",
        )
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="xllamacpp is not installed"):
        run_recipe(short, tmp_path / "run")
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["journal.jsonl"]


def test_a_profile_with_holes_is_measured_anew(
    pico: Pico, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holed = [sys.executable, str(STUB), json.dumps({"tokens_that_fit": 70})]
    asked = read_recipe(
        recipe(pico, tmp_path, file, data={"source": str(pico.corpus), "length": 32})
    )
    with monkeypatch.context() as patch:
        patch.setattr("puzzle_search.profile.engines.measure.worker_command", lambda _: holed)
        with pytest.raises(InputError) as caught:
            run_recipe(asked, tmp_path / "run")
    assert "measured anew" in caught.value.remedy
    profile = tmp_path / "run" / "profile"
    assert not (profile / "profile.yaml").exists()
    assert not (profile / "journal.jsonl").exists()
    assert run_recipe(asked, tmp_path / "run").skipped == ["import"]
