"""Checkpoints in and out: safetensors tensor by tensor, children in the nemotron-nas format."""

from puzzle_search.checkpoint.child import child_config, read_model_config
from puzzle_search.checkpoint.child_folder import (
    check_replaceable,
    decoder_tensors,
    stored_tensors,
    write_child,
)
from puzzle_search.checkpoint.load import (
    load_decoder,
    load_tokenizer,
    stop_tokens,
    subblock_from_tensors,
)
from puzzle_search.checkpoint.names import outside_names, subblock_names
from puzzle_search.checkpoint.reader import CheckpointReader, open_safetensors
from puzzle_search.checkpoint.writer import CheckpointWriter, save_tensors

__all__ = [
    "CheckpointReader",
    "CheckpointWriter",
    "check_replaceable",
    "child_config",
    "decoder_tensors",
    "load_decoder",
    "load_tokenizer",
    "open_safetensors",
    "outside_names",
    "read_model_config",
    "save_tensors",
    "stop_tokens",
    "stored_tensors",
    "subblock_from_tensors",
    "subblock_names",
    "write_child",
]
