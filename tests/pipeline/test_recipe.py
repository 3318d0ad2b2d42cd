"""Recipes: what is read, and what is refused by file and key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from puzzle_search.errors import InputError
from puzzle_search.pipeline.recipe import read_recipe

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


@pytest.mark.parametrize("key", sorted(good().keys() - {"format"}))
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
