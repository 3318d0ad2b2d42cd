"""A decoder being served: slots of KV cache, prompts in chunks, decode steps replayed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from puzzle_search.arch import Gqa
from puzzle_search.cost.chunks import prefill_chunks
from puzzle_search.cost.memory import PREFILL_CHUNK_TOKENS
from puzzle_search.errors import InputError
from puzzle_search.model import Sampler, draw
from puzzle_search.model.decoder import check_context
from puzzle_search.model.rope import RotarySlice
from puzzle_search.runtime.attention import make_decode_attention
from puzzle_search.runtime.cache import ring_of
from puzzle_search.runtime.decoder import ServingDecoder
from puzzle_search.runtime.freed_memory import keep_freed_memory
from puzzle_search.runtime.linear import calibrating
from puzzle_search.runtime.step import DecodeStep, PrefillStep, Ring

_WARM_UP_STEPS = 3  # before a capture: compile, choose algorithms, allocate


class Engine:
    """Runs a decoder over a fixed number of slots, each one sequence.

    On CUDA a decode step is one graph, captured here and replayed, unless the attention asked for
    cannot be captured; sequences of any length share it. Greedy, where no sampler is given.

    Args:
        decoder: the weights.
        slots: sequences at a time.
        max_length: prompt and output tokens of the longest sequence.
        attention: decode back end: ``triton``, ``flashinfer`` or ``sdpa``; the fastest by default.
        chunk_tokens: tokens of one prefill step; longer prompts, and more of them, take several.

    Raises:
        InputError: sequences are longer than the model can attend to.
        MissingDependencyError: the back end asked for is not installed.
    """

    def __init__(
        self,
        decoder: ServingDecoder,
        *,
        slots: int,
        max_length: int,
        attention: str | None = None,
        chunk_tokens: int = PREFILL_CHUNK_TOKENS,
    ) -> None:
        check_context(decoder.config, max_length, "ask for a shorter prompt or fewer new tokens")
        self.decoder = decoder
        self.slots = slots
        self.max_length = max_length
        self.chunk_tokens = chunk_tokens
        self.cache = decoder.new_cache(slots=slots, max_length=max_length)
        self.lengths = [0] * slots
        self._in_use = [False] * slots
        self._checked = False
        self._samplers: dict[int, Sampler] = {}
        self._logits_BV: torch.Tensor | None = None  # of the last decode step
        config, device = decoder.config, decoder.device
        keep_freed_memory(device)
        kinds = {
            (variant.kv_heads, ring_of(variant.window(config), max_length))
            for choice in decoder.spec.blocks
            if isinstance(variant := choice.attention_variant, Gqa)
        }
        self._attention = {
            (heads, window): make_decode_attention(
                attention,
                device,
                slots=slots,
                max_length=window or max_length,
                num_heads=config.num_heads,
                kv_heads=heads,
                head_dim=config.head_dim,
                dtype=decoder.precision.activation,
                kv_dtype=decoder.precision.kv,
            )
            for heads, window in kinds
        }
        self._windows = {window for _, window in kinds if window is not None}
        with torch.inference_mode():
            cos_SE, sin_SE = decoder.rotary_table(max_length)
            self._cos_S1E, self._sin_S1E = cos_SE[:, None], sin_SE[:, None]
            self._slots_B = torch.arange(slots, device=device)
            self._ids_B = torch.zeros(slots, dtype=torch.long, device=device)
            self._positions_B = torch.zeros(slots, dtype=torch.long, device=device)
            self._growth_B = torch.zeros(slots, dtype=torch.long, device=device)  # 1 where in use
            is_captured = device.type == "cuda" and all(
                attention.is_capturable for attention in self._attention.values()
            )
            self._graph = self._capture() if is_captured else None

    @property
    def cache_bytes(self) -> int:
        """Bytes of the KV cache."""
        return self.cache.num_bytes

    @torch.inference_mode()
    def prefill(
        self,
        slots: Sequence[int],
        ids_BL: torch.Tensor,
        samplers: Mapping[int, Sampler] | None = None,
    ) -> torch.Tensor:
        """Put prompts of equal length into slots; return the first token after each, (B,).

        Args:
            slots: one a prompt.
            ids_BL: prompts.
            samplers: by slot; until it is released its tokens are drawn, those of others greedy.

        Raises:
            InputError: a prompt leaves no room for a token, or the engine's first prompts give
                logits that are not finite.
        """
        sequences, length = ids_BL.shape
        if length >= self.max_length:
            raise InputError(
                f"a prompt of {length} tokens leaves no room in slots of {self.max_length}",
                remedy="shorten the prompt, or make the slots longer",
            )
        self._samplers |= samplers or {}
        ids_BL = ids_BL.to(self.decoder.device)
        slots_B = torch.tensor(slots, device=self.decoder.device)
        next_B = torch.empty(sequences, dtype=torch.long, device=self.decoder.device)
        for chunk in prefill_chunks(sequences, length, self.chunk_tokens):
            rows = slice(chunk.first_sequence, chunk.first_sequence + chunk.sequences)
            start = chunk.context - chunk.tokens
            states = self._prefill_chunk(slots_B[rows], ids_BL[rows, start : chunk.context], start)
            if chunk.last:
                logits_BV = self.decoder.logits(*states)
                self._check_once(logits_BV)
                next_B[rows] = self._chosen(slots[rows], logits_BV, logits_BV.argmax(-1))
        self._ids_B[slots_B] = next_B
        self._positions_B[slots_B] = length
        self._growth_B[slots_B] = 1
        for slot in slots:
            self.lengths[slot] = length
            self._in_use[slot] = True
        return next_B

    @torch.inference_mode()
    def decode(self) -> torch.Tensor:
        """One step for every slot, used or not; return the tokens that it adds, (slots,).

        What is returned stays on the device and is overwritten by the next step. A slot that is
        full writes its last position again, one that is not in use its first.
        """
        self.lengths = [
            min(length + 1, self.max_length) if in_use else 1
            for length, in_use in zip(self.lengths, self._in_use, strict=True)
        ]
        for (_, window), attention in self._attention.items():
            attention.prepare([min(length, window or length) for length in self.lengths])
        if self._graph is None:
            self._decode_step()
        else:
            self._graph.replay()
        if self._samplers:
            assert self._logits_BV is not None
            self._chosen(range(self.slots), self._logits_BV, self._ids_B)
        return self._ids_B

    @torch.inference_mode()
    def seek(self, length: int) -> None:
        """Put every slot at a length, over whatever its cache holds there: to time steps at it.

        Raises:
            InputError: the slots are not that long.
        """
        if not 0 <= length < self.max_length:
            raise InputError(
                f"no step follows {length} tokens in slots of {self.max_length}",
                remedy="make the slots longer",
            )
        self._positions_B.fill_(length)
        self._growth_B.fill_(1)
        self.lengths = [length] * self.slots
        self._in_use = [True] * self.slots

    @torch.inference_mode()
    def release(self, slots: Sequence[int]) -> None:
        """Empty slots, so that the steps until they are filled again attend to little in them."""
        slots_B = torch.tensor(slots, dtype=torch.long, device=self.decoder.device)
        self._positions_B[slots_B] = 0
        self._growth_B[slots_B] = 0
        for slot in slots:
            self.lengths[slot] = 0
            self._in_use[slot] = False
            self._samplers.pop(slot, None)

    @torch.inference_mode()
    def calibrate(self, ids_BL: torch.Tensor) -> None:
        """Find the scales of FP8 inputs on these prompts; empties the slots that they take.

        Nothing happens in other precisions.
        """
        if self.decoder.precision.is_fp8:
            with calibrating(self.decoder):
                self.prefill(range(len(ids_BL)), ids_BL)

    def _prefill_chunk(
        self, slots_B: torch.Tensor, ids_BL: torch.Tensor, start: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Last hidden states of each sequence, (B, D)."""
        sequences, length = ids_BL.shape
        positions_N = torch.arange(start, start + length, device=ids_BL.device).repeat(sequences)
        step = PrefillStep(
            slots_N=slots_B.repeat_interleave(length),
            positions_N=positions_N,
            rotary=self._rotary(positions_N),
            slots_B=slots_B,
            start=start,
        )
        residual_ND, delta_ND = self.decoder.hidden_states(ids_BL.flatten(), step, self.cache)
        last = slice(length - 1, None, length)
        return residual_ND[last], None if delta_ND is None else delta_ND[last]

    def _chosen(
        self, slots: Sequence[int], logits_BV: torch.Tensor, ids_B: torch.Tensor
    ) -> torch.Tensor:
        """Overwrite the greedy tokens of slots that have a sampler."""
        rows = [row for row, slot in enumerate(slots) if slot in self._samplers]
        if rows:
            ids_B[rows] = draw(logits_BV[rows], [self._samplers[slots[row]] for row in rows])
        return ids_B

    def _check_once(self, logits_BV: torch.Tensor) -> None:
        """Refuse weights whose text would mean nothing; the device is waited for once."""
        if not self._checked and not bool(logits_BV.isfinite().all()):
            raise InputError(
                "the logits of the first prompts are not finite",
                remedy="check the weights of the checkpoint, or serve it in another dtype",
            )
        self._checked = True

    def _decode_step(self) -> None:
        """Everything that is captured: reads and writes tensors of fixed addresses only."""
        positions_B = self._positions_B
        step = DecodeStep(
            slots_N=self._slots_B,
            positions_N=positions_B,
            rotary=self._rotary(positions_B),
            lengths_B=(positions_B + 1).int(),
            attention=self._attention,
            rings={window: Ring.of(positions_B, window) for window in self._windows},
        )
        residual_BD, delta_BD = self.decoder.hidden_states(self._ids_B, step, self.cache)
        logits_BV = self.decoder.logits(residual_BD, delta_BD)
        self._ids_B.copy_(logits_BV.argmax(-1))
        # A graph writes them to the same place every time.
        is_kept = self._samplers or logits_BV.device.type == "cuda"
        self._logits_BV = logits_BV if is_kept else None
        self._positions_B.add_(self._growth_B).clamp_(max=self.max_length - 1)

    def _rotary(self, positions_N: torch.Tensor) -> RotarySlice:
        return RotarySlice(self._cos_S1E[positions_N], self._sin_S1E[positions_N])

    def _capture(self) -> Any:
        """A CUDA graph of the decode step."""
        for attention in self._attention.values():
            attention.prepare([1] * self.slots)
        stream = torch.cuda.Stream(self.decoder.device)
        stream.wait_stream(torch.cuda.current_stream(self.decoder.device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP_STEPS):
                self._decode_step()
        torch.cuda.current_stream(self.decoder.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._decode_step()
        self._positions_B.zero_()
        self._ids_B.zero_()
        return graph
