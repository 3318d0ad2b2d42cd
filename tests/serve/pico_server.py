"""A server of a pico child in this process, and what the child answers alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import uvicorn

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.checkpoint import load_decoder, load_tokenizer, stop_tokens
from puzzle_search.model import generate
from puzzle_search.serve.app import ServedName, make_app
from puzzle_search.serve.server import ServerSettings, listen, open_worker
from puzzle_search.serve.worker import Worker
from tests.export.engine_process import config_of, write_random_child, write_tokenizer

CPU = torch.device("cpu")
TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
PAIRS = [("gqa_2", "mlp_256"), ("no_op", "mlp_512"), ("gqa_1", "no_op"), ("linear", "linear")]
MAX_LENGTH, SLOTS, MAX_WAITING = 128, 8, 120


def write_chat_child(folder: Path) -> Path:
    tokenizer = write_tokenizer(folder / "tokenizer")
    (tokenizer / "chat_template.jinja").write_text(TEMPLATE)
    spec = ArchitectureSpec.of("pico", PAIRS)
    return write_random_child(folder / "child", config_of(len(PAIRS)), spec, tokenizer)


class Alone:
    """The child's greedy answers, by the reference decoder, one at a time."""

    def __init__(self, child: Path) -> None:
        self.tokenizer: Any = load_tokenizer(child)
        self._model = load_decoder(child)
        self._ends = stop_tokens(child, self.tokenizer)

    def ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def tokens(self, prompt: list[int], count: int) -> list[int]:
        made = generate(
            self._model, torch.tensor([prompt]), max_new_tokens=count, stop_tokens=self._ends
        )
        return [int(token) for token in made]

    def text(self, prompt: list[int], count: int) -> str:
        whole: str = self.tokenizer.decode(
            prompt + self.tokens(prompt, count), skip_special_tokens=True
        )
        before: str = self.tokenizer.decode(prompt, skip_special_tokens=True)
        return whole[len(before) :]


@contextmanager
def served(child: Path, *, api_key: str | None = None) -> Iterator[tuple[str, Worker]]:
    """A server on a free port: its address, and what computes there."""
    settings = ServerSettings(
        dtype="fp32",
        max_model_len=MAX_LENGTH,
        max_num_seqs=SLOTS,
        max_waiting=MAX_WAITING,
    )
    worker, tokenizer = open_worker(child, settings, CPU, memory_limit_bytes=10**9)
    app = make_app(worker, tokenizer, ServedName(name="pico"), api_key=api_key)
    listening = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    host, port = listening.getsockname()
    try:
        yield f"http://{host}:{port}", worker
    finally:
        server.should_exit = True
        thread.join()
