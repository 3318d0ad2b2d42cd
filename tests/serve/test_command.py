"""``puzzle-search serve`` as a process: it answers, drains, and starts other engines."""

from __future__ import annotations

import http.client
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="pip install 'puzzle-search[serve]'")

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.errors import InputError, MissingDependencyError
from puzzle_search.export import plan_export, write_export
from tests.export.engine_process import (
    config_of,
    write_random_child,
    write_tokenizer,
)
from tests.pico import run_here
from tests.serve.pico_server import Alone, write_chat_child

SERVE = [sys.executable, "-m", "puzzle_search", "serve"]


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_child(tmp_path_factory.mktemp("serve"))


def test_sigterm_lets_a_stream_come_to_its_end(child: Path) -> None:
    process = subprocess.Popen(
        [*SERVE, str(child), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("child on http://127.0.0.1:")
    port = int(line.rpartition(":")[2].partition("/")[0])
    alone = Alone(child)
    connection = http.client.HTTPConnection("127.0.0.1", port)
    asked = {"model": "child", "prompt": "ab cd", "max_tokens": 200, "temperature": 0}
    connection.request(
        "POST",
        "/v1/completions",
        json.dumps(asked | {"stream": True}),
        {"Content-Type": "application/json"},
    )
    answer = connection.getresponse()
    text = json.loads(answer.readline().removeprefix(b"data: "))["choices"][0]["text"]
    process.send_signal(signal.SIGTERM)
    events = [one for one in answer.read().decode().split("\n\n") if one.strip()]
    assert events.pop() == "data: [DONE]"
    for event in events:
        text += json.loads(event.strip().removeprefix("data: "))["choices"][0]["text"]
    assert text == alone.text(alone.ids("ab cd"), 200)
    assert process.wait() == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_a_port_that_is_taken_is_told_before_the_model_is_read(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1, port {port}"):
            run_here("serve", str(tmp_path / "nothing"), "--port", str(port))


def test_a_cache_that_does_not_fit_is_told(child: Path) -> None:
    with pytest.raises(InputError, match=r"slots of 256 tokens .* exceed") as caught:
        run_here("serve", str(child), "--port", "0", "--max-num-seqs", str(10**9))
    assert "--max-num-seqs" in caught.value.remedy


@pytest.fixture
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs of the engines' names, which print what they were given."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("llama-server", "vllm"):
        program = folder / name
        program.write_text('#!/bin/sh\necho "$@"\necho "$VLLM_API_KEY $LLAMA_API_KEY"\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return folder


@pytest.fixture
def start(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., list[str]]:
    """What a started engine prints, behind the command that started it."""

    def instead_of_this_process(_: str, command: list[str], environment: dict[str, str]) -> None:
        subprocess.run(command, env=environment, check=True)
        raise SystemExit(0)

    def run(*words: object) -> list[str]:
        with pytest.raises(SystemExit):
            run_here("serve", *words)
        return capfd.readouterr().out.splitlines()

    monkeypatch.setattr(os, "execve", instead_of_this_process)
    return run


def test_vllm_is_started_on_a_folder_that_it_computes(
    engines: Path, start: Callable[..., list[str]], tmp_path: Path
) -> None:
    spec = ArchitectureSpec.of("pico", [("gqa_2", "mlp_256"), ("gqa_1", "linear")])
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    child = write_random_child(tmp_path / "child", config_of(2), spec, tokenizer)
    with pytest.raises(InputError, match="does not compute") as caught:
        run_here("serve", str(child), "--engine", "vllm")
    assert "--to vllm" in caught.value.remedy
    folder = tmp_path / "child-vllm"
    write_export(plan_export(child, "vllm"), child, folder)
    command, flags, keys = start(
        folder, "--engine", "vllm", "--api-key", "k3y", "--max-model-len", "64"
    )
    assert shlex.split(command) == [str(engines / "vllm"), *shlex.split(flags)]
    assert flags == (
        f"serve {folder} --host 127.0.0.1 --port 8000 --served-model-name child-vllm "
        "--trust-remote-code --max-num-seqs 16 --max-model-len 64"
    )
    assert keys == "k3y k3y"
    assert "k3y" not in command


def test_llama_cpp_is_started_on_a_file(
    engines: Path, child: Path, start: Callable[..., list[str]], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="no folder") as caught:
        run_here("serve", str(child), "--engine", "llama.cpp")
    assert "--to llama.cpp" in caught.value.remedy
    file = tmp_path / "child.gguf"
    file.touch()
    command, flags, _ = start(
        file, "--engine", "llama.cpp", "--max-model-len", "64", "--max-num-seqs", "4"
    )
    assert shlex.split(command) == [str(engines / "llama-server"), *shlex.split(flags)]
    assert flags == (
        f"--model {file} --host 127.0.0.1 --port 8000 --alias child.gguf "
        "--parallel 4 --ctx-size 256"
    )


def test_an_engine_that_is_absent_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "child.gguf").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="llama-server is not installed"):
        run_here("serve", str(tmp_path / "child.gguf"), "--engine", "llama.cpp")
