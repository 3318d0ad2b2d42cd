"""What came of a run: predicted against measured, and what went otherwise than one would wish."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.cost import OperatingPoint
from puzzle_search.distill import kept_state
from puzzle_search.evaluate import spread_remarks
from puzzle_search.pipeline.probes import told
from puzzle_search.pipeline.run_directory import PROBES
from puzzle_search.report import Comparison

if TYPE_CHECKING:
    from puzzle_search.pipeline.run import Run


def outcome(run: Run) -> Comparison:
    """The figures of a run whose stages are done."""
    spec = ArchitectureSpec.from_file(run.spec)
    baseline, bench, quality = (run.read(file) for file in (run.baseline, run.bench, run.quality))
    identity = ArchitectureSpec.identity(run.config)
    # The parent, run in turn with the child, tells how fast the machine was meanwhile.
    uncalibrated = run.cost_table(1.0)
    parent_index, child_index = (
        uncalibrated.points.index(OperatingPoint(batch=bench[model]["batch"], tp=1))
        for model in ("parent", "child")
    )
    predicted = uncalibrated.cost(identity, parent_index)
    scalar = predicted.tokens_per_second_per_gpu / bench["parent"]["tokens_per_second"]
    table = run.cost_table(scalar)
    return Comparison(
        spec=spec,
        device=run.device.name,
        date=str(run.profile.sidecar["date"]),
        scenario=run.scenario,
        engine_scalar=scalar,
        solving_scalar=baseline["engine_scalar"],
        predicted_parent=table.cost(identity, parent_index),
        predicted_child=table.cost(spec, child_index),
        measured_parent=bench["parent"],
        measured_child=bench["child"],
        quality=quality["child"],
        quality_before=quality.get("built"),
        remarks=tuple(_remarks(run, spec, bench)),
    )


def _remarks(run: Run, spec: ArchitectureSpec, bench: dict[str, Any]) -> Iterator[str]:
    yield from spec.solution.get("remarks", [])
    if run.recipe.solve.candidates > 1:
        yield told(run.read(run.spec.with_name(PROBES)))
    if run.recipe.distill is not None and (kept := kept_state(run.child)):
        yield kept
    if run.recipe.engine is not None:
        yield (
            f"served by {run.profile.sidecar['engine']}, {run.profile.dtype.name}; measured memory "
            "is the most that its process held, its program and buffers among it"
        )
    yield from spread_remarks(bench, "bench.iterations")
