"""Candidates advance together, subblock by subblock, from the layers that they replace to the head.

A base (the parent, or a child of it) is computed once, layer by layer. A replacement leaves it
before the first layer that it replaces, passes its own block, and then the base's blocks after it.
Pairs of a layer share the outputs of their attention. No sum of one candidate depends on which
others go beside it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import torch

from puzzle_search.arch import Replacement
from puzzle_search.model import Rotary, SubblockModule
from puzzle_search.model.rope import RotarySlice
from puzzle_search.score.measure import BASE, Judge, Measured, Stream
from puzzle_search.score.weights import Weights

_Pair = tuple[str, str]


class Sweeper:
    """Scores of replacements around one base, by sweeps over its layers in order.

    Args:
        weights: of parent and library.
        blocks: of the base.
        ids: the tokens, by chunk of rows.
        judge: learns from the parent, then measures candidates.
    """

    def __init__(
        self,
        weights: Weights,
        blocks: Sequence[Replacement],
        ids: Sequence[torch.Tensor],
        judge: Judge,
    ) -> None:
        self._weights, self._blocks, self._judge = weights, blocks, judge
        self._index = {block[0]: index for index, block in enumerate(blocks)}
        self._base_is_parent = all(b[0] == b[1] and b[2:] == ("", "") for b in blocks)
        self._base: Stream = [weights.embed(part) for part in ids]
        self._at = 0  # the block that the base's hidden states stand before
        like = self._base[0].to(weights.sources.dtype)
        self._angles = Rotary(weights.config).slice(0, ids[0].shape[1], like)
        apart = judge.needs_parent and not self._base_is_parent
        self._parent = list(self._base) if apart else None

    def sweep(self, replacements: Sequence[Replacement], *, with_base: bool) -> Iterator[Measured]:
        """Metrics of every replacement, and of the base itself if asked for, which ends the work.

        Args:
            replacements: that begin where earlier sweeps did or later.
            with_base: whether the base is measured too, as BASE.

        Raises:
            InputError: a metric is not finite, or the library lacks a variant.
        """
        starting: dict[int, list[Replacement]] = defaultdict(list)
        for replacement in replacements:
            starting[self._index[replacement[0]]].append(replacement)
        last_start = max(starting, default=self._at)
        to_the_end = with_base or (self._judge.needs_parent and self._base_is_parent)
        base, live = self._base, list[tuple[Replacement, Stream]]()
        waiting: dict[int, list[tuple[Replacement, Stream]]] = defaultdict(list)
        for index in range(self._at, len(self._blocks)):
            if index == last_start:
                self._base, self._at = list(base), index
            follows = to_the_end or index < last_start
            base, left = self._pass(
                index, base, follows, [stream for _, stream in live], starting[index]
            )
            for replacement, stream in left:
                waiting[replacement[1]].append((replacement, stream))
            live += waiting.pop(self._blocks[index][1], [])
        if self._judge.needs_parent:
            self._judge.learn(base if self._parent is None else self._parent)
            self._parent = None
        if with_base:
            live.append((BASE, base))
        yield from self._judge.measure(live)

    def _pass(
        self,
        index: int,
        base: Stream,
        follows: bool,
        live: list[Stream],
        starting: list[Replacement],
    ) -> tuple[Stream, list[tuple[Replacement, Stream]]]:
        """One block of the base: its hidden states after it, and those of what starts here.

        Args:
            index: of the block.
            base: hidden states before it; not changed.
            follows: whether the base goes on.
            live: candidates that pass the base's block; advanced in place.
            starting: replacements that begin with this block.
        """
        weights, block = self._weights, self._blocks[index]
        first, last, *_ = block
        own = (block[2], block[3])
        by_subblock = weights.sources.shares_subblocks
        after = base
        after_whole = {
            r: self._through_all(weights.block(r), first, base)
            for r in starting
            if not by_subblock(r)
        }
        pairs = {(r[2], r[3]) for r in starting if by_subblock(r)}
        followers: list[tuple[_Pair, Stream]] = []
        if by_subblock(block):
            followers += [(own, stream) for stream in live]
            pairs |= {own} if follows else set()
        elif follows or live:
            modules = weights.block(block)
            for stream in live:
                stream[:] = self._through_all(modules, first, stream)
            after = self._through_all(modules, first, base) if follows else base
        if self._parent is not None:
            followers.append((("", ""), self._parent))
        outputs = self._shared(first, base, pairs, followers)
        if self._parent is not None:
            for layer in range(first + 1, last + 1):
                self._shared(layer, [], set(), [(("", ""), self._parent)])
        if by_subblock(block) and follows:
            after = outputs[own]
        left = [
            (r, after_whole[r] if r in after_whole else list(outputs[r[2], r[3]])) for r in starting
        ]
        return after, left

    def _shared(
        self,
        layer: int,
        start: Stream,
        pairs: set[_Pair],
        followers: list[tuple[_Pair, Stream]],
    ) -> dict[_Pair, Stream]:
        """Pass one layer with one subblock in memory at a time.

        Args:
            layer: of the parent.
            start: hidden states before the layer, that every pair of variants begins from.
            pairs: attention and FFN by name; an empty name is the parent's own.
            followers: pairs, and hidden states that pass them in place.

        Returns:
            Hidden states after every pair.
        """
        between: dict[str, Stream] = {}
        after: dict[_Pair, Stream] = {}
        for name in sorted({pair[0] for pair in pairs} | {pair[0] for pair, _ in followers}):
            module = self._weights.subblock(layer, "attention", name)
            for pair, stream in followers:
                if pair[0] == name:
                    self._advance(module, layer, stream)
            if any(pair[0] == name for pair in pairs):
                between[name] = self._through(module, layer, start)
        for name in sorted({pair[1] for pair in pairs} | {pair[1] for pair, _ in followers}):
            module = self._weights.subblock(layer, "ffn", name)
            for pair, stream in followers:
                if pair[1] == name:
                    self._advance(module, layer, stream)
            for pair in pairs:
                if pair[1] == name:
                    after[pair] = self._through(module, layer, between[pair[0]])
        return after

    def _rotary(self, layer: int) -> RotarySlice:
        """Of the block that begins at a layer."""
        return self._angles.of_layer(layer, self._weights.config)

    def _through(
        self, module: SubblockModule, layer: int, stream: Iterable[torch.Tensor]
    ) -> Stream:
        rotary = self._rotary(layer)
        return [module(chunk, rotary, None) for chunk in stream]

    def _through_all(self, modules: Iterable[SubblockModule], layer: int, stream: Stream) -> Stream:
        for module in modules:
            stream = self._through(module, layer, stream)
        return list(stream)

    def _advance(self, module: SubblockModule, layer: int, stream: Stream) -> None:
        rotary = self._rotary(layer)
        for number, chunk in enumerate(stream):
            stream[number] = module(chunk, rotary, None)
