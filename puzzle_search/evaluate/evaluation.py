"""A parent and its children measured alike, as one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from puzzle_search.checkpoint import load_decoder, load_tokenizer
from puzzle_search.errors import InputError
from puzzle_search.evaluate.quality import ModelQuality, Quality, measure_quality, share
from puzzle_search.evaluate.tasks import TaskFigure, Tasks

FORMAT = "puzzle-search.evaluation/1"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of one model; the standard error is None where it is not known."""

    value: float
    stderr: float | None = None


@dataclass(frozen=True, kw_only=True)
class FigureRow:
    """One figure of all models.

    Attributes:
        name: what it is, with its unit.
        parent: None where only a child can have it.
        children: in the order of the children.
        is_accuracy: more is better, so that a child keeps a share of it.
    """

    name: str
    parent: Figure | None
    children: tuple[Figure, ...]
    is_accuracy: bool = False

    @property
    def preserved(self) -> tuple[float | None, ...]:
        """Share of the parent's accuracy that each child keeps; None for other figures."""
        if self.parent is None or not self.is_accuracy:
            return (None,) * len(self.children)
        return tuple(share(child.value, self.parent.value) for child in self.children)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What ``evaluate_children`` found.

    Attributes:
        parent: its folder.
        children: their folders.
        quality: of each child, on held-out text.
        tasks: of the parent, then of each child; the same metrics in the same order.
        task_limit: documents of each task; None for all.
    """

    parent: str
    children: tuple[str, ...]
    quality: tuple[Quality, ...]
    tasks: tuple[tuple[TaskFigure, ...], ...] = ()
    task_limit: int | None = None

    def rows(self) -> list[FigureRow]:
        """All figures: held-out text first, then tasks."""
        return [*self._text_rows(), *self._task_rows()]

    def _text_rows(self) -> list[FigureRow]:
        parent, children = self.quality[0].parent, [q.child for q in self.quality]

        def of_models(name: str, field: str, *, is_accuracy: bool = False) -> FigureRow:
            return FigureRow(
                name=name,
                parent=_figure(parent, field),
                children=tuple(_figure(child, field) for child in children),
                is_accuracy=is_accuracy,
            )

        return [
            FigureRow(
                name="KL to the parent (nats)",
                parent=None,
                children=tuple(Figure(value=q.kl, stderr=q.kl_stderr) for q in self.quality),
            ),
            of_models("loss (nats)", "loss"),
            of_models("perplexity", "perplexity"),
            of_models("top-1 accuracy", "accuracy", is_accuracy=True),
            of_models("top-5 accuracy", "top5_accuracy", is_accuracy=True),
            FigureRow(
                name="agreement with the parent",
                parent=None,
                children=tuple(
                    Figure(value=q.agreement, stderr=q.agreement_stderr) for q in self.quality
                ),
            ),
        ]

    def _task_rows(self) -> list[FigureRow]:
        return [
            FigureRow(
                name=f"{parent.task} {parent.metric}",
                parent=Figure(value=parent.value, stderr=parent.stderr),
                children=tuple(Figure(value=c.value, stderr=c.stderr) for c in children),
                is_accuracy=parent.higher_is_better,
            )
            for parent, *children in zip(*self.tasks, strict=True)
        ]

    def markdown(self) -> str:
        """One table: a row a figure, the parent, then each child and what it preserves."""
        numbers = (
            [""] if len(self.children) == 1 else [f" {n + 1}" for n in range(len(self.children))]
        )
        head = ["figure", "parent"]
        for number in numbers:
            head += [f"child{number}", "accuracy preserved"]
        lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
        for row in self.rows():
            cells = [row.name, _cell(row.parent)]
            for child, kept in zip(row.children, row.preserved, strict=True):
                cells += [_cell(child), "" if kept is None else f"{kept:.1%}"]
            lines.append(cells)
        table = [f"| {' | '.join(cells)} |" for cells in lines]
        notes = [f"- parent: {self.parent}"]
        notes += [f"- child{n}: {path}" for n, path in zip(numbers, self.children, strict=True)]
        known = self.quality[0].kl_stderr is not None
        errors = "± is one standard error" if known else "one block of them tells no standard error"
        notes.append(f"- {self.quality[0].tokens} held-out tokens; {errors}")
        if self.task_limit is not None:
            notes.append(f"- only the first {self.task_limit} documents of each task")
        return "\n".join([*table, "", *notes]) + "\n"

    def as_dict(self) -> dict[str, Any]:
        """All figures, for JSON."""
        return {
            "format": FORMAT,
            "parent": self.parent,
            "task_limit": self.task_limit,
            "children": [
                {"child": folder, **quality.as_dict()}
                for folder, quality in zip(self.children, self.quality, strict=True)
            ],
            "rows": [
                {
                    "figure": row.name,
                    "parent": row.parent and vars(row.parent),
                    "children": [vars(child) for child in row.children],
                    "accuracy_preserved": row.preserved,
                }
                for row in self.rows()
            ],
        }


def evaluate_children(
    parent: Path,
    children: Sequence[Path],
    ids: torch.Tensor,
    *,
    tasks: Tasks | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Evaluation:
    """Measure children against their parent; the parent and one child are in memory at a time.

    Args:
        parent: checkpoint folder.
        children: checkpoint folders.
        ids: held-out tokens, (blocks, length).
        tasks: of the lm-evaluation-harness, if any.
        dtype: of the weights.
        device: where the models run.

    Raises:
        InputError: a checkpoint is at fault, a child has another vocabulary, or a task asks for
            what a model cannot do.
    """
    if not children:
        raise InputError("there is no child to evaluate", remedy="name one or more")
    reference = load_decoder(parent, dtype=dtype, device=device)
    quality: list[Quality] = []
    figures: list[tuple[TaskFigure, ...]] = []
    for folder in children:
        child = load_decoder(folder, dtype=dtype, device=device)
        quality.append(measure_quality(reference, child, ids))
        if tasks is not None:
            if not figures:
                figures.append(tuple(tasks.run(reference, load_tokenizer(parent))))
            figures.append(tuple(tasks.run(child, load_tokenizer(folder))))
    return Evaluation(
        parent=str(parent),
        children=tuple(map(str, children)),
        quality=tuple(quality),
        tasks=tuple(figures),
        task_limit=None if tasks is None else tasks.settings.limit,
    )


def _figure(model: ModelQuality, field: str) -> Figure:
    return Figure(value=getattr(model, field), stderr=getattr(model, f"{field}_stderr", None))


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return ""
    error = "" if figure.stderr is None else f" ± {figure.stderr:.2g}"
    return f"{figure.value:.5g}{error}"
