"""Time the solver, beside CBC and HiGHS on the same instances.

    python bench/solver.py [--instances 50] [--peers 10] [--seconds 20]

Prints a table and one JSON line. All but the first line are times of the search in process, cost
tables already built. Peers solve the plain formulation, one binary a choice, at the one operating
point; PuLP (extra `bench`) brings CBC, scipy HiGHS.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np

from puzzle_search.arch import ArchitectureSpec, ParentConfig, SearchSpace
from puzzle_search.choices import Backend
from puzzle_search.cost import Scenario
from puzzle_search.solve import (
    ChildLimits,
    Limits,
    Problem,
    ScoreRow,
    ScoreTable,
    Workload,
    formulate,
    solve,
)
from puzzle_search.solve.answers.frontier import frontier
from puzzle_search.solve.answers.pool import diverse
from puzzle_search.solve.problem.items import Items
from puzzle_search.solve.problem.measures import Bound, item_measure
from puzzle_search.solve.problem.point import PointProblem
from puzzle_search.solve.problem.problem import Region
from puzzle_search.solve.question.device import find_target
from puzzle_search.solve.question.inputs import SearchInputs
from puzzle_search.solve.question.targets import cost_table
from puzzle_search.solve.search.search import search
from puzzle_search.solve.search.solution import Solution

TARGETS = (6000.0, 6472.0, 9568.0)
SCENARIO = Scenario(input_len=128, output_len=1024)
HEADLINE = ("puzzle-search", "solve", "--gpu", "h100", "--target-tps", "6000", "--json")


def random_scores(config: ParentConfig, space: SearchSpace, seed: int, *, sums: bool) -> ScoreTable:
    """Log-normal importance by layer, damage rising along each list of variants.

    With ``sums`` pairs cost the sum of their parts; else each pair has a damage of its own, around
    three quarters of that sum.
    """
    rng = np.random.default_rng(seed)
    rows: list[ScoreRow] = []

    def add(layer: int, attention: str, ffn: str, value: float) -> None:
        rows.append(
            ScoreRow(
                first_layer=layer, last_layer=layer, attention=attention, ffn=ffn, metric="kl",
                value=value, stderr=0.0, tokens=0,
            )
        )  # fmt: skip

    for layer in range(config.num_layers):
        single: dict[str, dict[str, float]] = {}
        for subblock in ("attention", "ffn"):
            variants = space.variants(subblock)[layer][1:]  # type: ignore[arg-type]
            level = rng.lognormal(0.0, 1.0)
            values = level * np.sort(rng.random(len(variants)))
            single[subblock] = dict(zip(variants, values.tolist(), strict=True))
        for attention, value in single["attention"].items():
            add(layer, attention, "", value)
        for ffn, value in single["ffn"].items():
            add(layer, "", ffn, value)
        if not sums:
            for attention, one in single["attention"].items():
                for ffn, other in single["ffn"].items():
                    add(layer, attention, ffn, float(rng.uniform(0.6, 0.9)) * (one + other))
    return ScoreTable(rows, {"evidence": "random"})


@dataclass(frozen=True)
class Timing:
    """Seconds over several instances, and how many were proven optimal."""

    work: str
    seconds: list[float]
    optimal: int

    @classmethod
    def of(cls, work: str, solutions: list[Solution]) -> Timing:
        """The times that searches took."""
        statuses = [solution.status for solution in solutions]
        return cls(work, [s.seconds for s in solutions], statuses.count("optimal"))

    def show(self) -> None:
        """Print a row."""
        print(
            f"{self.work:52} {len(self.seconds):4} {self.optimal:8} "
            f"{statistics.median(self.seconds):8.3f} {max(self.seconds):8.3f}",
            flush=True,
        )

    def as_dict(self) -> dict[str, object]:
        """For the JSON line."""
        return {
            "instances": len(self.seconds),
            "optimal": int(self.optimal),
            "median_seconds": round(statistics.median(self.seconds), 4),
            "worst_seconds": round(max(self.seconds), 4),
        }


def by_cbc(point: PointProblem, seconds: float) -> tuple[float, float]:
    """Seconds and optimum of the plain formulation by CBC; infinite if it was not proven."""
    import pulp

    begun = time.perf_counter()
    model = pulp.LpProblem("puzzle", pulp.LpMinimize)
    x = [pulp.LpVariable(f"x{i}", cat="Binary") for i in range(len(point.items))]
    model += pulp.lpSum(c * v for c, v in zip(point.objective.tolist(), x, strict=True))
    for layer in range(point.items.num_layers):
        model += pulp.lpSum(x[i] for i in np.flatnonzero(point.items.first == layer)) == 1
    for usage, limit in zip(point.usage.tolist(), point.limits, strict=True):
        model += pulp.lpSum(u * v for u, v in zip(usage, x, strict=True)) <= float(limit)
    model.solve(pulp.PULP_CBC_CMD(msg=False, gapRel=1e-9, timeLimit=seconds, threads=2))
    proven = model.sol_status == pulp.LpSolutionOptimal
    return time.perf_counter() - begun, pulp.value(model.objective) if proven else np.inf


def by_highs(point: PointProblem, seconds: float) -> tuple[float, float]:
    """Seconds and optimum of the plain formulation by scipy's HiGHS."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    begun = time.perf_counter()
    items = point.items
    ones = (np.ones(len(items)), (items.first, np.arange(len(items))))
    found = milp(
        point.objective,
        integrality=np.ones(len(items)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(csr_array(ones), 1, 1),
            LinearConstraint(point.usage, -np.inf, point.limits),
        ],
        options={"time_limit": seconds, "mip_rel_gap": 1e-9},
    )
    return time.perf_counter() - begun, float(found.fun) if found.status == 0 else np.inf


