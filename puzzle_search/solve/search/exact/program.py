"""A mixed-integer program in the plain arrays that every solver takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from puzzle_search.solve.problem.items import Floats

# Rows may pass by so much; the solvers allow 1e-6 unless told otherwise.
TOLERANCE = 1e-9
GAP = 1e-10
# Objectives are in units of what is at stake, times this: with reduced costs exact to 1e-7, proofs
# are to 1e-12.
STAKE = 1e5


@dataclass(kw_only=True)
class Program:
    """Minimise ``objective`` over variables from 0 to ``most``, integer where ``whole``.

    ``rows`` are (variables, coefficients, low, high).
    """

    objective: list[float] = field(default_factory=list)
    most: list[float] = field(default_factory=list)
    whole: list[bool] = field(default_factory=list)
    rows: list[tuple[list[int], list[float], float, float]] = field(default_factory=list)

    def add(self, weights: Floats, *, whole: bool) -> NDArray[np.intp]:
        """Variables from 0 to 1 of these weights, as parts of what is at stake."""
        first = len(self.objective)
        self.objective += (STAKE * weights).tolist()
        self.most += [1.0] * len(weights)
        self.whole += [whole] * len(weights)
        return np.arange(first, len(self.objective))

    def use(
        self,
        used: list[dict[int, float]],
        variables: NDArray[np.intp],
        of: NDArray[np.intp],
        usage: Floats,
    ) -> None:
        """Add to what each limit's row uses: by variable, from the value of a trait of each."""
        for value in sorted(set(of.tolist())):  # numpy.unique would load numpy.ma
            if usage[:, value].any():
                counted = self._counted(variables[of == value].tolist())
                for terms, amount in zip(used, usage[:, value].tolist(), strict=True):
                    terms[counted] = terms.get(counted, 0.0) + amount

    def _counted(self, variables: list[int]) -> int:
        """An integer variable for how many of these are taken."""
        if len(variables) == 1:
            self.whole[variables[0]] = True
            return variables[0]
        count = len(self.objective)
        self.objective.append(0.0)
        self.most.append(float(len(variables)))
        self.whole.append(True)
        self.rows.append(([*variables, count], [1.0] * len(variables) + [-1.0], 0.0, 0.0))
        return count

    def limit(self, used: list[dict[int, float]], limits: Floats, cutoff: float) -> None:
        """Rows of the limits, and one that keeps the objective below the cutoff."""
        for terms, limit in zip(used, limits.tolist(), strict=True):
            self.rows.append((list(terms), list(terms.values()), -math.inf, limit))
        if math.isfinite(cutoff):
            costly = [variable for variable, cost in enumerate(self.objective) if cost]
            costs = [self.objective[variable] for variable in costly]
            self.rows.append((costly, costs, -math.inf, STAKE * cutoff))

    def fixed(self, values: Floats, variables: NDArray[np.bool_]) -> Program:
        """The program with some variables at their values, rounded, and all of them integer."""
        at = [
            ([int(v)], [1.0], float(np.rint(values[v])), float(np.rint(values[v])))
            for v in np.flatnonzero(variables)
        ]
        return Program(
            objective=self.objective,
            most=self.most,
            whole=[True] * len(self.whole),
            rows=[*self.rows, *at],
        )


# From a program and seconds: values of all variables in the best answer found, if any, and a lower
# bound on the objective.
ProgramSolver = Callable[[Program, float], tuple[Floats | None, float]]
