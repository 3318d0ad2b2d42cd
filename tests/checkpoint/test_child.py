"""The child's config.json against the DeciLM format, written here a second time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puzzle_search.arch import ArchitectureSpec, BlockChoice, ParentConfig
from puzzle_search.checkpoint import child_config, read_model_config
from puzzle_search.errors import InputError
from tests.model.pico import LLAMA

LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def decilm_width(ffn_mult: float, hidden: int) -> int:
    """As in modeling_decilm.py: _ffn_mult_to_intermediate_size and _find_multiple."""
    width = int(2 * ffn_mult * hidden / 3)
    return width if width % 256 == 0 else width + 256 - width % 256


def parent_config(**changes: Any) -> ParentConfig:
    raw = LLAMA | {"num_hidden_layers": 3, "intermediate_size": 1024} | changes
    return ParentConfig.from_dict(raw, name="pico")


def spec_of(*pairs: tuple[str, str]) -> ArchitectureSpec:
    return ArchitectureSpec.of("pico", list(pairs))


MIXED = spec_of(("gqa_2", "no_op"), ("no_op", "mlp_256"), ("linear", "linear"))


def write(folder: Path, content: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def test_each_block_says_what_engines_read() -> None:
    written = child_config(parent_config(), MIXED, dtype="bfloat16")
    assert written["model_type"] == "nemotron-nas"
    assert written["architectures"] == ["DeciLMForCausalLM"]
    assert written["torch_dtype"] == "bfloat16"
    assert written["num_hidden_layers"] == 3
    assert written["head_dim"] == 16
    assert written["block_configs"] == [
        {
            "attention": {"n_heads_in_group": 2, "no_op": False, "replace_with_linear": False},
            "ffn": {"ffn_mult": None, "no_op": True, "replace_with_linear": False},
        },
        {
            "attention": {"n_heads_in_group": None, "no_op": True, "replace_with_linear": False},
            "ffn": {"ffn_mult": 6.0, "no_op": False, "replace_with_linear": False},
        },
        {
            "attention": {"n_heads_in_group": None, "no_op": False, "replace_with_linear": True},
            "ffn": {"ffn_mult": None, "no_op": False, "replace_with_linear": True},
        },
    ]
    assert type(written["block_configs"][1]["ffn"]["ffn_mult"]) is float
    for key in ("vocab_size", "rms_norm_eps", "tie_word_embeddings", "eos_token_id"):
        assert written[key] == LLAMA[key]


@given(
    hidden=st.integers(1, 300).map(lambda n: n * 64) | st.integers(4, 20000),
    width=st.integers(1, 300).map(lambda n: n * 256),
)
def test_multiplier_gives_the_width(hidden: int, width: int) -> None:
    config = parent_config(
        hidden_size=hidden, head_dim=16, intermediate_size=width, num_hidden_layers=1
    )
    written = child_config(config, spec_of(("gqa_4", f"mlp_{width}")), dtype="float32")
    multiplier = written["block_configs"][0]["ffn"]["ffn_mult"]
    assert type(multiplier) is float
    assert decilm_width(multiplier, hidden) == width
    assert json.loads(json.dumps(multiplier)) == multiplier


@pytest.mark.parametrize("width", [1, 100, 255, 257, 700, 29568])
def test_other_widths_are_written_as_they_are_for_this_package_alone(
    width: int, tmp_path: Path
) -> None:
    config = parent_config(intermediate_size=width)
    spec = spec_of(("gqa_4", f"mlp_{width}"), ("gqa_4", f"mlp_{width}"), ("gqa_2", "no_op"))
    written = child_config(config, spec, dtype="float32")
    assert written["model_type"] == "puzzle-search"
    assert "auto_map" not in written
    (tmp_path / "config.json").write_text(json.dumps(written))
    assert read_model_config(tmp_path)[1] == spec
    written["block_configs"][0]["ffn"]["ffn_mult"] = 2.5
    (tmp_path / "config.json").write_text(json.dumps(written))
    with pytest.raises(InputError, match="ffn_mult and intermediate_size are given"):
        read_model_config(tmp_path)


@pytest.mark.parametrize(
    ("given_rope", "theta", "scaling"),
    [
        ({}, 10000.0, None),
        ({"rope_theta": 5e5}, 5e5, None),
        ({"rope_theta": 5e5, "rope_scaling": None}, 5e5, None),
        ({"rope_theta": 5e5, "rope_scaling": LLAMA3_SCALING}, 5e5, LLAMA3_SCALING),
        ({"rope_parameters": LLAMA3_SCALING | {"rope_theta": 5e5}}, 5e5, LLAMA3_SCALING),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 7e4}}, 7e4, None),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            10000.0,
            {"rope_type": "linear", "factor": 2.0},
        ),
    ],
)
def test_rope_in_both_forms(
    given_rope: dict[str, Any], theta: float, scaling: dict[str, Any] | None
) -> None:
    config = parent_config(**given_rope)
    written = child_config(config, ArchitectureSpec.identity(config), dtype="float32")
    assert written["rope_theta"] == theta
    assert written["rope_scaling"] == scaling
    assert written["rope_parameters"] == (scaling or {"rope_type": "default"}) | {
        "rope_theta": theta
    }


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"head_dim": 24, "num_key_value_heads": 2, "tie_word_embeddings": True},
        {"model_type": "qwen3", "head_dim": 32, "rope_theta": 1e6},
        {"model_type": "mistral", "sliding_window": 64},
    ],
)
def test_round_trip(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = parent_config(**changes)
    write(tmp_path, child_config(config, MIXED, dtype="bfloat16"))
    read, spec = read_model_config(tmp_path)
    assert read == config
    assert dict(read.raw) == dict(config.raw)
    assert spec == MIXED


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "nemotron-nas"),
        ({"attention_bias": True}, "nemotron-nas"),
        ({"model_type": "mistral", "sliding_window": None}, "nemotron-nas"),
        ({"model_type": "mistral", "sliding_window": 64}, "puzzle-search"),
        ({"model_type": "qwen2"}, "puzzle-search"),
        ({"model_type": "qwen3", "head_dim": 32}, "puzzle-search"),
        ({"model_type": "smollm3"}, "nemotron-nas"),  # every fourth layer of three
        ({"model_type": "smollm3", "no_rope_layers": [1, 0, 1]}, "puzzle-search"),
        ({"model_type": "granite"}, "puzzle-search"),
        ({"model_type": "olmo2"}, "puzzle-search"),
        ({"model_type": "phi3", "pad_token_id": 0}, "nemotron-nas"),
        ({"model_type": "phi3", "sliding_window": 64}, "puzzle-search"),
    ],
)
def test_a_stock_type_is_claimed_only_where_the_format_can_say_it_all(
    changes: dict[str, Any], expected: str
) -> None:
    written = child_config(parent_config(**changes), MIXED, dtype="bfloat16")
    assert written["model_type"] == expected


def test_a_block_with_a_window_of_its_own_is_no_stock_block(tmp_path: Path) -> None:
    spec = ArchitectureSpec.of("pico", [("gqa_2_window_5", "mlp_256"), ("gqa_4", "mlp_512")])
    written = child_config(parent_config(), spec, dtype="bfloat16")
    assert written["model_type"] == "puzzle-search"
    first, second = (block["attention"] for block in written["block_configs"])
    assert first["window_length"] == 5
    assert "window_length" not in second
    write(tmp_path, written)
    assert read_model_config(tmp_path)[1] == spec


def test_types_of_weights_are_told_and_no_stock_engines_business(tmp_path: Path) -> None:
    spec = ArchitectureSpec.of("pico", [("gqa_2@q8_0", "mlp_256"), ("gqa_4", "linear@q4_0")])
    written = child_config(parent_config(), spec, dtype="bfloat16")
    assert written["model_type"] == "puzzle-search"
    assert written["puzzle_search"]["weights"] == [["q8_0", None], [None, "q4_0"]]
    write(tmp_path, written)
    assert read_model_config(tmp_path)[1] == spec
    for wrong in (3, [["q8_0", None]], [["q8_0"]] * 2, [["q9", None]] * 2, [[3, None]] * 2):
        written["puzzle_search"]["weights"] = wrong
        with pytest.raises(InputError):
            read_model_config(write(tmp_path, written))


def test_a_parent_is_its_own_identity(tmp_path: Path) -> None:
    write(tmp_path, LLAMA)
    config, spec = read_model_config(tmp_path)
    assert config.num_kv_heads == 4
    assert [(b.attention, b.ffn) for b in spec.blocks] == [("gqa_4", "mlp_512")] * 2


# Children that others made: no puzzle_search key.


def published(shared_data: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The published description of Super-49B, and the config.json that it stands for."""
    file = shared_data / "nemotron" / "Llama-3_3-Nemotron-Super-49B-v1.json"
    if not file.exists():
        pytest.skip(f"no {file.name}")
    described = json.loads(file.read_text())
    unused = {"num_sink_tokens": None, "sparsify": None, "window_length": None}
    blocks = [
        {
            "attention": {
                "n_heads_in_group": layer["n_heads_in_group"],
                "no_op": layer["attn"] == "no_op",
                "replace_with_linear": layer["attn"] == "linear",
                "unshifted_sink": False,
                **unused,
            },
            "ffn": {
                "ffn_mult": layer["ffn_mult"],
                "no_op": layer["ffn"] == "no_op",
                "replace_with_linear": layer["ffn"] == "linear",
                "sparsify": None,
            },
            "parallel_blocks": None,
        }
        for layer in described["layers"]
    ]
    return described, described["top_level"] | {"block_configs": blocks}


