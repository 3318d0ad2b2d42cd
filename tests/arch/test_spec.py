"""Architecture specs: the file format and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from puzzle_search.arch import ArchitectureSpec, BlockChoice, ParentConfig
from puzzle_search.errors import InputError

FORMAT = "puzzle-search.architecture/1"
GOOD = f"""\
format: {FORMAT}
parent: pico
blocks:
- {{attention: gqa_2, ffn: mlp_128}}
- {{attention: no_op, ffn: mlp_64, layers: [1, 2]}}
solution:
  status: optimal
  score: 0.125
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "spec.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_the_format_as_documented(tmp_path: Path) -> None:
    spec = ArchitectureSpec.from_file(write(tmp_path, GOOD))
    assert spec.parent == "pico"
    assert spec.blocks == (
        BlockChoice(attention="gqa_2", ffn="mlp_128", layers=(0,)),
        BlockChoice(attention="no_op", ffn="mlp_64", layers=(1, 2)),
    )
    assert spec.num_layers == 3
    assert spec.solution == {"status": "optimal", "score": 0.125}
    assert spec.to_yaml() == GOOD


def test_identity_is_the_parent(pico_config: ParentConfig) -> None:
    spec = ArchitectureSpec.identity(pico_config)
    assert spec == ArchitectureSpec.of("pico", [("gqa_2", "mlp_128")] * 3)
    spec.check_fits(pico_config)


