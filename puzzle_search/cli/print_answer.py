"""Answers of the solver in the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from puzzle_search.arch import ArchitectureSpec, architecture_parameters
from puzzle_search.solve.answers.diagnosis import show
from puzzle_search.solve.answers.prices import prices

if TYPE_CHECKING:
    from puzzle_search.cost import ScenarioCost
    from puzzle_search.cost.simulation import Simulated
    from puzzle_search.solve.question.answer import Answer
    from puzzle_search.solve.question.fleet import Quote
    from puzzle_search.solve.rounds.rounds import Round


def print_answer(answer: Answer) -> None:
    """The proof, parent and child in every scenario, the variants, and what limits cost."""
    console, solution, config = Console(), answer.solution, answer.config
    cost, target = solution.cost, solution.problem.workloads[0].table.target
    console.print(
        f"[bold]{solution.status}[/bold]: {config.name} on {cost.gpu}, "
        f"{target.dtype.name}, {target.serving.mode}; score {solution.score:.5g}, "
        f"gap {solution.gap:.2g}, {solution.seconds:.2f} s",
        highlight=False,
    )
    table = _table("", "parent", "child")
    whole = architecture_parameters(ArchitectureSpec.identity(config), config)
    table.add_row("parameters, B", f"{whole / 1e9:.2f}", f"{answer.parameters / 1e9:.2f}")
    for parent, child in zip(answer.parent_costs, solution.costs, strict=True):
        if len(solution.costs) > 1:
            table.add_row(f"[bold]{child.scenario}[/bold]", "", "")
        for row in _scenario_rows(parent, child):
            table.add_row(*row)
    console.print(table)
    for subblock in ("attention", "ffn"):
        counts = Counter(getattr(block, subblock) for block in solution.spec.blocks)
        chosen = ", ".join(f"{count} x {name}" for name, count in counts.most_common())
        console.print(f"{subblock}: {chosen}", highlight=False)
    for cost in solution.costs:
        if interval := answer.interval(cost):
            console.print(
                f"{cost.scenario}: {interval[0]:,.0f} to {interval[1]:,.0f} tok/s/GPU, as far as "
                f"9 in 10 held-out measurements were off ({target.error_p90:.0%})",
                highlight=False,
                soft_wrap=True,
            )
    for cost, seen in zip(solution.costs, answer.simulated, strict=False):
        if seen is not None:
            console.print(f"{cost.scenario}, simulated: {_percentiles(seen)}", highlight=False)
    goal = solution.problem.goal.name
    change = "raise tok/s/GPU" if goal == "us_per_token" else f"lower {goal}"
    for price in prices(solution):
        limit = show(price.bound, price.bound.at_most)
        console.print(
            f"binds: {limit}; {price.step} looser would {change} by about {price.gain:.2g}",
            highlight=False,
        )
    for remark in answer.remarks:
        console.print(f"note: {remark}", highlight=False, soft_wrap=True, markup=False)
    if answer.certainty is not None:
        console.print(f"certainty: {answer.certainty}", highlight=False, soft_wrap=True)
    evidence = answer.evidence
    console.print(
        f"evidence: scores {evidence['scores']}, cost {evidence['cost']}", highlight=False
    )


def _percentiles(seen: Simulated) -> str:
    """What clients see."""
    shown = (("TTFT", seen.ttft_ms, ",.1f"), ("TPOT", seen.tpot_ms, ".2f"))
    return "; ".join(
        f"{name} P50 {of.p50:{form}}, P99 {of.p99:{form}} ms" for name, of, form in shown
    )


def _scenario_rows(parent: ScenarioCost | None, child: ScenarioCost) -> list[tuple[str, str, str]]:
    fields = (
        ("tok/s/GPU", "tokens_per_second_per_gpu", ",.0f"),
        ("tok/s/user", "tokens_per_second_per_user", ",.1f"),
        ("TTFT, ms", "ttft_ms", ",.1f"),
        ("TPOT, ms", "tpot_ms", ".2f"),
    )
    rows = [
        (
            label,
            f"{getattr(parent, field):{form}}" if parent else "does not fit",
            f"{getattr(child, field):{form}}",
        )
        for label, field, form in fields
    ]
    return [
        *rows,
        (
            "batch x TP",
            f"{parent.point.batch} x {parent.point.tp}" if parent else "",
            f"{child.point.batch} x {child.point.tp}",
        ),
        (
            "memory, GB",
            f"{parent.memory_bytes / 1e9:.1f}" if parent else "",
            f"{child.memory_bytes / 1e9:.1f} of {child.memory_limit_bytes / 1e9:.1f}",
        ),
    ]


def print_pool(answers: Sequence[Answer]) -> None:
    """Several answers, best first, with how far each is from the first."""
    best = answers[0].solution.spec.blocks
    table = _table("", "score", "gap", "parameters, B", "tok/s/GPU", "layers unlike 1")
    for number, answer in enumerate(answers, start=1):
        blocks = answer.solution.spec.blocks
        alike = sum(len(block.layers) for block in blocks if block in best)
        layers = sum(len(block.layers) for block in blocks)
        table.add_row(
            str(number),
            f"{answer.solution.score:.6g}",
            f"{answer.solution.gap:.1g}",
            f"{answer.parameters / 1e9:.2f}",
            f"{answer.solution.cost.tokens_per_second_per_gpu:,.0f}",
            str(layers - alike),
        )
    Console().print(table)


def print_quotes(quotes: Sequence[Quote], chosen: Quote) -> None:
    """What each GPU gives."""
    table = _table("GPU", "score", "tok/s/GPU", "TP", "$ / M tokens", "evidence")
    for quote in quotes:
        name = f"[bold]{quote.offer.gpu}[/bold]" if quote is chosen else quote.offer.gpu
        if quote.answer is None:
            table.add_row(name, "-", quote.refusal.splitlines()[0], "", "", "")
            continue
        cost, dollars = quote.answer.solution.cost, quote.usd_per_million_tokens
        table.add_row(
            name,
            f"{quote.answer.solution.score:.5g}",
            f"{cost.tokens_per_second_per_gpu:,.0f}",
            str(cost.point.tp),
            "" if dollars is None else f"{dollars:.3f}",
            quote.answer.evidence["cost"],
        )
    Console().print(table)


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left")
    return table


def round_table(rounds: Sequence[Round]) -> Table:
    """What every round estimated, measured and cost."""
    table = _table("round", "estimate", "measured", "error", "scored", "children", "seconds")
    for done in rounds:
        error = done.as_dict()["estimate_error"]
        table.add_row(
            str(done.number) if done.number else "one-shot",
            f"{done.estimate:.4g}",
            f"{done.measured:.4g}",
            "" if error is None else f"{error:+.1%}",
            f"{done.scored} of {done.offered}" if done.number else "",
            str(done.children),
            f"{done.seconds:.1f}",
        )
    return table
