"""A recipe: everything that a run depends on, validated strictly.

What each key means stands beside it: the reference in ``docs/recipes.md`` and the comments of
``puzzle-search init`` are these words.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from puzzle_search.choices import DeviceName, Goal, LoadingEngine, TorchDtype
from puzzle_search.cost import Scenario
from puzzle_search.data.documents import PYTHON_STDLIB, is_self
from puzzle_search.data.self_text import self_tokens
from puzzle_search.errors import InputError
from puzzle_search.files import read_yaml
from puzzle_search.model.schedule import LARGEST_LEARNING_RATE
from puzzle_search.pipeline.recipes.faults import told
from puzzle_search.solve.question.ask import Question
from puzzle_search.solve.question.run_folder import RECIPE_FORMAT
from puzzle_search.solve.question.wishes import WISHES, question_of

_MOST = 10**13  # ten trillion tokens
_Positive = Annotated[float, Field(gt=0, le=1e18)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DataSection(_Section):
    """Where text comes from."""

    source: str = Field(
        description="python-stdlib, a folder or file of text (.txt, .md, .py, .jsonl, .parquet), "
        "or self: what the parent itself writes; self:500000 is so many tokens"
    )
    length: int = Field(default=128, gt=1, le=_MOST, description="tokens in a block of text")


class EngineSection(_Section):
    """The engine that serves the child; left out, this package's own runtime does.

    Parent and child are exported for it, the profile and every speed are measured in it, and the
    child is one that it loads.
    """

    name: Literal["llama.cpp"] = Field(description="of the engine; it must be installed")
    dtype: Literal["q8_0", "f16", "q4_0"] = Field(
        default="q8_0", description="of the matrices in the files that are served"
    )


class ProfileSection(_Section):
    """What is measured on the device."""

    # YAML has no tuples: strict within a list, not about the list.
    batches: tuple[Annotated[int, Field(gt=0, le=2**20)], ...] = Field(
        min_length=1,
        strict=False,
        description="batch sizes; those between the least and the largest are interpolated",
    )
    max_minutes: float | None = Field(
        default=None,
        ge=0,
        le=1e6,
        description="how long to refine the grid; by default 8 on a GPU, 0.75 on a CPU; "
        "an engine is measured to the end",
    )


class LibrarySection(_Section):
    """How variants are trained, each by itself."""

    tokens: int = Field(
        ge=0, le=_MOST, description="of the train split for each variant; 0 initialises only"
    )
    batch_tokens: int = Field(default=1024, gt=0, le=_MOST, description="tokens in a step")
    learning_rate: float = Field(
        default=2e-3, gt=0, le=LARGEST_LEARNING_RATE, description="peak learning rate"
    )
    calibration_tokens: int = Field(
        default=16384, gt=0, le=_MOST, description="by which variants are initialised"
    )
    held_out_tokens: int = Field(
        default=8192, gt=0, le=_MOST, description="on which losses are reported"
    )


class ScoreSection(_Section):
    """How much each replacement damages the parent."""

    tokens: int = Field(default=16384, gt=0, le=_MOST, description="of the validation split")
    composed: bool = Field(
        default=True,
        description="score every pair of variants, not only single subblocks: truer, and slower",
    )


class SolveSection(_Section):
    """What the child must reach: the questions of ``puzzle-search solve``, by the same names."""

    target_speedup: float | None = Field(
        default=None, gt=0, le=1e6, description="throughput as a multiple of the parent's"
    )
    target_tps: _Positive | None = Field(
        default=None, description="output tokens/s on the device, at least"
    )
    target_user_tps: _Positive | None = Field(
        default=None, description="tokens/s of one sequence while it decodes, at least"
    )
    request_rate: _Positive | None = Field(
        default=None, description="requests/s that one replica keeps up with"
    )
    max_ttft: _Positive | None = Field(default=None, description="ms until the first token")
    max_tpot: _Positive | None = Field(default=None, description="ms from token to token")
    max_latency: _Positive | None = Field(default=None, description="ms until the last token")
    memory: str | None = Field(default=None, description="of the device at most, such as 4GB")
    max_params: _Positive | None = Field(default=None, description="billions of parameters")
    max_kv_bytes: _Positive | None = Field(default=None, description="KV cache of one token, bytes")
    max_score: float | None = Field(
        default=None, ge=0, le=1e18, description="summed damage, at most"
    )
    limits: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(),
        strict=False,
        description="""linear ones, such as 'sum(attention == "no_op") <= 4'""",
    )
    freeze: str | None = Field(
        default=None, description="layers that stay the parent's, such as '0,1,76-79'"
    )
    portable: LoadingEngine | None = Field(
        default=None, description="engine that must load the child"
    )
    goal: Goal = Field(default="score", description="what is made best within the limits")
    metric: str = Field(default="kl", description="damage, or a mix such as kl + 0.1*lm_loss")
    margin: float = Field(
        default=0.05, ge=0, lt=1, description="part by which predictions stay away from limits"
    )
    rounds: int = Field(
        default=0, ge=0, le=1000, description="re-score around the child at most so often"
    )
    trust_layers: int = Field(
        default=4, ge=1, le=_MOST, description="layers that a round may change"
    )
    candidates: int = Field(
        default=1,
        ge=1,
        le=64,
        description="children of different kinds to distil a little, the best of which is built",
    )
    max_seconds: float = Field(default=60.0, gt=0, le=1e8, description="time limit of a search")


class DistillSection(_Section):
    """Global distillation of the child, on the train split; left out, there is none."""

    tokens: int = Field(gt=0, le=_MOST, description="of training")
    batch_tokens: int = Field(default=1024, gt=0, le=_MOST, description="tokens in a step")
    micro_batch_tokens: int | None = Field(
        default=None,
        gt=0,
        le=_MOST,
        description="tokens that pass at once, for less memory; by default the whole step",
    )
    learning_rate: float = Field(
        default=5e-4, gt=0, le=LARGEST_LEARNING_RATE, description="peak learning rate"
    )
    losses: tuple[Literal["lm", "cosine", "kl"], ...] = Field(
        default=("cosine", "kl"), min_length=1, strict=False, description="what is added up"
    )


class BenchSection(_Section):
    """Parent and child, run in turn."""

    iterations: int = Field(
        default=10, ge=1, le=1_000_000, description="counted runs of each model"
    )


class EvaluateSection(_Section):
    """What the child keeps."""

    source: str | None = Field(
        default=None,
        description="other text to judge on; where data.source is self, python-stdlib by default",
    )
    tokens: int = Field(default=32768, gt=0, le=_MOST, description="of the test split")


class GenerateSection(_Section):
    """The child at work."""

    prompts: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(), strict=False, description="texts to complete"
    )
    chat: bool = Field(
        default=False, description="answer them as messages, by the parent's chat template"
    )
    max_new_tokens: int = Field(default=48, gt=0, le=_MOST, description="tokens to add at most")


class Recipe(_Section):
    """A run from parent to measured child. Paths are relative to the recipe's folder."""

    format: Literal["puzzle-search.recipe/1"] = Field(description="of this file")
    name: str = Field(
        pattern=r"^\w[\w.-]*$", description="of the run: it works in runs/NAME by default"
    )
    parent: str = Field(
        description="model to begin from: a checkpoint folder, or a .gguf file; "
        "package:NAME/FILE.gguf is a file in an installed Python package"
    )
    space: str = Field(description="search space: the variants that each layer may take")
    device: DeviceName = Field(default="cpu", description="what computes, and is measured")
    dtype: TorchDtype = Field(default="fp32", description="precision of all of it")
    scenario: str = Field(description="input/output tokens of a request")
    data: DataSection
    engine: EngineSection | None = None
    profile: ProfileSection
    library: LibrarySection
    score: ScoreSection = ScoreSection()
    solve: SolveSection = SolveSection()
    distill: DistillSection | None = None
    bench: BenchSection = BenchSection()
    evaluate: EvaluateSection = EvaluateSection()
    generate: GenerateSection = GenerateSection()

    def workload(self) -> Scenario:
        """The scenario, parsed."""
        return Scenario.parse(self.scenario)

    @property
    def judged_on(self) -> str:
        """The source of text that children are judged on."""
        own = PYTHON_STDLIB if is_self(self.data.source) else self.data.source
        return self.evaluate.source or own

    def question(self, gpu: str) -> Question:
        """What the solver is asked, on a device of that name.

        Raises:
            InputError: a limit has another form, or two of them exclude each other.
        """
        wishes = self.solve.model_dump(include=set(WISHES))
        return question_of(wishes, scenarios=[self.scenario], model=self.parent, gpu=gpu)

    def to_yaml(self) -> str:
        """The recipe as a file holds it, defaults among it."""
        shown = self.model_dump(mode="json", exclude_none=True)
        return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe and make its paths absolute.

    Raises:
        InputError: unknown keys, wrong values, missing files: all of them at once.
    """
    file = Path(path)
    data = read_yaml(file, format=RECIPE_FORMAT)
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise _refused(file, told(error, Recipe)) from error
    base = file.resolve().parent
    paths: dict[str, Any] = {
        "parent": str(base / _located(recipe.parent)),
        "space": str(base / recipe.space),
    }
    for name in ("data", "evaluate"):
        source = getattr(recipe, name).source
        if source not in (None, PYTHON_STDLIB) and not is_self(source):
            located = {"source": str(base / source)}
            paths[name] = getattr(recipe, name).model_copy(update=located)
    if recipe.engine is not None and recipe.solve.portable is None:
        paths["solve"] = recipe.solve.model_copy(update={"portable": recipe.engine.name})
    found = recipe.model_copy(update=paths)
    if faults := list(_faults(found)):
        raise _refused(file, faults)
    return found


def _located(parent: str) -> str:
    """The path of a parent that may lie in a Python package, which is not imported."""
    package, _, file = parent.removeprefix("package:").partition("/")
    if not parent.startswith("package:"):
        return parent
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    folders = found.submodule_search_locations if found else None
    if not folders:
        raise InputError(
            f"parent: {package} is no Python package that is installed here",
            remedy=f"pip install the distribution that holds {package}, or name a file",
        )
    return str(Path(folders[0]) / file)


def _idle(question: Question) -> Iterator[str]:
    """Refuse to work for hours towards the parent itself."""
    [(_, limits)] = question.scenarios
    if question.goal == "score" and not limits.asked() and not question.child.asked():
        yield (
            "solve: nothing is asked, so that the child would be the parent itself; set "
            "target_speedup, memory, max_params or another limit"
        )


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # such as a name that is too long
        return False


def _refused(file: Path, faults: list[str]) -> InputError:
    if len(faults) == 1:
        return InputError(f"{file}: {faults[0]}", remedy="correct that key")
    listed = "\n  ".join(faults)
    return InputError(f"{file}: {len(faults)} faults\n  {listed}", remedy="correct these keys")


def _faults(recipe: Recipe) -> Iterator[str]:
    """What is wrong with values that have the right type."""
    for key in ("parent", "space"):
        if not _exists(getattr(recipe, key)):
            yield f"{key}: {getattr(recipe, key)} does not exist"
    if is_self(recipe.judged_on):
        yield "evaluate.source: what a parent writes itself is no text to judge its children on"
    for key, source in (("data", recipe.data.source), ("evaluate", recipe.evaluate.source)):
        if source is None or source == PYTHON_STDLIB:
            continue
        if is_self(source):
            try:
                self_tokens(source)
            except InputError as error:
                yield f"{key}.source: {error.message}; {error.remedy}"
        elif not _exists(source):
            yield f"{key}.source: {source} does not exist; or write {PYTHON_STDLIB}"
    try:
        recipe.workload()
    except InputError as error:
        yield f"scenario: {error.message}; {error.remedy}"
    else:
        try:
            yield from _idle(recipe.question(recipe.device))
        except InputError as error:
            yield f"solve: {error.message}; {error.remedy}"
    solve = recipe.solve
    if solve.target_tps is not None and solve.target_speedup is not None:
        yield "solve: target_tps and target_speedup are the same wish: keep one of them"
    if recipe.engine is not None:
        name = recipe.engine.name
        if solve.portable != name:
            yield f"solve.portable: {solve.portable}, but the engine is {name}: leave it out"
        if recipe.profile.max_minutes is not None:
            yield f"profile.max_minutes: {name} is measured to the end: leave it out"
    if solve.candidates > 1 and recipe.distill is None:
        yield "solve.candidates: distillation chooses among them, and there is no distill section"
    if solve.rounds and solve.goal != "score":
        yield f"solve.rounds: rounds lower the damage, and the goal is {solve.goal}"
