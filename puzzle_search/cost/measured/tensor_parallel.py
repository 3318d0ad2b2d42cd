"""A profile of local shapes, with the all-reduce that joins the devices of a TP group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from puzzle_search.arch import Subblock
from puzzle_search.cost.chunks import sum_over_chunks
from puzzle_search.cost.latency import Evidence, Microseconds, Phase
from puzzle_search.cost.measured.profile import Profile
from puzzle_search.cost.modelled.constants import AllReduceConstants, Sheet
from puzzle_search.cost.modelled.operators import STREAM_BYTES, all_reduce_us
from puzzle_search.errors import InputError


@dataclass(frozen=True, kw_only=True)
class TensorParallelLatency:
    """A profile, measured on one device, plus the all-reduce of a cost model.

    One all-reduce of the residual stream for each subblock that is there, and one of the embedding.

    Attributes:
        base: the profile.
        sheet: of the device.
        constants: of the all-reduce, by TP degree.
    """

    base: Profile
    sheet: Sheet
    constants: AllReduceConstants

    @property
    def evidence(self) -> Evidence:
        """The weaker of the profile's and the all-reduce's."""
        order: tuple[Evidence, ...] = get_args(Evidence)
        return max(self.base.evidence, self.constants.provenance.evidence, key=order.index)

    def subblock_us(
        self,
        subblock: Subblock,
        variant: str,
        phase: Phase,
        *,
        batch: ArrayLike,
        tokens: ArrayLike,
        context: ArrayLike,
        tp: int,
    ) -> Microseconds:
        """Microseconds of one subblock with its all-reduce; see `Profile.subblock_us`."""
        base_us = self.base.subblock_us(
            subblock, variant, phase, batch=batch, tokens=tokens, context=context, tp=tp
        )
        if variant == "no_op":
            return base_us
        return base_us + self._all_reduce(phase, batch, tokens, tp)

    def outside_us(
        self, phase: Phase, *, batch: ArrayLike, tokens: ArrayLike, tp: int
    ) -> Microseconds:
        """Microseconds outside the blocks with one all-reduce; see `Profile.outside_us`."""
        base_us = self.base.outside_us(phase, batch=batch, tokens=tokens, tp=tp)
        return base_us + self._all_reduce(phase, batch, tokens, tp)

    def _all_reduce(
        self, phase: Phase, batch: ArrayLike, tokens: ArrayLike, tp: int
    ) -> Microseconds:
        if tp == 1:
            return np.zeros(())
        if tp not in self.constants.by_tp:
            raise InputError(
                f"the all-reduce of TP {tp} is not in the device's cost model",
                remedy=f"use one of {', '.join(map(str, self.constants.by_tp))}",
            )

        def step_us(rows: NDArray[np.float64]) -> Microseconds:
            config, dtype = self.base.config, self.base.dtype
            message_bytes = STREAM_BYTES[dtype.name] * rows * config.hidden_size
            lines = self.constants.by_tp[tp]
            return all_reduce_us(message_bytes, tp=tp, sheet=self.sheet, lines=lines)

        if phase == "decode":
            return step_us(np.asarray(batch, np.float64))
        return sum_over_chunks(
            batch, tokens, self.base.chunk_tokens, lambda b, new, *_: step_us(b * new)
        )
