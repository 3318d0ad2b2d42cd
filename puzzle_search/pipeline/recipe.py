"""A recipe: everything that a run depends on, validated strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from puzzle_search.choices import DeviceName, TorchDtype
from puzzle_search.cost import Scenario
from puzzle_search.data.documents import PYTHON_STDLIB
from puzzle_search.errors import InputError
from puzzle_search.files import read_yaml
from puzzle_search.model.schedule import LARGEST_LEARNING_RATE

FORMAT = "puzzle-search.recipe/1"
_MOST = 10**13  # ten trillion tokens


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DataSection(_Section):
    """Where text comes from: ``python-stdlib``, a folder or a file; cut to blocks of ``length``."""

    source: str
    length: int = Field(default=128, gt=1, le=_MOST)


class ProfileSection(_Section):
    """What to measure: batch sizes and what lies between, and for how long to refine."""

    # YAML has no tuples: strict within a list, not about the list.
    batches: tuple[Annotated[int, Field(gt=0, le=2**20)], ...] = Field(min_length=1, strict=False)
    max_minutes: float | None = Field(default=None, ge=0, le=1e6)


class LibrarySection(_Section):
    """How variants are trained; tokens each, on the train split."""

    tokens: int = Field(ge=0, le=_MOST)
    batch_tokens: int = Field(default=1024, gt=0, le=_MOST)
    learning_rate: float = Field(default=2e-3, gt=0, le=LARGEST_LEARNING_RATE)
    calibration_tokens: int = Field(default=16384, gt=0, le=_MOST)
    held_out_tokens: int = Field(default=8192, gt=0, le=_MOST)


class ScoreSection(_Section):
    """Tokens of the validation split, and whether every pair of variants is scored."""

    tokens: int = Field(gt=0, le=_MOST)
    composed: bool = True


class SolveSection(_Section):
    """Throughput asked as a multiple of the parent's measured one, plus a safety margin.

    ``limits`` are linear, such as ``sum(attention == "no_op") <= 4``. ``rounds`` re-score around
    the child at most so often, each changing at most ``trust_layers`` layers.
    """

    target_speedup: float = Field(gt=0, le=1e6)
    margin: float = Field(default=0.05, ge=0, lt=1)
    rounds: int = Field(default=0, ge=0, le=1000)
    trust_layers: int = Field(default=4, ge=1, le=_MOST)
    limits: tuple[Annotated[str, Field(min_length=1)], ...] = Field(default=(), strict=False)
    max_seconds: float = Field(default=60.0, gt=0, le=1e8)


class DistillSection(_Section):
    """Global distillation of the child, on the train split; left out, there is none."""

    tokens: int = Field(gt=0, le=_MOST)
    batch_tokens: int = Field(default=1024, gt=0, le=_MOST)
    learning_rate: float = Field(default=5e-4, gt=0, le=LARGEST_LEARNING_RATE)
    losses: tuple[Literal["lm", "cosine", "kl"], ...] = Field(
        default=("cosine", "kl"), min_length=1, strict=False
    )


class BenchSection(_Section):
    """Counted runs of each model."""

    iterations: int = Field(default=10, ge=1, le=1_000_000)


class EvaluateSection(_Section):
    """Tokens of the test split."""

    tokens: int = Field(gt=0, le=_MOST)


class GenerateSection(_Section):
    """What to complete, to show the child at work."""

    prompts: tuple[Annotated[str, Field(min_length=1)], ...] = Field(strict=False)
    max_new_tokens: int = Field(default=48, gt=0, le=_MOST)


class Recipe(_Section):
    """A run from parent to measured child. Paths are relative to the recipe's folder."""

    format: Literal["puzzle-search.recipe/1"]
    name: str = Field(pattern=r"^\w[\w.-]*$")  # a folder of that name is made
    parent: str
    space: str
    device: DeviceName = "cpu"
    dtype: TorchDtype = "fp32"
    scenario: str
    data: DataSection
    profile: ProfileSection
    library: LibrarySection
    score: ScoreSection
    solve: SolveSection
    distill: DistillSection | None = None
    bench: BenchSection = BenchSection()
    evaluate: EvaluateSection
    generate: GenerateSection

    def workload(self) -> Scenario:
        """The scenario, parsed."""
        return Scenario.parse(self.scenario)

    def to_yaml(self) -> str:
        """The recipe as a file holds it, defaults among it."""
        shown = self.model_dump(mode="json", exclude_none=True)
        return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe and make its paths absolute.

    Raises:
        InputError: unknown keys, wrong values, missing files.
    """
    file = Path(path)
    data = read_yaml(file, format=FORMAT)
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{file}: {_first_problem(error)}", remedy="correct that key") from error
    try:
        recipe.workload()
    except InputError as error:
        raise InputError(f"{file}: {error.message}", remedy=error.remedy) from error
    base = file.resolve().parent
    paths: dict[str, Any] = {"parent": str(base / recipe.parent), "space": str(base / recipe.space)}
    for key, found in paths.items():
        if not Path(found).exists():
            raise InputError(f"{file}: {key} {found} does not exist", remedy=f"correct {key}")
    if recipe.data.source != PYTHON_STDLIB:
        source = str(base / recipe.data.source)
        if not Path(source).exists():
            raise InputError(
                f"{file}: data.source {source} does not exist",
                remedy=f"name a folder or file of text, or {PYTHON_STDLIB}",
            )
        paths["data"] = recipe.data.model_copy(update={"source": source})
    return recipe.model_copy(update=paths)


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "recipe"
    return f"{where}: {first['msg']}"
