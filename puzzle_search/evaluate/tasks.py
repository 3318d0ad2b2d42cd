"""Any task of EleutherAI's lm-evaluation-harness, through its Python API."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from puzzle_search.errors import InputError
from puzzle_search.model import HeterogeneousDecoder
from puzzle_search.packages import installed


@dataclass(frozen=True, kw_only=True)
class TaskFigure:
    """One metric of one task; the standard error is None where the harness gives none."""

    task: str
    metric: str
    value: float
    stderr: float | None
    higher_is_better: bool


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """What is asked of every model.

    Attributes:
        names: tasks, groups or tags of the harness.
        folder: with task files (YAML) of the user's own; these may name Python functions, which
            the harness runs.
        limit: documents of each task; all by default.
        batch_size: requests that pass at once.
    """

    names: tuple[str, ...]
    folder: Path | None = None
    limit: int | None = None
    batch_size: int = 8


class Tasks:
    """Tasks that have been found, and their data, before any model is loaded.

    Raises:
        MissingDependencyError: the harness is not installed.
        InputError: a task is not known, or runs code that a model wrote.
    """

    def __init__(self, settings: TaskSettings) -> None:
        self.settings = settings
        self._manager = _find(settings)
        for name, task in self._manager.load(list(settings.names))["tasks"].items():
            if getattr(task, "UNSAFE_CODE", False):
                raise InputError(
                    f"task {name!r} runs code that a model wrote, which is not done here",
                    remedy="leave it out, or serve the child and give it to lm-eval in a sandbox",
                )

    def run(
        self, decoder: HeterogeneousDecoder, tokenizer: PreTrainedTokenizerBase
    ) -> list[TaskFigure]:
        """Every numeric metric of every task, in the order of the harness.

        Raises:
            InputError: a task asks for what this decoder or its tokenizer cannot do.
        """
        from lm_eval import simple_evaluate

        from puzzle_search.evaluate.harness_model import DecoderLM

        if tokenizer.eos_token_id is None:
            raise InputError(
                f"the tokenizer of {decoder.config.name} has no end-of-text token",
                remedy="name one in its tokenizer_config.json",
            )
        settings = self.settings
        found = simple_evaluate(
            model=DecoderLM(decoder, tokenizer, settings.batch_size),
            tasks=list(settings.names),
            task_manager=self._manager,
            limit=settings.limit,
            log_samples=False,
        )
        assert found is not None, "there is one process"
        return [
            figure
            for task, metrics in found["results"].items()
            for figure in _figures(task, metrics, found)
        ]


def _find(settings: TaskSettings) -> Any:
    with installed():
        from lm_eval.tasks import TaskManager
    known: list[str] = []
    if settings.folder is not None:
        if not settings.folder.is_dir():
            raise InputError(
                f"{settings.folder} is not a folder", remedy="name one with task files (YAML)"
            )
        # The harness has 14,000 tasks of its own and takes long to look through them.
        own = TaskManager(include_path=str(settings.folder), include_defaults=False)
        known = own.all_tasks
        if set(settings.names) <= set(known):
            return own
    manager = TaskManager(include_path=settings.folder and str(settings.folder))
    known = manager.all_tasks
    for name in settings.names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3)
            raise InputError(
                f"task {name!r} is not known" + (f"; {', '.join(close)} are" if close else ""),
                remedy="'lm-eval ls tasks' lists those of the harness; --task-dir adds your own",
            )
    return manager


def _figures(task: str, metrics: dict[str, Any], found: Any) -> list[TaskFigure]:
    """Metrics are ``name,filter``, beside ``name_stderr,filter``."""
    figures = []
    for key, value in metrics.items():
        metric, comma, kept = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = metrics.get(f"{metric}_stderr,{kept}")
        figures.append(
            TaskFigure(
                task=task,
                metric=metric if kept == "none" else f"{metric} ({kept})",
                value=float(value),
                stderr=float(error) if isinstance(error, int | float) else None,
                higher_is_better=bool(found["higher_is_better"].get(task, {}).get(metric)),
            )
        )
    return figures