def test_published_child_reads_back(shared_data: Path, tmp_path: Path) -> None:
    described, raw = published(shared_data)
    config, spec = read_model_config(write(tmp_path, raw))
    assert spec.parent == "llama_nemotron_super"
    assert [block.attention for block in spec.blocks] == [
        f"gqa_{layer['num_kv_heads']}" if layer["attn"] == "gqa" else layer["attn"]
        for layer in described["layers"]
    ]
    assert [block.ffn for block in spec.blocks] == [
        f"mlp_{layer['intermediate_size']}" if layer["ffn"] == "ffn" else layer["ffn"]
        for layer in described["layers"]
    ]
    assert (config.hidden_size, config.num_heads, config.head_dim) == (8192, 64, 128)
    assert (config.num_kv_heads, config.intermediate_size) == (8, 28672)  # Llama-3.3-70B
    assert config.vocab_size == 128256
    assert config.rope_settings["rope_scaling"] == LLAMA3_SCALING
    spec.check_fits(config)


@pytest.mark.parametrize("drop", ["attention", "ffn"])
def test_child_without_any_attention_or_ffn(tmp_path: Path, drop: str) -> None:
    raw = foreign()
    for block in raw["block_configs"]:
        block[drop] = {"no_op": True, "replace_with_linear": False}
    config, spec = read_model_config(write(tmp_path, raw))
    assert {getattr(block, drop) for block in spec.blocks} == {"no_op"}
    spec.check_fits(config)


