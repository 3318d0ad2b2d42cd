"""What is asked of a search: the options that ``solve`` and ``refine`` have in common."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec, get_type_hints

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

if TYPE_CHECKING:
    from puzzle_search.solve.question.ask import Question

_Own = ParamSpec("_Own")


@dataclass(frozen=True, kw_only=True)
class QuestionOptions:
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
    target_user_tps: Annotated[
        float | None,
        typer.Option(help="Tokens/s of one user, at least.", rich_help_panel=SERVING_PANEL),
    ] = None
    max_ttft: Annotated[
        float | None, typer.Option(help="Prefill of a batch, ms.", rich_help_panel=SERVING_PANEL)
    ] = None
    max_tpot: Annotated[
        float | None, typer.Option(help="Decode step, ms.", rich_help_panel=SERVING_PANEL)
    ] = None
    max_latency: Annotated[
        float | None, typer.Option(help="Whole batch, ms.", rich_help_panel=SERVING_PANEL)
    ] = None
    memory: MemoryOption = None
    max_params: MaxParamsOption = None
    max_kv_bytes: Annotated[
        float | None, typer.Option(help="KV cache of one token.", rich_help_panel=CHILD_PANEL)
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
            scores=str(self.scores) if self.scores else None,
            metric=self.metric,
            goal=goal,
            margin=parse_fraction(self.margin),
        )


def asks(command: Callable[Concatenate[QuestionOptions, _Own], None]) -> Callable[..., None]:
    """Let a command have the options of a question, read into its first argument.

    Typer takes options from a function's signature: this one's is the fields of the question, then
    the other arguments of the command.
    """
    hints = get_type_hints(QuestionOptions, include_extras=True)
    shared = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=hints[field.name],
        )
        for field in fields(QuestionOptions)
    ]
    _, *own = inspect.signature(command, eval_str=True).parameters.values()
    signature = inspect.Signature(
        [*shared, *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own)]
    )

    @functools.wraps(command)
    def with_question(*args: Any, **given: Any) -> None:
        asked = QuestionOptions(**{field.name: given.pop(field.name) for field in shared})
        command(asked, *args, **given)

    vars(with_question)["__signature__"] = signature
    with_question.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    return with_question
