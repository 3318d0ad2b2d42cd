"""Tasks from local files: accuracy by transformers' logits, likelihoods by lm-eval's own model."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from puzzle_search.checkpoint import load_decoder, load_tokenizer
from puzzle_search.errors import InputError, MissingDependencyError
from puzzle_search.evaluate import Tasks, TaskSettings, evaluate_children
from tests.pico import Pico, run_here

QUESTIONS = 40
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
  cache_dir: {cache}
test_split: test
{body}
metadata:
  version: 1.0
"""
CHOICE = """\
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
TEXT = """\
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list:
  - {metric: byte_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
"""
UNSAFE = TEXT + "unsafe_code: true\n"


@dataclass(frozen=True)
class Harness:
    folder: Path
    documents: list[dict[str, Any]]

    def tasks(self, *names: str, **settings: Any) -> Tasks:
        return Tasks(TaskSettings(names=names, folder=self.folder, **settings))


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Harness:
    pytest.importorskip("lm_eval", reason="pip install 'puzzle-search[eval]'")
    folder = tmp_path_factory.mktemp("tasks")
    chance = random.Random(0)
    words = ["able", "bird", "code", "door", "ever", "fish", "gold", "hand"]
    documents = [
        {
            "question": " ".join(chance.choices(words, k=chance.randint(2, 9))),
            "choices": [" ".join(chance.choices(words, k=2)) for _ in range(3)],
            "answer": chance.randrange(3),
        }
        for _ in range(QUESTIONS)
    ]
    data = folder / "documents.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents))
    for name, body in (("pico_choice", CHOICE), ("pico_text", TEXT), ("pico_unsafe", UNSAFE)):
        text = TASK.format(name=name, data=data, cache=folder / "cache", body=body)
        (folder / f"{name}.yaml").write_text(text)
    return Harness(folder=folder, documents=documents)


def log_likelihood(pico: Pico, model: Any, context: str, continuation: str) -> float:
    """One text at a time, from transformers' logits, in float64."""
    tokenizer = load_tokenizer(pico.parent)
    whole = tokenizer.encode(context + continuation)
    read = len(tokenizer.encode(context))
    with torch.no_grad():
        logits = model(torch.tensor([whole])).logits[0].double().numpy()
    logits = logits - logits.max(-1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return float(sum(log_p[at - 1, whole[at]] for at in range(read, len(whole))))


@pytest.mark.parametrize("batch_size", [1, 7])
def test_accuracy_is_that_of_transformers(pico: Pico, harness: Harness, batch_size: int) -> None:
    model = AutoModelForCausalLM.from_pretrained(pico.parent)
    right = [
        np.argmax([log_likelihood(pico, model, d["question"], f" {c}") for c in d["choices"]])
        == d["answer"]
        for d in harness.documents
    ]
    tasks = harness.tasks("pico_choice", batch_size=batch_size)
    (figure,) = tasks.run(load_decoder(pico.parent), load_tokenizer(pico.parent))
    assert (figure.task, figure.metric, figure.higher_is_better) == ("pico_choice", "acc", True)
    assert figure.value == pytest.approx(np.mean(right))
    assert figure.stderr == pytest.approx(np.std(right, ddof=1) / np.sqrt(QUESTIONS))
    assert 0 < figure.value < 1


def asked(*arguments: object) -> Any:
    """A request as the harness makes it."""
    return SimpleNamespace(args=arguments)


def models(pico: Pico) -> tuple[Any, Any]:
    """The same parent behind this package's adapter and behind the harness's own."""
    pytest.importorskip("accelerate", reason="the harness's own model needs accelerate")
    from lm_eval.models.huggingface import HFLM

    from puzzle_search.evaluate.harness_model import DecoderLM

    tokenizer = load_tokenizer(pico.parent)
    theirs = HFLM(
        pretrained=AutoModelForCausalLM.from_pretrained(pico.parent),
        tokenizer=load_tokenizer(pico.parent),
        device="cpu",
        batch_size=3,
    )
    return DecoderLM(load_decoder(pico.parent), tokenizer, 3), theirs


def test_likelihoods_are_those_of_the_harness(pico: Pico, harness: Harness) -> None:
    ours, theirs = models(pico)
    long = " ".join(d["question"] for d in harness.documents)
    assert len(ours.tok_encode(long)) > 2 * 256  # the parent's context
    pairs = [
        *((d["question"], f" {c}") for d in harness.documents[:8] for c in d["choices"]),
        ("", "bird"),
        ("ends with a space ", "door"),
        ("<|end|>code", " fish"),
        (long, " gold"),
    ]
    found = ours.loglikelihood([asked(*pair) for pair in pairs])
    expected = theirs.loglikelihood([asked(*pair) for pair in pairs])
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [value for value, _ in found] == pytest.approx([v for v, _ in expected], abs=1e-4)
    texts = [asked(long), asked("short"), asked(long[:900])]
    expected = theirs.loglikelihood_rolling(texts)
    assert ours.loglikelihood_rolling(texts) == pytest.approx(expected, rel=1e-5)


def test_a_greedy_continuation_is_told(pico: Pico, harness: Harness) -> None:
    ours, _ = models(pico)
    model = AutoModelForCausalLM.from_pretrained(pico.parent)
    tokenizer = load_tokenizer(pico.parent)
    prompt = tokenizer.encode("bird code")
    with torch.no_grad():
        best = int(model(torch.tensor([prompt])).logits[0, -1].argmax())
    scored = ours._loglikelihood_tokens([(None, prompt, [best]), (None, prompt, [best ^ 1])])
    assert [greedy for _, greedy in scored] == [True, False]


def test_completions_are_those_of_the_harness(pico: Pico, harness: Harness) -> None:
    ours, theirs = models(pico)
    settings = [
        {"until": ["e"], "max_gen_toks": 20},
        {"until": [" ", "\n"], "max_gen_toks": 5, "do_sample": False},
        {"max_gen_toks": 3},
    ]
    requests = [
        asked(document["question"], settings[index % 3])
        for index, document in enumerate(harness.documents[:12])
    ]
    found = ours.generate_until(requests)
    assert found == theirs.generate_until(requests)
    assert len(set(found)) > 3
    assert not any("e" in text for text in found[::3])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 4}, "num_beams for generation, which is not known"),
        ({"max_gen_toks": 256}, "more tokens than the 256"),
    ],
)
def test_generation_that_cannot_be_done(
    pico: Pico, harness: Harness, settings: dict[str, Any], message: str
) -> None:
    ours, _ = models(pico)
    with pytest.raises(InputError, match=message):
        ours.generate_until([asked("bird", settings)])


