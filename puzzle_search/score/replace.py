"""Replace one block of the parent at a time and measure the damage (Puzzle, section 4.1).

The parent's hidden states before every layer are computed once; a replacement runs its own block
and the parent's layers after it, nothing before. Every result is journaled: a killed run loses
the one replacement it was at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from puzzle_search import __version__
from puzzle_search.arch import ParentConfig, SearchSpace, Subblock, parse_variant
from puzzle_search.checkpoint import subblock_from_tensors
from puzzle_search.checkpoint.block_library import BlockLibrary
from puzzle_search.errors import InputError
from puzzle_search.files import Journal, check_keys, resume_journal, value_hash
from puzzle_search.model import HeterogeneousDecoder, SubblockModule
from puzzle_search.model.losses import kl_to_log_probs, log_probs
from puzzle_search.model.rope import RotarySlice
from puzzle_search.progress import Progress
from puzzle_search.solve import ScoreRow, ScoreTable
from puzzle_search.solve.score_table import FORMAT

_SUBBLOCKS: tuple[Subblock, Subblock] = ("attention", "ffn")
_ROWS = 16  # blocks of tokens that pass through the model at once


@dataclass(frozen=True, kw_only=True)
class _Replacement:
    layer: int
    attention: str
    ffn: str


def score_replacements(
    model: HeterogeneousDecoder,
    library: BlockLibrary,
    space: SearchSpace,
    ids: torch.Tensor,
    *,
    journal: Journal,
    data: str,
    composed: bool = True,
    progress: Progress | None = None,
) -> ScoreTable:
    """KL(parent || parent with one block replaced), per token, for every replacement.

    Args:
        model: the parent.
        library: trained variants.
        space: variants by layer.
        ids: (blocks, length) held-out tokens.
        journal: results are appended here, and those already there are not measured again.
        data: what the tokens are, for the table's sidecar.
        composed: score every (attention, FFN) pair, not only single subblocks.
        progress: shows how far it is.

    Raises:
        InputError: the library lacks a variant, the journal is of other tokens, another parent or
            library, or a score is not finite.
    """
    config = model.config
    replacements = list(_replacements(config, space, composed))
    made_from = {
        "library_sha256": library.sha256,
        "tokens_sha256": value_hash(ids.tolist()),
        "dtype": str(model.embedding.weight.dtype),
    }
    rows = {}
    for line in resume_journal(journal, made_from):
        check_keys(line, f"{journal.path}, a score", required={f.name for f in fields(ScoreRow)})
        row = ScoreRow(**line)
        rows[row.first_layer, row.attention, row.ffn] = row
    progress = progress or Progress("score")
    keys = {(r.layer, r.attention, r.ffn) for r in replacements}
    with torch.inference_mode(), progress.over(len(keys), done=len(keys & rows.keys())) as advance:
        if not keys <= rows.keys():
            parent = _ParentStates(model, ids)
            modules = _Modules(config, library)
            for replacement in replacements:
                key = (replacement.layer, replacement.attention, replacement.ffn)
                if key in rows:
                    continue
                rows[key] = _score(replacement, parent, modules)
                journal.append(asdict(rows[key]))
                advance(f"layer {replacement.layer} {replacement.attention} {replacement.ffn}")
    sidecar: dict[str, Any] = {
        "format": FORMAT,
        "package_version": __version__,
        "parent": config.name,
        "evidence": "measured",
        "data": f"{data}, {ids.numel()} tokens, sha256 {made_from['tokens_sha256']}",
        "made_by": "puzzle-search score",
    }
    return ScoreTable((row for key, row in rows.items() if key in keys), sidecar)


def _replacements(
    config: ParentConfig, space: SearchSpace, composed: bool
) -> Iterator[_Replacement]:
    """Every replacement; the parent's own subblock is written as an empty string."""
    for layer in range(space.num_layers):
        for attention in space.attention[layer]:
            for ffn in space.ffn[layer]:
                own_attention, own_ffn = attention == config.attention, ffn == config.ffn
                if own_attention and own_ffn:
                    continue
                if composed or own_attention or own_ffn:
                    yield _Replacement(
                        layer=layer,
                        attention="" if own_attention else attention,
                        ffn="" if own_ffn else ffn,
                    )


class _ParentStates:
    """Hidden states of the parent before every layer, and its log-probabilities at the end."""

    def __init__(self, model: HeterogeneousDecoder, ids: torch.Tensor) -> None:
        self.model = model
        hidden = model.embedding(ids)
        self.rotary: RotarySlice = model.rotary.slice(0, ids.shape[1], hidden)
        self.before = []
        for block in model.blocks:
            self.before.append(hidden)
            hidden = torch.cat([block(part, self.rotary) for part in hidden.split(_ROWS)])
        self.log_probs = [log_probs(model.logits(part)) for part in hidden.split(_ROWS)]


class _Modules:
    """Modules of the layer at hand, loaded once each."""

    def __init__(self, config: ParentConfig, library: BlockLibrary) -> None:
        self._config = config
        self._library = library
        self._layer = -1
        self._loaded: dict[tuple[Subblock, str], SubblockModule] = {}

    def get(
        self, layer: int, subblock: Subblock, variant: str, like: torch.Tensor
    ) -> SubblockModule:
        if layer != self._layer:
            self._layer, self._loaded = layer, {}
        if (subblock, variant) not in self._loaded:
            names = (variant, "") if subblock == "attention" else ("", variant)
            self._loaded[subblock, variant] = subblock_from_tensors(
                parse_variant(subblock, variant),
                self._config,
                self._library.block(layer, layer, *names)[subblock],
                dtype=like.dtype,
                device=like.device,
            )
        return self._loaded[subblock, variant]


def _score(replacement: _Replacement, parent: _ParentStates, modules: _Modules) -> ScoreRow:
    model, layer = parent.model, replacement.layer
    start = parent.before[layer]
    own: dict[Subblock, SubblockModule] = {
        "attention": model.blocks[layer].attention,  # type: ignore[dict-item]
        "ffn": model.blocks[layer].ffn,  # type: ignore[dict-item]
    }
    chosen = []
    for subblock in _SUBBLOCKS:
        variant = replacement.attention if subblock == "attention" else replacement.ffn
        chosen.append(modules.get(layer, subblock, variant, start) if variant else own[subblock])
    per_block: list[torch.Tensor] = []
    for part, teacher in zip(start.split(_ROWS), parent.log_probs, strict=True):
        hidden = part
        for module in chosen:
            hidden = module(hidden, parent.rotary, None)
        for block in model.blocks[layer + 1 :]:
            hidden = block(hidden, parent.rotary)
        per_block.append(kl_to_log_probs(teacher, model.logits(hidden)).mean(dim=1))
    values = torch.cat(per_block).double()
    if not values.isfinite().all():
        raise InputError(
            f"layer {layer} with attention {replacement.attention or 'of the parent'} and FFN "
            f"{replacement.ffn or 'of the parent'} gives a score that is not finite",
            remedy="check the parent's weights, or train that variant again",
        )
    return ScoreRow(
        first_layer=layer,
        last_layer=layer,
        attention=replacement.attention,
        ffn=replacement.ffn,
        metric="kl",
        value=float(values.mean()),
        stderr=float(values.std() / math.sqrt(max(1, len(values)))) if len(values) > 1 else 0.0,
        tokens=int(start.shape[0] * start.shape[1]),
    )
