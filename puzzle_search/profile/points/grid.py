"""What a profile shall cover, and the knots that its lattices begin with."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from puzzle_search.arch import ParentConfig
from puzzle_search.cost import Scenario
from puzzle_search.cost.chunks import prompt_pieces, sequences_per_chunk
from puzzle_search.cost.memory import PREFILL_CHUNK_TOKENS
from puzzle_search.errors import InputError

_RATIO = 4  # of neighbouring knots to begin with
_LEAST_RATIO = 2  # between those that are kept
_LARGEST_BATCH = 1024
_SHORTEST, _LONGEST = 128, 32768
_LIST = re.compile(r"[1-9]\d{0,8}(,[1-9]\d{0,8})*")
_RANGE = re.compile(r"([1-9]\d{0,8})-([1-9]\d{0,8})")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Batch sizes or lengths.

    Attributes:
        sizes: in ascending order.
        exact: whether only these are meant, and not what lies between.
    """

    sizes: tuple[int, ...]
    exact: bool

    @classmethod
    def span(cls, least: int, most: int) -> Sizes:
        """Sizes of a constant ratio from the least to the most."""
        found = [least]
        while found[-1] * _RATIO * _LEAST_RATIO <= most:
            found.append(found[-1] * _RATIO)
        return cls(sizes=_ascending([*found, most]), exact=False)

    @classmethod
    def parse(cls, text: str, option: str) -> Sizes:
        """Read ``LEAST-MOST``, a range, or ``A,B,C``, exactly these.

        Raises:
            InputError: the text has another form.
        """
        span = _RANGE.fullmatch(text)
        if span is not None and int(span[1]) <= int(span[2]):
            return cls.span(int(span[1]), int(span[2]))
        if _LIST.fullmatch(text) is None:
            raise InputError(
                f"{option} {text!r} is neither a range nor a list",
                remedy="write 1-64 to cover all from 1 to 64, or 1,8,64 for exactly these",
            )
        return cls(sizes=_ascending(int(part) for part in text.split(",")), exact=True)


