"""Text that a GGUF file writes in llama.cpp, held against transformers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from puzzle_search.checkpoint import load_tokenizer
from puzzle_search.engines.gguf_text import GgufHeader, generated_text
from puzzle_search.errors import InputError
from puzzle_search.export import plan_export, write_export
from tests.export.engine_process import VOCABULARY, write_tokenizer
from tests.model.pico import write_parent
from tests.pico import run_command, run_here

pytest.importorskip("gguf", reason="pip install gguf")
TEMPLATE = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of random weights, with a tokenizer of ASCII and a chat template."""
    folder = tmp_path_factory.mktemp("text")
    write_parent(folder / "parent", vocab_size=VOCABULARY)
    shutil.copytree(write_tokenizer(folder / "tokenizer"), folder / "parent", dirs_exist_ok=True)
    (folder / "parent" / "chat_template.jinja").write_text(TEMPLATE)
    return folder / "parent"


@pytest.fixture(scope="module")
def file(parent: Path) -> Path:
    file = parent.with_name("model.gguf")
    write_export(plan_export(parent, "llama.cpp", dtype="f32"), parent, file)
    return file


def greedy(parent: Path, prompt: str, tokens: int) -> str:
    tokenizer = load_tokenizer(parent)
    ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)])
    model = LlamaForCausalLM.from_pretrained(parent, dtype=torch.float32)
    given = model.generate(ids, do_sample=False, max_new_tokens=tokens, eos_token_id=0)
    return str(tokenizer.decode(given[0, ids.shape[1] :], skip_special_tokens=True))


@pytest.mark.engines
def test_text_and_answers_are_those_of_transformers(
    parent: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("xllamacpp", reason="pip install xllamacpp")
    assert "".join(generated_text(file, "a bird in", max_new_tokens=12)) == greedy(
        parent, "a bird in", 12
    )
    run_here("generate", file, "--chat", "--system", "be", "--prompt", "hi", "--max-new-tokens", 9)
    # llama.cpp trims what an answer begins and ends with.
    said = greedy(parent, "system: be\nuser: hi\nassistant:", 9)
    assert capsys.readouterr().out.strip() == said.strip()
    drawn = ["".join(generated_text(file, "a", max_new_tokens=20, temperature=2.0, seed=s))
             for s in (1, 1, 2)]  # fmt: skip
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.engines
def test_what_the_server_refuses_is_told(file: Path) -> None:
    pytest.importorskip("xllamacpp", reason="pip install xllamacpp")
    with pytest.raises(InputError, match=r"llama\.cpp refuses: .*context"):
        list(generated_text(file, "a" * 5000, max_new_tokens=4))


def test_the_header_tells_the_sizes(file: Path) -> None:
    assert GgufHeader.read(file) == GgufHeader(
        vocab_size=VOCABULARY, context_tokens=128, chats=True
    )


def test_bad_input_is_refused(file: Path, parent: Path, tmp_path: Path) -> None:
    silent = tmp_path / "silent"
    shutil.copytree(parent, silent)
    (silent / "chat_template.jinja").unlink()
    write_export(plan_export(silent, "llama.cpp"), silent, tmp_path / "silent.gguf")
    with pytest.raises(InputError, match="has no chat template"):
        list(generated_text(tmp_path / "silent.gguf", "hi", chat=True, max_new_tokens=4))
    for name, options in {"missing.gguf": [], file.name: ["--dtype", "bf16"]}.items():
        ended = run_command("generate", file.with_name(name), "--prompt", "a", *options)
        assert ended.returncode == 2
        assert ended.stderr.count("error: ") == 1
        assert "Traceback" not in ended.stderr
