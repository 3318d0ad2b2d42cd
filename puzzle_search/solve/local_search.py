"""A good answer before the exact step: repair what the relaxation selected, then improve it.

The nearer this comes to the optimum, the more choices their reduced costs rule out.
"""

from __future__ import annotations

import numpy as np

from puzzle_search.solve.problem import Choice, Floats, PointProblem
from puzzle_search.solve.relaxation import Relaxation

# Pairs of swaps are tried among so many single ones, those of least reduced cost.
_PAIRED_SWAPS = 600


def feasible_answer(point: PointProblem, relaxation: Relaxation) -> Choice | None:
    """The least damage among the relaxation's selections, repaired and improved."""
    point, floor, unit = point.normalised()
    repaired = (_repair(point, selection) for selection in relaxation.selections)
    found = [_improve(point, choice) for choice in repaired if choice is not None]
    if not found:
        return None
    best = min(found, key=lambda choice: _damage(point, choice))
    return _improve_in_pairs(
        point, relaxation.reduced / unit, (relaxation.bound - floor) / unit, best
    )


def _damage(point: PointProblem, choice: Choice) -> float:
    return float(point.damage[np.arange(len(choice)), choice].sum())


def _repair(point: PointProblem, start: Choice) -> Choice | None:
    """Swap choices, least damage per excess removed first, until every limit holds."""
    choice, layers, usage = start.copy(), np.arange(len(start)), point.usage
    for _ in range(4 * len(start)):
        excess = usage[:, choice].sum(axis=1) - point.limits
        over = np.maximum(excess, 0.0)
        if not over.any():
            return choice
        change = usage[:, None, :] - usage[:, choice][:, :, None]
        left = np.maximum(excess[:, None, None] + change, 0.0).sum(axis=0)
        removed = over.sum() - left
        added = np.maximum(point.damage - point.damage[layers, choice][:, None], 1e-12)
        possible = (removed > 1e-15) & np.isfinite(added)
        rate = np.where(possible, added / np.maximum(removed, 1e-300), np.inf)
        layer, column = np.unravel_index(rate.argmin(), rate.shape)
        if not np.isfinite(rate[layer, column]):
            return None
        choice[layer] = column
    return None


def _improve(point: PointProblem, start: Choice) -> Choice:
    """Swap single choices for less damage while every limit holds."""
    choice, layers, usage = start.copy(), np.arange(len(start)), point.usage
    for _ in range(4 * len(start)):
        slack = point.limits - usage[:, choice].sum(axis=1)
        change = usage[:, None, :] - usage[:, choice][:, :, None]
        fits = (change <= slack[:, None, None]).all(axis=0)
        gain = np.where(fits, point.damage[layers, choice][:, None] - point.damage, -np.inf)
        layer, column = np.unravel_index(gain.argmax(), gain.shape)
        if not gain[layer, column] > 1e-15:
            break
        choice[layer] = column
    return choice


def _improve_in_pairs(point: PointProblem, reduced: Floats, bound: float, start: Choice) -> Choice:
    """Swap two layers at a time, which may trade one limit against another."""
    choice, usage = start.copy(), point.usage
    all_layers = np.arange(len(choice))
    for _ in range(4 * len(choice)):
        gap = _damage(point, choice) - bound
        promising = reduced <= gap
        promising[all_layers, choice] = False
        layers, columns = np.nonzero(promising & np.isfinite(point.damage))
        least = np.argsort(reduced[layers, columns])[:_PAIRED_SWAPS]
        layers, columns = layers[least], columns[least]
        if len(layers) == 0:
            break
        slack = point.limits - usage[:, choice].sum(axis=1)
        change = usage[:, columns] - usage[:, choice[layers]]
        gain = point.damage[layers, choice[layers]] - point.damage[layers, columns]
        fits = (change[:, :, None] + change[:, None, :] <= slack[:, None, None]).all(axis=0)
        fits &= layers[:, None] != layers[None, :]
        both = np.where(fits, gain[:, None] + gain[None, :], -np.inf)
        first, second = np.unravel_index(both.argmax(), both.shape)
        if not both[first, second] > 1e-15:
            break
        choice[layers[[first, second]]] = columns[[first, second]]
    return choice
