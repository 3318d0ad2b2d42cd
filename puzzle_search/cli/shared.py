"""Options that several commands have in common, told once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Concatenate, ParamSpec, TypeVar, get_type_hints

_Own = ParamSpec("_Own")
_Options = TypeVar("_Options")


def takes(
    options: type[_Options],
) -> Callable[[Callable[Concatenate[_Options, _Own], None]], Callable[..., None]]:
    """Let a command have the fields of a dataclass as options, read into its first argument.

    Typer takes options from a function's signature: the command's becomes these fields, then its
    other arguments.
    """
    hints = get_type_hints(options, include_extras=True)
    shared = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=hints[field.name],
        )
        for field in fields(options)  # type: ignore[arg-type]
    ]

    def wrapped(command: Callable[Concatenate[_Options, _Own], None]) -> Callable[..., None]:
        _, *own = inspect.signature(command, eval_str=True).parameters.values()
        by_name = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        signature = inspect.Signature([*shared, *by_name])

        @functools.wraps(command)
        def with_options(*args: Any, **given: Any) -> None:
            asked = options(**{field.name: given.pop(field.name) for field in shared})
            command(asked, *args, **given)

        vars(with_options)["__signature__"] = signature
        with_options.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
        return with_options

    return wrapped
