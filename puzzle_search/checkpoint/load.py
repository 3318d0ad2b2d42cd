"""From a checkpoint folder to a decoder that runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from puzzle_search.arch import ParentConfig, Subblock, Variant
from puzzle_search.checkpoint.child import read_model_config
from puzzle_search.checkpoint.names import EMBEDDING, FINAL_NORM, HEAD
from puzzle_search.checkpoint.reader import CheckpointReader
from puzzle_search.errors import InputError
from puzzle_search.model import HeterogeneousDecoder, SubblockModule, make_subblock


def subblock_from_tensors(
    variant: Variant,
    config: ParentConfig,
    tensors: dict[str, torch.Tensor],
    *,
    dtype: torch.dtype,
    device: torch.device | str,
) -> SubblockModule:
    """A subblock module holding these tensors (by local name), without gradients."""
    with torch.device("meta"):
        module = make_subblock(variant, config)
    placed = {name: tensor.to(device=device, dtype=dtype) for name, tensor in tensors.items()}
    module.load_state_dict(placed, assign=True)
    return module.requires_grad_(False)


def load_decoder(
    folder: str | Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> HeterogeneousDecoder:
    """Load a parent or a child.

    Raises:
        InputError: the checkpoint is incomplete, damaged, or not of a supported kind.
    """
    config, spec = read_model_config(folder)
    reader = CheckpointReader(folder)
    with torch.device("meta"):
        model = HeterogeneousDecoder(config, spec)
    subblocks: tuple[Subblock, Subblock] = ("attention", "ffn")
    for index, choice in enumerate(spec.blocks):
        for subblock in subblocks:
            variant = choice.attention_variant if subblock == "attention" else choice.ffn_variant
            tensors = reader.subblock(subblock, index, variant, config)
            module = subblock_from_tensors(variant, config, tensors, dtype=dtype, device=device)
            setattr(model.blocks[index], subblock, module)
    outside = {
        name: torch.nn.Parameter(tensor.to(device=device, dtype=dtype), requires_grad=False)
        for name, tensor in reader.outside(config).items()
    }
    model.embedding.weight = outside[EMBEDDING]
    model.norm.weight = outside[FINAL_NORM]
    model.head.weight = outside.get(HEAD, outside[EMBEDDING])
    return model.eval()


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint folder.

    Raises:
        InputError: the folder holds none.
    """
    if not (Path(folder) / "tokenizer_config.json").exists():
        raise InputError(
            f"{folder} holds no tokenizer", remedy="copy the parent's tokenizer files there"
        )
    # The fast class needs no config.json, whose nemotron-nas type AutoTokenizer does not know.
    fast = (Path(folder) / "tokenizer.json").exists()
    loader: Any = PreTrainedTokenizerFast if fast else AutoTokenizer
    tokenizer: PreTrainedTokenizerBase = loader.from_pretrained(str(folder))
    return tokenizer
