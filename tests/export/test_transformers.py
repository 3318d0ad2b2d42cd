"""Exported children in transformers, held against this package in float64."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from puzzle_search.arch import ArchitectureSpec, Gqa
from puzzle_search.checkpoint import load_decoder, read_model_config
from puzzle_search.errors import InputError
from puzzle_search.export import plan_export, register_transformers, write_export
from tests.export.engine_process import (
    PROMPT,
    TOKENS,
    VOCABULARY,
    EngineProcess,
    check_against_reference,
    config_of,
    write_random_child,
    write_tokenizer,
)
from tests.export.specs import PARENTS, pairs_of_every_place, random_spec

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 24},
    "mistral": {"model_type": "mistral", "sliding_window": 64},
}
MIXED = [("no_op", "mlp_256"), ("linear", "linear"), ("gqa_1", "no_op"), ("gqa_4", "mlp_512")]


@pytest.fixture(scope="module")
def engine() -> Iterator[EngineProcess]:
    process = EngineProcess(Path(__file__).with_name("transformers_worker.py"))
    yield process
    process.close()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def exported(child: Path, out: Path) -> Path:
    write_export(plan_export(child, "transformers", dtype="f32"), child, out)
    return out


def check(engine: EngineProcess, child: Path, out: Path, **asked: Any) -> None:
    """Export, run where this package is not, compare; the cache holds what attention needs."""
    answer = engine.ask(
        file=str(exported(child, out)), prompt=PROMPT, tokens=TOKENS, vocabulary=VOCABULARY, **asked
    )
    check_against_reference(child, answer, tolerance=1e-3)
    config, spec = read_model_config(child)
    heads = [
        block.attention_variant.kv_heads
        for block in spec.blocks
        if isinstance(block.attention_variant, Gqa)
    ]
    # The last token is not fed back.
    assert answer["cached"] == 2 * sum(heads) * config.head_dim * (len(PROMPT) + TOKENS - 1)


@pytest.mark.parametrize(
    "family",
    [
        "llama",
        *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name != "llama"),
    ],
)
@pytest.mark.parametrize("pairs", pairs_of_every_place(with_attention=True))
def test_every_variant_in_every_place(
    pairs: list[tuple[str, str]],
    family: str,
    engine: EngineProcess,
    tokenizer: Path,
    tmp_path: Path,
) -> None:
    config = config_of(len(pairs), **FAMILIES[family])
    spec = ArchitectureSpec.of("pico", pairs)
    child = write_random_child(tmp_path / "child", config, spec, tokenizer)
    check(engine, child, tmp_path / "out")


RANDOM = [
    *(PARENTS | FAMILIES).values(),
    {"attention_bias": True, "head_dim": 24},
    {"model_type": "qwen3", "head_dim": 24, "attention_bias": True},
]


@pytest.mark.parametrize("seed", range(2 * len(RANDOM)))
def test_random_children(seed: int, engine: EngineProcess, tokenizer: Path, tmp_path: Path) -> None:
    config = config_of(6, **RANDOM[seed % len(RANDOM)])
    spec = random_spec(seed, 6)
    child = write_random_child(tmp_path / "child", config, spec, tokenizer, seed=seed)
    check(engine, child, tmp_path / "out")


def test_a_width_that_the_stock_format_cannot_say(
    engine: EngineProcess, tokenizer: Path, tmp_path: Path
) -> None:
    pairs = [("gqa_4", "mlp_600"), ("gqa_2", "no_op")]
    config, spec = config_of(2, intermediate_size=600), ArchitectureSpec.of("pico", pairs)
    child = write_random_child(tmp_path / "child", config, spec, tokenizer)
    check(engine, child, tmp_path / "out")


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_and_loaded_again(
    family: str, engine: EngineProcess, tokenizer: Path, tmp_path: Path
) -> None:
    config, spec = config_of(4, **FAMILIES[family]), ArchitectureSpec.of("pico", MIXED)
    child = write_random_child(tmp_path / "child", config, spec, tokenizer)
    again = tmp_path / "again"
    check(engine, child, tmp_path / "out", again=str(again))
    assert read_model_config(again) == read_model_config(child)
    ids = torch.tensor([PROMPT])
    with torch.inference_mode():
        assert torch.equal(load_decoder(again)(ids), load_decoder(child)(ids))


def test_no_attention_at_all_is_refused(tokenizer: Path, tmp_path: Path) -> None:
    spec = ArchitectureSpec.of("pico", [("linear", "mlp_512")] * 2)
    child = write_random_child(tmp_path / "child", config_of(2), spec, tokenizer)
    with pytest.raises(InputError, match="no attention in any block"):
        plan_export(child, "transformers")


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_all_alike_are_a_model_of_the_parents_type(
    family: str, tokenizer: Path, tmp_path: Path
) -> None:
    config = config_of(3, **FAMILIES[family])
    pairs = [("gqa_2", "mlp_256"), ("no_op", "no_op"), ("gqa_2", "mlp_256")]
    spec = ArchitectureSpec.of("pico", pairs)
    child = write_random_child(tmp_path / "child", config, spec, tokenizer)
    folder = exported(child, tmp_path / "out")
    assert json.loads((folder / "config.json").read_text())["model_type"] == family
    assert not list(folder.glob("*.py"))


@pytest.fixture(scope="module")
def folder(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with every variant, for what a trainer or a server does with it."""
    made = tmp_path_factory.mktemp("mixed")
    spec = ArchitectureSpec.of("pico", MIXED)
    child = write_random_child(made / "child", config_of(4), spec, tokenizer)
    register_transformers()
    return exported(child, made / "out")


