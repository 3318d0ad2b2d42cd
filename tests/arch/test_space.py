"""Search-space files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from puzzle_search.arch import ParentConfig, SearchSpace
from puzzle_search.errors import InputError

FORMAT = "puzzle-search.search-space/1"
GOOD: dict[str, Any] = {
    "format": FORMAT,
    "attention": ["gqa_1", "no_op"],
    "ffn": ["mlp_256", "mlp_512"],
    "exceptions": [
        {"layers": "1-2", "attention": ["linear"]},
        {"layers": 2, "ffn": ["no_op"]},
    ],
}


def write(folder: Path, data: object) -> Path:
    file = folder / "space.yaml"
    file.write_text(yaml.safe_dump(data), encoding="utf-8")
    return file


@pytest.fixture
def pico_config(pico_raw: dict[str, Any]) -> ParentConfig:
    return ParentConfig.from_dict(pico_raw | {"intermediate_size": 512}, name="pico")


def test_defaults_exceptions_and_the_parents_own(tmp_path: Path, pico_config: ParentConfig) -> None:
    space = SearchSpace.from_file(write(tmp_path, GOOD), pico_config)
    assert space.num_layers == 3
    assert space.attention == (
        ("gqa_2", "gqa_1", "no_op"),
        ("gqa_2", "linear"),
        ("gqa_2", "linear"),
    )
    assert space.ffn == (("mlp_256", "mlp_512"), ("mlp_256", "mlp_512"), ("mlp_512", "no_op"))
    assert space.variants("ffn") == space.ffn
    assert space.all_variants("attention") == ["gqa_2", "gqa_1", "no_op", "linear"]


def test_precisions_are_every_variant_with_weights_in_every_type(
    tmp_path: Path, pico_config: ParentConfig
) -> None:
    listed = GOOD | {"ffn": ["mlp_256", "mlp_256@q4_0"], "precisions": ["q8_0", "q4_0"]}
    space = SearchSpace.from_file(write(tmp_path, listed), pico_config)
    shapes = ("gqa_2", "linear")
    assert set(space.attention[1]) == {
        *shapes,
        *(f"{s}@{t}" for s in shapes for t in ("q8_0", "q4_0")),
    }
    assert space.ffn[0] == (
        "mlp_512",
        "mlp_256",
        "mlp_256@q4_0",
        "mlp_512@q8_0",
        "mlp_512@q4_0",
        "mlp_256@q8_0",
    )
    assert space.ffn[2] == ("mlp_512", "no_op", "mlp_512@q8_0", "mlp_512@q4_0")


def test_runs_are_every_window_of_their_lengths(tmp_path: Path, pico_config: ParentConfig) -> None:
    run = {"lengths": [2, 3], "attention": ["gqa_2"], "ffn": ["mlp_256", "mlp_512"]}
    data = {key: value for key, value in GOOD.items() if key != "exceptions"} | {"runs": [run]}
    space = SearchSpace.from_file(write(tmp_path, data), pico_config)
    windows = [(0, 1), (1, 2), (0, 2)]
    assert space.runs == tuple((*w, "gqa_2", f) for w in windows for f in ("mlp_256", "mlp_512"))
    singles = list(space.replacements(pico_config, composed=False))
    pairs = list(space.replacements(pico_config))
    assert len(singles) == 3 * (2 + 1) + 6
    assert len(pairs) == 3 * (3 * 2 - 1) + 6
    assert set(singles) < set(pairs)
    assert (1, 1, "gqa_1", "") in singles


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": [1]}, "at least 2"),
        ({"lengths": 2}, "at least 2"),
        ({"attention": ["gqa_4"]}, "layer 0 may take"),
        ({"ffn": "mlp_256"}, "layer 0 may take"),
        ({"layers": "0-9"}, "not a range within 0-2"),
        ({"width": 3}, "'width' is not known"),
    ],
)
def test_runs_that_are_refused(
    tmp_path: Path, pico_config: ParentConfig, change: dict[str, Any], message: str
) -> None:
    run = {"lengths": [2], "attention": ["gqa_2"], "ffn": ["mlp_256"]} | change
    with pytest.raises(InputError, match=message):
        SearchSpace.from_file(write(tmp_path, GOOD | {"runs": [run]}), pico_config)


def test_uniform_equals_a_file_without_exceptions(
    tmp_path: Path, pico_config: ParentConfig
) -> None:
    data = {key: value for key, value in GOOD.items() if key != "exceptions"}
    assert SearchSpace.from_file(write(tmp_path, data), pico_config) == SearchSpace.uniform(
        pico_config, attention=GOOD["attention"], ffn=GOOD["ffn"]
    )


def test_uniform_refuses_what_does_not_fit(pico_config: ParentConfig) -> None:
    with pytest.raises(InputError, match="mlp_1024"):
        SearchSpace.uniform(pico_config, attention=[], ffn=["mlp_1024"])


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"format": "puzzle-search.search-space/2"}, "format"),
        ({"format": None}, "format"),
        ({"extra": 1}, "'extra'"),
        ({"attention": ["gqa_3"]}, "attention: gqa_3"),
        ({"attention": ["mlp_256"]}, "'mlp_256'"),
        ({"attention": "gqa_1"}, "attention"),
        ({"attention": [1]}, "attention"),
        ({"attention": {"gqa_1": None}}, "attention"),
        ({"ffn": None}, "ffn"),
        ({"ffn": ["mlp_256", "mlp_256"]}, "twice"),
        ({"ffn": ["mlp_513"]}, "mlp_513"),
        ({"precisions": "q4_0"}, "precisions 'q4_0'"),
        ({"precisions": ["q9"]}, "precisions ['q9']"),
        ({"precisions": ["q4_0", "q4_0"]}, "each once"),
        ({"precisions": [["q4_0"]]}, "precisions"),
        ({"ffn": ["mlp_256@q9"]}, "'mlp_256@q9'"),
        ({"exceptions": 3}, "exceptions"),
        ({"exceptions": {"layers": 1}}, "exceptions"),
        ({"exceptions": False}, "exceptions"),
        ({"exceptions": [3]}, "exception 1"),
        ({"exceptions": [{"layers": 1, "ffm": []}]}, "exception 1"),
        ({"exceptions": [{"ffn": ["no_op"]}]}, "exception 1"),
        ({"exceptions": [{"layers": 0}, {"layers": 3}]}, "exception 2"),
        ({"exceptions": [{"layers": "2-1"}]}, "'2-1'"),
        ({"exceptions": [{"layers": "-1"}]}, "'-1'"),
        ({"exceptions": [{"layers": "0-"}]}, "'0-'"),
        ({"exceptions": [{"layers": "0-" + "9" * 5000}]}, "exception 1"),
        ({"exceptions": [{"layers": [0, 1]}]}, "[0, 1]"),
        ({"exceptions": [{"layers": True}]}, "True"),
        ({"exceptions": [{"layers": 1, "ffn": ["mlp_x"]}]}, "exception 1, ffn"),
    ],
    ids=str,
)
def test_what_is_not_known_is_refused_by_file_and_row(
    tmp_path: Path, pico_config: ParentConfig, changed: dict[str, Any], named: str
) -> None:
    file = write(tmp_path, {**GOOD, **changed})
    with pytest.raises(InputError) as caught:
        SearchSpace.from_file(file, pico_config)
    assert str(file) in caught.value.message
    assert named in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize("key", ["attention", "ffn"])
def test_a_missing_key_is_named(tmp_path: Path, pico_config: ParentConfig, key: str) -> None:
    data = {name: value for name, value in GOOD.items() if name != key}
    with pytest.raises(InputError, match=f"'{key}' is missing"):
        SearchSpace.from_file(write(tmp_path, data), pico_config)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.dates()
    | st.binary(max_size=3)
    | st.sampled_from(["gqa_1", "mlp_256", "no_op", "0-1", "1"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["layers", "attention", "ffn", "x"]), inner)
    ),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # a constant
@given(changed=st.dictionaries(st.sampled_from(["attention", "ffn", "exceptions"]), VALUES))
def test_wrong_values_are_input_errors_or_usable(
    scratch: Path, pico_config: ParentConfig, changed: dict[str, Any]
) -> None:
    file = write(scratch, {**GOOD, **changed})
    try:
        space = SearchSpace.from_file(file, pico_config)
    except InputError as error:
        assert str(file) in error.message
        return
    assert len(space.attention) == len(space.ffn) == 3
    assert all("gqa_2" in layer for layer in space.attention)
    assert all("mlp_512" in layer for layer in space.ffn)


@pytest.mark.parametrize(
    ("name", "remedy"), [("mlp_500", "mlp_256 or mlp_512"), ("mlp_100", "use mlp_256")]
)
def test_widths_that_no_engine_loads_are_refused(
    tmp_path: Path, pico_raw: dict[str, Any], name: str, remedy: str
) -> None:
    # The parent's own is not asked of anyone: that of Qwen2.5-72B, 29,568, is 115.5 times 256.
    config = ParentConfig.from_dict(pico_raw | {"intermediate_size": 600}, name="pico")
    space = SearchSpace.from_file(write(tmp_path, GOOD | {"ffn": ["mlp_256"]}), config)
    assert space.ffn[0] == ("mlp_600", "mlp_256")
    with pytest.raises(InputError, match=f"{name}: engines load widths") as caught:
        SearchSpace.from_file(write(tmp_path, GOOD | {"ffn": [name]}), config)
    assert remedy in caught.value.remedy


def test_kv_heads_that_do_not_divide_the_parents_are_refused(
    tmp_path: Path, pico_raw: dict[str, Any]
) -> None:
    raw = pico_raw | {"num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 16}
    config = ParentConfig.from_dict(raw | {"intermediate_size": 512}, name="pico")
    with pytest.raises(InputError, match="gqa_5 does not fit the 8 KV heads") as caught:
        SearchSpace.from_file(write(tmp_path, GOOD | {"attention": ["gqa_5"]}), config)
    assert "gqa_1, gqa_2, gqa_4, gqa_8" in caught.value.remedy
