"""Text that a GGUF file writes in llama.cpp, and what the file's header tells of it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puzzle_search.engines import LLAMA_CPP
from puzzle_search.engines.process import Worker, worker_command
from puzzle_search.errors import InputError
from puzzle_search.packages import installed

CHUNK_TOKENS = 2048  # of llama.cpp's server, as it comes
START_SECONDS, ANSWER_SECONDS = 600.0, 1800.0
_TEMPLATE_TOKENS = 256  # at most, around the messages


@dataclass(frozen=True, kw_only=True)
class GgufHeader:
    """What a file says of itself.

    Attributes:
        vocab_size: tokens that there are.
        context_tokens: that it attends to.
        chats: whether it has a chat template.
    """

    vocab_size: int
    context_tokens: int
    chats: bool

    @classmethod
    def read(cls, file: Path) -> GgufHeader:
        """Read it; no weights are read.

        Raises:
            InputError: the file is missing or damaged, or has no tokenizer.
            MissingDependencyError: `gguf` is absent.
        """
        with installed():
            from gguf import GGUFReader
        try:
            fields = GGUFReader(file).fields
            context = fields[f"{fields['general.architecture'].contents()}.context_length"]
            return cls(
                vocab_size=len(fields["tokenizer.ggml.tokens"].data),
                context_tokens=int(context.contents()),
                chats="tokenizer.chat_template" in fields,
            )
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{file} is missing, or no GGUF file with a tokenizer: {error}",
                remedy="write one with 'puzzle-search export MODEL --to llama.cpp'",
            ) from error


def generated_text(
    file: Path,
    prompt: str,
    *,
    chat: bool = False,
    system: str | None = None,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    python: str | None = None,
) -> Iterator[str]:
    """Pieces of a text's completion, or of a message's answer, by llama.cpp's own server.

    Args:
        file: a GGUF file.
        prompt: text to complete, or what the user says.
        chat: answer, by the file's chat template.
        system: message before the user's, if any.
        max_new_tokens: at most.
        temperature: 0 is greedy.
        top_p: nucleus sampling.
        seed: of sampling.
        python: interpreter that has xllamacpp; this one by default.

    Raises:
        InputError: the file is none, has no chat template, or llama.cpp cannot load or run it.
        MissingDependencyError: `gguf` or xllamacpp is absent.
    """
    header = GgufHeader.read(file)
    if chat and not header.chats:
        raise InputError(f"{file} has no chat template", remedy="complete a text instead")
    # No tokenizer makes more tokens of a text than it has bytes.
    given = len((prompt + (system or "")).encode())
    settings = {
        "max_batch": 1,
        "max_length": min(given + _TEMPLATE_TOKENS + max_new_tokens, header.context_tokens),
        "chunk_tokens": CHUNK_TOKENS,
    }
    body = {
        "max_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "seed": seed,
        "top_k": 0, "min_p": 0.0,
    }  # fmt: skip
    asked: dict[str, Any]
    if chat:
        said = [("system", system), ("user", prompt)]
        messages = [{"role": role, "content": text} for role, text in said if text is not None]
        path, asked = "/v1/chat/completions", {"messages": messages}
    else:
        path, asked = "/v1/completions", {"prompt": prompt}
    with (
        tempfile.TemporaryDirectory() as folder,
        Worker(
            LLAMA_CPP,
            worker_command(LLAMA_CPP, python),
            file,
            settings,
            log=Path(folder) / "worker.log",
            start_seconds=START_SECONDS,
            answer_seconds=ANSWER_SECONDS,
        ) as worker,
    ):
        yield from worker.write(path, body | asked)