def against_peers(problems: list[Problem], seconds: float) -> dict[str, object]:
    """The same single operating point by this solver, CBC and HiGHS."""
    ours, cbc, highs, same = [], [], [], 0
    for problem in problems:
        (region,) = problem.regions()
        middle = Region(points=((region.points[0][len(region.points[0]) // 2],),))
        workload = problem.workloads[0]
        table = workload.table
        index = middle.points[0][0]
        one = replace(
            table,
            points=(table.points[index],),
            attention=_only(table.attention, index),
            ffn=_only(table.ffn, index),
            **{
                name: getattr(table, name)[index : index + 1]
                for name in ("outside_prefill_us", "outside_decode_us", "outside_weight_bytes",
                             "activation_bytes")
            },
        )  # fmt: skip
        alone = replace(problem, workloads=(replace(workload, table=one),))
        point = alone.at(Region(points=((0,),)))
        found = search(alone, max_seconds=seconds)
        assert found is not None
        ours.append(found)
        for times, solve_by in ((cbc, by_cbc), (highs, by_highs)):
            times.append(solve_by(point, seconds))
        proven = [value for _, value in (cbc[-1], highs[-1]) if np.isfinite(value)]
        same += int(all(abs(value / found.objective - 1) < 1e-6 for value in proven))
    Timing.of("one batch, one TP", ours).show()
    shown: dict[str, object] = {"puzzle-search": Timing.of("", ours).as_dict(), "same": same}
    for name, times in (("CBC (PuLP)", cbc), ("HiGHS (scipy)", highs)):
        timing = Timing(
            f"  the same by {name}",
            [s for s, _ in times],
            sum(bool(np.isfinite(v)) for _, v in times),
        )
        timing.show()
        shown[name] = timing.as_dict()
    print(f"  where peers prove an optimum, it is ours: {same} of {len(ours)}")
    return shown


def _only(costs: object, index: int) -> object:
    return replace(
        costs,  # type: ignore[type-var]
        **{
            name: getattr(costs, name)[index : index + 1]
            for name in ("prefill_us", "decode_us", "memory_bytes")
        },
    )


def many_variants(seed: int, layers: int = 200, variants: int = 200) -> Problem:
    """Two limits, costs and damages of every layer's own."""
    rng = np.random.default_rng(seed)
    first = np.repeat(np.arange(layers), variants)
    alike = np.zeros_like(first)
    items = Items(num_layers=layers, first=first, last=first, attention=alike, ffn=alike)
    runtime, memory = rng.uniform(1, 100, (2, layers, variants))
    damage = rng.lognormal(0, 1, (layers, 1)) * (1 / runtime + 1 / memory)
    damage *= rng.uniform(0.5, 1.5, damage.shape)
    names = ("runtime", "memory", "score")
    told = [
        item_measure(name, amounts.ravel(), ["-"], ["-"])
        for name, amounts in zip(names, (runtime, memory, damage), strict=True)
    ]
    bounds = tuple(
        Bound(limit=measure.name, measure=measure, at_most=share * layers)
        for measure, share in zip(told, (30.0, 35.0), strict=False)
    )
    return Problem(
        parent="random", items=items, attention=("-",), ffn=("-",), damage=damage.ravel(),
        goal=told[2], workloads=(), bounds=bounds, score_evidence="random",
    )  # fmt: skip


def experts_and_windows(seed: int) -> Problem:
    """Four windows and six numbers of experts, in random pairs, over TP 1/2/4/8."""
    config = SearchInputs.find("gpt-oss-120b").config
    space = SearchSpace.uniform(
        config,
        attention=["gqa_8", "gqa_8_window_32768", "gqa_8_window_8192", "gqa_8_window_128"],
        ffn=[f"moe_{experts}" for experts in (128, 112, 96, 80, 64, 32)],
    )
    target, workloads = find_target("h100", config), []
    for text, speedup in (("64k/64k", 1.5), ("4k/4k", 1.02), ("1k/1k", 1.01)):
        table = cost_table(config, space, target, Scenario.parse(text), (1, 2, 4, 8))
        limits = Limits(speedup=speedup).against(table, ArchitectureSpec.identity(config))
        workloads.append(Workload.on_device(table, limits))
    return formulate(config, space, random_scores(config, space, seed, sums=False), workloads)


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--instances", type=int, default=50)
    parser.add_argument("--peers", type=int, default=10, help="instances solved by peers too")
    parser.add_argument("--seconds", type=float, default=20.0)
    args = parser.parse_args()
    inputs = SearchInputs.find("llama-3.1-70b")
    config, space = inputs.config, inputs.space
    target = find_target("h100", config, engine="trtllm", dtype="fp8")
    result: dict[str, object] = {"bench": "solver"}
    print(f"{'work':52} {'runs':>4} {'optimal':>8} {'median':>8} {'worst':>8}  seconds")

    colds, optimal = [], 0
    for _ in range(5):
        begun = time.perf_counter()
        command = [sys.executable, "-c", "from puzzle_search.cli.main import main; main()"]
        ended = subprocess.run([*command, *HEADLINE[1:]], capture_output=True, check=True)
        colds.append(time.perf_counter() - begun)
        optimal += json.loads(ended.stdout)["status"] == "optimal"
    cold = Timing(" ".join(HEADLINE)[:52], colds, optimal)
    cold.show()
    result["headline_cold_process"] = cold.as_dict()

    one_tp = cost_table(config, space, target, SCENARIO)
    example: dict[str, object] = {}
    for asked in TARGETS:
        limits = Limits(tokens_per_second_per_gpu=asked)
        workload = Workload.on_device(one_tp, limits)
        problem = formulate(config, space, inputs.scores, [workload])
        for backend in get_args(Backend):
            found = solve(problem, backend=backend, max_seconds=args.seconds)
            timing = Timing.of(f"llama-3.1-70b, {asked:.0f} tok/s/GPU, {backend}", [found])
            timing.show()
            example[f"{asked:.0f} {backend}"] = timing.as_dict() | {"gap": found.gap}
    result["example"] = example

    all_tp = cost_table(config, space, target, SCENARIO, (1, 2, 4, 8))
    workload = Workload.on_device(all_tp, Limits(tokens_per_second_per_gpu=6000.0))
    for sums, what in ((True, "sums"), (False, "pairs")):
        solutions = [
            solve(
                formulate(config, space, random_scores(config, space, seed, sums=sums), [workload]),
                max_seconds=args.seconds,
            )
            for seed in range(args.instances)
        ]
        name = f"80 x 54, {len(all_tp.points)} points, random {what}"
        timing = Timing.of(name, solutions)
        timing.show()
        result[f"random {what}"] = timing.as_dict() | {"points": len(all_tp.points)}

    alone = Workload.on_device(one_tp, Limits(tokens_per_second_per_gpu=2000.0))
    result["peers"] = against_peers(
        [
            formulate(config, space, random_scores(config, space, s, sums=bool(s % 2)), [alone])
            for s in range(args.peers)
        ],
        args.seconds,
    )

    free = formulate(config, space, inputs.scores, [Workload.on_device(one_tp, Limits())])
    begun = time.perf_counter()
    points = frontier(free, points=200)
    proven = sum(point.solution.status == "optimal" for point in points)
    timing = Timing("frontier of 200 points", [time.perf_counter() - begun], proven)
    timing.show()
    result["frontier"] = timing.as_dict()

    six = formulate(
        config, space, inputs.scores,
        [Workload.on_device(one_tp, Limits(tokens_per_second_per_gpu=6000.0))],
    )  # fmt: skip
    begun = time.perf_counter()
    pool = diverse(six, solutions=20, min_distance=8)
    proven = sum(solution.status == "optimal" for solution in pool)
    timing = Timing("20 solutions, 8 layers apart", [time.perf_counter() - begun], proven)
    timing.show()
    result["pool"] = timing.as_dict()

    fast = formulate(
        config, space, inputs.scores, [Workload.on_device(one_tp, Limits())],
        ChildLimits(score=0.2), goal="throughput",
    )  # fmt: skip
    timing = Timing.of("fastest within a damage of 0.2", [solve(fast, max_seconds=args.seconds)])
    timing.show()
    result["fastest"] = timing.as_dict()

    deep = ParentConfig.from_dict(dict(config.raw) | {"num_hidden_layers": 126}, name="deep")
    wide = SearchSpace.uniform(deep, attention=list(space.attention[0]), ffn=list(space.ffn[0]))
    asked_of = {"128/1024": 5000.0, "2048/128": 500.0, "1000/1000": 2500.0}
    workloads = [
        Workload.on_device(
            cost_table(deep, wide, target, Scenario.parse(text), (1, 2, 4, 8)),
            Limits(tokens_per_second_per_gpu=limit),
        )
        for text, limit in asked_of.items()
    ]
    solutions = [
        solve(formulate(deep, wide, random_scores(deep, wide, s, sums=bool(s % 2)), workloads))
        for s in range(4)
    ]
    timing = Timing.of("126 layers x 54, three scenarios, TP 1/2/4/8", solutions)
    timing.show()
    result["three scenarios"] = timing.as_dict()

    solutions = [solve(experts_and_windows(seed), max_seconds=20) for seed in range(5)]
    timing = Timing.of("36 x (4 x 6) of gpt-oss-120b, 3 scenarios, 4 TP", solutions)
    timing.show()
    result["experts and windows"] = timing.as_dict()

    solutions = [solve(many_variants(seed), max_seconds=10) for seed in range(5)]
    timing = Timing.of("200 layers x 200 variants, two limits", solutions)
    timing.show()
    result["200 x 200"] = timing.as_dict() | {"worst_gap": max(s.gap for s in solutions)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
