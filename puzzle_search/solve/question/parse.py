"""Limits as people type them."""

from __future__ import annotations

import math
import re
from dataclasses import replace

from puzzle_search.errors import InputError
from puzzle_search.solve.problem.limits import Limits

_KEYS = {
    "tps": "tokens_per_second_per_gpu",
    "user-tps": "tokens_per_second_per_user",
    "ttft": "ttft_ms",
    "tpot": "tpot_ms",
    "latency": "latency_ms",
    "rate": "requests_per_second",
    "speedup": "speedup",
}


def parse_scenario(text: str, otherwise: Limits) -> tuple[str, Limits]:
    """A scenario with limits of its own: ``128/1024`` or ``128/1024:tps=6000,ttft=500``.

    Args:
        text: input and output tokens, then limits by key: tps, user-tps, ttft, tpot, latency,
            rate (requests/s), speedup.
        otherwise: the limits that the text does not set.

    Raises:
        InputError: an unknown key, or a value that is no positive number.
    """
    scenario, _, limits = text.partition(":")
    own: dict[str, float] = {}
    for part in filter(None, limits.split(",")):
        key, _, value = part.partition("=")
        if key.strip() not in _KEYS or _KEYS[key.strip()] in own:
            raise InputError(
                f"scenario {text!r}: {part!r} is no limit, or stands twice",
                remedy=f"write KEY=NUMBER with a key of {', '.join(_KEYS)}",
            )
        try:
            own[_KEYS[key.strip()]] = float(value)
        except ValueError as error:
            raise InputError(
                f"scenario {text!r}: {value!r} is no number", remedy="write for example tps=6000"
            ) from error
    return scenario, replace(otherwise, **own)


_SIZES = {"": 1.0, "B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
_SIZES |= {"KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30, "TiB": 2.0**40}


def parse_bytes(text: str) -> float:
    """Read ``80GB``, ``80000MiB`` or a number of bytes.

    Raises:
        InputError: the text has another form.
    """
    match = re.fullmatch(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    try:
        if match and match[2] in _SIZES:
            return float(match[1]) * _SIZES[match[2]]
    except ValueError:
        pass
    raise InputError(
        f"{text!r} is no amount of memory", remedy="write for example 80GB or 80000MiB"
    )


_TIMES_US = {"us": 1.0, "ms": 1e3, "s": 1e6}


def parse_microseconds(text: str) -> float:
    """Read ``51200ms``, ``51.2s`` or ``900us``.

    Raises:
        InputError: the text has another form.
    """
    match = re.fullmatch(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*(us|ms|s)\s*", text)
    try:
        if match:
            return float(match[1]) * _TIMES_US[match[2]]
    except ValueError:
        pass
    raise InputError(f"{text!r} is no time", remedy="write for example 51200ms or 51.2s")


def parse_layers(text: str) -> frozenset[int]:
    """Read layers and ranges such as ``0,1,76-79``.

    Raises:
        InputError: the text has another form.
    """
    layers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,6})(?:-([0-9]{1,6}))?\s*", part)
        if match is None or int(match[1]) > int(match[2] or match[1]):
            raise InputError(f"{text!r} is no list of layers", remedy="write for example 0,1,76-79")
        layers.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return frozenset(layers)


def parse_fraction(text: str) -> float:
    """Read ``5%`` or ``0.05``.

    Raises:
        InputError: the text has another form, is negative, or is 100% or more.
    """
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        value = float(number) / (100 if percent else 1)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1:
        raise InputError(
            f"{text!r} is no fraction from 0 to below 1", remedy="write for example 5% or 0.05"
        )
    return value
