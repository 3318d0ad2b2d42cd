"""Structure-aware mutation of valid files: values, keys and rows are changed, not only bytes."""

from __future__ import annotations

import csv
import io
import json
import math
import random
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

_DEEP, _DIGITS = "@deep@", "@digits@"  # stand for what the writers of JSON and YAML refuse
_STRINGS = [
    "", " ", "x", "nan", "-1", "no_op", "gqa_1", "mlp_256", "mlp_999999999", "\x1b[2J", "\x00a",
    "a\nb", "../outside", "/etc/hostname", "http://x", "é\u202e", "\ud800", "{}", "1e999",
    "x" * 5000,
]  # fmt: skip
_VALUES = [
    None, True, False, 0, 1, -1, 2, 3, 15, 2**31, 2**63, 2**64, -(2**63), 10**30, 0.5, -0.5, 1e-300,
    1e18, 1e300, math.nan, math.inf, -math.inf, [], {}, [[]], {"": None}, [None], [-1],
    _DEEP, _DIGITS, *_STRINGS,
]  # fmt: skip
_CELLS = [
    "", "nan", "inf", "-1", "0", "1", "1e300", "1e-300", "9" * 30, "9" * 5001, "1.5", "0x10",
    "1_000", "٣", " 1", "True", '"', "a,b", *_STRINGS,
]  # fmt: skip
_NUMBERS = [0, 1, 2**7, 2**15, 2**16, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1]
_BOMB = "".join(f"\nx{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]" for n in range(1, 12))

Path_ = list[Any]


