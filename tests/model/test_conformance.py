"""What every variant kind must do. A new kind without cases here fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from puzzle_search.arch import (
    ArchitectureSpec,
    Moe,
    ParentConfig,
    Subblock,
    Variant,
    kv_values_per_token,
    parse_variant,
    subblock_parameters,
)
from puzzle_search.checkpoint import (
    CheckpointReader,
    load_decoder,
    open_safetensors,
    outside_names,
    save_tensors,
    stored_tensors,
    subblock_from_tensors,
    write_child,
)
from puzzle_search.checkpoint.names import subblock_shapes
from puzzle_search.cost.memory import kv_bytes_per_token, parse_dtype, weight_bytes
from puzzle_search.model import KvCache, Rotary, SubblockModule, make_subblock
from puzzle_search.model.cache import LayerCache
from puzzle_search.model.subblocks import _BUILDERS
from tests.model.pico import LLAMA, draw

ATTENTION = ("gqa_4", "gqa_2", "gqa_1", "gqa_4_window_3", "gqa_1_window_2", "linear", "no_op")
MLPS = ("mlp_512", "mlp_256", "linear", "no_op")
EXPERTS = ("moe_6", "moe_3", "moe_6_top_1", "moe_4_width_32", "moe_1_top_1_width_40", "no_op")
# A plain parent, and one with every optional tensor. FFN biases are Llama's, q/k norms Qwen3's;
# the experts' gates are divided by their sum, and are not.
PARENTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-biases": {"attention_bias": True, "mlp_bias": True, "head_dim": 24},
    "qwen3": {"model_type": "qwen3", "head_dim": 32, "attention_bias": True},
    "mistral-window": {"model_type": "mistral", "sliding_window": 4},
    "granite": {"model_type": "granite", "attention_multiplier": 0.1, "residual_multiplier": 0.4},
    "olmo2": {"model_type": "olmo2"},
    "mixtral": {
        "model_type": "mixtral", "intermediate_size": 64, "num_local_experts": 6,
        "num_experts_per_tok": 2,
    },
    "qwen3-moe": {
        "model_type": "qwen3_moe", "head_dim": 32, "moe_intermediate_size": 64, "num_experts": 6,
        "num_experts_per_tok": 2,
    },
    "gpt-oss": {
        "model_type": "gpt_oss", "head_dim": 24, "intermediate_size": 64, "num_local_experts": 6,
        "num_experts_per_tok": 2, "sliding_window": 5, "swiglu_limit": 1.5,
    },
}  # fmt: skip
CASES: list[tuple[str, Subblock, str]] = [
    (parent, subblock, name)
    for parent, changes in PARENTS.items()
    for subblock, names in (
        ("attention", ATTENTION),
        ("ffn", EXPERTS if "num_experts_per_tok" in changes else MLPS),
    )
    for name in names
]
TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BATCH, LENGTH = 3, 11


@dataclass(frozen=True, kw_only=True)
class Case:
    subblock: Subblock
    variant: Variant
    config: ParentConfig

    def tensors(self, seed: int = 0) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shapes = subblock_shapes(self.variant, self.config)
        return {name: draw(shape, name, generator) for name, shape in shapes.items()}

    def module(self, dtype: torch.dtype = torch.float32) -> SubblockModule:
        return subblock_from_tensors(
            self.variant, self.config, self.tensors(), dtype=dtype, device="cpu"
        )

    def inputs(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        generator = torch.Generator().manual_seed(9)
        shape = (BATCH, LENGTH, self.config.hidden_size)
        return torch.randn(shape, generator=generator).to(dtype)

    def cache(self, length: int = LENGTH, dtype: torch.dtype = torch.float32) -> KvCache:
        return KvCache(
            [self.variant],
            self.config,
            batch=BATCH,
            max_length=length,
            dtype=dtype,
            device="cpu",
        )

    def run(
        self,
        module: SubblockModule,
        x: torch.Tensor,
        start: int = 0,
        cache: LayerCache | None = None,
    ) -> torch.Tensor:
        rotary = Rotary(self.config).slice(start, x.shape[1], x)
        with torch.no_grad():
            out: torch.Tensor = module(x, rotary, cache)
        return out


def parent_config(**changes: Any) -> ParentConfig:
    return ParentConfig.from_dict(LLAMA | {"hidden_act": "silu"} | changes, name="pico")


@pytest.fixture(params=PARENTS)
def config(request: pytest.FixtureRequest) -> ParentConfig:
    return parent_config(**PARENTS[request.param])


@pytest.fixture(params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest) -> Case:
    parent, subblock, name = request.param
    config = parent_config(**PARENTS[parent])
    return Case(subblock=subblock, variant=parse_variant(subblock, name), config=config)


def test_every_registered_kind_has_cases() -> None:
    covered = {parse_variant(subblock, name).kind for _, subblock, name in CASES}
    assert covered == set(_BUILDERS)


def test_parents_have_every_optional_tensor() -> None:
    configs = [parent_config(**changes) for changes in PARENTS.values()]
    for option in ("qkv_bias", "output_bias", "mlp_bias", "qk_norm"):
        assert {getattr(config, option) for config in configs} == {True, False}
    gates = {config.experts.renormalised for config in configs if config.experts is not None}
    assert gates == {True, False}


@pytest.mark.parametrize("dtype", TORCH_DTYPES.values(), ids=TORCH_DTYPES)
def test_shape_and_dtype(case: Case, dtype: torch.dtype) -> None:
    x = case.inputs(dtype)
    out = case.run(case.module(dtype), x)
    assert (out.shape, out.dtype) == (x.shape, dtype)
    assert out.isfinite().all()


def test_output_is_residual_plus_mix(case: Case) -> None:
    module, x = case.module(), case.inputs()
    rotary = Rotary(case.config).slice(0, LENGTH, x)
    expected = x
    if case.variant.tensors(case.config):
        with torch.no_grad():
            expected = residual(
                case.config, case.tensors(), x, lambda y: module.mix(y, rotary, None)
            )
    torch.testing.assert_close(case.run(module, x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunks", [[LENGTH], [1] * LENGTH, [4, 5, 1, 1], [1, 9, 1]])
def test_cached_pass_equals_full_pass(case: Case, chunks: list[int]) -> None:
    module, x, cache = case.module(), case.inputs(), case.cache().layers[0]
    parts, start = [], 0
    for part in x.split(chunks, dim=1):
        parts.append(case.run(module, part, start, cache))
        start += part.shape[1]
    torch.testing.assert_close(torch.cat(parts, dim=1), case.run(module, x), atol=1e-5, rtol=1e-5)
    assert cache is None or cache.length == LENGTH


def test_later_tokens_do_not_reach_earlier_ones(case: Case) -> None:
    module, x = case.module(), case.inputs()
    changed = x.clone()
    changed[:, 6] += 1
    before, after = case.run(module, x), case.run(module, changed)
    torch.testing.assert_close(after[:, :6], before[:, :6], atol=3e-6, rtol=0)
    assert not torch.allclose(after[:, 6], before[:, 6])
    attends = case.variant.kind == "gqa"
    assert torch.allclose(after[:, 7:], before[:, 7:], atol=1e-6) != attends


def test_sequences_do_not_reach_each_other(case: Case) -> None:
    module, x = case.module(), case.inputs()
    changed = x.clone()
    changed[1] += 1
    before, after = case.run(module, x), case.run(module, changed)
    torch.testing.assert_close(after[[0, 2]], before[[0, 2]], atol=1e-5, rtol=1e-5)


def test_state_dict_and_parameter_count(case: Case) -> None:
    state = make_subblock(case.variant, case.config).state_dict()
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert found == subblock_shapes(case.variant, case.config)
    module = make_subblock(case.variant, case.config)
    assert set(found) == {name for name, _ in module.named_parameters()}
    counted = sum(parameter.numel() for parameter in module.parameters())
    assert counted == subblock_parameters(case.variant, case.config)


@pytest.mark.parametrize("dtype", TORCH_DTYPES)
def test_weight_bytes_are_the_modules_own(case: Case, dtype: str) -> None:
    held = sum(parameter.nbytes for parameter in case.module(TORCH_DTYPES[dtype]).parameters())
    assert weight_bytes(case.variant, case.config, parse_dtype(dtype), tp=1) == held


@pytest.mark.parametrize("dtype", TORCH_DTYPES)
def test_kv_bytes(case: Case, dtype: str) -> None:
    tokens, width = 37, TORCH_DTYPES[dtype].itemsize
    cache = case.cache(tokens, TORCH_DTYPES[dtype])
    values = kv_values_per_token(case.variant, case.config)
    assert cache.num_bytes == values * width * tokens * BATCH
    assert values * width == kv_bytes_per_token(case.variant, case.config, parse_dtype(dtype), tp=1)
    # Keys and values of each KV head, and nothing in any other kind.
    text = str(case.variant)
    heads = int(text.split("_")[1]) if text.startswith("gqa_") else 0
    assert values == 2 * heads * case.config.head_dim


def test_file_round_trip(case: Case, tmp_path: Path) -> None:
    module, file = case.module(), tmp_path / "subblock.safetensors"
    save_tensors(module.state_dict(), file)
    with open_safetensors(file) as handle:
        read = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    assert read.keys() == subblock_shapes(case.variant, case.config).keys()
    again = subblock_from_tensors(
        case.variant, case.config, read, dtype=torch.float32, device="cpu"
    )
    for name, tensor in module.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    # Products of a few rows differ in the last digit where the file's memory is aligned otherwise.
    x = case.inputs()
    torch.testing.assert_close(case.run(again, x), case.run(module, x), atol=1e-5, rtol=1e-5)


def test_child_checkpoint_round_trip(case: Case, tmp_path: Path) -> None:
    """The subblock in the middle block of a child, between subblocks of the parent."""
    config = parent_config(**(dict(case.config.raw) | {"num_hidden_layers": 3}))
    own: dict[Subblock, str] = {"attention": config.attention, "ffn": config.ffn}
    pairs = [dict(own) for _ in range(3)]
    pairs[1][case.subblock] = str(case.variant)
    spec = ArchitectureSpec.of("pico", [(pair["attention"], pair["ffn"]) for pair in pairs])
    generator = torch.Generator().manual_seed(5)
    outside = outside_names(config).items()
    tensors = [(name, draw(shape, name, generator)) for name, shape in outside]
    for index, pair in enumerate(pairs):
        for subblock, name in pair.items():
            variant = parse_variant(subblock, name)
            drawn = Case(subblock=subblock, variant=variant, config=config).tensors(seed=index)
            tensors += stored_tensors(subblock, index, drawn, config)
    child = tmp_path / "child"
    write_child(child, config, spec, tensors, dtype="fp32", tokenizer_from=tmp_path)

    decoder = load_decoder(child)
    assert decoder.spec == spec
    loaded = getattr(decoder.blocks[1], case.subblock)
    expected = case.tensors(seed=1)
    assert loaded.state_dict().keys() == expected.keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    read = CheckpointReader(child).subblock(case.subblock, 1, case.variant, config)
    assert read.keys() == expected.keys()


# Independent references: what each kind computes.


def normed(tensors: dict[str, torch.Tensor], x: torch.Tensor, epsilon: float) -> torch.Tensor:
    return x * (x.square().mean(-1, keepdim=True) + epsilon).rsqrt() * tensors["norm.weight"]


def residual(
    config: ParentConfig,
    tensors: dict[str, torch.Tensor],
    x: torch.Tensor,
    mix: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """A subblock around its matrices: norm before them; OLMo-2's after; Granite scales the sum."""
    epsilon, factor = config.rms_norm_eps, config.raw.get("residual_multiplier", 1.0)
    if config.model_type == "olmo2":
        return x + normed(tensors, mix(x), epsilon)
    return x + factor * mix(normed(tensors, x, epsilon))


