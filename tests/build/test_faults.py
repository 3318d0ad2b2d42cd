"""A child that was killed while it was written, or for which the disk was too small."""

from __future__ import annotations

from pathlib import Path

import pytest

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.build import build_child
from puzzle_search.errors import InputError
from tests.faults import SmallDisk, killed_while_writing
from tests.pico import Pico

PAIRS = [("gqa_1", "mlp_256"), ("no_op", "no_op"), ("linear", "mlp_512")]
SPEC = ArchitectureSpec.of("parent", PAIRS)


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def whole(pico: Pico, pico_library: Path, tmp_path: Path) -> dict[str, bytes]:
    return content(build_child(pico.parent, pico_library, SPEC, tmp_path / "whole"))


@pytest.mark.parametrize("pattern", ["shard-1", "architecture"])
def test_a_build_that_was_killed_is_done_again(
    pico: Pico, pico_library: Path, whole: dict[str, bytes], tmp_path: Path, pattern: str
) -> None:
    SPEC.write(tmp_path / "spec.yaml")
    out = tmp_path / "out" / "child"
    killed_while_writing(
        rf"\.child\..*{pattern}", 1, "build", "--parent", pico.parent, "--library", pico_library,
        "--out", out, tmp_path / "spec.yaml",
    )  # fmt: skip
    assert not out.exists()
    assert content(build_child(pico.parent, pico_library, SPEC, out)) == whole


def test_a_full_disk_is_reported_and_leaves_no_child(
    pico: Pico, pico_library: Path, whole: dict[str, bytes], small_disk: SmallDisk
) -> None:
    out = small_disk.folder / "child"
    weights_kib = len(whole["model.safetensors"]) // 1024
    for kib in (weights_kib // 2, weights_kib + 8):  # in the weights, in what is beside them
        small_disk.resize(kib=kib)
        with pytest.raises(InputError, match=r"[Nn]o space") as caught:
            build_child(pico.parent, pico_library, SPEC, out)
        assert "run the" in caught.value.remedy
        assert list(small_disk.folder.iterdir()) == []
    small_disk.resize(kib=4096)
    assert content(build_child(pico.parent, pico_library, SPEC, out)) == whole
