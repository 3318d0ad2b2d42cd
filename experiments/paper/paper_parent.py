"""The larger parent that `paper.py` trains where a GPU is at hand, and its search space.

The same trainer, tokenizer and text as those of ``examples/stdlib-lm``.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from puzzle_search.data import Split, load_documents, pack_tokens
from puzzle_search.files import folder_written_whole, write_text
from puzzle_search.profile import open_device

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "stdlib-lm"
sys.path.append(str(EXAMPLE))

from pretrain import PretrainSettings, held_out, pretrain  # noqa: E402

SUMMARY = "training_summary.json"


@dataclass(frozen=True, kw_only=True)
class ParentShape:
    """A Llama with tied embeddings, and how long it is trained at most.

    Attributes:
        layers: blocks.
        hidden: hidden size.
        heads: query heads.
        kv_heads: KV heads.
        intermediate: FFN width.
        ffn_widths: narrower widths of the search space.
        length: tokens in a block of text.
        epochs: passes over the training text.
        tokens_per_step: of an optimizer step.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    ffn_widths: tuple[int, ...]
    length: int
    epochs: int
    tokens_per_step: int

    def config(self, vocab_size: int) -> LlamaConfig:
        """The configuration that transformers reads."""
        return LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
        )

    def space(self) -> str:
        """The search space: KV heads halved, narrower FFNs, linear, no-op."""
        heads = [self.kv_heads >> halvings for halvings in range(self.kv_heads.bit_length())]
        attention = [*(f"gqa_{count}" for count in heads), "linear", "no_op"]
        widths = (self.intermediate, *self.ffn_widths)
        ffn = [*(f"mlp_{width}" for width in widths), "linear", "no_op"]
        lines = ["format: puzzle-search.search-space/1"]
        lines += [f"{part}: [{', '.join(names)}]" for part, names in
                  (("attention", attention), ("ffn", ffn))]  # fmt: skip
        return "\n".join(lines) + "\n"


# 78.7M parameters. Text that is seen four times is worth nearly as much as new text, and little
# after that (Muennighoff et al. 2023).
LARGE = ParentShape(
    layers=12, hidden=768, heads=12, kv_heads=4, intermediate=2048, ffn_widths=(1024, 512),
    length=512, epochs=4, tokens_per_step=16384,
)  # fmt: skip
PICO = ParentShape(
    layers=2, hidden=64, heads=4, kv_heads=2, intermediate=512, ffn_widths=(256,), length=128,
    epochs=1, tokens_per_step=1024,
)  # fmt: skip


def trained_parent(
    folder: Path, shape: ParentShape, *, device: str, bf16: bool, max_seconds: float
) -> tuple[Path, Path]:
    """Train a parent, once; a training that was interrupted goes on.

    Args:
        folder: of the checkpoint folder ``parent``, ``space.yaml`` and the state of the training.
        shape: of the parent.
        device: ``cpu`` or ``cuda``.
        bf16: compute in bf16, with weights in fp32.
        max_seconds: of all runs of the training together.

    Returns:
        The checkpoint folder and the search space.
    """
    parent, space = folder / "parent", folder / "space.yaml"
    if not (parent / SUMMARY).exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(EXAMPLE / "parent")
        torch.manual_seed(0)
        model = LlamaForCausalLM(shape.config(len(tokenizer)))
        model.to(open_device(device).torch_device)
        _train(model, tokenizer, parent, shape, bf16=bf16, max_seconds=max_seconds)
    write_text(space, shape.space())
    return parent, space


def _train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    parent: Path,
    shape: ParentShape,
    *,
    bf16: bool,
    max_seconds: float,
) -> None:
    def blocks(split: Split) -> torch.Tensor:
        documents = load_documents("python-stdlib", split)
        return pack_tokens(documents, tokenizer, length=shape.length + 1).ids

    def log(row: dict[str, Any]) -> None:
        print(row, flush=True)

    train = blocks("train")
    settings = PretrainSettings(
        steps=shape.epochs * len(train) * shape.length // shape.tokens_per_step,
        max_seconds=max_seconds,
        tokens_per_step=shape.tokens_per_step,
        muon_rate=2e-3,
        adamw_rate=2e-3,
        bf16=bf16,
        compiled=False,
    )
    state = parent.with_name("training.safetensors")
    done = pretrain(model, train, blocks("validation")[:200], settings, state, log)
    test_loss, test_accuracy = held_out(model, blocks("test")[:200])
    summary = {
        "parameters": model.num_parameters(),
        "steps": done.steps,
        "tokens": done.steps * settings.tokens_per_step,
        "unique_training_tokens": train.numel(),
        "seconds": round(done.seconds),
        "test_loss_nats": test_loss,
        "test_next_token_accuracy": test_accuracy,
    }
    with folder_written_whole(parent) as written:
        model.to(torch.bfloat16).save_pretrained(written)
        tokenizer.save_pretrained(written)
        write_text(written / SUMMARY, json.dumps(summary, indent=1))
