"""A profile: measured latencies of every variant on one device, and nothing else.

A row is a whole subblock of the runtime: norm, residual add, matrices, attention. What works token
by token (every FFN, linear attention, the embedding) depends on the tokens of a step alone, in
prefill and in decode; attention on batch and length as well.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puzzle_search.arch import Gqa, ParentConfig, Subblock, parse_variant
from puzzle_search.cost.latency import Evidence, Microseconds, Phase
from puzzle_search.cost.measured.hardware_limit import check_latency
from puzzle_search.cost.measured.interpolation import Curve, Lattice
from puzzle_search.cost.measured.memory_check import check_memory
from puzzle_search.cost.measured.profile_file import read_profile, write_profile
from puzzle_search.cost.measured.profile_rows import (
    EMBEDDING,
    HEAD,
    STEP,
    GroupRow,
    LatencyRow,
    MemoryRow,
)
from puzzle_search.cost.memory import Dtype, parse_dtype
from puzzle_search.cost.step import Step
from puzzle_search.errors import InputError

_Array = NDArray[np.float64]
_Key = tuple[str, str, int]  # subblock, variant, TP degree


class Profile:
    """Measured points with their device; predicts by interpolation inside the measured.

    Implements ``LatencyModel``. Between points latencies are linear (see
    `interpolation`); outside nothing is guessed. Attention over the history of a
    piece of a prompt costs in proportion to its new tokens.
    Rows of TP degrees above 1 are local shapes: what they predict lacks the all-reduce.

    Args:
        rows: latencies; no point twice.
        memory: bytes of the variants.
        groups: states of the device; one for every group that a row names.
        sidecar: as ``profile.yaml`` holds it.

    Raises:
        InputError: a point was measured twice, or a row names an unknown group.
    """

    evidence: Evidence = "measured"

    def __init__(
        self,
        rows: Iterable[LatencyRow],
        memory: Iterable[MemoryRow],
        groups: Iterable[GroupRow],
        sidecar: Mapping[str, Any],
    ) -> None:
        self.rows, self.memory, self.groups = list(rows), list(memory), list(groups)
        self.sidecar = dict(sidecar)
        _check_rows(self.rows, {group.group for group in self.groups})

    @property
    def batches(self) -> list[int]:
        """Batch sizes whose decode steps were measured."""
        return sorted({row.batch for row in self.rows if row.phase == "decode"})

    @property
    def tp_degrees(self) -> list[int]:
        """Tensor-parallel degrees whose local shapes were measured."""
        return sorted({row.tp for row in self.rows})

    @property
    def dtype(self) -> Dtype:
        """Serving precision."""
        return parse_dtype(self.sidecar["dtype"])

    @property
    def chunk_tokens(self) -> int:
        """Most new tokens in a step of a prefill."""
        return int(self.sidecar["prefill_chunk_tokens"])

    @cached_property
    def whole_steps(self) -> bool:
        """Whether the steps have embedding and head in them, as those of a foreign engine do."""
        return {row.variant for row in self.rows if row.subblock == "outside"} == {STEP}

    @cached_property
    def config(self) -> ParentConfig:
        """The parent that was profiled."""
        return ParentConfig.from_dict(self.sidecar["parent_config"], name=self.sidecar["model"])

    @classmethod
    def from_folder(cls, folder: str | Path) -> Profile:
        """Read a profile.

        Raises:
            InputError: a file is missing or wrong, a point was measured twice, a row is faster
                than the hardware allows, or bytes are not those of the formula.
        """
        path = Path(folder)
        tables, sidecar = read_profile(path)
        try:
            profile = cls(*tables, sidecar)
        except InputError as error:
            raise InputError(f"{path}: {error.message}", remedy=error.remedy) from error
        where = path / "latency.csv"
        check_latency(profile.rows, profile.config, profile.dtype, sidecar, where)
        check_memory(profile.memory, profile.config, profile.dtype, path / "memory.csv")
        return profile

    def write(self, folder: str | Path) -> None:
        """Write the profile; the sidecar last, since it vouches for the tables."""
        self.sidecar = write_profile(
            Path(folder), self.rows, self.memory, self.groups, self.sidecar
        )

    def subblock_us(self, subblock: Subblock, variant: str, step: Step) -> Microseconds:
        """Microseconds of one subblock in a step.

        Raises:
            InputError: the variant was not measured, or a step is outside the measured.
        """
        us = self._subblock(subblock, variant, step)
        _refuse_unmeasured(us, f"{subblock} {variant}", step)
        return us

    def outside_us(self, step: Step) -> Microseconds:
        """Microseconds of embedding, head and engine in a step; the head runs where prompts end.

        Raises:
            InputError: a part was not measured, or a step is outside the measured.
        """
        us = self._outside(step)
        _refuse_unmeasured(us, "outside", step)
        return us

    def covers(self, variants: Iterable[tuple[Subblock, str]], step: Step) -> NDArray[np.bool_]:
        """Which steps lie inside the measured for all these variants and what is outside them.

        Raises:
            InputError: a variant, or a part outside, was not measured at all.
        """
        unknown = np.isnan(self._outside(step))
        for subblock, variant in variants:
            unknown |= np.isnan(self._subblock(subblock, variant, step))
        return ~unknown

    def _outside(self, step: Step) -> Microseconds:
        """As `outside_us`, with NaN outside the measured."""
        decodes = step.prompts == 0
        sequences = step.decoding + step.prompts
        us = np.where(
            decodes,
            self._step("decode", step.tp).at(sequences),
            self._step("prefill", step.tp).at(sequences),
        )
        if self.whole_steps:
            return us
        head = self._curve("outside", HEAD, step.tp).at(np.maximum(step.sampled, 1))
        embedding = self._curve("outside", EMBEDDING, step.tp).at(step.rows)
        return np.asarray(us + embedding + np.where(step.sampled > 0, head, 0.0))

    def _subblock(self, subblock: str, variant: str, step: Step) -> Microseconds:
        """As `subblock_us`, with NaN outside the measured."""
        if variant == "no_op":
            return np.zeros(step.shape)
        if (subblock, variant) not in self._names:
            # In the serving precision a shape is what it is without a type.
            shape, _, weights = variant.partition("@")
            variant = shape if weights == self.dtype.name else variant
        if not _attends(variant):
            return self._curve(subblock, variant, step.tp).at(step.rows)
        prefills = step.prompts > 0
        us = np.empty(step.shape)
        if not prefills.all():
            lattice = self._lattice(variant, "decode", step.tp)
            attended = step.decode_attended(self._window(variant))
            us[~prefills] = lattice.at(step.decoding[~prefills], attended[~prefills])
        if prefills.any():
            us[prefills] = self._prompt_step(variant, step)[prefills]
        return us

    def _prompt_step(self, variant: str, step: Step) -> Microseconds:
        """Microseconds of attention in steps with prompts.

        Decode tokens beside them are more rows of the same products, and attend to what they have
        cached: that much is the decode step's time over its context less that over the shortest.
        """
        plain = self._lattice(variant, "prefill", step.tp)
        window = self._window(variant)
        new, past = step.prompt_tokens, step.prompt_history(window)
        us = plain.at(step.prompts + step.decoding / new, new)
        if (past > 0).any():
            history = self._histories.get(("attention", variant, step.tp))
            added = history.at(new, past) if history else np.full(step.shape, np.nan)
            us = us + np.where(past > 0, added, 0.0)
        if (step.decoding > 0).any():
            decode = self._lattice(variant, "decode", step.tp)
            sequences = np.maximum(step.decoding, decode.x[0])
            attended = step.decode_attended(window)
            cached = decode.at(sequences, attended) - decode.at(sequences, decode.y[0])
            us = us + np.where(step.decoding > 0, cached, 0.0)
        return us

    def _window(self, variant: str) -> int | None:
        """Beyond its window attention does the same work, and takes as long as at it."""
        parsed = parse_variant("attention", variant)
        return parsed.window(self.config) if isinstance(parsed, Gqa) else None

    @cached_property
    def _names(self) -> set[tuple[str, str]]:
        return {(row.subblock, row.variant) for row in self.rows}

    @cached_property
    def _curves(self) -> dict[_Key, Curve]:
        """By tokens of a step; of the head by sequences, since it runs for one token of each."""
        points: dict[_Key, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
        for row in self.rows:
            if row.variant != STEP and not _attends(row.variant):
                place = row.batch * (1 if row.variant == HEAD else row.tokens)
                points[row.subblock, row.variant, row.tp][place].append(row.latency_us)
        # The same tokens in another phase are the same work: their mean.
        return {
            key: Curve({at: float(np.mean(values)) for at, values in of_key.items()})
            for key, of_key in points.items()
        }

    @cached_property
    def _lattices(self) -> dict[tuple[str, Phase, int], Lattice]:
        """Attention by batch and context, and whole prompts by batch and tokens."""
        points: dict[tuple[str, Phase, int], dict[tuple[float, float], float]] = defaultdict(dict)
        for row in self.rows:
            whole = row.phase == "decode" or row.context == row.tokens
            if _attends(row.variant) and whole:
                points[row.variant, row.phase, row.tp][row.batch, row.context] = row.latency_us
        return {key: Lattice(of_key) for key, of_key in points.items()}

    @cached_property
    def _histories(self) -> dict[_Key, Lattice]:
        """What attention to a history adds to a chunk, by new tokens and tokens of history.

        No new tokens and no history add nothing.
        """
        points: dict[_Key, dict[tuple[float, float], float]] = defaultdict(dict)
        for row in self.rows:
            history = row.context - row.tokens
            if row.phase == "prefill" and _attends(row.variant) and history:
                plain = float(self._lattice(row.variant, "prefill", row.tp).at(1, row.tokens))
                added = points[row.subblock, row.variant, row.tp]
                added[row.tokens, history] = row.latency_us - plain
                added[row.tokens, 0] = added[0, history] = added[0, 0] = 0.0
        return {key: Lattice(of_key) for key, of_key in points.items()}

    def _curve(self, subblock: str, variant: str, tp: int) -> Curve:
        if (subblock, variant, tp) not in self._curves:
            raise _not_measured(f"{subblock} {variant}, tp {tp}")
        return self._curves[subblock, variant, tp]

    def _lattice(self, variant: str, phase: Phase, tp: int) -> Lattice:
        if (variant, phase, tp) not in self._lattices:
            raise _not_measured(f"attention {variant}, {phase}, tp {tp}")
        return self._lattices[variant, phase, tp]

    def _step(self, phase: Phase, tp: int) -> Curve:
        """Steps of that phase, of the other at batch sizes where none was measured."""
        rows = [row for row in self.rows if row.variant == STEP and row.tp == tp]
        if not rows:
            raise _not_measured(f"outside {STEP}, tp {tp}")
        own = {row.batch for row in rows if row.phase == phase}
        by_batch: dict[float, list[float]] = defaultdict(list)
        for row in rows:
            if row.phase == phase or row.batch not in own:
                by_batch[row.batch].append(row.latency_us)
        return Curve({batch: float(np.mean(values)) for batch, values in by_batch.items()})


def _refuse_unmeasured(us: Microseconds, what: str, step: Step) -> None:
    missing = np.isnan(us)
    if missing.any():
        sizes = (step.decoding, step.decode_context, step.prompts, step.prompt_tokens)
        decoding, context, prompts, new = (float(axis[missing].flat[0]) for axis in sizes)
        parts = []
        if decoding:
            parts.append(f"batch {decoding:g} over a context of {context:g}")
        if prompts:
            parts.append(f"{prompts:g} prompts of {new:g} new tokens")
        raise InputError(
            f"{what}, tp {step.tp}: {' beside '.join(parts)} lies outside the measured",
            remedy="profile a wider grid, or ask for a scenario and batch inside it",
        )


def _attends(variant: str) -> bool:
    """Whether its time depends on the context."""
    return variant.startswith("gqa_")


def _not_measured(what: str) -> InputError:
    return InputError(
        f"the profile has no measurement of {what}",
        remedy="profile this variant, or drop it from the search space",
    )


def _check_rows(rows: list[LatencyRow], groups: set[int]) -> None:
    seen: set[tuple[object, ...]] = set()
    for number, row in enumerate(rows, start=2):
        place = (row.subblock, row.variant, row.phase, row.tp, row.batch, row.tokens, row.context)
        if place in seen:
            raise InputError(
                f"latency row {number}: {row.subblock} {row.variant}, {row.phase}, tp {row.tp}, "
                f"batch {row.batch}, {row.tokens} tokens over context {row.context} stands twice",
                remedy="measure again",
            )
        seen.add(place)
        if row.group not in groups:
            raise InputError(
                f"latency row {number}: group {row.group} is not in groups.csv",
                remedy="measure again",
            )
