"""The engine on a GPU against the same on a CPU: compiled, in FP8, captured and replayed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from puzzle_search.arch import ArchitectureSpec, ParentConfig
from puzzle_search.runtime import Engine, Precision, ServingDecoder, precision_on
from tests.model.pico import LLAMA, random_ids

CPU = torch.device("cpu")
SPEC = [("gqa_4", "mlp_512"), ("linear", "no_op"), ("gqa_1", "linear"), ("gqa_2", "mlp_256")]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]


def make(precision: Precision, device: torch.device) -> ServingDecoder:
    config = ParentConfig.from_dict(LLAMA | {"num_hidden_layers": 4}, name="pico")
    torch.manual_seed(0)
    decoder = ServingDecoder.random(
        config, ArchitectureSpec.of("pico", SPEC), precision, CPU
    )  # the same numbers for both devices
    return decoder.to(device)


@torch.inference_mode()
def logits_of(engine: Engine, rounds: int) -> torch.Tensor:
    """Logits after two prompts of different lengths and some decode steps of fixed tokens."""
    device = engine.decoder.device
    engine.prefill([0, 2], random_ids(2, 17).to(device))
    engine.prefill([1], random_ids(1, 5, seed=3).to(device))
    for step in range(rounds):
        engine._ids_B.copy_(random_ids(3, seed=step).to(device))
        engine.decode()
    ids = random_ids(3, 9, seed=9).to(device)
    states = engine._prefill_chunk(torch.tensor([0, 1, 2], device=device), ids, 0)
    return engine.decoder.logits(*states).float().cpu()


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp8"])
@pytest.mark.parametrize("attention", ["triton", "sdpa"])
def test_decode_steps_are_those_of_the_cpu(name: str, attention: str) -> None:
    """Caches after replayed steps are compared: every layer's keys depend on all before it."""
    cuda = torch.device("cuda")
    engines = [
        Engine(make(precision_on(name, device), device), slots=3, max_length=40, attention=chosen)
        for device, chosen in ((CPU, "sdpa"), (cuda, attention))
    ]
    for engine in engines:
        engine.calibrate(random_ids(2, 17))
    found = [logits_of(engine, rounds=6) for engine in engines]
    tolerance = {"fp32": 1e-3, "bf16": 0.03, "fp8": 0.15}[name]
    assert (found[0] - found[1]).norm() / found[0].norm() < tolerance
    for cpu, gpu in zip(engines[0].cache.layers, engines[1].cache.layers, strict=True):
        if cpu is None:
            continue
        assert gpu is not None
        for slot, length in enumerate(engines[0].lengths):
            expected = cpu.keys_BSKE[slot, :length].float()
            keys = gpu.keys_BSKE[slot, :length].float().cpu()
            assert (keys - expected).norm() / expected.norm() < tolerance


def test_a_long_prompt_goes_in_chunks(tmp_path: Path) -> None:
    device = torch.device("cuda")
    decoder = make(precision_on("fp8", device), device)
    ids = random_ids(2, 60).to(device)
    found = [
        Engine(decoder, slots=2, max_length=64, chunk_tokens=tokens).prefill([0, 1], ids)
        for tokens in (16, 8192)
    ]
    assert found[0].shape == found[1].shape == (2,)


def test_one_sequence_is_compiled_too() -> None:
    device = torch.device("cuda")
    engine = Engine(make(precision_on("bf16", device), device), slots=1, max_length=20)
    engine.prefill([0], random_ids(1, 5).to(device))
    assert [int(engine.decode()[0]) < 96 for _ in range(3)] == [True] * 3
