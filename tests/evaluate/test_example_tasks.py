"""The tasks of the SmolLM2 example: made from text, found by the harness, and right."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from puzzle_search.checkpoint import load_decoder, load_tokenizer
from puzzle_search.evaluate import Tasks, TaskSettings
from tests.pico import ROOT, Pico

pytest.importorskip("lm_eval", reason="pip install 'puzzle-search[eval]'")
NOUNS = """\
  1 a line of the licence
00000001 03 n 02 initial 0 first_letter 0 000 | the first letter of a word; "his initials"
00000002 03 n 01 letter 0 000 | a written message
00000003 03 n 01 letter 1 000 | a symbol of writing
00000004 03 n 01 archive 0 000 | a depository of records (of a house)
00000005 03 n 01 graph 0 000 | a picture of numbers
00000006 03 n 01 context 0 000 | what stands around
""".splitlines()


@pytest.fixture(scope="module")
def made() -> ModuleType:
    file = ROOT / "examples" / "smollm2-135m" / "make_tasks.py"
    spec = importlib.util.spec_from_file_location("make_tasks", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_last_word_stands_before(made: ModuleType) -> None:
    before = " ".join(f"w{n}" for n in range(30))
    text = f"The token is read {before} and after that comes another token. No other word fits."
    [question] = made.last_words([text])
    assert question["word"] == "token"
    assert question["question"].endswith("comes another")


def test_a_noun_of_two_meanings_is_not_asked_for(made: ModuleType) -> None:
    known = {"initial", "letter", "archive", "graph", "context"}
    asked = {one["question"]: one for one in made.glosses(NOUNS, known)}
    assert asked.keys() == {
        f"The word {noun} means" for noun in ("initial", "archive", "graph", "context")
    }
    for question, right in (
        ("The word initial means", "the first letter of a word"),
        ("The word archive means", "a depository of records"),
    ):
        one = asked[question]
        assert one["choices"][one["answer"]] == right
        assert len(set(one["choices"])) == 4


def test_the_harness_finds_and_runs_them(made: ModuleType, pico: Pico, tmp_path: Path) -> None:
    sentence = "Each {} of the table holds the name of a file and its size in bytes, number {}."
    texts = [sentence.format(noun, n) for n, noun in enumerate(("row", "cell", "line", "part"))]
    choices = made.continuations(texts)
    assert [one["choices"][one["answer"]].split()[-1] for one in choices] == [
        "0.",
        "1.",
        "2.",
        "3.",
    ]
    passage = {"question": "a b " * 20 + "the", "word": "abcd"}
    made.write_task(tmp_path, "prose_last_word", [passage], made.WORD)
    made.write_task(tmp_path, "prose_continuation", choices, made.CHOICE)
    names = ("prose_last_word", "prose_continuation")
    figures = Tasks(TaskSettings(names=names, folder=tmp_path)).run(
        load_decoder(pico.parent), load_tokenizer(pico.parent)
    )
    assert [(one.task, one.metric) for one in figures] == [
        ("prose_last_word", "acc"), ("prose_continuation", "acc_norm")
    ]  # fmt: skip
    assert all(0 <= one.value <= 1 for one in figures)
    lines = (tmp_path / "prose_continuation.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["question"] for line in lines) == sorted(
        one["question"] for one in choices
    )
