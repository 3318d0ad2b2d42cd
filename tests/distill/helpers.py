"""A pico child, and what distils it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.build import build_child
from puzzle_search.checkpoint import load_tokenizer
from puzzle_search.data import TokenBlocks, TokenStream, load_documents, pack_tokens
from puzzle_search.distill import DistillSettings, distill
from puzzle_search.progress import Progress
from tests.pico import LENGTH, Pico

PAIRS = [("gqa_1", "mlp_256"), ("no_op", "no_op"), ("linear", "mlp_512")]


def make_child(pico: Pico, library: Path, out: Path) -> Path:
    spec = ArchitectureSpec.of("parent", PAIRS, asked={"note": "kept"})
    return build_child(pico.parent, library, spec, out, dtype="fp32")


def stream_of(pico: Pico) -> TokenStream:
    documents = load_documents(pico.corpus, "train")
    return TokenStream(documents, load_tokenizer(pico.parent), length=LENGTH)


def blocks_of(pico: Pico, tokens: int) -> TokenBlocks:
    documents = load_documents(pico.corpus, "validation")
    return pack_tokens(documents, load_tokenizer(pico.parent), length=LENGTH, max_tokens=tokens)


class StopAfter(Progress):
    """Interrupts a run, as Ctrl-C does, after so many steps."""

    def __init__(self, steps: int) -> None:
        self._steps = steps

    @contextlib.contextmanager
    def over(self, total: int, done: int = 0) -> Iterator[Callable[[str], None]]:
        steps = done

        def advance(unit: str) -> None:
            nonlocal steps
            steps += 1
            if steps == self._steps:
                raise KeyboardInterrupt

        yield advance


def distilled(
    pico: Pico,
    child: Path,
    out: Path,
    *,
    track: str | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Path:
    chosen = {"tokens": 512 * 8, "batch_tokens": 512, "learning_rate": 2e-3} | settings
    return distill(
        pico.parent,
        child,
        out,
        stream_of(pico),
        blocks_of(pico, 256),
        DistillSettings(**chosen),
        out_dtype="fp32",
        track=track,
        progress=progress,
    )


def metrics(out: Path) -> list[dict[str, float]]:
    file = out.with_name(out.name + ".run") / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]
