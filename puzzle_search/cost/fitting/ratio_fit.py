"""Fit constants and tables of ratios to timings, by least squares in logarithms. Needs scipy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.sparse import block_array, csr_array, diags_array, eye_array, kron, vstack
from scipy.sparse.linalg import lsqr

from puzzle_search.cost.modelled.ratios import Ratios, table_cells

_Array = NDArray[np.float64]

# Weight of what keeps tables smooth, of what keeps an entry that no timing reaches as its
# neighbour, and of what keeps tables near 1. Held-out errors move by less than half a point within
# a factor of five of the first two.
_SMOOTH, _HOLD, _SHRINK = 0.2, 0.5, 0.01
# Timings further off than this count less and less.
_OUTLIER = 0.05
_ROUNDS, _STEPS = 4, 400

ROOFLINE = {
    "launch_us": (5.0, 0.0, 100.0),
    "memory_fraction": (0.8, 0.1, 1.0),
    "compute_fraction": (0.7, 0.05, 1.0),
    "corner": (2.0, 1.0, 20.0),
}
"""Bounds of the constants of a roofline: start, least, largest."""
_Bounds = Mapping[str, tuple[float, float, float]]


def fit_constants(residual: Callable[[_Array], _Array], *, bounds: _Bounds) -> _Array:
    """Constants with the least log ratio of predicted to measured, robust to outliers."""
    start, lower, upper = zip(*bounds.values(), strict=True)
    fit: Any = least_squares(
        residual,
        start,
        bounds=(lower, upper),
        loss="soft_l1",
        f_scale=0.05,
        diff_step=1e-3,
        x_scale=np.maximum(np.abs(start), 1e-9),
    )
    return np.asarray(fit.x, dtype=np.float64)


def fit_ratios(
    axes: Mapping[str, Sequence[float]],
    tables: Sequence[str],
    sizes: Mapping[str, _Array],
    ratio: _Array,
) -> Ratios:
    """Tables whose product is closest to the ratio of timed to guessed latencies.

    Args:
        axes: knots by name; those outside the timed sizes are dropped, so that a table stays at
            what was timed last.
        tables: pairs of axes, such as ``"rows columns"``.
        sizes: of each timing, by axis.
        ratio: timed over guessed, of each timing.
    """
    used = {name: _inside(np.array(knots), sizes[name]) for name, knots in axes.items()}
    pairs = {name: name.split() for name in tables}
    shapes = {name: (len(used[a]), len(used[b])) for name, (a, b) in pairs.items()}
    blocks = []
    for name, (a, b) in pairs.items():
        weights, cells = table_cells(used[a], used[b], sizes[a], sizes[b])
        rows = np.broadcast_to(np.arange(len(ratio)), cells.shape)
        size = (len(ratio), shapes[name][0] * shapes[name][1])
        blocks.append(csr_array((weights.ravel(), (rows.ravel(), cells.ravel())), shape=size))
    penalties = [_penalty(shape) for shape in shapes.values()]
    diagonal = [
        [penalty if i == j else None for j in range(len(penalties))]
        for i, penalty in enumerate(penalties)
    ]
    timings, smooth = block_array([blocks]).tocsr(), block_array(diagonal).tocsr()
    wanted = np.log(ratio)
    # Robust: least squares again, with less weight on what was far off.
    weight = np.ones(len(wanted))
    found = np.zeros(smooth.shape[1])
    for _ in range(_ROUNDS):
        system = vstack([diags_array(weight) @ timings, smooth]).tocsr()
        right = np.concatenate([weight * wanted, np.zeros(smooth.shape[0])])
        found = lsqr(system, right, iter_lim=_STEPS, x0=found)[0]
        weight = 1 / np.sqrt(1 + ((wanted - timings @ found) / _OUTLIER) ** 2)
    parts = np.split(found, np.cumsum([rows * columns for rows, columns in shapes.values()])[:-1])
    return Ratios(
        axes=used,
        tables={
            name: np.exp(part.reshape(shapes[name]))
            for name, part in zip(shapes, parts, strict=True)
        },
    )


def _inside(knots: _Array, sizes: _Array) -> _Array:
    """Knots of an axis that lie among the timed sizes, at least two."""
    least, largest = float(sizes.min()), float(sizes.max())
    inside = knots[(knots >= least) & (knots <= largest)]
    if len(inside) < 2:
        return np.array([least, max(largest, 2 * least)])
    return inside


def _penalty(shape: tuple[int, int]) -> csr_array:
    """Rows that are zero on a table that is smooth, constant, 1."""
    lines = []
    for order, weight in ((2, _SMOOTH), (1, _HOLD)):
        first, second = (_differences(size, order) for size in shape)
        lines.append(weight * kron(first, eye_array(shape[1])))
        lines.append(weight * kron(eye_array(shape[0]), second))
    lines.append(_SHRINK * eye_array(shape[0] * shape[1]))
    return vstack(lines).tocsr()


def _differences(size: int, order: int) -> csr_array:
    return csr_array(np.diff(np.eye(size), n=min(order, size - 1), axis=0))