def test_head_size_of_a_foreign_child_is_kept(tmp_path: Path) -> None:
    config, _ = read_model_config(write(tmp_path, foreign() | {"head_dim": 24}))
    assert config.head_dim == 24


def foreign() -> dict[str, Any]:
    raw = child_config(parent_config(), spec_of(*[("gqa_2", "mlp_256")] * 3), dtype="float32")
    del raw["puzzle_search"], raw["head_dim"]
    return json.loads(json.dumps(raw))


ENTRY = {
    "attention": {"n_heads_in_group": 2, "no_op": False, "replace_with_linear": False},
    "ffn": {"ffn_mult": 6.0, "no_op": False, "replace_with_linear": False},
}
MALFORMED: dict[str, Any] = {
    "not an object": 7,
    "null": None,
    "list": [],
    "no ffn": {"attention": ENTRY["attention"]},
    "no attention": {"ffn": ENTRY["ffn"]},
    "unknown key": ENTRY | {"mamba": {}},
    "parallel blocks": ENTRY | {"parallel_blocks": [ENTRY]},
    "attention null": ENTRY | {"attention": None},
    "attention text": ENTRY | {"attention": "gqa_2"},
    "ffn list": ENTRY | {"ffn": [6.0]},
    "empty attention": ENTRY | {"attention": {}},
    "empty ffn": ENTRY | {"ffn": {}},
    **{
        f"n_heads_in_group {value!r}": ENTRY
        | {"attention": ENTRY["attention"] | {"n_heads_in_group": value}}
        for value in (None, 0, -2, 3, 8, 2.5, "2", True, [2])
    },
    **{
        f"ffn_mult {value!r}": ENTRY | {"ffn": ENTRY["ffn"] | {"ffn_mult": value}}
        for value in (None, 0, -1.0, "6", True, [6.0], 1e300, float("nan"), float("inf"))
    },
    "no_op text": ENTRY | {"attention": ENTRY["attention"] | {"no_op": "false"}},
    "linear number": ENTRY | {"ffn": ENTRY["ffn"] | {"replace_with_linear": 1}},
    "window of nothing": ENTRY | {"attention": ENTRY["attention"] | {"window_length": 0}},
    "window text": ENTRY | {"attention": ENTRY["attention"] | {"window_length": "short"}},
    "sinks": ENTRY | {"attention": ENTRY["attention"] | {"num_sink_tokens": 4}},
    "experts": ENTRY | {"ffn": ENTRY["ffn"] | {"moe": {"num_local_experts": 8}}},
}


