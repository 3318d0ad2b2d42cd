"""Checkpoints that cannot be read say which file, which tensor and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from puzzle_search.arch import ParentConfig
from puzzle_search.checkpoint import CheckpointReader, load_decoder, load_tokenizer
from puzzle_search.errors import InputError
from tests.model.pico import random_ids, write_parent, write_tokenizer

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
KEY = "model.layers.1.self_attn.k_proj.weight"


def write_single(folder: Path) -> Any:
    return write_parent(folder)


def write_sharded(folder: Path) -> Any:
    model = write_parent(folder)
    (folder / SINGLE).unlink()
    model.save_pretrained(folder, max_shard_size="200KB")
    return model


def index_of(folder: Path) -> dict[str, Any]:
    index: dict[str, Any] = json.loads((folder / INDEX).read_text())
    return index


def refused(folder: Path, pattern: str) -> InputError:
    with pytest.raises(InputError, match=pattern) as caught:
        load_decoder(folder)
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize("write", [write_single, write_sharded])
def test_every_tensor_reads_back(tmp_path: Path, write: Callable[[Path], Any]) -> None:
    model = write(tmp_path)
    assert (tmp_path / INDEX).exists() == (write is write_sharded)
    reader = CheckpointReader(tmp_path)
    state = model.state_dict()
    assert reader.names == set(state)
    for name, expected in state.items():
        assert torch.equal(reader.tensor(name, tuple(expected.shape)), expected)
    config = ParentConfig.from_file(tmp_path)
    assert reader.outside(config).keys() == {
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
    }


def test_sharded_and_single_give_one_model(tmp_path: Path) -> None:
    write_single(tmp_path / "single")
    write_sharded(tmp_path / "sharded")
    assert len(set(index_of(tmp_path / "sharded")["weight_map"].values())) > 2
    ids = random_ids(1, 9)
    single, sharded = (load_decoder(tmp_path / name)(ids) for name in ("single", "sharded"))
    assert torch.equal(single, sharded)


def test_tied_head_may_be_stored_or_left_out(tmp_path: Path) -> None:
    write_parent(tmp_path, tie_word_embeddings=True)
    tensors = load_file(tmp_path / SINGLE)
    assert "lm_head.weight" not in tensors
    decoder = load_decoder(tmp_path)
    assert decoder.head.weight is decoder.embedding.weight
    save_file(tensors | {"lm_head.weight": torch.zeros(96, 64)}, tmp_path / SINGLE)
    ids = random_ids(1, 9)
    assert torch.equal(load_decoder(tmp_path)(ids), decoder(ids))


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated_single_file(tmp_path: Path, kept: int) -> None:
    write_single(tmp_path)
    file = tmp_path / SINGLE
    file.write_bytes(file.read_bytes()[:kept])
    refused(tmp_path, f"{SINGLE} is truncated or damaged")


def test_truncated_shard(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    file = tmp_path / index_of(tmp_path)["weight_map"][KEY]
    file.write_bytes(file.read_bytes()[:-5])
    refused(tmp_path, f"{file.name} is truncated or damaged")


@pytest.mark.parametrize(
    "name", [KEY, "model.norm.weight", "lm_head.weight", "model.layers.0.mlp.up_proj.weight"]
)
def test_missing_tensor(tmp_path: Path, name: str) -> None:
    write_single(tmp_path)
    tensors = load_file(tmp_path / SINGLE)
    del tensors[name]
    save_file(tensors, tmp_path / SINGLE)
    error = refused(tmp_path, f"tensor {name} is missing")
    assert str(tmp_path) in error.message


def test_tensor_missing_from_the_index(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    index = index_of(tmp_path)
    del index["weight_map"][KEY]
    (tmp_path / INDEX).write_text(json.dumps(index))
    refused(tmp_path, f"tensor {KEY} is missing")


def test_tensor_in_the_index_but_not_in_its_shard(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    file = tmp_path / index_of(tmp_path)["weight_map"][KEY]
    tensors = load_file(file)
    del tensors[KEY]
    save_file(tensors | {"other": torch.zeros(1)}, file)
    refused(tmp_path, f"{file.name}: tensor {KEY} is missing")


@pytest.mark.parametrize("shape", [(64, 32), (32, 64), (64,), (64, 64, 1)])
def test_wrong_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    write_single(tmp_path)
    tensors = load_file(tmp_path / SINGLE)
    save_file(tensors | {KEY: torch.zeros(shape)}, tmp_path / SINGLE)
    error = refused(tmp_path, f"{SINGLE}: tensor {KEY} has shape")
    assert str(shape) in error.message
    assert "(64, 64)" in error.message


def test_no_weights(tmp_path: Path) -> None:
    write_single(tmp_path)
    (tmp_path / SINGLE).unlink()
    refused(tmp_path, f"{SINGLE} does not exist")


def test_missing_shard(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    file = tmp_path / index_of(tmp_path)["weight_map"][KEY]
    file.unlink()
    refused(tmp_path, f"{file.name} does not exist")


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        CheckpointReader(tmp_path / "absent")


@pytest.mark.parametrize("target", ["../outside.safetensors", "{absolute}", "sub/x.safetensors"])
def test_index_that_points_elsewhere(tmp_path: Path, target: str) -> None:
    folder = tmp_path / "checkpoint"
    write_sharded(folder)
    outside = tmp_path / "outside.safetensors"
    save_file({KEY: torch.zeros(64, 64)}, outside)
    index = index_of(folder)
    index["weight_map"][KEY] = target.format(absolute=outside)
    (folder / INDEX).write_text(json.dumps(index))
    refused(folder, f"{INDEX}: {KEY} points outside the folder")


@pytest.mark.parametrize("target", ["..", ".", "", None, 7, ["a"], "config.json"])
def test_index_that_names_no_shard(tmp_path: Path, target: object) -> None:
    write_sharded(tmp_path)
    index = index_of(tmp_path)
    index["weight_map"][KEY] = target
    (tmp_path / INDEX).write_text(json.dumps(index))
    refused(tmp_path, f"{INDEX}: {KEY} names no safetensors file")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"<html>not found</html>",
        b"\xff\xfe\x00",
        b"[]",
        b"3",
        b"null",
        b"{}",
        b'{"weight_map": null}',
        b'{"weight_map": []}',
        b'{"weight_map": "model.safetensors"}',
        b'{"weight_map": {}}',
    ],
)
def test_index_that_is_none(tmp_path: Path, content: bytes) -> None:
    write_sharded(tmp_path)
    (tmp_path / INDEX).write_bytes(content)
    refused(tmp_path, INDEX)


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no tokenizer") as caught:
        load_tokenizer(tmp_path)
    assert "copy" in caught.value.remedy
    assert "tokenizer_config.json" in write_tokenizer(tmp_path)
