"""From scores, costs and limits to the search problem."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from puzzle_search.arch import (
    Gqa,
    Mlp,
    Moe,
    ParentConfig,
    SearchSpace,
    parse_variant,
    subblock_parameters,
)
from puzzle_search.choices import Goal, check
from puzzle_search.errors import InfeasibleError, InputError
from puzzle_search.solve.problem.items import Floats, Items
from puzzle_search.solve.problem.limits import ChildLimits
from puzzle_search.solve.problem.linear_limit import Facts, parse_linear_limit
from puzzle_search.solve.problem.measures import (
    Bound,
    Measure,
    child_measures,
    item_measure,
    scenario_measures,
)
from puzzle_search.solve.problem.portability import allows
from puzzle_search.solve.problem.problem import Problem, Workload
from puzzle_search.solve.problem.score_table import ScoreTable, parse_metric

_MEASURE_OF_GOAL: dict[str, str] = {
    "throughput": "us_per_token",
    "memory": "memory_bytes",
    "latency": "latency_ms",
    "ttft": "ttft_ms",
    "tpot": "tpot_ms",
    "parameters": "parameters",
    "kv": "kv_bytes_per_token",
}


def formulate(
    config: ParentConfig,
    space: SearchSpace,
    scores: ScoreTable,
    workloads: Sequence[Workload],
    child: ChildLimits | None = None,
    *,
    metric: str = "kl",
    goal: Goal = "score",
) -> Problem:
    """Join scores and costs.

    Args:
        config: the parent.
        space: variants that each layer may take.
        scores: damage of the replacements.
        workloads: at least one scenario with its limits; goals of serving are the first one's.
        child: limits of the child itself.
        metric: of the score table, or a weighted sum of metrics.
        goal: what the answer has the least of (of throughput, the most).

    Raises:
        InputError: costs are those of another space; the score table lacks a replacement that the
            space allows, or is of another model; a linear limit cannot be read; an engine or layer
            is not known.
        InfeasibleError: a layer has no replacement left.
    """
    child = child or ChildLimits()
    attention, ffn = space.all_variants("attention"), space.all_variants("ffn")
    for workload in workloads:
        _check_priced(workload, attention, ffn)
    blocks = list(_allowed(config, space, scores, child, metric))
    items = _items(blocks, config.num_layers, attention, ffn)
    if (layer := items.uncovered_layer()) is not None:
        raise InfeasibleError(
            f"layer {layer} has no replacement that the limits allow",
            remedy="widen the search space, or drop --portable or --freeze",
        )
    blocks = [block for block, usable in zip(blocks, items.usable(), strict=True) if usable]
    items = items.kept(items.usable())
    damage = finite_damage([value for *_, value in blocks])
    measures = child_measures(
        config,
        attention,
        ffn,
        kv_bytes=workloads[0].table.target.dtype.kv_bytes,
        tokens=max(workload.table.scenario.tokens for workload in workloads),
    )
    measures["score"] = item_measure("score", damage, attention, ffn)
    bounds = [
        Bound(limit=name, measure=measures[name], at_most=at_most)
        for name in ("score", "parameters", "kv_bytes_per_token")
        if (at_most := getattr(child, name)) is not None
    ]
    facts = [_facts(config, *block) for block in blocks] if child.linear else []
    for text in child.linear:
        for limit in parse_linear_limit(text, facts, config.num_layers):
            measure = item_measure("linear", limit.amounts, attention, ffn)
            bound = Bound(
                limit=limit.text, measure=measure, at_most=limit.at_most, turned=limit.turned
            )
            bounds.append(bound)
    return Problem(
        parent=config.name,
        items=items,
        attention=tuple(attention),
        ffn=tuple(ffn),
        damage=damage,
        goal=_goal(goal, workloads, measures),
        workloads=tuple(workloads),
        bounds=tuple(bounds),
        score_evidence=scores.evidence,
    )


def check_linear_limits(config: ParentConfig, space: SearchSpace, texts: Sequence[str]) -> None:
    """Read linear limits before there is anything to search, so that none is found wrong later.

    Raises:
        InputError: one cannot be read.
    """
    blocks = [
        (layer, layer, attention, ffn)
        for layer in range(config.num_layers)
        for attention in space.attention[layer]
        for ffn in space.ffn[layer]
    ]
    facts = [_facts(config, *block, 0.0) for block in [*blocks, *space.runs]]
    for text in texts:
        parse_linear_limit(text, facts, config.num_layers)


def _check_priced(workload: Workload, attention: Sequence[str], ffn: Sequence[str]) -> None:
    """Costs are added up by the position of a variant: it must be that in the space."""
    table = workload.table
    for subblock, priced, allowed in (
        ("attention", table.attention.variants, attention),
        ("FFN", table.ffn.variants, ffn),
    ):
        if tuple(priced) != tuple(allowed):
            raise InputError(
                f"the cost table of {table.scenario} on {table.target.gpu} prices {subblock} "
                f"variants {', '.join(priced)}; the search space has {', '.join(allowed)}",
                remedy="price the search space that is solved, by cost_table(config, space, ...)",
            )


def finite_damage(values: Sequence[float]) -> Floats:
    """Damages as an array.

    Raises:
        InputError: their sum is beyond what a number holds.
    """
    damage = np.array(values)
    with np.errstate(over="ignore"):
        total = np.abs(damage).sum()
    if not np.isfinite(total):
        raise InputError(
            "the damages add up to more than a number holds", remedy="use a smaller metric"
        )
    return damage


# First and last layer, attention, FFN, damage.
_Block = tuple[int, int, str, str, float]


def _allowed(
    config: ParentConfig, space: SearchSpace, scores: ScoreTable, child: ChildLimits, metric: str
) -> Iterator[_Block]:
    """The replacements that the space and the limits allow, in order of their layers."""
    weights = parse_metric(metric)
    if scores.last_layer() >= config.num_layers:
        raise InputError(
            f"the score table speaks of layer {scores.last_layer()}, "
            f"{config.name} has {config.num_layers} layers",
            remedy="use the score table of this model",
        )
    unknown = sorted(layer for layer in child.frozen if not 0 <= layer < config.num_layers)
    if unknown:
        raise InputError(
            f"layer {unknown[0]} cannot be frozen, {config.name} has {config.num_layers} layers",
            remedy=f"name layers from 0 to {config.num_layers - 1}",
        )
    runs = [run for run in scores.runs() if not child.frozen & set(range(run[0], run[1] + 1))]
    for layer in range(config.num_layers):
        for attention in space.attention[layer]:
            for ffn in space.ffn[layer]:
                own = (attention, ffn) == (config.own("attention", layer), config.ffn)
                if layer in child.frozen and not own:
                    continue
                if _portable(child, attention, ffn, (layer,), config):
                    damage = scores.block_damage(layer, attention, ffn, config, weights)
                    yield layer, layer, attention, ffn, damage
        for run in runs:
            if run[0] != layer:
                continue
            attention, ffn = run[2] or config.own("attention", layer), run[3] or config.ffn
            covered = range(run[0], run[1] + 1)
            offered = attention in space.attention[layer] and ffn in space.ffn[layer]
            if offered and _portable(child, attention, ffn, covered, config):
                yield run[0], run[1], attention, ffn, scores.run_damage(run, weights)


def _portable(
    child: ChildLimits, attention: str, ffn: str, layers: Sequence[int], config: ParentConfig
) -> bool:
    engine = child.portable_to
    return engine is None or all(allows(engine, attention, ffn, n, config) for n in layers)


def _items(
    blocks: Sequence[_Block], num_layers: int, attention: Sequence[str], ffn: Sequence[str]
) -> Items:
    attention_index = {name: index for index, name in enumerate(attention)}
    ffn_index = {name: index for index, name in enumerate(ffn)}
    columns = [(first, last, attention_index[a], ffn_index[f]) for first, last, a, f, _ in blocks]
    first, last, of_attention, of_ffn = np.array(columns, dtype=np.intp).reshape(-1, 4).T
    return Items(num_layers=num_layers, first=first, last=last, attention=of_attention, ffn=of_ffn)


def _facts(
    config: ParentConfig, first: int, last: int, attention: str, ffn: str, damage: float
) -> Facts:
    """What linear limits may speak of."""
    of_attention, of_ffn = parse_variant("attention", attention), parse_variant("ffn", ffn)
    parameters = subblock_parameters(of_attention, config) + subblock_parameters(of_ffn, config)
    return {
        "attention": attention,
        "ffn": ffn,
        "layer": first,
        "kv_heads": of_attention.kv_heads if isinstance(of_attention, Gqa) else 0,
        "ffn_width": of_ffn.intermediate_size if isinstance(of_ffn, Mlp) else 0,
        "experts": of_ffn.experts if isinstance(of_ffn, Moe) else 0,
        "parameters": parameters,
    }


def _goal(goal: Goal, workloads: Sequence[Workload], measures: dict[str, Measure]) -> Measure:
    check("goal", goal, Goal)
    if goal == "score":
        return measures["score"]
    of_serving = scenario_measures(workloads[0].table, 0)
    return (measures | of_serving)[_MEASURE_OF_GOAL[goal]]