@dataclass(frozen=True, kw_only=True)
class ProfileGrid:
    """Batch sizes and lengths to cover.

    Attributes:
        batches: sequences of a step.
        contexts: tokens attended to in a decode step, the new one among them.
        prompts: prompt lengths.
        tp: tensor-parallel degrees whose local shapes are measured.
        adaptive: whether what lies between is covered too, checked at held-out points and refined
            where interpolation misses; otherwise exactly these points are measured.
        chunk_tokens: most new tokens in one prefill step.
    """

    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    prompts: tuple[int, ...]
    tp: tuple[int, ...] = (1,)
    adaptive: bool = True
    chunk_tokens: int = PREFILL_CHUNK_TOKENS

    @classmethod
    def around(
        cls,
        *scenarios: Scenario,
        batches: Iterable[int],
        tp: Iterable[int] = (1,),
        adaptive: bool = True,
    ) -> ProfileGrid:
        """The smallest grid that covers some scenarios."""
        ends = {
            length for scenario in scenarios for length in (scenario.input_len + 1, scenario.tokens)
        }
        return cls(
            batches=_ascending(batches),
            contexts=_ascending(ends),
            prompts=_ascending(scenario.input_len for scenario in scenarios),
            tp=_ascending(tp),
            adaptive=adaptive,
        )

    @classmethod
    def spanning(
        cls,
        config: ParentConfig,
        *,
        batches: Sizes | None = None,
        contexts: Sizes | None = None,
        prompts: Sizes | None = None,
        tp: Iterable[int] = (1,),
    ) -> ProfileGrid:
        """A grid over ranges; adaptive, unless some sizes are exact.

        Args:
            config: the parent.
            batches: by default 1 to 1024.
            contexts: by default 128 to 32768, or to what the parent attends to.
            prompts: likewise.
            tp: tensor-parallel degrees.
        """
        longest = min(_LONGEST, config.max_context)
        lengths = Sizes.span(min(_SHORTEST, longest), longest)
        batches = batches or Sizes.span(1, _LARGEST_BATCH)
        contexts, prompts = contexts or lengths, prompts or lengths
        return cls(
            batches=batches.sizes,
            contexts=contexts.sizes,
            prompts=prompts.sizes,
            tp=_ascending(tp),
            adaptive=not (batches.exact or contexts.exact or prompts.exact),
        )

    def check(self, config: ParentConfig) -> None:
        """Check that the parent can run the grid.

        Raises:
            InputError: a length is beyond the context of the model, or a TP degree does not divide
                its shapes.
        """
        longest = max(self.contexts + self.prompts)
        if longest > config.max_context:
            raise InputError(
                f"{longest} tokens are more than {config.name} attends to ({config.max_context})",
                remedy="profile shorter contexts and prompts",
            )
        for tp in self.tp:
            if config.num_heads % tp or config.hidden_size % tp:
                raise InputError(
                    f"TP {tp} does not divide the {config.num_heads} query heads and the hidden "
                    f"size {config.hidden_size} of {config.name}",
                    remedy="leave that degree out of --tp",
                )

    def chunk_sequences(self) -> list[int]:
        """Sequences of the prefill steps."""
        found = set()
        for prompt in self.prompts:
            group = sequences_per_chunk(prompt, self.chunk_tokens)
            found |= {size for b in self.batches for size in (min(b, group), b % group) if size}
            if self.adaptive and max(self.batches) > group:
                found |= {1, group}  # what other batches leave for their last chunk
        return sorted(found)

    def chunk_lengths(self) -> list[int]:
        """New tokens of each sequence in the prefill steps."""
        found = {new for prompt in self.prompts for new, _ in self._pieces(prompt)}
        if self.adaptive and len(self.prompts) > 1 and max(self.prompts) > self.chunk_tokens:
            found.add(1)  # what other prompts leave for their last chunk
        return sorted(found)

    def rows(self) -> list[int]:
        """Tokens of a step, decode or prefill."""
        found = set(self.batches)
        sequences = self.chunk_sequences()
        for prompt in self.prompts:
            for new, _ in self._pieces(prompt):
                most = sequences_per_chunk(new, self.chunk_tokens)
                found |= {size * new for size in sequences if size <= most}
        if not self.adaptive:
            return sorted(found)
        found.add(min(self.chunk_lengths()))
        if len(self.prompts) > 1:  # prompts in between may fill a chunk better
            found.add(min(self.chunk_tokens, max(self.batches) * max(self.prompts)))
        return _thinned(sorted(found))

    def head_batches(self) -> list[int]:
        """Sequences whose next token is predicted in a step."""
        return sorted({*self.batches, *self.chunk_sequences()})

    def histories(self) -> tuple[list[int], list[int]]:
        """New tokens, and tokens before them, of the chunks of prompts longer than a chunk."""
        cut = [piece for prompt in self.prompts for piece in self._pieces(prompt)[1:]]
        new = {tokens for tokens, _ in cut}
        before = {context - tokens for tokens, context in cut}
        if self.adaptive and before:
            # Linear in between: the time grows with new tokens times history.
            new, before = {max(new)}, {min(before), max(before)}
        return sorted(new), sorted(before)

    def _pieces(self, prompt: int) -> list[tuple[int, int]]:
        return prompt_pieces(prompt, self.chunk_tokens)


def _thinned(knots: list[int]) -> list[int]:
    """Both ends, and of what lies between only what is not close to its neighbours."""
    kept = knots[:1]
    for knot in knots[1:-1]:
        if knot > kept[-1] * _LEAST_RATIO and knots[-1] > knot * _LEAST_RATIO:
            kept.append(knot)
    return sorted({*kept, knots[-1]})


def _ascending(sizes: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(set(sizes)))
