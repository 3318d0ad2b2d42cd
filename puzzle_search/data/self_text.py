"""Text that a parent writes itself, from varied prompts: a source where no data set is at hand.

Half of it is begun by a random token, half answers questions where the model chats. It is written
once and kept in a folder, whose ``self-text.yaml`` says by what it was made and its hash.
"""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import PreTrainedTokenizerBase

from puzzle_search import __version__
from puzzle_search.checkpoint import load_tokenizer, stop_tokens
from puzzle_search.data.documents import SELF, is_self
from puzzle_search.data.tokens import chat_tokens
from puzzle_search.errors import InputError
from puzzle_search.files import (
    Journal,
    check_own_folder,
    file_hash,
    read_yaml,
    resume_journal,
    value_hash,
    write_text,
)
from puzzle_search.model import Sampling
from puzzle_search.progress import Progress
from puzzle_search.runtime import Engine, Request, Scheduler, ServingDecoder, precision_on

FORMAT = "puzzle-search.self-text/1"
TOKENS = 262_144  # where none are named
SIDECAR, _TEXT, _JOURNAL = "self-text.yaml", "text.jsonl", "journal"
_SLOTS, _LONGEST, _TEMPERATURE = 32, 320, 0.8

_TASKS = (
    "Explain {} to a beginner.", "Write a short story about {}.", "What should I know about {}?",
    "List five facts about {}.", "Write an e-mail to a colleague about {}.", "Why does {} matter?",
    "Give step-by-step advice on {}.", "Write a dialogue between two friends about {}.",
    "Summarise the history of {}.", "What are common mistakes with {}?",
    "Compare {} with something similar.", "Write a Python function that has to do with {}.",
    "Ask me three questions about {} and answer them.", "Describe {} in one paragraph.",
)  # fmt: skip
_TOPICS = (
    "photosynthesis", "the French Revolution", "sorting a list", "a lost dog", "electric cars",
    "bread baking", "prime numbers", "the moon", "job interviews", "reading files", "volcanoes",
    "a family dinner", "the water cycle", "chess", "databases", "learning a language", "gravity",
    "medieval castles", "saving money", "regular expressions", "bees", "the human heart", "trains",
    "jazz", "fractions", "the Roman Empire", "planning a trip", "vaccines", "a stormy night",
    "unit tests", "democracy", "rivers", "mobile phones", "friendship", "dinosaurs", "statistics",
    "gardening", "the printing press", "sleep", "networks", "earthquakes", "painting", "sharks",
    "a birthday party", "solar power", "grammar", "exercise", "the Silk Road", "dates and times",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Written:
    """A text, by the number that decides its prompt and its sampling."""

    number: int
    tokens: int
    record: dict[str, Any]


def find_source(source: str, parent: str | Path, *, device: torch.device | str = "cpu") -> str:
    """A source as `load_documents` takes it; of ``self`` the folder in which it is kept.

    That is ``runs/self-text/KEY``, by a key of the parent and the number of tokens; it is written
    if it is not there.

    Raises:
        InputError: ``self`` asks for a number of tokens that is none, or the parent is damaged.
    """
    if not is_self(source):
        return source
    folder = Path("runs") / "self-text" / value_hash(_made_from(parent, self_tokens(source)))
    return str(write_self_text(source, parent, folder, device=device))


def self_tokens(source: str) -> int:
    """How many tokens ``self`` or ``self:TOKENS`` asks for.

    Raises:
        InputError: it is no number.
    """
    _, colon, tokens = source.partition(":")
    if colon and not (tokens.isdecimal() and int(tokens)):
        raise InputError(
            f"data source {source!r}: {tokens!r} is no number of tokens",
            remedy=f"write {SELF}, or {SELF}:500000",
        )
    return int(tokens) if colon else TOKENS


def write_self_text(
    source: str, parent: str | Path, folder: Path, *, device: torch.device | str = "cpu"
) -> Path:
    """Let a parent write text into a folder, unless it is there; a killed one goes on.

    Args:
        source: ``self`` or ``self:TOKENS``.
        parent: its checkpoint folder.
        folder: of this text alone.
        device: what computes.

    Returns:
        The folder, a source for `load_documents`.

    Raises:
        InputError: the parent is damaged, or the folder holds other files or a spoilt text.
    """
    tokens = self_tokens(source)
    made_from = _made_from(parent, tokens)
    check_own_folder(folder, (SIDECAR, _JOURNAL), "a self-written text")
    text, sidecar = folder / _TEXT, folder / SIDECAR
    if sidecar.exists():
        kept = read_yaml(sidecar, format=FORMAT)
        if kept.get("made_from") != made_from or kept.get("sha256") != file_hash(text):
            raise InputError(
                f"{folder} holds text of another parent, or it has been changed",
                remedy="remove it, and it is written anew",
            )
        return folder
    journal = Journal(folder / _JOURNAL)
    with journal.held():
        entries: list[_Written] = resume_journal(journal, made_from, _Written)
        _write_more(entries, Path(parent), tokens, journal, torch.device(device))
    entries.sort(key=lambda entry: entry.number)
    write_text(text, "".join(json.dumps(entry.record) + "\n" for entry in entries))
    told = {
        "format": FORMAT,
        "package_version": __version__,
        "made_from": made_from,
        "texts": len(entries),
        "sha256": file_hash(text),
    }
    write_text(sidecar, yaml.safe_dump(told, sort_keys=False))
    journal.path.unlink()
    return folder


def _made_from(parent: str | Path, tokens: int) -> dict[str, Any]:
    files = sorted([*Path(parent).glob("*.safetensors"), *Path(parent).glob("tokenizer*")])
    return {
        "parent": value_hash([[file.name, file_hash(file)] for file in files]),
        "tokens": tokens,
        "temperature": _TEMPERATURE,
    }


def _write_more(
    entries: list[_Written], parent: Path, tokens: int, journal: Journal, device: torch.device
) -> None:
    """Add texts to a list and a journal until there are enough."""
    written, done = sum(entry.tokens for entry in entries), {entry.number for entry in entries}
    if written >= tokens:
        return
    tokenizer, stops = load_tokenizer(parent), stop_tokens(parent, load_tokenizer(parent))
    precision = precision_on("fp32" if device.type == "cpu" else "bf16", device)
    decoder = ServingDecoder.from_checkpoint(parent, precision, device)
    length = min(_LONGEST, decoder.config.max_context)
    scheduler = Scheduler(Engine(decoder, slots=_SLOTS, max_length=length))
    open_requests: dict[Request, tuple[int, str | None]] = {}
    numbers = (number for number in itertools.count() if number not in done)
    with Progress("self-written text").over(tokens // length + 1, written // length) as advance:
        while written < tokens:
            while len(open_requests) < _SLOTS:
                number = next(numbers)
                ids, message = _prompt(number, tokenizer)
                request = Request(
                    ids_L=torch.tensor(ids),
                    output_len=max(1, length - len(ids)),
                    stop_tokens=stops,
                    sampling=Sampling(temperature=_TEMPERATURE, seed=number),
                )
                open_requests[request] = number, message
                scheduler.submit(request)
            for served in scheduler.turn():
                number, message = open_requests.pop(served.request)
                ids = [*(served.request.ids_L.tolist() if message is None else []), *served.tokens]
                text = str(tokenizer.decode(ids, skip_special_tokens=True))
                count = len(served.request.ids_L) + len(served.tokens)
                entries.append(_Written(number=number, tokens=count, record=_record(message, text)))
                journal.append(asdict(entries[-1]))
                before, written = written, written + count
                for _ in range(before // length, min(written, tokens) // length):
                    advance(f"{written:,} tokens")


def _prompt(number: int, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], str | None]:
    """Token ids of a prompt, and what it asks where it is a message."""
    chance = random.Random(number)
    if tokenizer.chat_template and number % 2:
        message = chance.choice(_TASKS).format(chance.choice(_TOPICS))
        return chat_tokens(message, tokenizer), message
    special = set(tokenizer.all_special_ids)
    begun = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    while (first := chance.randrange(len(tokenizer))) in special:
        pass
    return [*begun, first], None


def _record(message: str | None, text: str) -> dict[str, Any]:
    if message is None:
        return {"text": text}
    said = (("user", message), ("assistant", text))
    return {"messages": [{"role": role, "content": content} for role, content in said]}
