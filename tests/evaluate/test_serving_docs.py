"""Every command of docs/serving.md runs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.build import build_child
from tests.pico import ROOT, Pico, run_here

TEXT = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)
PYTHON = re.findall(r"^```python\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]


@pytest.fixture(scope="module")
def workplace(pico: Pico, pico_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the page names."""
    folder = tmp_path_factory.mktemp("serving")
    (folder / "parent").symlink_to(pico.parent)
    pairs = [("gqa_1", "mlp_256"), ("gqa_2", "no_op"), ("no_op", "mlp_512")]
    spec = ArchitectureSpec.of(pico.config.name, pairs)
    spec.write(folder / "spec.yaml")
    build_child(pico.parent, pico_library, spec, folder / "child", dtype="fp32")
    shutil.copytree(folder / "child", folder / "chat-child")
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    (folder / "chat-child" / "chat_template.jinja").write_text(template)
    return folder


SERVERS = [line for line in COMMANDS if line.startswith("puzzle-search serve")]


@pytest.mark.parametrize("command", [line for line in COMMANDS if line not in SERVERS])
def test_the_command_runs(
    command: str,
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "--out sweep" in command:
        pytest.importorskip("matplotlib", reason="pip install 'puzzle-search[plots]'")
    if "llama.cpp" in command:
        pytest.importorskip("gguf", reason="pip install 'puzzle-search[gguf]'")
    monkeypatch.chdir(workplace)
    name, *words = shlex.split(command)
    assert name == "puzzle-search"
    run_here(*words)
    assert capsys.readouterr().out


@pytest.mark.engines
def test_the_child_answers_in_llama_cpp(workplace: Path) -> None:
    pytest.importorskip("xllamacpp", reason="pip install xllamacpp")
    answers(workplace, "child-q8.gguf")


def test_the_child_answers_in_transformers(workplace: Path) -> None:
    answers(workplace, "child-transformers")


def test_the_endpoint_answers(workplace: Path) -> None:
    for package in ("fastapi", "openai"):
        pytest.importorskip(package, reason="pip install 'puzzle-search[serve,test]'")
    (command,) = SERVERS
    (code,) = (block for block in PYTHON if "openai" in block)
    words = [sys.executable, "-m", "puzzle_search", *shlex.split(command)[1:], "--port", "0"]
    with subprocess.Popen(words, cwd=workplace, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().split()[-1]
        code = code.replace("http://127.0.0.1:8000/v1", address)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
        server.terminate()
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert server.returncode == 0


def answers(workplace: Path, exported: str) -> None:
    """Run the page's code that reads an export."""
    (code,) = (block for block in PYTHON if exported in block)
    (command,) = (line for line in COMMANDS if exported in line)
    if not (workplace / exported).exists():
        run_here(*shlex.split(command.replace("child", f"{workplace}/child"))[1:])
    # The engine ends its process where it cannot go on.
    environment = os.environ | {"HF_HOME": str(workplace / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=workplace,
        capture_output=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
