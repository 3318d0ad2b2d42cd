"""Every key of a recipe with its default and meaning, as a table in Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from puzzle_search.pipeline.recipes.faults import section_in
from puzzle_search.pipeline.recipes.recipe import Recipe


def recipe_reference() -> str:
    """The table that ``docs/recipes.md`` holds."""
    lines = ["| key | is | default | meaning |", "|---|---|---|---|"]
    for key, field in Recipe.model_fields.items():
        section = section_in(field.annotation)
        if section is None:
            lines.append(_row(key, field))
        else:
            lines.append(f"| **`{key}`** | section | {_need(field)} | {summary_of(section)} |")
            lines += [_row(f"{key}.{name}", part) for name, part in section.model_fields.items()]
    return "\n".join([*lines, ""])


def summary_of(section: type[BaseModel]) -> str:
    """What a section is, in a sentence."""
    text = (section.__doc__ or "").partition("\n\n")[0].replace("``", "`")
    return " ".join(text.split())


def _need(field: FieldInfo) -> str:
    return "needed" if field.is_required() else "not needed"


def _row(key: str, field: FieldInfo) -> str:
    meaning = (field.description or "").replace("|", "\\|")
    return f"| `{key}` | {kind_of(field)} | {default_of(field)} | {meaning} |"


def default_of(field: FieldInfo) -> str:
    """The default as a recipe would write it."""
    if field.is_required():
        return "needed"
    value = field.default
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def kind_of(field: FieldInfo) -> str:
    """What a value of it is, for people."""
    return ", ".join(dict.fromkeys(_kinds(field.annotation)))


def _kinds(annotation: Any) -> Iterator[str]:
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        for option in get_args(annotation):
            if option is not NoneType:
                yield from _kinds(option)
    elif origin is Literal:
        yield from map(str, get_args(annotation))
    elif origin is tuple:
        yield f"list of {', '.join(_kinds(get_args(annotation)[0]))}"
    elif hasattr(annotation, "__metadata__"):  # Annotated
        yield from _kinds(annotation.__origin__)
    else:
        names = {str: "text", int: "whole number", float: "number", bool: "true, false"}
        yield names[annotation]
