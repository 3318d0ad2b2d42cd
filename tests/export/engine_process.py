"""An engine's worker process, and children to give it."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from puzzle_search.arch import ArchitectureSpec, ParentConfig
from puzzle_search.checkpoint import load_decoder, outside_names, write_child
from puzzle_search.checkpoint.names import checkpoint_name, subblock_shapes
from tests.model.pico import LLAMA, draw

VOCABULARY = 320  # more than the tokenizer has
PROMPT = [17, 250, 3, 99, 142, 8, 201]
TOKENS = 32
END = 0


def write_tokenizer(folder: Path) -> Path:
    """Byte-level BPE of ASCII: the engine's server reports no token that is a broken character."""
    letters = [chr(code) for code in range(33, 127)]
    pairs = list(itertools.product("abcdefghijklmnopqrst", repeat=2))[: VOCABULARY - 120]
    tokens = ["<end>", "\u0120", "\u010a", *letters, *map("".join, pairs)]
    model = models.BPE(vocab={text: number for number, text in enumerate(tokens)}, merges=pairs)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    wrapped.save_pretrained(folder)
    return folder


class EngineDied(Exception):
    """The worker ended instead of answering."""


class EngineProcess:
    """A worker that answers one line for each line; started again when it has died."""

    def __init__(self, worker: Path, python: str = sys.executable, **env: str) -> None:
        self._command = [python, str(worker)]
        self._env = os.environ | env
        self._process: subprocess.Popen[str] | None = None

    def ask(self, **question: Any) -> dict[str, Any]:
        """The worker's answer.

        Raises:
            EngineDied: there is none.
        """
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                self._command,
                env=self._env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(question) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise EngineDied(f"exit status {process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer

    def close(self) -> None:
        """End the worker."""
        if self._process is not None:
            self._process.communicate()


def config_of(layers: int, **changes: Any) -> ParentConfig:
    """A pico parent with this package's test vocabulary."""
    raw = LLAMA | {"vocab_size": VOCABULARY, "num_hidden_layers": layers}
    return ParentConfig.from_dict(raw | {"max_position_embeddings": 256} | changes, name="pico")


def write_random_child(
    folder: Path, config: ParentConfig, spec: ArchitectureSpec, tokenizer: Path, *, seed: int = 0
) -> Path:
    """A child with random weights of which every part matters."""
    generator = torch.Generator().manual_seed(seed)
    shapes = dict(outside_names(config))
    for number, block in enumerate(spec.blocks):
        for subblock, variant in (
            ("attention", block.attention_variant),
            ("ffn", block.ffn_variant),
        ):
            for local, shape in subblock_shapes(variant, config).items():
                shapes[checkpoint_name(subblock, number, local)] = shape
    tensors = ((name, draw(shape, name, generator)) for name, shape in shapes.items())
    return write_child(folder, config, spec, tensors, dtype="fp32", tokenizer_from=tokenizer)


def check_against_reference(model: Path, answer: dict[str, Any], *, tolerance: float) -> None:
    """Hold greedy tokens and all their log-probabilities against this package in float64."""
    ids = torch.tensor([PROMPT + answer["ids"]])
    with torch.inference_mode():
        logits = load_decoder(model, dtype=torch.float64)(ids)[0, len(PROMPT) - 1 : -1]
    expected = logits.log_softmax(-1)
    # Engines are asked to go on past the end.
    greedy = logits.index_fill(-1, torch.tensor([END]), -torch.inf).argmax(-1)
    assert answer["ids"] == greedy.tolist()
    assert len(answer["ids"]) == TOKENS
    error = (expected - torch.tensor(answer["logprobs"], dtype=torch.float64)).abs().max()
    assert float(error) < tolerance