class Mutator:
    """Changes files, the same for the same seed."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)

    def choose(self, files: list[Path]) -> Path:
        """One of these files."""
        return self._random.choice(files)

    def file(self, file: Path) -> None:
        """Change a file, in its structure where it has one that is known."""
        kind = file.suffixes[-1] if file.suffixes else ""
        known: dict[str, Callable[[bytes], bytes]] = {
            ".json": self._json,
            ".jsonl": self._json_lines,
            ".yaml": self._yaml,
            ".csv": self._csv,
            ".safetensors": self._safetensors,
            ".gguf": self._binary,
        }
        content = file.read_bytes()
        if self._random.random() < 0.15:
            file.write_bytes(self._bytes(content))
        else:
            file.write_bytes(known[kind](content))

    # --- documents ------------------------------------------------------------------------------

    def _json(self, content: bytes) -> bytes:
        return _dumped(self._tree(json.loads(content)))

    def _json_lines(self, content: bytes) -> bytes:
        lines: list[Any] = [json.loads(line) for line in content.splitlines()]
        return b"".join(_dumped(line) + b"\n" for line in _listed(self._tree(lines)))

    def _yaml(self, content: bytes) -> bytes:
        tree = self._tree(yaml.load(content, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
        try:
            text = yaml.dump(tree, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper))
        except UnicodeEncodeError:  # half of a pair: only JSON, which is YAML too, can say it
            text = json.dumps(tree)
        if self._random.random() < 0.02:
            text += f"x0: &x0 [1]{_BOMB}\n"
        return _unusual(text).encode("utf-8", "surrogatepass")

    def _tree(self, tree: Any) -> Any:
        for _ in range(self._random.choice((1, 1, 1, 2, 4))):
            tree = self._changed(tree)
        return tree

    def _changed(self, tree: Any) -> Any:
        places = list(_places(tree))
        *above, key = place = self._random.choice(places) or [None]
        if place == [None]:  # the document itself
            return self._random.choice(_VALUES) if self._random.random() < 0.3 else tree
        parent = _at(tree, above)
        change = self._random.random()
        if change < 0.6:
            parent[key] = self._value(parent[key])
        elif change < 0.7:
            del parent[key]
        elif change < 0.8:
            parent[key] = deepcopy(_at(tree, self._random.choice(places)))
        elif isinstance(parent, dict):
            parent[self._random.choice([*_STRINGS, f"{key}s"])] = parent.pop(key)
        elif change < 0.9:
            parent.append(parent[key])
        else:
            self._random.shuffle(parent)
        return tree

    def _value(self, value: Any) -> Any:
        if type(value) in (int, float) and self._random.random() < 0.4:
            return self._random.choice(
                [-value, value + 1, value - 1, value * 2, float(value), str(value), value * 1e18]
            )
        if isinstance(value, str) and self._random.random() < 0.4:
            half = len(value) // 2
            return self._random.choice([value[:half], value + value, value.upper(), f"{value} "])
        return deepcopy(self._random.choice(_VALUES))

    # --- tables ---------------------------------------------------------------------------------

    def _csv(self, content: bytes) -> bytes:
        rows = list(csv.reader(io.StringIO(content.decode())))
        for _ in range(self._random.choice((1, 1, 2))):
            row = self._random.choice(rows)
            change = self._random.random()
            if change < 0.6 and row:
                place = self._random.randrange(len(row))
                others = [cells[place] for cells in rows if len(cells) > place]
                row[place] = self._random.choice([*_CELLS, *self._random.sample(others, 1)])
            elif change < 0.7:
                rows.append(list(row))
            elif change < 0.8:
                rows.remove(row)
            elif change < 0.85:
                del row[-1:]
            elif change < 0.9:
                row.append("1")
            else:
                self._random.shuffle(rows)
            rows = rows or [[]]
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows(rows)
        return out.getvalue().encode("utf-8", "surrogatepass")

    # --- binary files ---------------------------------------------------------------------------

    def _safetensors(self, content: bytes) -> bytes:
        length = int.from_bytes(content[:8], "little")
        header = self._json(content[8 : 8 + length])
        size = len(header) if self._random.random() < 0.9 else self._random.choice(_NUMBERS)
        return size.to_bytes(8, "little") + header + content[8 + length :]

    def _binary(self, content: bytes) -> bytes:
        """Numbers of the first part, where such a file says what it holds."""
        changed = bytearray(content)
        for _ in range(self._random.choice((1, 1, 2))):
            width = self._random.choice((1, 4, 8))
            at = int(self._random.random() ** 2 * min(len(changed) - width, 20_000))
            number = self._random.choice(_NUMBERS) % 2 ** (8 * width)
            changed[at : at + width] = number.to_bytes(width, "little")
        return bytes(changed)

    def _bytes(self, content: bytes) -> bytes:
        at = self._random.randrange(len(content) + 1)
        other = self._random.randrange(len(content) + 1)
        return self._random.choice(
            [
                content[:at],
                content[:at]
                + self._random.randbytes(self._random.choice((1, 4, 100)))
                + content[at:],
                content[:at] + content[at + 1 :],
                content[:at] + content[other:],
                content + content[at:],
                content.replace(b"\n", b"\r"),
                "x".join(content.decode("latin-1")[:2000]).encode("utf-16"),
                b"[" * 100_000,
                b"",
            ]
        )


def _places(tree: Any) -> list[Path_]:
    """Keys and indices to every value of a document; nothing for the document itself."""
    found: list[Path_] = [[]]
    entries = tree.items() if isinstance(tree, dict) else ()
    if isinstance(tree, list):
        entries = enumerate(tree)
    for key, value in entries:
        found += [[key, *place] for place in _places(value)]
    return found


def _at(tree: Any, place: Path_) -> Any:
    for key in place:
        tree = tree[key]
    return tree


def _listed(tree: Any) -> list[Any]:
    return tree if isinstance(tree, list) else [tree]


def _dumped(tree: Any) -> bytes:
    return _unusual(json.dumps(tree)).encode()


def _unusual(text: str) -> str:
    for quote in ('"', "'"):
        text = text.replace(f"{quote}{_DEEP}{quote}", "[" * 5000 + "]" * 5000)
        text = text.replace(f"{quote}{_DIGITS}{quote}", "9" * 5001)
    return text
