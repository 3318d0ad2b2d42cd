"""How requests are served: options of every command that predicts what serving costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from puzzle_search.choices import ServingMode
from puzzle_search.cli.options import SERVING_PANEL

if TYPE_CHECKING:
    from puzzle_search.cost.serving import ServingOptions


@dataclass(frozen=True, kw_only=True)
class ServingChoice:
    """Each field is an option; what is not given is left to the engine."""

    serving: Annotated[
        ServingMode | None,
        typer.Option(
            help="Requests in flight (continuous batching, chunked prefill), or static batches. "
            "(default: in flight on serving engines, static where this package's runtime was "
            "profiled)",
            rich_help_panel=SERVING_PANEL,
        ),
    ] = None
    concurrency: Annotated[
        int | None,
        typer.Option(
            help="Requests that clients keep in flight. (default: as many as is best)",
            min=1,
            max=1_000_000,
            rich_help_panel=SERVING_PANEL,
        ),
    ] = None
    max_num_seqs: Annotated[
        int | None,
        typer.Option(
            help="Most sequences that the engine runs at once. (default: its own)",
            min=1,
            rich_help_panel=SERVING_PANEL,
        ),
    ] = None
    max_num_batched_tokens: Annotated[
        int | None,
        typer.Option(
            help="Most new tokens in one step of the engine. (default: its own)",
            min=1,
            rich_help_panel=SERVING_PANEL,
        ),
    ] = None
    prefix_hit: Annotated[
        float | None,
        typer.Option(
            help="Part of each prompt that the prefix cache holds, e.g. 0.6.",
            min=0,
            max=1,
            rich_help_panel=SERVING_PANEL,
        ),
    ] = None
    accepted_tokens: Annotated[
        float | None,
        typer.Option(
            help="Tokens that a sequence gains in a decode step, with speculative decoding.",
            min=1,
            max=64,
            rich_help_panel=SERVING_PANEL,
        ),
    ] = None

    def serving_options(self) -> ServingOptions:
        """What they ask of serving."""
        from puzzle_search.cost.serving import ServingOptions

        return ServingOptions(
            mode=self.serving,
            max_batch=self.max_num_seqs,
            max_tokens=self.max_num_batched_tokens,
            concurrency=self.concurrency,
            prefix_hit=self.prefix_hit,
            accepted_tokens=self.accepted_tokens,
        )
