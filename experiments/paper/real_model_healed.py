"""Children of SmolLM2-135M before and after distillation of the whole child, however chosen.

    python experiments/paper/real_model_healed.py runs/smollm2 --profile PROFILE --library LIBRARY \
        --scores SCORES --out bench/results

Goes on from ``real_model.py`` in the same folder, whose children and measured speeds it takes;
every child learns from as many tokens, and the solver's from more, which gives a curve. Results are
kept in the folder; run again, it goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from real_model import (
    BATCHES,
    LENGTH,
    TEST_TOKENS,
    Measured,
    RealModel,
    measured_choices,
    opened,
    today,
)

from puzzle_search.checkpoint import load_tokenizer
from puzzle_search.data import TokenStream, load_documents, sample_tokens
from puzzle_search.distill import DistillSettings, distill
from puzzle_search.files import write_text
from puzzle_search.progress import Progress

OURS = "puzzle-search"
TOKENS, MORE_TOKENS, MORE_AT = 32_768, 131_072, (1.25,)
HELD_OUT_TOKENS, BATCH_TOKENS = 2_048, 2_048


def healed(real: RealModel, child: Path, tokens: int) -> Path:
    """The child distilled on the train split."""
    out = real.folder / "healed" / f"{child.name}-{tokens}"
    if out.exists():
        return out
    source, tokenizer = str(real.text), load_tokenizer(real.parent)
    return distill(
        real.parent,
        child,
        out,
        TokenStream(load_documents(source, "train"), tokenizer, length=LENGTH),
        sample_tokens(
            load_documents(source, "validation"),
            tokenizer,
            length=LENGTH,
            tokens=HELD_OUT_TOKENS,
        ),
        DistillSettings(
            tokens=tokens,
            batch_tokens=BATCH_TOKENS,
            dtype="bf16",
            held_out_every=1000,
            checkpoint_every=8,
        ),
        progress=Progress(f"distill {out.name}"),
    )


def told(quality: dict[str, Any]) -> str:
    """KL with its standard error, and accuracy kept, as two cells."""
    kl, error = quality["kl"], quality["kl_stderr"]
    return f"{kl:.3f} ± {error:.3f} | {quality['accuracy_preserved']:.1%}"


def rows(real: RealModel, found: list[Measured]) -> Iterator[str]:
    """A row for every child: speed, and quality before and after."""
    for one in found:
        after = real.quality(healed(real, one.child, TOKENS))
        speeds = " | ".join(f"{one.measured[batch]:.2f}" for batch in BATCHES)
        yield f"| {one.asked} | {one.way} | {speeds} | {told(one.quality)} | {told(after)} |"


def curve(real: RealModel, found: list[Measured]) -> Iterator[str]:
    """A row for every amount of tokens that a child of the solver's learnt from."""
    for one in found:
        if one.way == OURS and one.asked in MORE_AT:
            yield f"| {one.asked} | 0 | {told(one.quality)} |"
            for tokens in (TOKENS, MORE_TOKENS):
                quality = real.quality(healed(real, one.child, tokens))
                yield f"| {one.asked} | {tokens:,} | {told(quality)} |"


def main() -> None:
    """Distil, measure, and write the tables."""
    real, _, out = opened(__doc__)
    found = measured_choices(real)
    lines = [
        f"# Children of SmolLM2-135M after distillation, {today()}",
        "",
        f"Every child of `real_model.py`, distilled on {TOKENS:,} tokens of the standard library's "
        f"sources and prose (KL and cosine, bf16, {BATCH_TOKENS:,} tokens a step). KL to the "
        "parent with its standard error over blocks of text, and the part of the parent's "
        f"next-token accuracy that is kept, on {TEST_TOKENS:,} tokens of the test split. Speeds "
        "are tokens per second in llama.cpp over the parent's, q8_0, measured in turn; "
        "distillation leaves them as they are.",
        "",
        "| asked | chosen by | "
        + " | ".join(f"measured, batch {batch}" for batch in BATCHES)
        + " | KL before | accuracy kept | KL after | accuracy kept |",
        "|---" * (6 + len(BATCHES)) + "|",
        *rows(real, found),
        "",
        "## More tokens, the solver's children",
        "",
        "| asked | tokens | KL | accuracy kept |",
        "|---" * 4 + "|",
        *curve(real, found),
    ]
    write_text(out / f"{today()}-smollm2-distilled.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