def test_no_op_gives_its_input_back(config: ParentConfig) -> None:
    for subblock in ("attention", "ffn"):
        case = Case(subblock=subblock, variant=parse_variant(subblock, "no_op"), config=config)
        x = case.inputs()
        assert torch.equal(case.run(case.module(), x), x)


def test_linear_is_one_matrix_on_the_normed_input(config: ParentConfig) -> None:
    for subblock in ("attention", "ffn"):
        case = Case(subblock=subblock, variant=parse_variant(subblock, "linear"), config=config)
        x, tensors = case.inputs(), case.tensors()
        matrix = tensors["linear.weight"]
        expected = residual(config, tensors, x, lambda y, m=matrix: y @ m.T)  # type: ignore[misc]
        torch.testing.assert_close(case.run(case.module(), x), expected, atol=1e-5, rtol=1e-5)


def llama_config(config: ParentConfig, **changes: Any) -> Any:
    made = AutoConfig.for_model(**(dict(config.raw) | changes))
    made._attn_implementation = "eager"
    return made


LLAMAS = [name for name in PARENTS if name.startswith("llama")]


def load(module: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> torch.nn.Module:
    module.load_state_dict({name: t for name, t in tensors.items() if name != "norm.weight"})
    return module


@pytest.mark.parametrize("parent", LLAMAS)
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@torch.no_grad()
def test_gqa_is_llamas_attention(parent: str, kv_heads: int) -> None:
    config = parent_config(**PARENTS[parent])
    case = Case(
        subblock="attention", variant=parse_variant("attention", f"gqa_{kv_heads}"), config=config
    )
    hf_config = llama_config(config, num_key_value_heads=kv_heads)
    tensors, x = case.tensors(), case.inputs()
    norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
    norm.weight.copy_(tensors["norm.weight"])
    attention = load(LlamaAttention(hf_config, layer_idx=0), tensors)
    angles = LlamaRotaryEmbedding(hf_config)(x, torch.arange(LENGTH)[None])
    causal = torch.full((1, 1, LENGTH, LENGTH), float("-inf")).triu(1)
    mixed, _ = attention(norm(x), position_embeddings=angles, attention_mask=causal)
    torch.testing.assert_close(case.run(case.module(), x), x + mixed, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("parent", LLAMAS)
@pytest.mark.parametrize("width", [512, 256])
@torch.no_grad()
def test_mlp_is_llamas_mlp(parent: str, width: int) -> None:
    config = parent_config(**PARENTS[parent])
    case = Case(subblock="ffn", variant=parse_variant("ffn", f"mlp_{width}"), config=config)
    tensors, x = case.tensors(), case.inputs()
    mlp = load(LlamaMLP(llama_config(config, intermediate_size=width)), tensors)
    expected = x + mlp(normed(tensors, x, config.rms_norm_eps))
    torch.testing.assert_close(case.run(case.module(), x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("parent", [name for name in PARENTS if "mixtral" in name or "moe" in name])
@pytest.mark.parametrize("name", EXPERTS[:-1])
@torch.no_grad()
def test_experts_are_those_of_transformers(parent: str, name: str) -> None:
    """A block of its own class with as many experts, as wide, of which a token passes as many."""
    config = parent_config(**PARENTS[parent])
    variant = parse_variant("ffn", name)
    assert isinstance(variant, Moe)
    case = Case(subblock="ffn", variant=variant, config=config)
    width = "intermediate_size" if parent == "mixtral" else "moe_intermediate_size"
    hf_config = llama_config(
        config,
        num_local_experts=variant.experts,
        num_experts=variant.experts,
        num_experts_per_tok=variant.top_k or 2,
        **{width: variant.width or 64},
    )
    hf_config._experts_implementation = "eager"
    block = (MixtralSparseMoeBlock if parent == "mixtral" else Qwen3MoeSparseMoeBlock)(hf_config)
    tensors, x = case.tensors(), case.inputs()
    expected = x + load(block, tensors)(normed(tensors, x, config.rms_norm_eps))
    torch.testing.assert_close(case.run(case.module(), x), expected, atol=1e-5, rtol=1e-5)


def test_experts_of_which_no_token_passes_one_change_nothing() -> None:
    case = Case(subblock="ffn", variant=Moe(6), config=parent_config(**PARENTS["mixtral"]))
    module, x = case.module(), case.inputs()[:1, :1]
    routing = module.route(module.norm(x)[0])
    passed = {
        n for n, end in enumerate(routing.ends_X.diff(prepend=routing.ends_X.new_zeros(1))) if end
    }
    assert len(passed) == 2
    before = case.run(module, x)
    for expert in set(range(6)) - passed:
        module.experts.down_proj[expert] = float("nan")
    assert torch.equal(case.run(module, x), before)
