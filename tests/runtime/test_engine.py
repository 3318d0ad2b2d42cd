"""The engine against transformers' own generation, and against the reference decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from puzzle_search.arch import ArchitectureSpec, ParentConfig
from puzzle_search.checkpoint import load_decoder
from puzzle_search.errors import InputError
from puzzle_search.model import HeterogeneousDecoder
from puzzle_search.runtime import Engine, ServingDecoder, precision_on
from tests.model.pico import random_ids, write_parent

CPU = torch.device("cpu")
PROMPT, NEW = 20, 12
PARENTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True, "head_dim": 24},
    "qwen3": {"model_type": "qwen3", "head_dim": 32, "attention_bias": True},
    "window": {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 6},
    "long-window": {"model_type": "mistral", "sliding_window": PROMPT},
    "smollm3": {"model_type": "smollm3", "no_rope_layers": [1, 0], "pad_token_id": 0},
    "granite": {
        "model_type": "granite", "embedding_multiplier": 6.0, "attention_multiplier": 0.1,
        "residual_multiplier": 0.4, "logits_scaling": 0.5,
    },
    "olmo2": {"model_type": "olmo2", "num_key_value_heads": 2},
    "phi3": {
        "model_type": "phi3", "num_key_value_heads": 2, "sliding_window": 9, "pad_token_id": 0,
    },
}  # fmt: skip


def serve(engine: Engine, slots: list[int], ids_BL: torch.Tensor, new: int) -> torch.Tensor:
    """Greedy continuations (B, new)."""
    tokens = [engine.prefill(slots, ids_BL).clone()]
    tokens += [engine.decode()[slots].clone() for _ in range(new - 1)]
    return torch.stack(tokens, dim=1)


def transformers_greedy(model: Any, ids_BL: torch.Tensor, new: int) -> torch.Tensor:
    made = model.generate(
        ids_BL, max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return made[:, ids_BL.shape[1] :]


@pytest.mark.parametrize("kind", PARENTS)
@pytest.mark.parametrize("chunk_tokens", [7, PROMPT, 48, 8192])
def test_tokens_are_those_of_transformers(tmp_path: Path, kind: str, chunk_tokens: int) -> None:
    model = write_parent(tmp_path, **PARENTS[kind])
    ids, slots = random_ids(5, PROMPT), [6, 1, 2, 0, 4]
    decoder = ServingDecoder.from_checkpoint(tmp_path, precision_on("fp32", CPU), CPU)
    engine = Engine(decoder, slots=7, max_length=PROMPT + NEW, chunk_tokens=chunk_tokens)
    assert torch.equal(serve(engine, slots, ids, NEW), transformers_greedy(model, ids, NEW))


def test_slots_are_filled_while_others_run(tmp_path: Path) -> None:
    model = write_parent(tmp_path)
    decoder = ServingDecoder.from_checkpoint(tmp_path, precision_on("fp32", CPU), CPU)
    engine = Engine(decoder, slots=3, max_length=PROMPT + NEW)
    first, second, third = random_ids(1, 9), random_ids(1, 15, seed=1), random_ids(1, 4, seed=2)
    made: dict[int, list[int]] = {0: [], 1: [], 2: []}

    def put(slot: int, ids: torch.Tensor) -> None:
        made[slot] = [int(engine.prefill([slot], ids))]

    def steps(count: int) -> None:
        for _ in range(count):
            for slot, token in enumerate(engine.decode().tolist()):
                made[slot].append(token)

    put(0, first)
    steps(2)
    put(2, second)
    steps(5)
    assert made[0] == transformers_greedy(model, first, 8)[0].tolist()
    put(0, third)
    steps(3)
    assert made[2] == transformers_greedy(model, second, 9)[0].tolist()
    assert made[0] == transformers_greedy(model, third, 4)[0].tolist()


def test_a_full_or_idle_slot_does_no_harm(tmp_path: Path) -> None:
    model = write_parent(tmp_path)
    decoder = ServingDecoder.from_checkpoint(tmp_path, precision_on("fp32", CPU), CPU)
    engine = Engine(decoder, slots=2, max_length=12)
    engine.prefill([1], random_ids(1, 10))
    for _ in range(20):
        engine.decode()
    assert engine.lengths == [1, 12]  # idle from the beginning, and full
    ids = random_ids(2, 6, seed=5)
    assert torch.equal(serve(engine, [0, 1], ids, 6), transformers_greedy(model, ids, 6))


def test_a_released_slot_attends_to_one_token_however_long_it_idles(tmp_path: Path) -> None:
    write_parent(tmp_path)
    decoder = ServingDecoder.from_checkpoint(tmp_path, precision_on("fp32", CPU), CPU)
    engine = Engine(decoder, slots=2, max_length=20)
    engine.prefill([0, 1], random_ids(2, 10))
    engine.release([0])
    for _ in range(5):
        engine.decode()
    assert engine.lengths == [1, 15]
    attended = (engine._positions_B + 1).tolist()
    assert attended == [1, 16]  # of the next step, on the device


CHILD = [("gqa_2", "mlp_256"), ("linear", "no_op"), ("no_op", "linear"), ("gqa_1", "mlp_512")]


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_children_compute_what_the_reference_decoder_computes(tmp_path: Path, name: str) -> None:
    write_parent(tmp_path, num_hidden_layers=4)
    config = ParentConfig.from_file(tmp_path)
    precision = precision_on(name, CPU)
    torch.manual_seed(0)
    spec = ArchitectureSpec.of(config.name, CHILD)
    reference = HeterogeneousDecoder(config, spec).to(precision.activation).eval()
    served = ServingDecoder(config, spec, precision)
    with torch.no_grad():
        served.embedding.copy_(reference.embedding.weight)
        served.head.copy_(reference.head.weight)
        for block, source in zip(served.blocks, reference.blocks, strict=True):
            for subblock in ("attention", "ffn"):
                if getattr(block, subblock) is not None:
                    getattr(block, subblock).load(getattr(source, subblock).state_dict())
        ids = random_ids(3, 30)
        expected = reference(ids)[:, -1].argmax(-1)
    assert torch.equal(Engine(served, slots=3, max_length=40).prefill([0, 1, 2], ids), expected)


def test_fp8_is_as_close_as_its_rounding_allows(tmp_path: Path) -> None:
    write_parent(tmp_path)
    ids = random_ids(6, PROMPT)
    with torch.inference_mode():
        exact = load_decoder(tmp_path)(ids)[:, -1]
        errors = {}
        for name in ("bf16", "fp8"):
            decoder = ServingDecoder.from_checkpoint(tmp_path, precision_on(name, CPU), CPU)
            engine = Engine(decoder, slots=6, max_length=PROMPT + NEW)
            engine.calibrate(ids)
            logits = decoder.logits(*engine._prefill_chunk(torch.arange(6), ids, 0)).float()
            errors[name] = float((logits - exact).norm() / exact.norm())
    # e4m3 keeps 3 bits after the leading one where bf16 keeps 7: 16 times the rounding.
    assert 4 < errors["fp8"] / errors["bf16"] < 32
    assert errors["bf16"] < 0.03


def test_bytes_are_those_of_the_formula(tmp_path: Path) -> None:
    write_parent(tmp_path)
    decoder = ServingDecoder.from_checkpoint(tmp_path, precision_on("fp8", CPU), CPU)
    hidden, width, layers, vocabulary = 64, 512, 2, 96
    matrices = layers * (4 * hidden * hidden + 3 * hidden * width)
    vectors = (2 * layers + 1) * hidden + 2 * vocabulary * hidden
    assert decoder.weight_bytes == matrices + 2 * vectors
    engine = Engine(decoder, slots=3, max_length=50)
    assert engine.cache_bytes == layers * 2 * hidden * 3 * 50


def test_a_window_bounds_the_cache_and_a_reused_ring_shows_nothing_of_its_last_text(
    tmp_path: Path,
) -> None:
    model = write_parent(tmp_path, model_type="mistral", sliding_window=6)
    decoder = ServingDecoder.from_checkpoint(tmp_path, precision_on("fp32", CPU), CPU)
    engine = Engine(decoder, slots=2, max_length=PROMPT + NEW, chunk_tokens=8)
    assert engine.cache_bytes == 2 * 2 * 64 * 4 * 2 * 6  # layers, K and V, sizes, slots, window
    serve(engine, [0, 1], random_ids(2, PROMPT), NEW)
    short = random_ids(2, 3, seed=4)
    assert torch.equal(serve(engine, [0, 1], short, NEW), transformers_greedy(model, short, NEW))


def test_prompts_and_slots_that_do_not_fit(tmp_path: Path) -> None:
    write_parent(tmp_path)
    decoder = ServingDecoder.from_checkpoint(tmp_path, precision_on("fp32", CPU), CPU)
    with pytest.raises(InputError, match="129 tokens exceed the 128"):
        Engine(decoder, slots=1, max_length=129)
    with pytest.raises(InputError, match="leaves no room in slots of 8"):
        Engine(decoder, slots=1, max_length=8).prefill([0], random_ids(1, 8))
