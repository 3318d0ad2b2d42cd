"""``puzzle-search solve``."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from puzzle_search.cli.options import JsonOption

if TYPE_CHECKING:
    from puzzle_search.solve.ask import Answer


def solve(
    target_tps: Annotated[
        float | None, typer.Option(help="Output tokens/s per GPU, at least.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="Shipped example, or a folder: config.json, space.yaml, scores.csv.")
    ] = "llama-3.1-70b",
    gpu: Annotated[str, typer.Option(help="GPU with a cost model, or a profile folder.")] = "h100",
    scenario: Annotated[str, typer.Option(help="Input/output tokens.")] = "128/1024",
    engine: Annotated[str, typer.Option(help="Serving engine of the cost model.")] = "trtllm",
    dtype: Annotated[str, typer.Option(help="Serving precision.")] = "fp8",
    tp: Annotated[str, typer.Option(help="TP degrees: 1, or 1,2,4, or any.")] = "1",
    max_ttft: Annotated[float | None, typer.Option(help="Prefill of a batch, ms at most.")] = None,
    max_tpot: Annotated[float | None, typer.Option(help="Decode step, ms at most.")] = None,
    max_latency: Annotated[float | None, typer.Option(help="Whole batch, ms at most.")] = None,
    max_params: Annotated[
        float | None, typer.Option(help="Billions of parameters, at most.")
    ] = None,
    scores: Annotated[
        Path | None, typer.Option(help="Score table instead of the model's own.")
    ] = None,
    metric: Annotated[str, typer.Option(help="Metric of the score table.")] = "kl",
    max_seconds: Annotated[float, typer.Option(help="Time limit of the search.")] = 60.0,
    backend: Annotated[str, typer.Option(help="Exact step: scip, highs or cp-sat.")] = "scip",
    out: Annotated[Path | None, typer.Option(help="Write the architecture spec here.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Find the architecture that keeps the most quality within the limits, proven optimal."""
    from puzzle_search.errors import InputError
    from puzzle_search.solve import Limits
    from puzzle_search.solve.ask import ask
    from puzzle_search.solve.exact import parse_backend

    if max_params is not None and not math.isfinite(max_params):
        raise InputError(f"max-params is {max_params}", remedy="give a number of billions")
    answer = ask(
        model=model,
        gpu=gpu,
        limits=Limits(
            tokens_per_second_per_gpu=target_tps,
            ttft_ms=max_ttft,
            tpot_ms=max_tpot,
            latency_ms=max_latency,
            parameters=int(max_params * 1e9) if max_params is not None else None,
        ),
        scenario=scenario,
        engine=engine,
        dtype=dtype,
        tp=tp,
        scores=str(scores) if scores else None,
        metric=metric,
        max_seconds=max_seconds,
        backend=parse_backend(backend),
    )
    if out is not None:
        answer.spec.write(out)
    if as_json:
        print(json.dumps(answer.solution.as_dict()))
        return
    _print(answer)
    if out is not None:
        print(f"written to {out}")


def _print(answer: Answer) -> None:
    from rich.console import Console
    from rich.table import Table

    solution, parent = answer.solution, answer.parent_cost
    cost, target = solution.cost, solution.problem.cost.target
    console = Console()
    console.print(
        f"[bold]{solution.status}[/bold]: {answer.inputs.config.name} on {cost.gpu}, "
        f"{cost.scenario}, {target.dtype.name}; score {solution.score:.5g}, "
        f"gap {solution.gap:.2g}, {solution.seconds:.2f} s"
    )
    table = Table(box=None, pad_edge=False)
    for heading in ("", "parent", "child"):
        table.add_column(heading, justify="left" if not heading else "right")
    config = answer.inputs.config
    from puzzle_search.arch import ArchitectureSpec, architecture_parameters

    whole = architecture_parameters(ArchitectureSpec.identity(config), config)
    shown = [
        ("parameters, B", f"{whole / 1e9:.2f}", f"{solution.parameters / 1e9:.2f}"),
        *(
            (label, f"{getattr(parent, field):{form}}" if parent else "does not fit",
             f"{getattr(cost, field):{form}}")
            for label, field, form in (
                ("tok/s/GPU", "tokens_per_second_per_gpu", ",.0f"),
                ("TTFT, ms", "ttft_ms", ",.1f"),
                ("TPOT, ms", "tpot_ms", ".2f"),
            )
        ),
        ("batch x TP", f"{parent.point.batch} x {parent.point.tp}" if parent else "",
         f"{cost.point.batch} x {cost.point.tp}"),
        ("memory, GB", f"{parent.memory_bytes / 1e9:.1f}" if parent else "",
         f"{cost.memory_bytes / 1e9:.1f} of {cost.memory_limit_bytes / 1e9:.1f}"),
    ]  # fmt: skip
    for row in shown:
        table.add_row(*row)
    console.print(table)
    for subblock in ("attention", "ffn"):
        counts = Counter(getattr(block, subblock) for block in solution.spec.blocks)
        chosen = ", ".join(f"{count} x {name}" for name, count in counts.most_common())
        console.print(f"{subblock}: {chosen}")
    evidence = solution.as_dict()["evidence"]
    console.print(f"evidence: scores {evidence['scores']}, cost {evidence['cost']}")
