"""The worker against a stand-in for vLLM's interface, and its folders against transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from puzzle_search.arch import ParentConfig, SearchSpace
from puzzle_search.checkpoint import read_model_config
from puzzle_search.cost import parse_dtype
from puzzle_search.engines import VLLM as ENGINE
from puzzle_search.engines.process import OutOfMemoryError, Request, Worker, worker_command
from puzzle_search.errors import InputError, MissingDependencyError
from puzzle_search.profile.engines.vllm import Vllm

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
    "vocab_size": 300,
    "max_position_embeddings": 4096,
}
# What of vllm.LLM and its V1 engine the worker touches, as their published code has it.
VLLM = """
import os, types
__version__ = "0.24.0"
print("INFO: a banner on standard output")

class SamplingParams:
    def __init__(self, *, temperature, ignore_eos, max_tokens, detokenize):
        assert temperature == 0 and ignore_eos and not detokenize
        self.max_tokens = max_tokens

class LLM:
    def __init__(self, model, **engine):
        assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
        assert os.path.exists(os.path.join(model, "config.json"))
        if engine["max_num_seqs"] > 100:
            raise ValueError("No available memory for the cache blocks. Try more.\\nof it")
        cache = types.SimpleNamespace(num_gpu_blocks=100, block_size=16)
        self.llm_engine = types.SimpleNamespace(
            vllm_config=types.SimpleNamespace(cache_config=cache), engine_core=Core()
        )

    def generate(self, prompts, sampling_params, *, use_tqdm):
        print("generating")
        core = self.llm_engine.engine_core
        for prompt in prompts:
            assert all(0 <= i < 300 for i in prompt["prompt_token_ids"])
        if len(prompts[0]["prompt_token_ids"]) == 99:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        if len(prompts[0]["prompt_token_ids"]) == 98:
            raise RuntimeError("a bug")
        core.left = [len(prompts)] * sampling_params.max_tokens + [0]
        while core.left:
            core.get_output()

class Core:
    left = []
    def get_output(self):
        return types.SimpleNamespace(outputs=[None] * self.left.pop(0))
"""
TORCH = """
import types
__version__ = "2.11.0"
version = types.SimpleNamespace(cuda="13.0")
cuda = types.SimpleNamespace(
    is_available=lambda: True,
    current_device=lambda: 0,
    get_device_properties=lambda _: types.SimpleNamespace(name="Stub", total_memory=7),
)
"""


def parent(**changes: Any) -> ParentConfig:
    return ParentConfig.from_dict(LLAMA | changes, name="pico")


def start(folder: Path, batch: int = 8) -> Worker:
    (folder / "config.json").write_text("{}")
    settings = {"engine": {"max_num_seqs": batch}, "vocab_size": 300}
    return Worker(
        ENGINE,
        worker_command(ENGINE),
        folder,
        settings,
        log=folder / "worker.log",
        start_seconds=60,
        answer_seconds=60,
    )


@pytest.fixture
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "vllm.py").write_text(VLLM)
    (modules / "torch.py").write_text(TORCH)
    monkeypatch.setenv("PYTHONPATH", str(modules))


@pytest.mark.usefixtures("vllm")
def test_the_worker_times_every_step_of_the_engine(tmp_path: Path) -> None:
    with start(tmp_path) as worker:
        assert worker.identity["kv_tokens"] == 1600
        assert worker.identity["kv_block_tokens"] == 16
        assert worker.identity["engine"] == "vllm 0.24.0"
        device = worker.identity["device"]
        assert (device["kind"], device["name"], device["vllm"]) == ("cuda", "Stub", "0.24.0")
        for _ in range(2):
            steps = worker.run(Request(batch=3, input_len=5, output_len=4))
            assert [sequences for _, sequences in steps] == [3, 3, 3, 3]
            seconds = [second for second, _ in steps]
            assert seconds == sorted(seconds)
            assert seconds[0] > 0
    assert "a banner" in (tmp_path / "worker.log").read_text()


@pytest.mark.usefixtures("vllm")
def test_want_of_memory_is_told_and_ends_the_worker(tmp_path: Path) -> None:
    with pytest.raises(OutOfMemoryError, match=r"^No available memory for the cache blocks"):
        start(tmp_path, batch=101)
    with start(tmp_path) as worker, pytest.raises(OutOfMemoryError, match="CUDA out of memory"):
        worker.run(Request(batch=1, input_len=99, output_len=1))


@pytest.mark.usefixtures("vllm")
def test_any_other_error_ends_the_worker_with_its_traceback(tmp_path: Path) -> None:
    with start(tmp_path) as worker, pytest.raises(InputError, match="a bug"):
        worker.run(Request(batch=1, input_len=98, output_len=1))


def test_an_interpreter_without_vllm(tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match="No module named 'vllm'"):
        start(tmp_path)


CHECK = """
import copy, json, sys
from transformers import AutoConfig
config = copy.deepcopy(AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=True))
assert type(config).__name__ == "DeciLMConfig", type(config)
assert json.loads(config.to_json_string())["model_type"] == "nemotron-nas"
# As vLLM's model reads them.
def width(ffn):
    exact = int(2 * ffn.ffn_mult * config.hidden_size / 3)
    return exact if exact % 256 == 0 else exact + 256 - exact % 256
