"""GGUF files side by side in llama.cpp's server."""

from __future__ import annotations

from pathlib import Path

import pytest

from puzzle_search.arch import SearchSpace
from puzzle_search.cost import Scenario, parse_dtype
from puzzle_search.errors import InputError
from puzzle_search.evaluate import measure_gguf_files
from puzzle_search.profile.engines.llama_cpp import LlamaCpp
from tests.profile.test_vllm_worker import parent

pytest.importorskip("gguf", reason="pip install gguf")
SCENARIO = Scenario(input_len=20, output_len=6)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A shallow model and a deep one."""
    folder = tmp_path_factory.mktemp("files")
    config = parent()
    space = SearchSpace.uniform(config, attention=[], ffn=[])
    stack = LlamaCpp().stacks(config, space, (1,))[0][0]
    for blocks in (1, 60):
        LlamaCpp().write(stack, blocks, parse_dtype("q8_0"), folder / str(blocks))
    return [folder / "1" / "model.gguf", folder / "60" / "model.gguf"]


@pytest.mark.engines
def test_files_are_measured_in_turn(files: list[Path]) -> None:
    pytest.importorskip("xllamacpp", reason="pip install xllamacpp")
    shallow, deep = measure_gguf_files(files, SCENARIO, batch=3, iterations=3)
    for figures, file in ((shallow, files[0]), (deep, files[1])):
        assert (figures.batch, figures.iterations, len(figures.samples)) == (3, 3, 3)
        # All tokens of a batch over the time to its last; of three runs the median is one of them.
        by_latency = 3 * 6 / (figures.latency_ms / 1e3)
        assert figures.tokens_per_second == pytest.approx(by_latency)
        assert figures.ttft_ms < figures.latency_ms
        assert figures.memory_bytes > file.stat().st_size


def test_what_is_no_gguf_file_is_refused(files: list[Path], tmp_path: Path) -> None:
    missing, broken = tmp_path / "missing.gguf", tmp_path / "broken.gguf"
    broken.write_bytes(files[0].read_bytes()[:100])
    for file in (missing, broken):
        with pytest.raises(InputError, match=f"{file.name} is missing, or no GGUF file"):
            measure_gguf_files([file], SCENARIO, batch=1, iterations=1)


def test_an_interpreter_that_is_not_there_is_told(files: list[Path]) -> None:
    with pytest.raises(InputError, match=r"llama\.cpp worker '/no/python' cannot be started"):
        measure_gguf_files(files, SCENARIO, batch=1, iterations=1, python="/no/python")
