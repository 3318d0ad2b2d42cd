"""A decoder whose blocks differ from layer to layer."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from puzzle_search.arch import ArchitectureSpec, BlockChoice, ParentConfig
from puzzle_search.errors import InputError
from puzzle_search.model.cache import KvCache, LayerCache
from puzzle_search.model.rope import Rotary, RotarySlice
from puzzle_search.model.subblocks import make_subblock
from puzzle_search.model.subblocks.base import scaled


def check_context(config: ParentConfig, length: int, remedy: str) -> None:
    """Check that a model has positions for so many tokens.

    Raises:
        InputError: it has fewer.
    """
    if length > config.max_context:
        raise InputError(
            f"{length} tokens exceed the {config.max_context} positions of {config.name}",
            remedy=remedy,
        )


class Block(nn.Module):
    """An attention subblock, then an FFN subblock."""

    def __init__(self, choice: BlockChoice, config: ParentConfig) -> None:
        super().__init__()
        self.attention = make_subblock(choice.attention_variant, config)
        self.ffn = make_subblock(choice.ffn_variant, config)

    def forward(
        self, x_BLD: torch.Tensor, rotary: RotarySlice, cache: LayerCache | None = None
    ) -> torch.Tensor:
        """Hidden states after the block."""
        hidden: torch.Tensor = self.ffn(self.attention(x_BLD, rotary, cache), rotary, None)
        return hidden


class HeterogeneousDecoder(nn.Module):
    """Embedding, blocks of any variants, final norm, output head.

    With the identity spec and the parent's weights it computes the parent.
    """

    def __init__(self, config: ParentConfig, spec: ArchitectureSpec) -> None:
        super().__init__()
        spec.check_fits(config)
        self.config = config
        self.spec = spec
        shape = (config.vocab_size, config.hidden_size)
        # Laid out on no device it gets no values: torch would load its compiler to draw them.
        table = torch.empty(shape) if torch.empty(0).is_meta else None
        self.embedding = nn.Embedding(*shape, _weight=table)
        self.blocks = nn.ModuleList(Block(choice, config) for choice in spec.blocks)
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        self.rotary = Rotary(config)

    def new_cache(self, *, batch: int, max_length: int) -> KvCache:
        """An empty cache for ``batch`` sequences of up to ``max_length`` tokens.

        Raises:
            InputError: the context is longer than the model has positions.
        """
        check_context(self.config, max_length, "ask for a shorter prompt or fewer new tokens")
        weight = self.embedding.weight
        return KvCache(
            [choice.attention_variant for choice in self.spec.blocks],
            self.config,
            batch=batch,
            max_length=max_length,
            dtype=weight.dtype,
            device=weight.device,
        )

    def block_states(
        self, ids_BL: torch.Tensor, cache: KvCache | None = None, *, recompute: bool = False
    ) -> Iterator[torch.Tensor]:
        """Hidden states after each block in turn, (B, L, D); extends ``cache`` if given.

        With ``recompute`` the backward pass computes a block again instead of keeping what is
        inside it (activation checkpointing).

        Raises:
            InputError: a full pass is longer than the model has positions.
        """
        if cache is None:
            check_context(self.config, ids_BL.shape[1], "use shorter blocks of tokens")
        start = cache.length if cache is not None else 0
        x_BLD: torch.Tensor = scaled(self.embedding(ids_BL), self.config.scales.embedding)
        angles = self.rotary.slice(start, ids_BL.shape[1], x_BLD)
        for index, block in enumerate(self.blocks):
            layer = cache.layers[index] if cache is not None else None
            rotary = angles.of_layer(self.spec.blocks[index].layers[0], self.config)
            if recompute:
                x_BLD = checkpoint(block, x_BLD, rotary, layer, use_reentrant=False)
            else:
                x_BLD = block(x_BLD, rotary, layer)
            yield x_BLD
        if cache is not None:
            cache.length = start + ids_BL.shape[1]

    def hidden_states(self, ids_BL: torch.Tensor, cache: KvCache | None = None) -> torch.Tensor:
        """Final hidden states before the last norm, (B, L, D); extends ``cache`` if given.

        Raises:
            InputError: a full pass is longer than the model has positions.
        """
        return deque(self.block_states(ids_BL, cache), maxlen=1).pop()

    def normed(self, x_BLD: torch.Tensor) -> torch.Tensor:
        """What the output head reads of final hidden states, scaled as logits are."""
        return scaled(self.norm(x_BLD), self.config.scales.logits)

    def logits(self, x_BLD: torch.Tensor) -> torch.Tensor:
        """Logits (B, L, vocabulary) of final hidden states."""
        logits = F.linear(self.norm(x_BLD), self.head.weight)
        return scaled(logits, self.config.scales.logits)

    def forward(self, ids_BL: torch.Tensor, cache: KvCache | None = None) -> torch.Tensor:
        """Logits (B, L, vocabulary) of every new token."""
        return self.logits(self.hidden_states(ids_BL, cache))
