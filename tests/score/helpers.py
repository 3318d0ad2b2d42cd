"""Metrics the obvious way: whole models from folders, logits in fp64, numpy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from puzzle_search.arch import ArchitectureSpec, BlockChoice, Replacement
from puzzle_search.build import build_child
from puzzle_search.checkpoint import CheckpointReader, load_decoder
from puzzle_search.checkpoint.block_library import BlockTensors, LibraryEntry
from puzzle_search.checkpoint.names import subblock_shapes
from puzzle_search.model import HeterogeneousDecoder
from puzzle_search.solve import ScoreRow
from tests.pico import Pico

Key = tuple[int, int, str, str, str]


@dataclass(frozen=True)
class Predictions:
    """Of one model: log-probabilities and final hidden states."""

    log_probs: np.ndarray
    hidden: np.ndarray


def decoder(folder: Path, spec: ArchitectureSpec, pico: Pico) -> HeterogeneousDecoder:
    """A model from its checkpoint, blocks in place of several layers among them."""
    reader, outside = CheckpointReader(folder), load_decoder(pico.parent)
    model = HeterogeneousDecoder(pico.config, spec)
    for index, choice in enumerate(spec.blocks):
        for subblock, variant in (
            ("attention", choice.attention_variant),
            ("ffn", choice.ffn_variant),
        ):
            tensors = reader.subblock(subblock, index, variant, pico.config)
            getattr(model.blocks[index], subblock).load_state_dict(tensors)
    model.embedding, model.norm, model.head = outside.embedding, outside.norm, outside.head
    return model


def predictions(model: HeterogeneousDecoder, ids: torch.Tensor) -> Predictions:
    with torch.no_grad():
        hidden = model.hidden_states(ids)
        logits = model.logits(hidden).double().numpy()
    logits -= logits.max(axis=-1, keepdims=True)
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return Predictions(log_probs, hidden.double().numpy())


def top(log_probs: np.ndarray, k: int) -> np.ndarray:
    likeliest: np.ndarray = np.argsort(-log_probs, axis=-1)[..., :k]
    return likeliest


def loss(found: Predictions, ids: torch.Tensor) -> np.ndarray:
    following = ids[:, 1:, None].numpy()
    return -np.take_along_axis(found.log_probs[:, :-1], following, axis=-1)[..., 0]


def damage(
    parent: Predictions, child: Predictions, ids: torch.Tensor
) -> dict[str, tuple[float, float]]:
    """Mean over tokens and its standard error over blocks of tokens, by metric."""
    kl = (np.exp(parent.log_probs) * (parent.log_probs - child.log_probs)).sum(axis=-1)
    norms = np.linalg.norm(parent.hidden, axis=-1) * np.linalg.norm(child.hidden, axis=-1)
    found = {
        "kl": kl,
        "lm_loss": loss(child, ids) - loss(parent, ids),
        "hidden_cosine_distance": 1 - (parent.hidden * child.hidden).sum(axis=-1) / norms,
    }
    for k in (1, 5, 10):
        own, others = top(parent.log_probs, k), top(child.log_probs, k)
        shared = (own[..., :, None] == others[..., None, :]).any(axis=-1).sum(axis=-1)
        found[f"top{k}_disagreement"] = 1 - shared / k
    blocks = {name: tokens.mean(axis=1) for name, tokens in found.items()}
    return {
        name: (means.mean(), means.std(ddof=1) / np.sqrt(len(means)))
        for name, means in blocks.items()
    }


def spec_with(pico: Pico, base: ArchitectureSpec | None, change: Replacement) -> ArchitectureSpec:
    """The base with one replacement."""
    first, last, attention, ffn = change
    spec = base or ArchitectureSpec.identity(pico.config)
    block = BlockChoice(
        attention=attention or pico.config.attention,
        ffn=ffn or pico.config.ffn,
        layers=tuple(range(first, last + 1)),
    )
    before = [b for b in spec.blocks if b.layers[-1] < first]
    after = [b for b in spec.blocks if b.layers[0] > last]
    return ArchitectureSpec(parent="parent", blocks=(*before, block, *after))


def obvious(
    pico: Pico, library: Path, spec: ArchitectureSpec, ids: torch.Tensor, folder: Path
) -> dict[str, tuple[float, float]]:
    """Assemble the child, run it whole, compare it with the parent."""
    child = build_child(pico.parent, library, spec, folder, dtype="fp32")
    models = (load_decoder(pico.parent), decoder(child, spec, pico))
    return damage(*(predictions(model, ids) for model in models), ids)


def add_random(pico: Pico, folder: Path, replacements: list[Replacement]) -> None:
    """Add pairs trained together and runs, of random weights, to a library."""
    library = pico.open_library(folder)
    generator = torch.Generator().manual_seed(0)
    for first, last, attention, ffn in replacements:
        entry = LibraryEntry(
            first_layer=first, last_layer=last, attention=attention, ffn=ffn,
            initialised_by="random", tokens=0, loss_initial=1.0, loss_trained=1.0, sha256="",
            initial_errors={"random": 1.0},
        )  # fmt: skip
        [block] = spec_with(pico, None, (first, last, attention, ffn)).blocks[first : first + 1]
        tensors: BlockTensors = {
            "attention": {
                name: torch.randn(shape, generator=generator) * 0.1
                for name, shape in subblock_shapes(block.attention_variant, pico.config).items()
            },
            "ffn": {
                name: torch.randn(shape, generator=generator) * 0.1
                for name, shape in subblock_shapes(block.ffn_variant, pico.config).items()
            },
        }
        library.add(entry, tensors)
    library.finish({})


def by_key(rows: list[ScoreRow]) -> dict[Key, ScoreRow]:
    return {(r.first_layer, r.last_layer, r.attention, r.ffn, r.metric): r for r in rows}
