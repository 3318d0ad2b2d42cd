"""What is asked of a search: the options that ``solve`` and ``refine`` have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from puzzle_search.choices import Goal
from puzzle_search.cli.options import (
    CHILD_PANEL,
    SERVING_PANEL,
    AskedDtypeOption,
    AskedEngineOption,
    AskedMetricOption,
    AskedModelOption,
    AskedScenarioOption,
    AskedScoresOption,
    AskedSpaceOption,
    AskedTpOption,
    FreezeOption,
    LimitOption,
    MaxParamsOption,
    MaxScoreOption,
    MemoryOption,
    PortableOption,
)
from puzzle_search.cli.serving import ServingChoice

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from puzzle_search.solve.question.ask import Question


@dataclass(frozen=True, kw_only=True)
class QuestionOptions(ServingChoice):
    """Each field is an option with the field's default."""

    target_tps: Annotated[float | None, typer.Option(help="Output tokens/s per GPU, at least.")] = (
        None
    )
    model: AskedModelOption = None
    scenario: AskedScenarioOption = None
    engine: AskedEngineOption = None
    dtype: AskedDtypeOption = None
    tp: AskedTpOption = "1"
    margin: Annotated[
        str | None,
        typer.Option(
            help="Keep predictions this far from their limits, e.g. 5%. (default: 0%)",
            show_default=False,
        ),
    ] = None
    target_speedup: Annotated[
        float | None,
        typer.Option(help="Tokens/s per GPU as a multiple of the parent's, at its best.", min=0),
    ] = None
    request_rate: Annotated[
        float | None,
        typer.Option(
            help="Requests/s that one replica must keep up with, as they come (Poisson).",
            rich_help_panel=SERVING_PANEL,
        ),
    ] = None
    target_user_tps: Annotated[
        float | None,
        typer.Option(help="Tokens/s of one user, at least.", rich_help_panel=SERVING_PANEL),
    ] = None
    max_ttft: Annotated[
        float | None, typer.Option(help="Until the first token, ms.", rich_help_panel=SERVING_PANEL)
    ] = None
    max_tpot: Annotated[
        float | None, typer.Option(help="From token to token, ms.", rich_help_panel=SERVING_PANEL)
    ] = None
    max_latency: Annotated[
        float | None, typer.Option(help="Until the last token, ms.", rich_help_panel=SERVING_PANEL)
    ] = None
    memory: MemoryOption = None
    max_params: MaxParamsOption = None
    max_kv_bytes: Annotated[
        float | None,
        typer.Option(help="KV cache by token of a request.", rich_help_panel=CHILD_PANEL),
    ] = None
    max_score: MaxScoreOption = None
    limit: LimitOption = None
    freeze: FreezeOption = None
    portable: PortableOption = None
    scores: AskedScoresOption = None
    space: AskedSpaceOption = None
    metric: AskedMetricOption = None

    def question(
        self,
        *,
        gpu: str | None = None,
        goal: Goal | None = None,
        run: Path | None = None,
        without: Collection[str] = (),
    ) -> Question:
        """The question that they ask.

        Args:
            gpu: that is asked; else the run's, else the H100.
            goal: likewise; else the score.
            run: run directory whose model, profile and recipe count for what is not asked.
            without: names of the recipe's questions that do not count.

        Raises:
            InputError: a value has another form, or it is no run directory.
        """
        from puzzle_search.solve.question.run_folder import RunFolder
        from puzzle_search.solve.question.wishes import WISHES, question_of, wishes_in_run

        options = vars(self) | {"goal": goal, "limits": self.limit or None}
        wishes = {name: options[name] for name in WISHES}
        scenarios = self.scenario or ["128/1024"]
        model, device = self.model or "llama-3.1-70b", gpu or "h100"
        if run is not None:
            opened = RunFolder.open(run)
            wishes = wishes_in_run(opened, wishes, without=without)
            scenarios = self.scenario or [opened.recipe["scenario"]]
            model, device = self.model or str(run), gpu or str(run)
        return question_of(
            wishes,
            scenarios=scenarios,
            model=model,
            gpu=device,
            engine=self.engine,
            dtype=self.dtype,
            tp=self.tp,
            serving=self.serving_options(),
            scores=str(self.scores) if self.scores else None,
            space=str(self.space) if self.space else None,
        )
