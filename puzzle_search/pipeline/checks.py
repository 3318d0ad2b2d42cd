"""What a recipe asks that a stage hours on would refuse, found before the first one."""

from __future__ import annotations

from pathlib import Path

from puzzle_search.arch import ParentConfig, SearchSpace
from puzzle_search.checkpoint import load_tokenizer
from puzzle_search.distill import DistillSettings
from puzzle_search.distill.halving import probe_tokens
from puzzle_search.errors import InputError
from puzzle_search.model.decoder import check_context
from puzzle_search.pipeline.recipes.recipe import DistillSection, Recipe
from puzzle_search.pipeline.served import prompt_tokens
from puzzle_search.score import DEFAULT_METRICS
from puzzle_search.solve.problem.builder import check_linear_limits
from puzzle_search.solve.problem.score_table import parse_metric

_PROBES_SHARE = 0.25  # of the tokens of the final distillation


def check_early(
    recipe: Recipe, parent: str | Path, config: ParentConfig, space: SearchSpace
) -> None:
    """Check limits, numbers of tokens and prompts against the parent, whose folder is given.

    Raises:
        InputError: a limit cannot be read, a metric is not known, there is no such layer, a number
            of tokens is less than a block or more than the parent attends to, or its tokenizer is
            damaged.
    """
    check_linear_limits(config, space, recipe.solve.limits)
    if not_scored := sorted(parse_metric(recipe.solve.metric).keys() - set(DEFAULT_METRICS)):
        raise InputError(
            f"solve.metric: {not_scored[0]} is not scored",
            remedy=f"use some of {', '.join(DEFAULT_METRICS)}",
        )
    question, scenario = recipe.question(recipe.device), recipe.workload()
    if beyond := sorted(question.child.frozen - set(range(config.num_layers))):
        raise InputError(
            f"solve.freeze: layer {beyond[0]}, and {config.name} has {config.num_layers} layers",
            remedy=f"name layers from 0 to {config.num_layers - 1}",
        )
    check_context(config, scenario.input_len + scenario.output_len, "use a shorter scenario")
    length = recipe.data.length
    check_context(config, length, "use a shorter data.length")
    for name, tokens in {
        "library.held_out_tokens": recipe.library.held_out_tokens,
        "library.calibration_tokens": recipe.library.calibration_tokens,
        "score.tokens": recipe.score.tokens,
        "evaluate.tokens": recipe.evaluate.tokens,
    }.items():
        if tokens < length:
            raise InputError(
                f"{name}: {tokens} tokens are less than one block of {length} (data.length)",
                remedy=f"raise {name}, or use a shorter data.length",
            )
    if recipe.distill is not None:
        distill_settings(recipe.distill, recipe.dtype).steps(length)
        if recipe.solve.candidates > 1:
            tokens_of_probes(recipe, recipe.solve.candidates)
    tokenizer = load_tokenizer(parent)
    for prompt in recipe.generate.prompts:
        tokens = len(prompt_tokens(recipe, prompt, tokenizer))
        most = tokens + recipe.generate.max_new_tokens
        check_context(config, most, "use a shorter prompt, or fewer max_new_tokens")


def distill_settings(section: DistillSection, dtype: str) -> DistillSettings:
    """How a recipe's child is distilled.

    Raises:
        InputError: a value cannot be used.
    """
    return DistillSettings(
        tokens=section.tokens,
        batch_tokens=section.batch_tokens,
        micro_batch_tokens=section.micro_batch_tokens,
        learning_rate=section.learning_rate,
        losses=section.losses,
        dtype=dtype,
    )


def tokens_of_probes(recipe: Recipe, children: int) -> list[int]:
    """Tokens of each rung for each child in it.

    Raises:
        InputError: the recipe distils too little for as many candidates.
    """
    assert recipe.distill is not None
    settings = distill_settings(recipe.distill, recipe.dtype)
    batch = settings.step_tokens(recipe.data.length)
    return probe_tokens(children, int(_PROBES_SHARE * settings.tokens), batch)
