"""Load a model, listen, and end without losing an answer."""

from __future__ import annotations

import signal
import socket
from dataclasses import dataclass
from pathlib import Path

import torch
import uvicorn
from starlette.types import ASGIApp
from transformers import PreTrainedTokenizerBase

from puzzle_search.arch import kv_values_per_token
from puzzle_search.checkpoint import load_tokenizer, stop_tokens
from puzzle_search.errors import InputError
from puzzle_search.runtime import Engine, ServingDecoder, precision_on
from puzzle_search.serve.worker import Worker

_CALIBRATION_TOKENS = 512  # random ones, on which the scales of FP8 inputs are found


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """How much a server takes on.

    Attributes:
        dtype: serving precision.
        max_model_len: tokens of a prompt and its output.
        max_num_seqs: requests that run at once; as many slots of KV cache are kept.
        max_waiting: requests that may wait for a slot.
    """

    dtype: str
    max_model_len: int | None
    max_num_seqs: int
    max_waiting: int


_LONGEST_BY_DEFAULT = 4096


def open_worker(
    model: str | Path, settings: ServerSettings, device: torch.device, *, memory_limit_bytes: int
) -> tuple[Worker, PreTrainedTokenizerBase]:
    """Load a checkpoint to serve; the worker has not begun.

    Raises:
        InputError: the checkpoint is not whole, or the cache does not fit beside it.
    """
    tokenizer = load_tokenizer(model)
    decoder = ServingDecoder.from_checkpoint(model, precision_on(settings.dtype, device), device)
    config = decoder.config
    length = settings.max_model_len or min(config.max_context, _LONGEST_BY_DEFAULT)
    values = sum(
        kv_values_per_token(block.attention_variant, config) for block in decoder.spec.blocks
    )
    cache = values * decoder.precision.kv.itemsize * length * settings.max_num_seqs
    if decoder.weight_bytes + cache > memory_limit_bytes:
        raise InputError(
            f"weights of {decoder.weight_bytes / 1e9:.1f} GB and {settings.max_num_seqs} slots of "
            f"{length} tokens ({cache / 1e9:.1f} GB) exceed {memory_limit_bytes / 1e9:.1f} GB",
            remedy="lower --max-num-seqs or --max-model-len",
        )
    engine = Engine(decoder, slots=settings.max_num_seqs, max_length=length)
    some = torch.randint(
        config.vocab_size,
        (1, min(_CALIBRATION_TOKENS, length - 1)),
        generator=torch.Generator().manual_seed(0),
    )
    engine.calibrate(some)
    worker = Worker(
        engine,
        tokenizer.backend_tokenizer,
        end_tokens=stop_tokens(model, tokenizer),
        max_waiting=settings.max_waiting,
    )
    return worker, tokenizer


def listen(host: str, port: int) -> socket.socket:
    """A socket that clients can connect to; port 0 is any free one.

    Raises:
        InputError: the address is not this machine's, or the port is taken.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise InputError(
            f"cannot listen on {host}, port {port}: {error.strerror}",
            remedy="name another --port, or an address of this machine with --host",
        ) from error


def run_server(app: ASGIApp, listening: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C: then nothing new is taken, and what runs is answered."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="info"))
    # uvicorn takes these signals over, drains, and raises them again for whoever had them before.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    server.run(sockets=[listening])
