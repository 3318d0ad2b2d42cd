"""Write three lm-eval tasks into ``tasks``: ``python make_tasks.py [/usr/share/wordnet]``.

The data is prose of the running Python's documentation, of the test split of ``text``, which no
library, score or distillation on that folder sees; and, where WordNet's files are at hand (Debian's
``wordnet-base``), the glosses of nouns. Chance is 25% where there are four choices, else near 0.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from puzzle_search.data import load_documents

HERE = Path(__file__).parent
MOST = 400  # questions of a task
CHOICES = 4
_PASSAGE_WORDS, _SENTENCE_WORDS = (25, 80), (14, 40)

Question = dict[str, Any]
CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True}],
}
WORD = {
    "output_type": "loglikelihood",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{' ' + word}}",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


def main() -> None:
    """Write what can be written."""
    documents = load_documents(HERE / "text" / "prose.jsonl", "test")
    texts = [document.text for document in documents]
    out = HERE / "tasks"
    write_task(out, "prose_last_word", list(last_words(texts)), WORD)
    write_task(out, "prose_continuation", continuations(texts), CHOICE)
    if len(sys.argv) > 1:
        known = {word for d in load_documents(HERE / "text") for word in words(d.text)}
        lines = Path(sys.argv[1], "data.noun").read_text(encoding="utf-8").splitlines()
        write_task(out, "wordnet_gloss", glosses(lines, known), CHOICE)


def write_task(out: Path, name: str, questions: Sequence[Question], asked: dict[str, Any]) -> None:
    """Write data and task file of at most so many questions, in an order of chance."""
    chosen = random.Random(0).sample(questions, min(MOST, len(questions)))
    out.mkdir(exist_ok=True)
    data = out / f"{name}.jsonl"
    data.write_text("".join(json.dumps(one) + "\n" for one in chosen), encoding="utf-8")
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data.resolve())}},
        "test_split": "test",
        **asked,
        "metadata": {"version": 1.0},
    }
    (out / f"{name}.yaml").write_text(yaml.safe_dump(task, sort_keys=False), encoding="utf-8")
    print(f"{len(chosen)} questions in {out / name}.yaml")


def last_words(texts: Sequence[str]) -> Iterator[Question]:
    """Passages up to the last word of a clause, one that stands in them before."""
    for text in texts:
        parts = text.split()
        for place in range(_PASSAGE_WORDS[0], len(parts)):
            passage = parts[max(0, place - _PASSAGE_WORDS[1]) : place]
            last = re.fullmatch(r"([a-z]{4,})[.,;:]", parts[place])
            if last and last[1] in passage:
                yield {"question": " ".join(passage), "word": last[1]}


def continuations(texts: Sequence[str]) -> list[Question]:
    """First halves of sentences, to be told from three other sentences' second halves."""
    halves = []
    for text in texts:
        for sentence in re.findall(r"\b[A-Z][^.!?]+\.", text):
            parts = sentence.split()
            if _SENTENCE_WORDS[0] <= len(parts) <= _SENTENCE_WORDS[1]:
                middle = len(parts) // 2
                halves.append((" ".join(parts[:middle]), " ".join(parts[middle:])))
    return _choices(list(dict(halves).items()))


def glosses(lines: Sequence[str], known: set[str]) -> list[Question]:
    """What a noun means, told from three other nouns' glosses.

    Args:
        lines: WordNet's ``data.noun``.
        known: words to ask for; of these, nouns of one meaning.
    """
    found, meanings = [], Counter[str]()
    for line in lines:
        if line.startswith(" "):  # the licence
            continue
        fields, _, gloss = line.partition(" | ")
        parts = fields.split()
        lemmas = parts[4 : 4 + 2 * int(parts[3], 16) : 2]
        meanings.update(lemmas)
        found.append((lemmas[0], re.split(r"; |\(", gloss)[0].strip()))
    pairs = [
        (f"The word {lemma} means", gloss)
        for lemma, gloss in found
        if lemma in known and meanings[lemma] == 1 and gloss and lemma not in gloss
    ]
    return _choices(pairs)


def words(text: str) -> list[str]:
    """Lower-case words of five to twelve letters."""
    return re.findall(r"\b[a-z]{5,12}\b", text)


def _choices(pairs: Sequence[tuple[str, str]]) -> list[Question]:
    chance = random.Random(0)
    questions = []
    for question, right in pairs:
        others = sorted({other for _, other in pairs} - {right})
        choices = [right, *chance.sample(others, CHOICES - 1)]
        chance.shuffle(choices)
        answer = choices.index(right)
        questions.append({"question": question, "choices": choices, "answer": answer})
    return questions


if __name__ == "__main__":
    main()
