"""Reading a Hugging Face config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

from puzzle_search.arch import ParentConfig
from puzzle_search.errors import InputError
from tests.arch.configs import CONFIGS

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@pytest.mark.parametrize("name", CONFIGS)
def test_fields_equal_transformers(name: str) -> None:
    config = ParentConfig.from_dict(CONFIGS[name], name=name)
    reference = AutoConfig.for_model(**CONFIGS[name])
    head_dim = getattr(reference, "head_dim", None)
    assert config.hidden_size == reference.hidden_size
    assert config.num_layers == reference.num_hidden_layers
    assert config.num_heads == reference.num_attention_heads
    assert config.num_kv_heads == reference.num_key_value_heads
    assert config.head_dim == (head_dim or reference.hidden_size // reference.num_attention_heads)
    width = getattr(reference, "moe_intermediate_size", reference.intermediate_size)
    assert config.intermediate_size == width
    if config.experts is None:
        assert not hasattr(reference, "num_experts_per_tok")
    else:
        assert config.experts.count == reference.num_local_experts
        assert config.experts.top_k == reference.num_experts_per_tok
    assert config.vocab_size == reference.vocab_size
    assert config.tie_embeddings == reference.tie_word_embeddings
    assert config.rms_norm_eps == reference.rms_norm_eps
    assert config.max_position_embeddings == reference.max_position_embeddings
    window = getattr(reference, "sliding_window", None)
    if config.layer_windows:
        kinds = {"sliding_attention": window, "full_attention": None}
        assert config.layer_windows == tuple(kinds[kind] for kind in reference.layer_types)
    else:
        assert config.sliding_window == window


def test_head_dim_is_never_derived_when_given() -> None:
    config = ParentConfig.from_dict(CONFIGS["Mistral-Small-24B"], name="m")
    assert config.head_dim == 128
    assert config.head_dim != config.hidden_size // config.num_heads


def test_biases_by_model_type(pico_raw: dict[str, Any]) -> None:
    def read(**changed: Any) -> ParentConfig:
        return ParentConfig.from_dict({**pico_raw, "head_dim": 16, **changed}, name="p")

    def biases(config: ParentConfig) -> tuple[bool, bool, bool, bool]:
        return config.qkv_bias, config.output_bias, config.mlp_bias, config.qk_norm

    assert biases(read()) == (False, False, False, False)
    assert biases(read(attention_bias=True, mlp_bias=True)) == (True, True, True, False)
    assert biases(read(model_type="mistral")) == (False, False, False, False)
    assert biases(read(model_type="qwen2")) == (True, False, False, False)
    assert biases(read(model_type="qwen3", attention_bias=True)) == (True, True, False, True)


def test_raw_and_rope_settings_are_kept_verbatim() -> None:
    raw = CONFIGS["Llama-3.1-8B"]
    config = ParentConfig.from_dict(raw, name="p")
    assert dict(config.raw) == raw
    assert config.rope_settings == {
        "rope_theta": raw["rope_theta"],
        "rope_scaling": raw["rope_scaling"],
    }


def test_own_variants(pico_config: ParentConfig) -> None:
    assert (pico_config.attention, pico_config.ffn) == ("gqa_2", "mlp_128")


def test_a_folder_and_its_config_read_the_same(tmp_path: Path, pico_raw: dict[str, Any]) -> None:
    folder = tmp_path / "pico"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(pico_raw))
    assert ParentConfig.from_file(folder) == ParentConfig.from_file(folder / "config.json")
    assert ParentConfig.from_file(folder).name == "pico"


def test_a_relative_path_has_a_name(
    tmp_path: Path, pico_raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(pico_raw))
    monkeypatch.chdir(tmp_path)
    assert ParentConfig.from_file("config.json").name == tmp_path.name


ABSENT = Ellipsis
EXPERTS = {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
GPT_OSS = EXPERTS | {"model_type": "gpt_oss", "layer_types": ["full_attention"] * 3}
QWEN_EXPERTS = EXPERTS | {"model_type": "qwen3_moe", "moe_intermediate_size": 32}


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"model_type": "gpt2"}, "model_type"),
        ({"model_type": ABSENT}, "model_type"),
        ({"model_type": ["llama"]}, "model_type"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"hidden_act": None}, "hidden_act"),
        ({"hidden_size": ABSENT}, "hidden_size"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"hidden_size": 64.0}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_attention_heads": -4}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"num_key_value_heads": 8}, "num_key_value_heads"),
        ({"num_key_value_heads": ABSENT, "model_type": "mistral"}, "num_key_value_heads"),
        ({"hidden_size": 3}, "head_dim"),
        ({"model_type": "qwen3"}, "head_dim"),
        ({"head_dim": [16]}, "head_dim"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings"),
        ({"attention_bias": 1}, "attention_bias"),
        ({"rms_norm_eps": "tiny"}, "rms_norm_eps"),
        ({"rms_norm_eps": None}, "rms_norm_eps"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"sliding_window": -1, "model_type": "mistral"}, "sliding_window"),
        ({"use_sliding_window": True, "model_type": "qwen2"}, "layer_types"),
        ({"use_sliding_window": True, "model_type": "smollm3"}, "layer_types"),
        (GPT_OSS | {"layer_types": ["full_attention"]}, "layer_types"),
        (GPT_OSS | {"layer_types": ["chunked_attention"] * 3}, "layer_types"),
        (
            GPT_OSS | {"layer_types": ["sliding_attention"] * 3, "sliding_window": None},
            "sliding_window",
        ),
        (GPT_OSS | {"swiglu_limit": 0}, "swiglu_limit"),
        ({"no_rope_layers": [1], "model_type": "smollm3"}, "no_rope_layers"),
        ({"no_rope_layers": "all", "model_type": "smollm3"}, "no_rope_layers"),
        ({"no_rope_layer_interval": 0, "model_type": "smollm3"}, "no_rope_layer_interval"),
        ({"logits_scaling": 0, "model_type": "granite"}, "logits_scaling"),
        ({"residual_multiplier": "small", "model_type": "granite"}, "residual_multiplier"),
        ({"partial_rotary_factor": 0.75, "model_type": "phi3"}, "partial_rotary_factor"),
        (
            {"rope_parameters": {"partial_rotary_factor": 0.5}, "model_type": "phi3"},
            "partial_rotary_factor",
        ),
        ({"rope_scaling": {"type": "longrope"}, "model_type": "phi3"}, "longrope"),
        ({"sliding_window": "wide", "model_type": "phi3"}, "sliding_window"),
        (EXPERTS | {"num_local_experts": ABSENT}, "num_local_experts"),
        (EXPERTS | {"num_local_experts": 1}, "num_experts_per_tok"),
        (EXPERTS | {"num_experts_per_tok": ABSENT}, "num_experts_per_tok"),
        (QWEN_EXPERTS | {"moe_intermediate_size": ABSENT}, "moe_intermediate_size"),
        (QWEN_EXPERTS | {"norm_topk_prob": 1}, "norm_topk_prob"),
        (QWEN_EXPERTS | {"mlp_only_layers": [0]}, "mlp_only_layers"),
        (QWEN_EXPERTS | {"decoder_sparse_step": 2}, "decoder_sparse_step"),
    ],
    ids=str,
)
def test_what_is_not_known_is_refused_by_file_and_field(
    tmp_path: Path, pico_raw: dict[str, Any], changed: dict[str, Any], named: str
) -> None:
    file = tmp_path / "config.json"
    raw = {key: value for key, value in {**pico_raw, **changed}.items() if value is not ABSENT}
    file.write_text(json.dumps(raw))
    with pytest.raises(InputError) as caught:
        ParentConfig.from_file(file)
    assert str(file) in caught.value.message
    assert named in caught.value.message
    assert caught.value.remedy


def test_windows_follow_the_model_type(pico_raw: dict[str, Any]) -> None:
    def window(**changed: Any) -> int | None:
        return ParentConfig.from_dict({**pico_raw, **changed}, name="p").sliding_window

    assert window(model_type="mistral", sliding_window=64) == 64
    assert window(model_type="mistral", sliding_window=None) is None
    assert window(model_type="mistral") == 4096  # transformers' default
    assert window(**EXPERTS) is None  # transformers' default
    assert window(**EXPERTS, sliding_window=64) == 64
    assert window(model_type="qwen2", sliding_window=64) is None
    assert window(model_type="llama", sliding_window=64) is None
    assert window(model_type="phi3", sliding_window=64) == 64
    assert window(model_type="phi3") is None
    assert window(model_type="smollm3", sliding_window=64, use_sliding_window=False) is None


@pytest.mark.parametrize(
    "said", [{}, {"no_rope_layer_interval": 2}, {"no_rope_layers": [0, 1, 1, 0, 1, 0, 1, 1, 1]}]
)
def test_layers_without_rope_are_those_of_transformers(
    pico_raw: dict[str, Any], said: dict[str, Any]
) -> None:
    raw = {**pico_raw, "model_type": "smollm3", "num_hidden_layers": 9, **said}
    reference = AutoConfig.for_model(**raw, pad_token_id=0).no_rope_layers
    expected = {layer for layer in range(9) if not reference[layer]}
    assert ParentConfig.from_dict(raw, name="p").unrotated == expected


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", '{"a": ' * 100_000, "9" * 5000])
def test_no_json_object(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(InputError, match=r"config\.json"):
        ParentConfig.from_file(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere does not exist"):
        ParentConfig.from_file(tmp_path / "nowhere")


@given(content=st.binary(max_size=200))
def test_junk_is_an_input_error(scratch: Path, content: bytes) -> None:
    file = scratch / "config.json"
    file.write_bytes(content)
    with pytest.raises(InputError):
        ParentConfig.from_file(file)


@given(
    name=st.sampled_from(sorted(CONFIGS)),
    changed=st.dictionaries(
        st.sampled_from(sorted({key for raw in CONFIGS.values() for key in raw})), JSON_VALUES
    ),
)
def test_wrong_values_are_input_errors_or_usable(
    scratch: Path, name: str, changed: dict[str, Any]
) -> None:
    file = scratch / "config.json"
    file.write_text(json.dumps({**CONFIGS[name], **changed}))
    try:
        config = ParentConfig.from_file(file)
    except InputError:
        return
    assert config.num_heads % config.num_kv_heads == 0
    assert min(config.hidden_size, config.head_dim, config.num_layers, config.vocab_size) > 0


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"rope_theta": 0}, "rope_theta"),
        ({"rope_theta": "1e4"}, "rope_theta"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic' is not supported"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic' is not supported"),
        ({"rope_scaling": {"rope_type": "longrope", "long_factor": [1.0]}}, "longrope"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": -1}}, "factor"),
        ({"rope_scaling": [1]}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": -1.0}}, "rope_theta"),
        ({"head_dim": 15}, "head_dim"),
        ({"use_cache": "x"}, "use_cache"),
        ({"eos_token_id": [1, "x"]}, "eos_token_id"),
        ({"num_hidden_layers": 10**30}, "num_hidden_layers"),
    ],
)
def test_what_the_decoder_could_not_compute_is_refused_when_read(
    pico_raw: dict[str, Any], changed: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        ParentConfig.from_dict(pico_raw | changed, name="p")


def test_stop_tokens(pico_raw: dict[str, Any]) -> None:
    given: dict[Any, tuple[int, ...]] = {None: (), 7: (7,)}
    for value, expected in given.items():
        raw = pico_raw | {"eos_token_id": value}
        assert ParentConfig.from_dict(raw, name="p").stop_tokens == expected
    raw = pico_raw | {"eos_token_id": [128001, 128008, 128009]}  # Llama-3.1-8B-Instruct
    assert ParentConfig.from_dict(raw, name="p").stop_tokens == (128001, 128008, 128009)


def test_a_model_in_the_cache_of_hugging_face_has_its_own_name(
    tmp_path: Path, pico_raw: dict[str, Any]
) -> None:
    names = []
    for repository, revision in (("a--one", "1f2e"), ("b--two-7B", "9c0d")):
        cached = tmp_path / f"models--{repository}"
        snapshot = cached / "snapshots" / revision
        snapshot.mkdir(parents=True)
        (cached / "blobs").mkdir()
        (cached / "blobs" / "0a1b").write_text(json.dumps(pico_raw))
        (snapshot / "config.json").symlink_to("../../blobs/0a1b")
        names += [
            ParentConfig.from_file(place).name for place in (snapshot, snapshot / "config.json")
        ]
    assert names == ["one", "one", "two-7B", "two-7B"]
    (tmp_path / "link").symlink_to(tmp_path / "models--a--one")
    assert ParentConfig.from_file(tmp_path / "link" / "snapshots" / "1f2e").name == "one"
