"""A parent so small that every stage runs on it in a second, with text to run on."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.process
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerFast,
)

from puzzle_search.arch import ParentConfig, SearchSpace
from puzzle_search.checkpoint import CheckpointReader, load_decoder, load_tokenizer
from puzzle_search.checkpoint.block_library import BlockLibrary
from puzzle_search.cli.main import app
from puzzle_search.data import Split, load_documents, pack_tokens
from puzzle_search.library import BldSettings, build_library
from puzzle_search.model import HeterogeneousDecoder

ROOT = Path(__file__).resolve().parents[1]
LENGTH = 32
SPACE = """\
format: puzzle-search.search-space/1
attention: [gqa_2, gqa_1, linear, no_op]
ffn: [mlp_512, mlp_256, no_op]
"""
EXPERT_SPACE = """\
format: puzzle-search.search-space/1
attention: [gqa_2, gqa_1]
ffn: [moe_8, moe_4, moe_2_top_1, moe_4_width_32, linear, no_op]
"""
_SIZES: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 300, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 0,
    "tie_word_embeddings": False,
    # Wide enough that every subblock matters and no two replacements do the same damage.
    "initializer_range": 0.15,
}  # fmt: skip
_END = "<|end|>"


@dataclass(frozen=True, kw_only=True)
class Pico:
    """Paths of the parent, of text, and of a search space with 12 variants to train."""

    parent: Path
    corpus: Path
    space_file: Path

    @property
    def config(self) -> ParentConfig:
        return ParentConfig.from_file(self.parent)

    @property
    def space(self) -> SearchSpace:
        return SearchSpace.from_file(self.space_file, self.config)

    def tokens(self, split: Split, count: int) -> torch.Tensor:
        documents = load_documents(self.corpus, split)
        tokenizer = load_tokenizer(self.parent)
        return pack_tokens(documents, tokenizer, length=LENGTH, max_tokens=count).ids

    def decoder(self) -> HeterogeneousDecoder:
        return load_decoder(self.parent)

    def library(self, out: Path, *, tokens: int = 0) -> BlockLibrary:
        return build_library(
            self.parent,
            self.space,
            self.tokens("train", max(tokens, 2048)),
            self.tokens("validation", 512),
            out,
            BldSettings(tokens=tokens),
        )

    def open_library(self, folder: Path) -> BlockLibrary:
        return BlockLibrary.from_folder(folder, self.config, CheckpointReader(self.parent))


def make_pico(folder: Path, *, experts: bool = False) -> Pico:
    """Write parent, tokenizer, text and search space; with experts a Mixtral, else a Llama."""
    random.seed(0)
    words = [bytes(random.choices(range(97, 123), k=random.randint(2, 7))) for _ in range(60)]
    corpus = folder / "corpus"
    corpus.mkdir(parents=True)
    with (corpus / "text.jsonl").open("w") as file:
        for _ in range(400):
            text = " ".join(word.decode() for word in random.choices(words, k=40))
            file.write(json.dumps({"text": text + ".\n"}) + "\n")
    parent = folder / "parent"
    _write_tokenizer(corpus / "text.jsonl", parent)
    torch.manual_seed(0)
    if experts:
        mixture = MixtralConfig(
            intermediate_size=64, num_local_experts=8, num_experts_per_tok=2, **_SIZES
        )
        MixtralForCausalLM(mixture).save_pretrained(parent)
    else:
        LlamaForCausalLM(LlamaConfig(intermediate_size=512, **_SIZES)).save_pretrained(parent)
    (folder / "space.yaml").write_text(EXPERT_SPACE if experts else SPACE)
    return Pico(parent=parent, corpus=corpus, space_file=folder / "space.yaml")


def _write_tokenizer(text: Path, folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (json.loads(line)["text"] for line in text.read_text().splitlines())
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=_END)
    wrapped.save_pretrained(folder)


def command_line(*arguments: object) -> list[str]:
    """The real command line in a process of its own."""
    start = "from puzzle_search.cli.main import main; main()"
    return [sys.executable, "-c", start, *map(str, arguments)]


def environment() -> dict[str, str]:
    """One thread, so that sums are added in one order, and no network."""
    alone = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "COLUMNS": "200"}
    return dict(os.environ) | alone | {"PYTHONPATH": str(ROOT)}


def run_command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    return subprocess.run(
        command_line(*arguments),
        capture_output=True,
        text=True,
        env=environment(),
        timeout=600,
        check=False,
    )


def run_here(*arguments: object) -> None:
    """The command line in this process, on one thread: quick, where all else is alike."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        app([str(argument) for argument in arguments], standalone_mode=False)
    finally:
        torch.set_num_threads(threads)


def started(
    *arguments: object, prepare: Callable[[], None] | None = None
) -> multiprocessing.process.BaseProcess:
    """The command line in a copy of this process, which spares a kill the seconds of imports.

    A copy cannot train once CUDA is in use: there it is a process of its own.
    """
    method = "spawn" if torch.cuda.is_available() else "fork"
    process: multiprocessing.process.BaseProcess = multiprocessing.get_context(method).Process(
        target=_run_quietly, args=(prepare, *arguments)
    )
    process.start()
    return process


def _run_quietly(prepare: Callable[[], None] | None, *arguments: object) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if prepare is not None:
        prepare()
    run_here(*arguments)


def kill_after(journal: Path, lines: int, *arguments: object) -> bytes:
    """Start the command line, SIGKILL it once the journal has so many lines; the journal then."""
    process = started(*arguments)
    deadline = time.monotonic() + 240
    try:
        while not journal.exists() or journal.read_bytes().count(b"\n") < lines:
            assert process.is_alive(), "ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.kill()
        process.join()
    assert process.exitcode == -signal.SIGKILL
    return journal.read_bytes()
