"""Serving engines that are installed here, run as worker processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class InstalledEngine:
    """An engine, and the script that runs it.

    The script is run by a Python interpreter that has the engine, which may be another than this
    package's: ``python worker.py MODEL SETTINGS``. It says in JSON lines on standard output that it
    is ready and what it runs on, and answers requests from standard input, see `Worker`.

    Attributes:
        name: as people call it.
        package: what ``pip install`` takes.
        worker: the script.
    """

    name: str
    package: str
    worker: Path


def _worker(name: str) -> Path:
    return Path(__file__).with_name(f"{name}_worker.py")


LLAMA_CPP = InstalledEngine(name="llama.cpp", package="xllamacpp", worker=_worker("llama_cpp"))
VLLM = InstalledEngine(name="vLLM", package="vllm>=0.10", worker=_worker("vllm"))
