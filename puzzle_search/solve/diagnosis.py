"""What to tell someone who asks for the impossible."""

from __future__ import annotations

import numpy as np

from puzzle_search.errors import InfeasibleError
from puzzle_search.solve.problem import Problem


def explain_infeasible(problem: Problem) -> InfeasibleError:
    """An error that says what is reachable on this target with this search space."""
    table, pairs, allowed = problem.cost, problem.pairs, np.isfinite(problem.damage)
    asked = ", ".join(f"{name} {value:g}" for name, value in problem.limits.asked().items())
    message = f"no architecture of the search space keeps the limits ({asked or 'memory only'})"
    attention = table.attention.columns([pair[0] for pair in pairs])
    ffn = table.ffn.columns([pair[1] for pair in pairs])
    time_us = table.attention.total_us[:, attention] + table.ffn.total_us[:, ffn]
    memory = table.attention.memory_bytes[:, attention] + table.ffn.memory_bytes[:, ffn]

    def least(values: np.ndarray) -> np.ndarray:
        per_layer = np.where(allowed[None], values[:, None, :], np.inf).min(axis=2)
        total: np.ndarray = per_layer.sum(axis=1)
        return total

    least_memory = least(memory) + table.outside_memory_bytes
    fits = least_memory <= table.target.memory_limit_bytes
    if not fits.any():
        return InfeasibleError(
            f"{message}: the smallest child needs {least_memory.min() / 1e9:.3g} GB, "
            f"{table.target.gpu} allows {table.target.memory_limit_bytes / 1e9:.3g} GB",
            remedy="use more devices (--tp), a smaller dtype, or allow more variants",
        )
    batch_us = least(time_us) + table.outside_us
    tokens = np.array([p.batch / p.tp for p in table.points]) * table.scenario.output_len
    throughput = np.where(fits, tokens * 1e6 / batch_us, 0.0)
    fastest = int(throughput.argmax())
    point = table.points[fastest]
    return InfeasibleError(
        f"{message}: the cheapest variants everywhere reach at most {throughput[fastest]:.4g} "
        f"tok/s/GPU on {table.target.gpu} in {table.scenario} "
        f"(batch {point.batch}, tp {point.tp})",
        remedy="ask for less, allow more batch sizes or TP degrees, or widen the search space",
    )