print(json.dumps([
    [
        None if block.attention.no_op else
            config.num_attention_heads // block.attention.n_heads_in_group,
        None if block.ffn.no_op or not hasattr(block.ffn, "ffn_mult") else width(block.ffn),
    ]
    for block in config.block_configs
]))
print(json.dumps([hasattr(config.block_configs[0].ffn, "hidden_act"), config.hidden_size,
    config.head_dim, config.vocab_size, config.num_hidden_layers, config.rope_parameters,
    config.architectures]))
"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gqa_2", [[2, None]] * 3),
        ("mlp_256", [[1, None], *[[None, 256]] * 3]),
    ],
)
def test_transformers_reads_a_folder_as_vllm_needs_it(
    tmp_path: Path, name: str, expected: list[list[int | None]]
) -> None:
    config = parent(rope_theta=500000.0)
    found, _ = Vllm().stacks(
        config, SearchSpace.uniform(config, attention=[], ffn=["mlp_256"]), (1,)
    )
    stack = next(s for s in found if s.name == name)
    folder = tmp_path / "child-1.0"
    Vllm().write(stack, 3, parse_dtype("bf16"), folder)
    done = subprocess.run(
        [sys.executable, "-c", CHECK, str(folder)],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    blocks, rest = map(json.loads, done.stdout.splitlines())
    assert blocks == expected
    rope = {"rope_type": "default", "rope_theta": 500000.0}
    assert rest == [False, 64, 16, 300, len(expected), rope, ["DeciLMForCausalLM"]]
    _, spec = read_model_config(folder)
    assert [block.ffn for block in spec.blocks][-1] == (name if name[0] == "m" else "no_op")


def test_a_shard_has_the_heads_and_widths_of_one_device() -> None:
    sizes = {"num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 128,
             "intermediate_size": 1024, "vocab_size": 304}  # fmt: skip
    config = ParentConfig.from_dict(LLAMA | sizes, name="pico")
    space = SearchSpace.uniform(config, attention=["gqa_2"], ffn=[])
    found, skipped = Vllm().stacks(config, space, (4,))
    assert not skipped
    assert [(s.name, s.local) for s in found] == [
        ("gqa_4", "gqa_1"), ("gqa_2", "gqa_1"), ("mlp_1024", "mlp_256"),
    ]  # fmt: skip
    local = found[0].config
    assert (local.num_heads, local.head_dim, local.hidden_size) == (2, 16, 128)
    assert (local.intermediate_size, local.vocab_size) == (256, 76)
