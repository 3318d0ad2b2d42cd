"""Shards and their index as safetensors and Hugging Face read them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from puzzle_search.checkpoint import CheckpointReader, CheckpointWriter, save_tensors
from puzzle_search.checkpoint import writer as writer_module
from tests.model.pico import write_parent

INDEX = "model.safetensors.index.json"
TENSORS = {
    f"tensor.{number}": torch.randn(10, number + 1, generator=torch.Generator().manual_seed(number))
    for number in range(7)
} | {"bf16": torch.arange(6.0).bfloat16(), "one": torch.tensor([1.0])}
TOTAL_BYTES = 10 * 4 * (1 + 2 + 3 + 4 + 5 + 6 + 7) + 6 * 2 + 4


def write(folder: Path, shard_bytes: int) -> None:
    folder.mkdir(exist_ok=True)
    writer = CheckpointWriter(folder, shard_bytes=shard_bytes)
    for name, tensor in TENSORS.items():
        writer.add(name, tensor)
    writer.finish()


def test_single_file(tmp_path: Path) -> None:
    write(tmp_path, TOTAL_BYTES)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    read = load_file(tmp_path / "model.safetensors")
    assert read.keys() == TENSORS.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in TENSORS.items())
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}  # transformers refuses files without it


@pytest.mark.parametrize("shard_bytes", [1, 300, TOTAL_BYTES - 1])
def test_shards(tmp_path: Path, shard_bytes: int) -> None:
    write(tmp_path, shard_bytes)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == TOTAL_BYTES
    assert list(index["weight_map"]) == list(TENSORS)
    shards = sorted(set(index["weight_map"].values()))
    count = len(shards)
    assert count > 1
    assert shards == [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    assert {file.name for file in tmp_path.iterdir()} == {*shards, INDEX}
    for shard in shards:
        held = load_file(tmp_path / shard)
        assert {name for name, file in index["weight_map"].items() if file == shard} == set(held)
        assert len(held) == 1 or sum(tensor.nbytes for tensor in held.values()) <= shard_bytes
        assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in held.items())


@pytest.mark.parametrize("shard_bytes", [1, 300_000, 2**30])
def test_reader_gives_back_what_was_written(tmp_path: Path, shard_bytes: int) -> None:
    written = write_parent(tmp_path).state_dict()
    (tmp_path / "model.safetensors").unlink()
    writer = CheckpointWriter(tmp_path, shard_bytes=shard_bytes)
    for number, name in enumerate(written):
        written[name] = written[name].bfloat16() if number % 2 else written[name]
        writer.add(name, written[name])
    writer.finish()
    reader = CheckpointReader(tmp_path)
    assert reader.names == set(written)
    for name, tensor in written.items():
        read = reader.tensor(name, tuple(tensor.shape))
        assert read.dtype == tensor.dtype
        assert torch.equal(read, tensor)


def test_views_and_gradients_are_written_as_plain_tensors(tmp_path: Path) -> None:
    whole = torch.nn.Parameter(torch.arange(12.0).view(3, 4))
    file = tmp_path / "deep" / "x.safetensors"
    save_tensors({"turned": whole.T, "part": whole[1:2]}, file, {"note": "x"})
    read = load_file(file)
    assert read["turned"].tolist() == [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]]
    assert read["part"].tolist() == [[4, 5, 6, 7]]


def test_failed_write_leaves_the_older_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "x.safetensors"
    save_tensors({"a": torch.ones(2)}, file)

    def fail(tensors: object, path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(writer_module, "save_file", fail)
    with pytest.raises(OSError, match="no space"):
        save_tensors({"a": torch.zeros(2)}, file)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.safetensors"]
    assert load_file(file)["a"].tolist() == [1, 1]
