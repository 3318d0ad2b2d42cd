"""Text, YAML and JSON read strictly, within limits that no real file comes near."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from yaml.constructor import ConstructorError

from puzzle_search.errors import InputError

# libyaml reads ten times faster; the pure-Python loader gives the same result.
if TYPE_CHECKING:
    from yaml import SafeLoader as _SafeLoader
else:
    _SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_MAX_DEPTH = 100
_MAX_VALUES = 10_000_000  # of a document, its aliases followed
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_MAX_BYTES = 512 * 2**20


class _Loader(_SafeLoader):
    """Safe YAML; a repeated key, or a scalar that its type cannot hold, is a YAML error too.

    So are control characters, which YAML lets through where they are escaped: they would reach the
    terminal that a name is printed on.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if isinstance(node, yaml.ScalarNode) and CONTROL.search(node.value):
            raise ConstructorError(
                None, None, f"{node.value!r:.60} holds control characters", node.start_mark
            )
        try:
            return super().construct_object(node, deep)
        # What PyYAML's own constructors let through: `2001-99-99`, `!!bool x`, `!!float ''` ...
        except (ValueError, LookupError, AttributeError, OverflowError) as error:
            raise ConstructorError(
                None, None, f"{node.value!r:.60} is not a valid value", node.start_mark
            ) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        given: set[tuple[str, str]] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in given:
                raise ConstructorError(
                    None, None, f"key {key.value!r} is given twice", key.start_mark
                )
            given.add((key.tag, key.value))
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def _parse_yaml(text: str) -> Any:
    # Composing is recursive inside libyaml: nesting without a limit would crash the process.
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MAX_DEPTH:
                raise yaml.YAMLError(f"nested deeper than {_MAX_DEPTH} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    loader = _Loader(text)
    node = loader.get_single_node()
    if node is None:
        return None
    if _values_in(node, {}) > _MAX_VALUES:
        raise yaml.YAMLError(f"its aliases stand for more than {_MAX_VALUES:,} values")
    return loader.construct_document(node)


def _values_in(node: yaml.Node, known: dict[int, float]) -> float:
    """Values that a node stands for, its aliases followed; infinite where it contains itself."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = float("inf")  # while inside it
        parts: Iterator[yaml.Node] = (
            part
            for entry in node.value
            for part in (entry if isinstance(entry, tuple) else (entry,))
        )
        known[id(node)] = 1 + sum(_values_in(part, known) for part in parts)
    return known[id(node)]


def read_bytes(path: str | Path, *, remedy: str) -> bytes:
    """Read a file.

    Raises:
        InputError: it is missing, unreadable, or larger than half a GiB.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        reason = "does not exist" if missing else f"cannot be read: {error}"
        raise InputError(f"{path} {reason}", remedy=remedy) from error
    if len(content) > _MAX_BYTES:
        raise InputError(f"{path} is larger than {_MAX_BYTES // 2**20} MiB", remedy=remedy)
    return content


def read_text(path: str | Path, *, remedy: str) -> str:
    """Read a UTF-8 file.

    Raises:
        InputError: it is missing, unreadable, larger than half a GiB, or not text.
    """
    try:
        return read_bytes(path, remedy=remedy).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be read: {error}", remedy=remedy) from error


def read_yaml(path: str | Path, *, format: str) -> dict[str, Any]:
    """Read a YAML mapping whose ``format`` key must be the one given.

    Raises:
        InputError: missing file, YAML error, or another format.
    """
    text = read_text(path, remedy=f"give the path of a {format} file")
    try:
        data = _parse_yaml(text)
    except yaml.YAMLError as error:
        raise InputError(
            f"{path} is not valid YAML: {error}", remedy="correct that line"
        ) from error
    found = data.get("format") if isinstance(data, dict) else None
    if not isinstance(data, dict) or found != format:
        raise InputError(
            f"{path}: format is {found!r}, expected {format!r}",
            remedy=f"start the file with 'format: {format}', or name another file",
        )
    return data


def parse_json(text: str | bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: it is none, or nested too deeply, or has numbers of thousands of digits.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json(path: str | Path, *, remedy: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: missing file, JSON error, or no object.
    """
    try:
        data = parse_json(read_text(path, remedy=remedy))
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}", remedy=remedy) from error
    if not isinstance(data, dict):
        raise InputError(f"{path} is not a JSON object", remedy=remedy)
    return data


@contextlib.contextmanager
def damage_told(where: str | Path, remedy: str) -> Iterator[None]:
    """Say that a file which this package wrote is not as it wrote it.

    Raises:
        InputError: what is read in the block lacks a part, or has one of another kind.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, OSError) as error:
        raise InputError(
            f"{where} is damaged: {type(error).__name__}: {error}", remedy=remedy
        ) from error


def check_keys(
    data: object, where: str | Path, *, required: set[str], optional: set[str] | None = None
) -> None:
    """Check the keys of a mapping.

    Raises:
        InputError: it is no mapping, a key is missing, or one is not known.
    """
    if not isinstance(data, Mapping):
        raise InputError(f"{where}: expected keys {sorted(required)}", remedy="write a mapping")
    allowed = required | (optional or set())
    missing, unknown = required - data.keys(), data.keys() - allowed
    if missing:
        raise InputError(f"{where}: {_names(missing)} missing", remedy="add it")
    if unknown:
        raise InputError(
            f"{where}: {_names(unknown)} not known",
            remedy=f"known keys: {', '.join(sorted(allowed))}",
        )


def _names(keys: set[Any]) -> str:
    quoted = ", ".join(repr(key) for key in sorted(keys, key=str))
    return f"{'key' if len(keys) == 1 else 'keys'} {quoted} {'is' if len(keys) == 1 else 'are'}"
