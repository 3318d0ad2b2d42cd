"""From a checkpoint folder to a decoder that runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from puzzle_search.arch import ParentConfig, Subblock, Variant
from puzzle_search.arch.config import stop_tokens_of
from puzzle_search.checkpoint.child import read_model_config
from puzzle_search.checkpoint.names import EMBEDDING, FINAL_NORM, HEAD
from puzzle_search.checkpoint.reader import CheckpointReader
from puzzle_search.errors import InputError
from puzzle_search.files import read_json
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
        InputError: the folder holds none, it is damaged, or it has tokens that the model has not.
    """
    if not (Path(folder) / "tokenizer_config.json").exists():
        raise InputError(
            f"{folder} holds no tokenizer", remedy="copy the parent's tokenizer files there"
        )
    # The fast class needs no config.json, whose nemotron-nas type AutoTokenizer does not know.
    fast = (Path(folder) / "tokenizer.json").exists()
    loader: Any = PreTrainedTokenizerFast if fast else AutoTokenizer
    try:
        tokenizer: PreTrainedTokenizerBase = loader.from_pretrained(str(folder))
        last = max(tokenizer.get_vocab().values(), default=-1)
        tokenizer("a")  # some settings are not looked at before
    except Exception as error:  # the libraries have no class of their own for damaged files
        raise InputError(
            f"the tokenizer of {folder} cannot be read: {error}",
            remedy="copy the parent's tokenizer files there again",
        ) from error
    if last < 0:
        raise InputError(
            f"the tokenizer of {folder} has no tokens",
            remedy="copy the parent's tokenizer files there again",
        )
    if (Path(folder) / "config.json").exists():
        config, _ = read_model_config(folder)
        if last >= config.vocab_size:
            raise InputError(
                f"{folder}: the tokenizer has token {last}, the model {config.vocab_size} tokens "
                "(vocab_size)",
                remedy="use the tokenizer that belongs to this checkpoint",
            )
    return tokenizer


def stop_tokens(folder: str | Path, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """What ends a text, by the config, by ``generation_config.json`` and by the tokenizer.

    Raises:
        InputError: ``eos_token_id`` of a file is neither a token nor a list of tokens.
    """
    config, _ = read_model_config(folder)
    found = set(config.stop_tokens)
    file = Path(folder) / "generation_config.json"
    if file.exists():
        raw = read_json(file, remedy="download it again, or remove it")
        found |= set(stop_tokens_of(raw, str(file)))
    if tokenizer.eos_token_id is not None:
        found.add(int(tokenizer.eos_token_id))
    return frozenset(found)
