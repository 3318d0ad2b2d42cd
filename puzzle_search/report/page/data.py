"""The page as data: everything that it draws, priced and counted, as plain JSON.

``docs/report.md`` tells the keys. Whoever wants other pictures reads this.
"""

from __future__ import annotations

from typing import Any

from puzzle_search import __version__
from puzzle_search.arch import (
    Subblock,
    architecture_parameters,
    kv_values_per_token,
    parse_variant,
    subblock_parameters,
)
from puzzle_search.arch.change import SubblockChange, parent_size
from puzzle_search.cost import OperatingPoint, Scenario
from puzzle_search.report.page.prices import Prices, device_bytes, rounded
from puzzle_search.report.page.sources import Child, Sources
from puzzle_search.solve.question.setting import Setting

FORMAT = "puzzle-search.report/1"
_SUBBLOCKS: tuple[Subblock, Subblock] = ("attention", "ffn")


def report_data(sources: Sources) -> dict[str, Any]:
    """Everything that a page shows.

    Raises:
        InputError: the target lacks a variant of a child.
    """
    setting, children = sources.setting, sources.children
    specs = [child.spec for child in children]
    variants = {subblock: _variants_of(children, setting, subblock) for subblock in _SUBBLOCKS}
    priced = [
        Prices(setting, scenario, specs, as_solved=sources.as_solved)
        for scenario in setting.scenarios
    ]
    shown = [
        _child(child, setting, priced, variants, as_solved=sources.as_solved) for child in children
    ]
    return {
        "format": FORMAT,
        "version": __version__,
        "name": sources.run.folder.resolve().name if sources.run else setting.config.name,
        "parent": {"name": setting.config.name, "layers": setting.config.num_layers},
        "setting": _setting(setting),
        "variants": {
            subblock: [_variant(subblock, name, setting) for name in names]
            for subblock, names in variants.items()
        },
        "damage": _damages(children, setting, variants),
        "scenarios": [
            {
                "input_len": prices.scenario.input_len,
                "output_len": prices.scenario.output_len,
                "prices": {
                    f"{batch}x{tp}": prices.by_variant(OperatingPoint(batch=batch, tp=tp), variants)
                    for batch, tp in sorted(_points(shown, number))
                },
            }
            for number, prices in enumerate(priced)
        ],
        "children": shown,
        "measured": sources.run.measured() if sources.run else None,
    }


def _setting(setting: Setting) -> dict[str, Any]:
    target = setting.target
    total = device_bytes(target)
    return {
        "gpu": target.gpu,
        "engine": target.engine,
        "dtype": target.dtype.name,
        "metric": setting.metric,
        "memory_limit_bytes": target.memory_limit_bytes,
        "reserve_bytes": None if total is None else max(0, total - target.memory_limit_bytes),
        "evidence": setting.evidence,
        "scores_from": setting.scores.sidecar["data"] if setting.scores else None,
        "cost_from": "cost model" if target.measured is None else "profile",
    }


def _variants_of(children: tuple[Child, ...], setting: Setting, subblock: Subblock) -> list[str]:
    """All variants in use, the largest first; the parent's own is the first."""
    names = {getattr(block, subblock) for child in children for block in child.spec.blocks}
    return sorted(
        names,
        key=lambda name: -subblock_parameters(parse_variant(subblock, name), setting.config),
    )


def _variant(subblock: Subblock, name: str, setting: Setting) -> dict[str, Any]:
    config = setting.config
    variant = parse_variant(subblock, name)
    change = SubblockChange.of(variant, parent_size(subblock, config))
    return {
        "name": name,
        "change": change.change,
        "fraction": rounded(change.fraction),
        "parameters": subblock_parameters(variant, config),
        "kv_bytes_per_token": kv_values_per_token(variant, config) * setting.target.dtype.kv_bytes,
    }


def _child(
    child: Child,
    setting: Setting,
    priced: list[Prices],
    variants: dict[Subblock, list[str]],
    *,
    as_solved: bool,
) -> dict[str, Any]:
    spec, solution = child.spec, child.spec.solution
    # A block over several layers has a damage of its own, which the solution has counted.
    score = setting.score(spec)
    score = solution.get("score") if score is None else score
    costs = []
    for prices in priced:
        cost = prices.cost(spec)
        costs.append(
            None
            if cost is None
            else {
                "batch": cost.point.batch,
                "tp": cost.point.tp,
                "tokens_per_second_per_gpu": rounded(cost.tokens_per_second_per_gpu),
                "tokens_per_second_per_user": rounded(cost.tokens_per_second_per_user),
                "ttft_ms": rounded(cost.ttft_ms),
                "tpot_ms": rounded(cost.tpot_ms),
                "memory": prices.memory(spec, cost),
                "serving": prices.serving(spec),
            }
        )
    return {
        "name": child.name,
        "kind": child.kind,
        "group": child.group,
        "status": solution.get("status"),
        "gap": solution.get("gap"),
        "score": rounded(score),
        "parameters": architecture_parameters(spec, setting.config),
        "kv_bytes_per_token": setting.kv_bytes_per_token(spec),
        "blocks": [
            [
                *(variants[subblock].index(getattr(block, subblock)) for subblock in _SUBBLOCKS),
                len(block.layers),
            ]
            for block in spec.blocks
        ],
        "costs": costs,
        "solved": [
            _when_solved(child, prices.scenario) if as_solved else None for prices in priced
        ],
    }


def _when_solved(child: Child, scenario: Scenario) -> float | None:
    """Output tokens/s per GPU that the spec was solved to have; it may have had other costs."""
    entries = child.spec.solution.get("scenarios", [])
    for entry in entries if isinstance(entries, list) else [entries]:
        lengths = (entry["input_len"], entry["output_len"])
        if lengths == (scenario.input_len, scenario.output_len):
            return rounded(entry.get("tokens_per_second_per_gpu"))
    return None


def _points(shown: list[dict[str, Any]], scenario: int) -> set[tuple[int, int]]:
    costs = [child["costs"][scenario] for child in shown]
    return {(cost["batch"], cost["tp"]) for cost in costs if cost is not None}


def _damages(
    children: tuple[Child, ...], setting: Setting, variants: dict[Subblock, list[str]]
) -> list[dict[str, float | None]]:
    """By first layer, then by numbers of the variants: damage of the blocks in use, if known."""
    found: list[dict[str, float | None]] = [{} for _ in range(setting.config.num_layers)]
    for block in {block for child in children for block in child.spec.blocks}:
        damage = setting.damage(block)
        if damage is not None:
            pair = (variants[subblock].index(getattr(block, subblock)) for subblock in _SUBBLOCKS)
            found[block.layers[0]][",".join(map(str, pair))] = rounded(damage)
    return found