@pytest.mark.parametrize("own", [True, False], ids=["own", "foreign"])
@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_block(tmp_path: Path, name: str, own: bool) -> None:
    raw = foreign()
    if own:
        raw["puzzle_search"] = {"parent": "pico", "parent_config": dict(parent_config().raw)}
    raw["block_configs"][1] = MALFORMED[name]
    with pytest.raises(InputError, match=r"config\.json, block 1") as caught:
        read_model_config(write(tmp_path, raw))
    assert caught.value.remedy


@pytest.mark.parametrize(
    "changes",
    [
        {"block_configs": None},
        {"block_configs": []},
        {"block_configs": {"0": ENTRY}},
        {"hidden_size": None},
        {"hidden_size": "64"},
        {"hidden_size": 0},
        {"num_attention_heads": None},
        {"num_attention_heads": 4.0},
        {"vocab_size": None},
        {"puzzle_search": 3},
        {"puzzle_search": {"parent": "pico"}},
        {"puzzle_search": {"parent": "pico", "parent_config": None}},
        {"puzzle_search": {"parent": "pico", "parent_config": []}},
        {"puzzle_search": {"parent": ["pico"], "parent_config": LLAMA}},
        {"puzzle_search": {"parent": "pico", "parent_config": {}}},
    ],
    ids=str,
)
def test_malformed_config(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"config\.json") as caught:
        read_model_config(write(tmp_path, foreign() | changes))
    assert caught.value.remedy


def test_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json does not exist"):
        read_model_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        read_model_config(tmp_path)


def merged(*runs: tuple[int, ...]) -> ArchitectureSpec:
    blocks = (BlockChoice(attention="gqa_2", ffn="mlp_256", layers=run) for run in runs)
    return ArchitectureSpec(parent="pico", blocks=tuple(blocks))


def test_blocks_that_stand_for_several_layers(tmp_path: Path) -> None:
    spec = merged((0,), (1, 2))
    written = child_config(parent_config(), spec, dtype="float32")
    assert written["num_hidden_layers"] == 2
    config, found = read_model_config(write(tmp_path, written))
    assert found == spec
    found.check_fits(config)


@pytest.mark.parametrize("layers", [[[0]], [[0], [2]], [[0], []], [0, 1], 3, [[0], ["a"]]])
def test_layers_that_do_not_cover_the_parent(tmp_path: Path, layers: object) -> None:
    written = child_config(parent_config(), merged((0,), (1, 2)), dtype="float32")
    written["puzzle_search"]["layers"] = layers
    with pytest.raises(InputError, match=r"config\.json: puzzle_search names layers"):
        read_model_config(write(tmp_path, written))


def test_a_foreign_child_with_an_empty_record_of_its_parent(tmp_path: Path) -> None:
    _, without = read_model_config(write(tmp_path, foreign()))
    _, empty = read_model_config(write(tmp_path, foreign() | {"puzzle_search": None}))
    assert empty == without
