"""Loss curves on disk: one JSON-lines file a layer, or run of layers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from puzzle_search.arch import Replacement
from puzzle_search.checkpoint.block_library import layers_file_name
from puzzle_search.files import Journal, write_text
from puzzle_search.library.bld import CurvePoint


def write_curve(folder: Path, key: Replacement, curve: Sequence[CurvePoint]) -> None:
    """Write the loss curve of a replacement, in the place of an older one.

    A line holds step, tokens, attention, ffn, train_loss and held_out_loss.
    """
    file = folder / "curves" / f"{layers_file_name(key)}.jsonl"
    names = {"attention": key[2], "ffn": key[3]}
    others = [line for line in Journal(file).read() if names.items() - line.items()]
    lines = others + [names | asdict(point) for point in curve]
    write_text(file, "".join(json.dumps(line) + "\n" for line in lines))
