"""The table: its text written by hand, its figures those of each child alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from puzzle_search.checkpoint import load_decoder
from puzzle_search.errors import InputError
from puzzle_search.evaluate import Evaluation, evaluate_children, measure_quality
from puzzle_search.evaluate.quality import ModelQuality, Quality
from puzzle_search.evaluate.tasks import TaskFigure
from tests.model.pico import random_ids, write_parent

PARENT = ModelQuality(
    loss=1.0,
    loss_stderr=0.1,
    accuracy=0.5,
    accuracy_stderr=0.01,
    top5_accuracy=0.8,
    top5_accuracy_stderr=0.02,
)
QUALITY = Quality(
    parent=PARENT,
    child=replace(PARENT, loss=2.0, accuracy=0.4, top5_accuracy=0.6),
    kl=0.25,
    kl_stderr=0.125,
    agreement=0.75,
    agreement_stderr=0.5,
    tokens=4096,
)


def figures(value: float, perplexity: float) -> tuple[TaskFigure, ...]:
    choice = TaskFigure(task="quiz", metric="acc", value=value, stderr=0.1, higher_is_better=True)
    text = TaskFigure(
        task="text", metric="ppl", value=perplexity, stderr=None, higher_is_better=False
    )
    return choice, text


def test_the_table_of_one_child() -> None:
    evaluation = Evaluation(
        parent="models/big",
        children=("models/small",),
        quality=(QUALITY,),
        tasks=(figures(0.6, 10.0), figures(0.45, 12.5)),
        task_limit=20,
    )
    assert (
        evaluation.markdown()
        == """\
| figure | parent | child | accuracy preserved |
| --- | ---: | ---: | ---: |
| KL to the parent (nats) |  | 0.25 ± 0.12 |  |
| loss (nats) | 1 ± 0.1 | 2 ± 0.1 |  |
| perplexity | 2.7183 | 7.3891 |  |
| top-1 accuracy | 0.5 ± 0.01 | 0.4 ± 0.01 | 80.0% |
| top-5 accuracy | 0.8 ± 0.02 | 0.6 ± 0.02 | 75.0% |
| agreement with the parent |  | 0.75 ± 0.5 |  |
| quiz acc | 0.6 ± 0.1 | 0.45 ± 0.1 | 75.0% |
| text ppl | 10 | 12.5 |  |

- parent: models/big
- child: models/small
- 4096 held-out tokens; ± is one standard error
- only the first 20 documents of each task
"""
    )


def test_nothing_is_preserved_of_nothing() -> None:
    evaluation = Evaluation(
        parent="p",
        children=("c",),
        quality=(replace(QUALITY, parent=replace(PARENT, accuracy=0.0)),),
    )
    (row,) = [row for row in evaluation.rows() if row.name == "top-1 accuracy"]
    assert row.preserved == (None,)
    assert "| top-1 accuracy | 0 ± 0.01 | 0.4 ± 0.01 |  |" in evaluation.markdown()


def test_children_are_measured_as_each_alone(tmp_path: Path) -> None:
    sizes = (512, 256, 768)
    folders = [tmp_path / str(size) for size in sizes]
    for seed, (size, folder) in enumerate(zip(sizes, folders, strict=True)):
        write_parent(folder, seed=seed, intermediate_size=size)
    ids = random_ids(5, 8, vocabulary=6)
    parent, *children = folders
    found = evaluate_children(parent, children, ids)
    for child, quality in zip(children, found.quality, strict=True):
        assert quality == measure_quality(load_decoder(parent), load_decoder(child), ids)
    assert found.quality[0] != found.quality[1]
    assert found.children == tuple(map(str, children))
    head = found.markdown().splitlines()[0]
    assert head == (
        "| figure | parent | child 1 | accuracy preserved | child 2 | accuracy preserved |"
    )
    written = json.loads(json.dumps(found.as_dict()))
    assert [child["kl"] for child in written["children"]] == [q.kl for q in found.quality]
    by_name = {row["figure"]: row for row in written["rows"]}
    kept = by_name["top-1 accuracy"]["accuracy_preserved"]
    assert kept == [q.accuracy_preserved for q in found.quality]
    assert by_name["perplexity"]["accuracy_preserved"] == [None, None]


def test_no_child(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no child"):
        evaluate_children(tmp_path, [], random_ids(1, 4))
