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
    AskedModelOption,
    AskedScenarioOption,
    AskedScoresOption,
    AskedTpOption,
    FreezeOption,
    LimitOption,
    MaxParamsOption,
    MaxScoreOption,
    MemoryOption,
    MetricOption,
    PortableOption,
)
from puzzle_search.cli.serving import ServingChoice

if TYPE_CHECKING:
    from puzzle_search.solve.question.ask import Question


@dataclass(frozen=True, kw_only=True)
class QuestionOptions(ServingChoice):
    """Each field is an option with the field's default."""

    target_tps: Annotated[float | None, typer.Option(help="Output tokens/s per GPU, at least.")] = (
        None
    )
    model: AskedModelOption = "llama-3.1-70b"
    scenario: AskedScenarioOption = None
    engine: AskedEngineOption = None
    dtype: AskedDtypeOption = None
    tp: AskedTpOption = "1"
    margin: Annotated[
        str, typer.Option(help="Keep predictions this far from their limits, e.g. 5%.")
    ] = "0%"
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
    metric: MetricOption = "kl"

    def question(self, *, gpu: str, goal: Goal = "score") -> Question:
        """The question that they ask.

        Raises:
            InputError: a value has another form.
        """
        from puzzle_search.solve import ChildLimits, Limits
        from puzzle_search.solve.question.ask import Question
        from puzzle_search.solve.question.parse import (
            parse_bytes,
            parse_fraction,
            parse_layers,
            parse_scenario,
        )

        limits = Limits(
            tokens_per_second_per_gpu=self.target_tps,
            tokens_per_second_per_user=self.target_user_tps,
            ttft_ms=self.max_ttft,
            tpot_ms=self.max_tpot,
            latency_ms=self.max_latency,
            memory_bytes=None if self.memory is None else parse_bytes(self.memory),
            requests_per_second=self.request_rate,
            speedup=self.target_speedup,
        )
        return Question(
            model=self.model,
            gpu=gpu,
            scenarios=[parse_scenario(text, limits) for text in self.scenario or ["128/1024"]],
            child=ChildLimits(
                score=self.max_score,
                parameters=None if self.max_params is None else self.max_params * 1e9,
                kv_bytes_per_token=self.max_kv_bytes,
                linear=tuple(self.limit or ()),
                frozen=frozenset() if self.freeze is None else parse_layers(self.freeze),
                portable_to=self.portable,
            ),
            engine=self.engine,
            dtype=self.dtype,
            tp=self.tp,
            serving=self.serving_options(),
            scores=str(self.scores) if self.scores else None,
            metric=self.metric,
            goal=goal,
            margin=parse_fraction(self.margin),
        )
