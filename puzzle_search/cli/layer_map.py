"""The layers of an architecture in a few lines of terminal: a bar for what is left of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

    from puzzle_search.arch.change import SubblockChange

_BARS, _DROPPED = "▁▂▃▄▅▆▇█", "·"
_PLAIN_BARS, _PLAIN_DROPPED = "12345678", "."
_LINEAR, _WINDOWED = "~", "w"
_STYLES = {
    "kept": "green",
    "windowed": "cyan",
    "reduced": "yellow",
    "linear": "magenta",
    "dropped": "red",
}
_LABEL = 12
_GROUP = 10


def legend(*, plain: bool = False) -> str:
    """What the characters of a map mean."""
    bars, dropped = (_PLAIN_BARS, _PLAIN_DROPPED) if plain else (_BARS, _DROPPED)
    return (
        f"{bars[0]} to {bars[-1]}: KV heads, FFN width or experts left;  "
        f"{_WINDOWED} window;  {_LINEAR} linear;  {dropped} dropped"
    )


def shows_bars(encoding: str) -> bool:
    """Whether a terminal or pipe of this encoding can show the bars."""
    try:
        (_BARS + _DROPPED).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def glyph(change: SubblockChange, *, plain: bool = False) -> str:
    """One character for what is left of a subblock."""
    if change.change in ("linear", "windowed"):
        return _LINEAR if change.change == "linear" else _WINDOWED
    if change.change == "dropped":
        return _PLAIN_DROPPED if plain else _DROPPED
    return (_PLAIN_BARS if plain else _BARS)[
        min(len(_BARS), max(1, math.ceil(change.fraction * len(_BARS)))) - 1
    ]


def layer_map(
    rows: Mapping[str, Sequence[SubblockChange]], width: int, *, plain: bool = False
) -> list[Text]:
    """Lines of the map: layer numbers, then the rows, wrapped where the width needs it.

    Args:
        rows: label of a row to what became of the subblock of each layer.
        width: columns of the terminal.
        plain: in ASCII, for what shows nothing else.
    """
    from rich.text import Text

    layers = len(next(iter(rows.values())))
    groups_in_line = max(1, (width - _LABEL + 1) // (_GROUP + 1))
    wraps = math.ceil(layers / (groups_in_line * _GROUP))
    in_line = math.ceil(math.ceil(layers / _GROUP) / wraps) * _GROUP
    lines = []
    for begin in range(0, layers, in_line):
        shown = range(begin, min(begin + in_line, layers))
        tens = "".join(str(index).ljust(_GROUP + 1) for index in shown[::_GROUP])
        lines.append(Text("layer".ljust(_LABEL) + tens.rstrip(), style="dim"))
        for label, changes in rows.items():
            line = Text(label.ljust(_LABEL))
            for index in shown:
                if index > begin and index % _GROUP == 0:
                    line.append(" ")
                line.append(
                    glyph(changes[index], plain=plain), style=_STYLES[changes[index].change]
                )
            lines.append(line)
    return lines
