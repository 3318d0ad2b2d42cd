"""Text, YAML and JSON read strictly; messages that stay short."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from puzzle_search.errors import InputError
from puzzle_search.files import (
    Journal,
    check_keys,
    read_json,
    read_text,
    read_yaml,
)

FORMAT = "puzzle-search.test/1"


def yaml_file(folder: Path, text: str) -> Path:
    file = folder / "a.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_read_yaml(tmp_path: Path) -> None:
    file = yaml_file(tmp_path, f"format: {FORMAT}\nvalue: [1, 2.5, null]\n")
    assert read_yaml(file, format=FORMAT) == {"format": FORMAT, "value": [1, 2.5, None]}


def test_yaml_anchors_and_merges_still_work(tmp_path: Path) -> None:
    file = yaml_file(tmp_path, f"format: {FORMAT}\na: &a {{x: 1, y: 2}}\nb: {{<<: *a, y: 3}}\n")
    assert read_yaml(file, format=FORMAT)["b"] == {"x": 1, "y": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not valid YAML"),
        ("a: 1\n b: 2", "line 2"),
        ("", "format is None"),
        ("- 1", "format is None"),
        ("format: other/1", "format is 'other/1'"),
        ("format: [1]", r"format is \[1\]"),
        ("a: 1\nb: 2\na: 3", r"'a' is given twice\s+in .* line 3"),
        ("a: {b: 1, b: 1}", "'b' is given twice"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("a: 2001-99-99", "'2001-99-99' is not a valid value"),
        ("a: !!bool x", "'x' is not a valid value"),
        ("a: \x07", "not valid YAML"),
        (r'gpu: "H100\e[2J"', "holds control characters"),
        ("[" * 100_000, "nested deeper than 100 levels"),
        ("\n".join(" " * depth + "a:" for depth in range(200)), "nested deeper"),
    ],
)
def test_read_yaml_errors_name_the_file(tmp_path: Path, text: str, message: str) -> None:
    file = yaml_file(tmp_path, text)
    with pytest.raises(InputError, match=message) as caught:
        read_yaml(file, format=FORMAT)
    assert str(file) in caught.value.message
    assert caught.value.remedy


def test_read_text_errors_name_the_file(tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff")
    for path in (tmp_path / "nowhere", tmp_path, binary):
        with pytest.raises(InputError) as caught:
            read_text(path, remedy="do this")
        assert str(path) in caught.value.message
        assert caught.value.remedy == "do this"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    file = yaml_file(tmp_path, "a: 1")
    file.chmod(0)
    with pytest.raises(InputError, match="cannot be read"):
        read_text(file, remedy="do this")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"a": 1, "b": 2}, None),
        ({"a": 1, "b": 2, "c": 3}, None),
        ({"a": 1}, "here: key 'b' is missing"),
        ({}, "here: keys 'a', 'b' are missing"),
        ({"a": 1, "b": 2, "d": 3, 4: 5}, "here: keys 4, 'd' are not known"),
        ([("a", 1)], "here: expected keys"),
        (None, "here: expected keys"),
    ],
)
def test_check_keys(data: object, message: str | None) -> None:
    if message is None:
        check_keys(data, "here", required={"a", "b"}, optional={"c"})
        return
    with pytest.raises(InputError, match=message):
        check_keys(data, "here", required={"a", "b"}, optional={"c"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 5000 + "]" * 5000, "nested too deeply"),
        ('{"a": ' + "1" * 5001 + "}", "5001 digits"),
    ],
)
def test_json_of_unreasonable_depth_or_size(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_json(file, remedy="download it again")
    assert str(file) in caught.value.message
    file.write_text(text + "\n")
    with pytest.raises(InputError, match="line 1 is damaged"):
        Journal(file).read()


@pytest.mark.parametrize(
    "tail", ["\n".join(f"x{n}: &x{n} [{f'*x{n - 1},' * 9}]" for n in range(1, 20)), "y: &y [*y]"]
)
def test_yaml_aliases_that_expand_without_end(tmp_path: Path, tail: str) -> None:
    file = yaml_file(tmp_path, f"format: {FORMAT}\nx0: &x0 [1]\n{tail}\n")
    with pytest.raises(InputError, match="aliases stand for more than"):
        read_yaml(file, format=FORMAT)


def test_messages_stay_short_and_printable() -> None:
    error = InputError(f"here: {'x' * 10**6!r} is wrong\x1b[2J", remedy="y" * 10**6)
    assert len(str(error)) < 4500
    assert "is wrong\\x1b[2J" in error.message
    assert error.message.startswith("here: 'xxx")