def test_tasks_of_parent_and_children(pico: Pico, harness: Harness, tmp_path: Path) -> None:
    table = tmp_path / "table.md"
    run_here(
        "evaluate", pico.parent, pico.parent, "--data", pico.corpus, "--tokens", 512,
        "--length", 32, "--tasks", "pico_choice,pico_text", "--task-dir", harness.folder,
        "--limit", 10, "--markdown", table,
    )  # fmt: skip
    text = table.read_text()
    (choice,) = [line for line in text.splitlines() if line.startswith("| pico_choice acc |")]
    assert choice.endswith("| 100.0% |")
    assert "| pico_text byte_perplexity |" in text
    assert "only the first 10 documents" in text
    tasks = harness.tasks("pico_choice")
    ids = pico.tokens("test", 512)
    found = evaluate_children(pico.parent, [pico.parent, pico.parent], ids, tasks=tasks)
    assert len(found.tasks) == 3
    assert found.tasks[0] == found.tasks[1] == found.tasks[2]


def test_tasks_that_cannot_be_run(harness: Harness, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="runs code that a model wrote"):
        harness.tasks("pico_unsafe")
    with pytest.raises(InputError, match="is not a folder"):
        Tasks(TaskSettings(names=("a",), folder=tmp_path / "nowhere"))


@pytest.mark.slow
def test_an_unknown_task_is_told_with_those_like_it(harness: Harness) -> None:
    with pytest.raises(InputError, match=r"'pico_choise' is not known; .*pico_choice"):
        harness.tasks("pico_choise")


def test_without_the_harness_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(MissingDependencyError, match=r"puzzle-search\[eval\]"):
        Tasks(TaskSettings(names=("hellaswag",)))


def test_options_of_tasks_need_tasks(pico: Pico) -> None:
    with pytest.raises(InputError, match="are of tasks"):
        run_here("evaluate", pico.parent, pico.parent, "--data", pico.corpus, "--limit", 3)
