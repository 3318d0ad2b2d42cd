"""Commands whose numbers and texts are ones that people mean: checked once, for every option."""

from __future__ import annotations

import math
from typing import Any

from typer.core import TyperCommand

# Least and most of an option, by its name; every other number is within _ANY.
_BOUNDS: dict[str, tuple[float, float]] = {
    "gpus_per_job": (0, 64),
    "jobs": (1, 10_000),
    "max_minutes": (0, 1e6),
    "max_seconds": (0, 1e8),
    "num_iters": (1, 1_000_000),
    "num_iters_warmup": (0, 1_000_000),
    "points": (2, 10_000),
    "rounds": (0, 1000),
    "seed": (0, 2**63 - 1),
    "solutions": (1, 1000),
    "workers": (1, 1024),
}
_ANY = (-1e18, 1e18)
_ANY_WHOLE = (-(10**13), 10**13)  # ten trillion tokens


class CheckedCommand(TyperCommand):
    """A command that looks at the values of its options before it begins."""

    def invoke(self, ctx: Any) -> Any:
        """See the class.

        Raises:
            InputError: a number is not finite or out of all reason, or a text is not UTF-8.
        """
        for parameter in self.params:
            name = parameter.name or ""
            value = ctx.params.get(name)
            shown = next(iter(parameter.opts), name)
            for one in value if isinstance(value, list | tuple) else [value]:
                _check(name, shown, one)
        return super().invoke(ctx)


def _check(name: str, shown: str, value: object) -> None:
    from puzzle_search.errors import InputError

    if isinstance(value, int | float) and not isinstance(value, bool):
        any_number = _ANY_WHOLE if isinstance(value, int) else _ANY
        least, most = _BOUNDS.get(name, any_number)
        if not math.isfinite(value) or not least <= value <= most:
            raise InputError(
                f"{shown} is {value:.6g}, not a number within {least:g} and {most:g}",
                remedy=f"give another {shown}",
            )
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{shown} is not UTF-8 text: {value!r:.80}", remedy=f"give another {shown}"
            ) from error
