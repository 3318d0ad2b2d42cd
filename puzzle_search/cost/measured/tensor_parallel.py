"""A profile of local shapes, with the all-reduce that joins the devices of a TP group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np

from puzzle_search.arch import Subblock
from puzzle_search.cost.latency import Evidence, Microseconds
from puzzle_search.cost.measured.profile import Profile
from puzzle_search.cost.modelled.constants import AllReduceConstants, Sheet
from puzzle_search.cost.modelled.operators import STREAM_BYTES, all_reduce_us
from puzzle_search.cost.step import Step
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

    def subblock_us(self, subblock: Subblock, variant: str, step: Step) -> Microseconds:
        """Microseconds of one subblock with its all-reduce; see `Profile.subblock_us`."""
        base_us = self.base.subblock_us(subblock, variant, step)
        return base_us if variant == "no_op" else base_us + self._all_reduce(step)

    def outside_us(self, step: Step) -> Microseconds:
        """Microseconds outside the blocks with one all-reduce; see `Profile.outside_us`."""
        return self.base.outside_us(step) + self._all_reduce(step)

    def _all_reduce(self, step: Step) -> Microseconds:
        tp = step.tp
        if tp == 1:
            return np.zeros(())
        if tp not in self.constants.by_tp:
            raise InputError(
                f"the all-reduce of TP {tp} is not in the device's cost model",
                remedy=f"use one of {', '.join(map(str, self.constants.by_tp))}",
            )
        config, dtype = self.base.config, self.base.dtype
        message_bytes = STREAM_BYTES[dtype.name] * step.rows * config.hidden_size
        lines = self.constants.by_tp[tp]
        return all_reduce_us(message_bytes, tp=tp, sheet=self.sheet, lines=lines)