@pytest.mark.parametrize(
    ("pairs", "named"),
    [
        ([("gqa_2", "mlp_128")] * 2, "2 layers"),
        ([("gqa_4", "mlp_128")] * 3, "gqa_4"),
        ([("gqa_2", "mlp_256")] * 3, "mlp_256"),
    ],
)
def test_a_spec_of_another_parent(
    pico_config: ParentConfig, pairs: list[tuple[str, str]], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        ArchitectureSpec.of("pico", pairs).check_fits(pico_config)


def block(text: str) -> str:
    """The good spec with another second block."""
    return GOOD.replace("{attention: no_op, ffn: mlp_64, layers: [1, 2]}", text)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "format"),
        ("- 1", "format"),
        ("a: [", "YAML"),
        (GOOD.replace("architecture/1", "architecture/2"), "architecture/2"),
        (GOOD.replace(f"format: {FORMAT}\n", ""), "format"),
        (GOOD + "extra: 1\n", "'extra'"),
        (GOOD + "parent: again\n", "'parent' is given twice"),
        (GOOD.replace("parent: pico\n", ""), "'parent'"),
        (GOOD.replace("parent: pico", "parent: [pico]"), "parent"),
        (GOOD.replace("parent: pico", "parent:"), "parent"),
        (GOOD.replace("parent: pico", "parent: 70"), "parent"),
        (
            GOOD.replace("solution:\n  status: optimal\n  score: 0.125\n", "solution: [1]"),
            "solution",
        ),
        (GOOD.replace("solution:\n  status: optimal\n  score: 0.125\n", "solution: 0"), "solution"),
        (f"format: {FORMAT}\nparent: p\nblocks: []\n", "blocks"),
        (f"format: {FORMAT}\nparent: p\nblocks: {{}}\n", "blocks"),
        (f"format: {FORMAT}\nparent: p\nblocks: gqa_2\n", "blocks"),
        (block("gqa_2"), "block 1"),
        (block("[gqa_2, mlp_128]"), "block 1"),
        (block("{attention: gqa_2}"), "'ffn'"),
        (block("{attention: gqa_2, ffn: mlp_64, layer: [1]}"), "'layer'"),
        (block("{attention: gqa_2, ffn: mlp_64, ffn: mlp_128}"), "'ffn' is given twice"),
        (block("{attention: gqa_0, ffn: mlp_64}"), "block 1: 'gqa_0'"),
        (block("{attention: gqa_2, ffn: gqa_2}"), "block 1: 'gqa_2'"),
        (block("{attention: [gqa_2], ffn: mlp_64}"), "block 1"),
        (block("{attention: null, ffn: mlp_64}"), "block 1"),
        (block("{attention: gqa_2, ffn: mlp_64, layers: 1}"), "block 1: layers 1"),
        (block("{attention: gqa_2, ffn: mlp_64, layers: null}"), "block 1: layers None"),
        (block("{attention: gqa_2, ffn: mlp_64, layers: '12'}"), "block 1: layers '12'"),
        (block("{attention: gqa_2, ffn: mlp_64, layers: []}"), "block 1: layers []"),
        (block("{attention: gqa_2, ffn: mlp_64, layers: [true]}"), "block 1: layers [True]"),
        (block("{attention: gqa_2, ffn: mlp_64, layers: [1.0]}"), "block 1: layers [1.0]"),
        (block("{attention: gqa_2, ffn: mlp_64, layers: {1: 2}}"), "block 1: layers"),
        (block("{attention: gqa_2, ffn: mlp_64, layers: [2]}"), "begin at layer 1"),
        (block("{attention: gqa_2, ffn: mlp_64, layers: [0]}"), "begin at layer 1"),
        (block("{attention: gqa_2, ffn: mlp_64, layers: [1, 3]}"), "begin at layer 1"),
        (block("{attention: gqa_2, ffn: mlp_64, layers: [2, 1]}"), "begin at layer 1"),
    ],
)
def test_what_is_not_known_is_refused_by_file_and_row(
    tmp_path: Path, text: str, named: str
) -> None:
    file = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        ArchitectureSpec.from_file(file)
    assert str(file) in caught.value.message
    assert named in caught.value.message
    assert caught.value.remedy


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        ArchitectureSpec.from_file(tmp_path / "nowhere.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        ArchitectureSpec.from_file(tmp_path)
    file = tmp_path / "binary.yaml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"binary\.yaml cannot be read"):
        ArchitectureSpec.from_file(file)


ATTENTION = st.sampled_from(["gqa_1", "gqa_8", "linear", "no_op"])
FFN = st.sampled_from(["mlp_64", "mlp_28672", "linear", "no_op"])
# YAML is read without control characters, which would reach the terminal.
PRINTED = st.characters(exclude_categories=["Cc", "Cs"])
KEYS, TEXTS = st.text(PRINTED, max_size=8), st.text(PRINTED, max_size=20)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def specs(draw: st.DrawFn) -> ArchitectureSpec:
    blocks, covered = [], 0
    for length in draw(st.lists(st.integers(1, 3), min_size=1, max_size=8)):
        layers = tuple(range(covered, covered + length))
        blocks.append(BlockChoice(attention=draw(ATTENTION), ffn=draw(FFN), layers=layers))
        covered += length
    return ArchitectureSpec(
        parent=draw(st.text(PRINTED, min_size=1)),
        blocks=tuple(blocks),
        solution=draw(st.dictionaries(KEYS, PLAIN, max_size=3)),
    )


@given(spec=specs())
def test_yaml_round_trip(scratch: Path, spec: ArchitectureSpec) -> None:
    file = scratch / "spec.yaml"
    spec.write(file)
    read = ArchitectureSpec.from_file(file)
    assert read == spec
    assert read.solution == spec.solution


@given(text=st.text() | st.text().map(lambda junk: f"format: {FORMAT}\n{junk}"))
@example("[" * 100_000)
@example("- " * 100_000)
@example("format: !!bool x")
@example("format: 2001-99-99")
@example("format: !!float ''")
@example("format: !!set [a]")
@example("&a [*a]")
@example("? [a]\n: 1")
@example("1" * 5000)
@example(f"format: {FORMAT}\nparent: p\nblocks: &a [*a]")
@example(f"format: {FORMAT}\nparent: p\nblocks:\n- &a {{attention: *a, ffn: *a}}")
@example(f"format: {FORMAT}\nparent: p\nblocks: !!binary aGk=")
def test_junk_is_an_input_error(scratch: Path, text: str) -> None:
    with pytest.raises(InputError) as caught:
        ArchitectureSpec.from_file(write(scratch, text))
    assert "spec.yaml" in caught.value.message


@given(
    changed=st.dictionaries(st.sampled_from(["parent", "blocks", "solution", "x"]), PLAIN),
    entry=st.dictionaries(
        st.sampled_from(["attention", "ffn", "layers", "x"]),
        PLAIN | ATTENTION | FFN | st.lists(st.integers(0, 3) | st.booleans(), max_size=3),
    ),
)
def test_wrong_values_are_input_errors_or_usable(
    scratch: Path, changed: dict[str, Any], entry: dict[str, Any]
) -> None:
    first = {"attention": "gqa_2", "ffn": "mlp_64"}
    data = {"format": FORMAT, "parent": "p", "blocks": [first, entry], **changed}
    try:
        spec = ArchitectureSpec.from_file(write(scratch, yaml.safe_dump(data)))
    except InputError as error:
        assert "spec.yaml" in error.message
        return
    covered = [layer for block in spec.blocks for layer in block.layers]
    assert covered == list(range(spec.num_layers))
