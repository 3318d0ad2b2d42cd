"""Fit what an engine adds to its kernels, from published throughput of whole models.

The kernels' constants are fitted first (`calibrate`). Every prediction comes from the cost table
that the solver uses, with static batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from puzzle_search.arch import ArchitectureSpec, ParentConfig
from puzzle_search.cost.modelled.constants import Provenance, StepConstants
from puzzle_search.cost.modelled.hardware import CostModel
from puzzle_search.cost.modelled.target import modelled_target
from puzzle_search.cost.pricing import build_cost_table
from puzzle_search.cost.scenario import Scenario
from puzzle_search.cost.serving import ServingOptions, schedule
from puzzle_search.cost.table import CostTable, OperatingPoint, ScenarioCost
from puzzle_search.errors import InputError

_Array = NDArray[np.float64]
_STATIC = ServingOptions(mode="static")
_CHOICES = 3


@dataclass(frozen=True, kw_only=True)
class PublishedThroughput:
    """One row of a published table: a model, given by its (attention, ffn) variants per layer."""

    release: str
    model: str
    blocks: tuple[tuple[str, str], ...]
    scenario: Scenario
    tp: int
    tokens_per_second_per_gpu: float


def predict(
    row: PublishedThroughput,
    config: ParentConfig,
    model: CostModel,
    *,
    engine: str = "trtllm",
    dtype: str = "fp8",
    serving: ServingOptions = _STATIC,
) -> ScenarioCost:
    """Cost at the batch size of highest throughput, as the solver predicts it.

    Raises:
        InputError: not even one sequence fits.
    """
    table = _table(row, config, model, engine, dtype, serving)
    cost = table.best_cost(ArchitectureSpec.of(row.model, row.blocks))
    if cost is None:
        raise _does_not_fit(row, model)
    return cost


def _table(
    row: PublishedThroughput,
    config: ParentConfig,
    model: CostModel,
    engine: str,
    dtype: str = "fp8",
    serving: ServingOptions = _STATIC,
) -> CostTable:
    target = modelled_target(model, config, engine=engine, dtype=dtype, serving=serving)
    return build_cost_table(
        config,
        target,
        row.scenario,
        [OperatingPoint(batch=batch, tp=row.tp) for batch in target.batches],
        attention=list(dict.fromkeys(attention for attention, _ in row.blocks)),
        ffn=list(dict.fromkeys(ffn for _, ffn in row.blocks)),
    )


def with_step(model: CostModel, engine: str, step: StepConstants) -> CostModel:
    """The cost model with other step constants for one engine."""
    constants = replace(model.engine(engine), step=step)
    return replace(model, engines=dict(model.engines) | {engine: constants})


def fit_step(
    rows: Sequence[tuple[CostModel, PublishedThroughput]],
    config: ParentConfig,
    *,
    source: str,
    engine: str = "trtllm",
) -> tuple[dict[str, StepConstants], _Array]:
    """Fit the engine's own work per step to published rows, with one scalar for each release.

    The work is fitted for each GPU. Releases differ in all kernels at once; the scalar of the first
    row's release is kept as the engine's.

    Args:
        rows: each with the cost model of its GPU.
        config: the parent.
        source: where the rows come from.
        engine: of the cost models.

    Returns:
        The constants by GPU, and the relative error of each row under constants fitted on the
        others; the provenance of the constants carries the median and p90 of these.
    """
    bare = {model.gpu: with_step(model, engine, _bare(model, engine)) for model, _ in rows}
    kernels = [_Kernels.of(row, config, bare[model.gpu], engine) for model, row in rows]
    steps = np.array([row.scenario.output_len for _, row in rows])
    tp = np.array([row.tp for _, row in rows], dtype=np.float64)
    several = np.array([row.tp > 1 for _, row in rows])
    published = np.array([row.tokens_per_second_per_gpu * row.tp for _, row in rows])
    of_gpu = np.array([[model.gpu == gpu for gpu in bare] for model, _ in rows], dtype=np.float64)
    releases = list(dict.fromkeys(row.release for _, row in rows))
    of_release = np.array(
        [[row.release == release for release in releases] for _, row in rows], dtype=np.float64
    )
    values = np.array([*[1.0] * len(releases), *[0.1] * (2 * len(bare))])
    # The best batch size depends a little on the constants: it is chosen again with those found.
    for _ in range(_CHOICES):
        work = values[len(releases) :]
        root_ms = of_gpu @ work[: len(bare)] / tp + several * (of_gpu @ work[len(bare) :])
        best = [of.best(1e3 * ms) for of, ms in zip(kernels, root_ms, strict=True)]
        kernel_us, roots, batch = (np.array(column) for column in zip(*best, strict=True))
        roots_us = 1e3 * roots[:, None]
        totals = _Totals(
            published_us=1e6 * batch * steps / published,
            kernel_us=kernel_us,
            work_us=np.hstack(
                [of_gpu * roots_us / tp[:, None], of_gpu * roots_us * several[:, None]]
            ),
            of_release=of_release,
        )
        values = totals.fit(values, np.ones(len(rows), dtype=bool))
    everything = np.arange(len(rows))
    left_out = np.array(
        [totals.errors(totals.fit(values, everything != row))[row] for row in everything]
    )
    scalar, work = float(values[0]), values[len(releases) :]
    found = {}
    for place, (gpu, model) in enumerate(bare.items()):
        errors = np.abs(left_out[of_gpu[:, place] > 0])
        found[gpu] = replace(
            model.engine(engine).step,
            provenance=Provenance(
                evidence="published",
                source=source,
                error_median=float(np.median(errors)),
                error_p90=float(np.quantile(errors, 0.9)),
            ),
            engine_scalar=round(scalar, 3),
            step_us_per_root_sequence=round(1e3 * scalar * float(work[place]), 1),
            rank_us_per_root_sequence=round(1e3 * scalar * float(work[len(bare) + place]), 1),
        )
    return found, left_out


@dataclass(frozen=True, kw_only=True)
class _Totals:
    """Times of whole batches, (rows,), and what they are made of.

    ``work_us`` is (rows, GPUs twice): the engine's work that devices share, then that of several,
    for a millisecond per root; ``of_release`` is (rows, releases), 1 where a row is of it.
    """

    published_us: _Array
    kernel_us: _Array
    work_us: _Array
    of_release: _Array

    def errors(self, values: _Array) -> _Array:
        """Relative error of predicted throughput, by scalars and work."""
        scalars, work = np.split(values, [self.of_release.shape[1]])
        predicted_us = (self.of_release @ scalars) * (self.kernel_us + self.work_us @ work)
        return np.asarray(self.published_us / predicted_us - 1)

    def fit(self, start: _Array, used: NDArray[np.bool_]) -> _Array:
        """Scalars of the releases, then work, for the least log ratio over some rows."""
        least = np.where(np.arange(len(start)) < self.of_release.shape[1], 0.5, 0.0)
        least[0] = 1.0  # the engine's own: kernels do not run faster than they were timed
        solution: Any = least_squares(
            lambda values: np.log1p(self.errors(values))[used],
            np.maximum(start, least + 1e-3),
            bounds=(least, 2.0),
            loss="soft_l1",
            f_scale=0.05,
        )
        return np.asarray(solution.x, dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class _Kernels:
    """What kernels alone take for a whole batch, at the batch sizes that fit in memory.

    ``roots`` is the sum over the batch's steps of the square root of their sequences.
    """

    batch: _Array
    us: _Array
    roots: _Array

    @classmethod
    def of(
        cls, row: PublishedThroughput, config: ParentConfig, model: CostModel, engine: str
    ) -> _Kernels:
        table = _table(row, config, model, engine)
        spec = ArchitectureSpec.of(row.model, row.blocks)
        costs = [table.cost(spec, index) for index in range(len(table.points))]
        fit = [cost for cost in costs if cost.memory_bytes <= cost.memory_limit_bytes]
        if not fit:
            raise _does_not_fit(row, model)
        batch = np.array([cost.point.batch for cost in fit], dtype=np.float64)
        roots = np.zeros(len(batch))
        for share in schedule(table.target.serving, row.scenario, batch, row.tp):
            sequences = share.step.decoding + share.step.prompts
            roots += ((share.before + share.after) * np.sqrt(sequences)).sum(axis=1)
        return cls(batch=batch, us=np.array([1e3 * cost.latency_ms for cost in fit]), roots=roots)

    def best(self, root_us: float) -> tuple[float, float, float]:
        """Time, roots and batch of highest throughput, the engine's work counted."""
        index = int(np.argmax(self.batch / (self.us + root_us * self.roots)))
        return float(self.us[index]), float(self.roots[index]), float(self.batch[index])


def _does_not_fit(row: PublishedThroughput, model: CostModel) -> InputError:
    return InputError(
        f"{row.model} does not fit on {row.tp} {model.gpu} at {row.scenario}",
        remedy="use a larger tensor-parallel degree",
    )


def _bare(model: CostModel, engine: str) -> StepConstants:
    """Kernels alone."""
    return replace(
        model.engine(engine).step,
        engine_scalar=1.0,
        step_us=0.0,
        step_us_per_sequence=0.0,
        step_us_per_root_sequence=0.0,
        rank_us_per_root_sequence=0.0,
    )
