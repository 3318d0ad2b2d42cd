"""What is wrong with a recipe, in words that name the keys that there are."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from types import UnionType
from typing import Union, get_args, get_origin

from pydantic import BaseModel, ValidationError


def told(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Every fault by its key; of a key that there is not, those that there are."""
    entries = error.errors()
    # A list that holds a wrong value is called too short as well.
    within = {entry["loc"][:n] for entry in entries for n in range(len(entry["loc"]))}
    return [
        _told(entry["loc"], entry["type"], entry["msg"], model)
        for entry in entries
        if entry["loc"] not in within
    ]


def _told(place: Sequence[int | str], kind: str, message: str, model: type[BaseModel]) -> str:
    where = ".".join(str(part) for part in place) or "recipe"
    if kind != "extra_forbidden":
        return f"{where}: {message}"
    section = section_of(model, place[:-1])
    keys = list(section.model_fields) if section else []
    near = difflib.get_close_matches(str(place[-1]), keys, n=1)
    meant = f" (did you mean {near[0]}?)" if near else ""
    return f"{where}: there is no such key{meant}; keys here: {', '.join(keys)}"


def section_of(model: type[BaseModel], place: Sequence[int | str]) -> type[BaseModel] | None:
    """The part of a model that keys lead to; None where they lead to a plain value."""
    for key in place:
        field = model.model_fields.get(str(key))
        inner = section_in(field.annotation) if field else None
        if inner is None:
            return None
        model = inner
    return model


def section_in(annotation: object) -> type[BaseModel] | None:
    """The section that a field holds, if it holds one."""
    options = (
        get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    )
    found = (o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return next(found, None)