def load(folder: Path, **options: Any) -> Any:
    """The registered class, without trust_remote_code."""
    return AutoModelForCausalLM.from_pretrained(folder, **options)


def expected(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        out: torch.Tensor = load_decoder(folder)(ids)
    return out


def test_padded_prompts_in_a_batch_get_what_each_gets_alone(folder: Path) -> None:
    model = load(folder)
    short = PROMPT[:3]
    padded = torch.tensor([PROMPT, [0] * (len(PROMPT) - len(short)) + short])
    mask = torch.ones_like(padded)
    mask[1, : len(PROMPT) - len(short)] = 0
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    both = model.generate(padded, attention_mask=mask, **options)[:, len(PROMPT) :]
    for prompt, found in zip((PROMPT, short), both, strict=True):
        alone = model.generate(torch.tensor([prompt]), **options)[0, len(prompt) :]
        assert found.tolist() == alone.tolist()


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"cache_implementation": "static"}])
def test_other_caches_and_searches(options: dict[str, Any], folder: Path) -> None:
    model = load(folder)
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    ids = torch.tensor([PROMPT])
    cached = model.generate(ids, **settings, **options)
    plain = {key: value for key, value in options.items() if key == "num_beams"}
    assert torch.equal(cached, model.generate(ids, **settings, **plain, use_cache=False))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_may_be_changed_after_loading(attention: str, folder: Path) -> None:
    model = load(folder)
    model.set_attn_implementation(attention)
    out = model(torch.tensor([PROMPT]), output_attentions=attention == "eager")
    torch.testing.assert_close(
        out.logits, expected(folder, torch.tensor([PROMPT])), rtol=1e-4, atol=1e-4
    )
    if attention == "eager":
        assert [one.shape[1] for one in out.attentions] == [4, 4]  # of the two blocks that attend


def test_blocks_on_several_devices(folder: Path, tmp_path: Path) -> None:
    places = {f"model.layers.{n}": "disk" if n in (1, 3) else "cpu" for n in range(4)}
    rest = dict.fromkeys(["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"], "cpu")
    model = load(folder, device_map=places | rest, offload_folder=tmp_path)
    ids = torch.tensor([PROMPT])
    torch.testing.assert_close(model(ids).logits, expected(folder, ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant: bool, folder: Path) -> None:
    ids = torch.tensor([PROMPT])
    gradients = []
    for checkpointing in (False, True):
        model = load(folder).train()
        if checkpointing:
            options = {"use_reentrant": reentrant}
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
            assert all(layer.gradient_checkpointing for layer in model.model.layers)
        model(ids, labels=ids).loss.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    assert all(gradient is not None for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_lora_trains_on_a_child_and_merges(folder: Path) -> None:
    peft = pytest.importorskip("peft", reason="pip install peft")
    torch.manual_seed(0)
    targets = ["q_proj", "v_proj", "linear_attn", "linear_mlp", "down_proj"]
    model = peft.get_peft_model(load(folder), peft.LoraConfig(r=4, target_modules=targets))
    adapted = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name}
    # Attention in two blocks, an FFN in two, and one of each matrix.
    assert len(adapted) == 2 * 2 + 2 + 2
    ids = torch.tensor([PROMPT])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(5):
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.eval()
    with torch.inference_mode():
        adapted_logits = model(ids).logits
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(ids).logits, adapted_logits, rtol=1e-4, atol=1e-4)


def test_the_pipeline_answers(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    answer = pipeline("text-generation", model=load(folder), tokenizer=tokenizer)
    (told,) = answer("ab cd", max_new_tokens=8, do_sample=False, return_full_text=False)
    ids = tokenizer("ab cd", return_tensors="pt").input_ids
    out = load(folder).generate(ids, max_new_tokens=8, do_sample=False)
    assert told["generated_text"] == tokenizer.decode(
        out[0, ids.shape[1] :], skip_special_tokens=True
    )
