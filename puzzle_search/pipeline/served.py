"""What serves parent and child in a run: this package's runtime, or an engine that is installed."""

from __future__ import annotations

import importlib.util
import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from puzzle_search.arch import ParentConfig, SearchSpace
from puzzle_search.checkpoint import load_decoder, load_tokenizer, stop_tokens
from puzzle_search.cost import Profile, parse_dtype
from puzzle_search.data import chat_tokens, text_tokens
from puzzle_search.engines.gguf_text import generated_text
from puzzle_search.errors import InputError, MissingDependencyError
from puzzle_search.evaluate import Throughput, measure_checkpoints, measure_gguf_files
from puzzle_search.export import plan_export, write_export
from puzzle_search.files import Journal
from puzzle_search.model import generate
from puzzle_search.model.dtypes import torch_dtype
from puzzle_search.packages import installed
from puzzle_search.pipeline.recipes.recipe import Recipe
from puzzle_search.profile import Device, ProfileGrid, measure_profile
from puzzle_search.profile.engines import ENGINES, measure_engine_profile
from puzzle_search.progress import Progress

JOURNAL = "journal.jsonl"


class Served(ABC):
    """How models of a recipe are served; a run asks it wherever speed is predicted or measured.

    Args:
        recipe: what is run.
        device: the recipe's.
    """

    def __init__(self, recipe: Recipe, device: Device) -> None:
        self.recipe = recipe
        self.device = device
        self.scenario = recipe.workload()
        self.grid = ProfileGrid.around(self.scenario, batches=recipe.profile.batches)

    @property
    @abstractmethod
    def identity(self) -> Any:
        """What measurements depend on, besides the recipe."""

    @abstractmethod
    def check(self, parent: Path, config: ParentConfig, space: SearchSpace) -> None:
        """Check that the parent and every variant can be served and measured.

        Raises:
            InputError: it cannot.
        """

    @abstractmethod
    def file(self, model: Path, folder: Path) -> Path:
        """What is served of a checkpoint, made in a folder where it must be and is not there."""

    @abstractmethod
    def profile(self, config: ParentConfig, space: SearchSpace, folder: Path) -> Profile:
        """Measure every variant, taking up what an earlier run left in the folder."""

    @abstractmethod
    def measure(self, served: Sequence[tuple[Path, int]], title: str) -> list[Throughput]:
        """Serve batches of what `file` gave, in turn."""

    @abstractmethod
    def texts(self, served: Path) -> list[str]:
        """What a model adds to the recipe's prompts, or answers; greedy."""


class OwnRuntime(Served):
    """This package's runtime, on the recipe's device."""

    @property
    def identity(self) -> Any:
        """The device."""
        return self.device.identity

    def check(self, parent: Path, config: ParentConfig, space: SearchSpace) -> None:
        """Nothing to check: what can be loaded can be served."""

    def file(self, model: Path, folder: Path) -> Path:
        """The checkpoint itself."""
        return model

    def profile(self, config: ParentConfig, space: SearchSpace, folder: Path) -> Profile:
        """Measure every variant on the device."""
        return measure_profile(
            config,
            space,
            self.device,
            parse_dtype(self.recipe.dtype),
            self.grid,
            max_minutes=self.recipe.profile.max_minutes,
            journal=Journal(folder / JOURNAL),
            progress=Progress("profile"),
        )

    def measure(self, served: Sequence[tuple[Path, int]], title: str) -> list[Throughput]:
        """Serve batches of checkpoints, in turn."""
        return measure_checkpoints(
            list(served),
            self.scenario,
            dtype=self.recipe.dtype,
            device=self.device.torch_device,
            iterations=self.recipe.bench.iterations,
            clock=self.device.clock,
            progress=Progress(title),
        )

    def texts(self, served: Path) -> list[str]:
        """What a checkpoint adds to the recipe's prompts, or answers; greedy."""
        tokenizer, device = load_tokenizer(served), self.device.torch_device
        decoder = load_decoder(served, dtype=torch_dtype(self.recipe.dtype), device=device)
        texts = []
        for prompt in self.recipe.generate.prompts:
            ids = torch.tensor([prompt_tokens(self.recipe, prompt, tokenizer)], device=device)
            tokens = generate(
                decoder,
                ids,
                max_new_tokens=self.recipe.generate.max_new_tokens,
                stop_tokens=stop_tokens(served, tokenizer),
            )
            given = [int(token) for token in tokens]
            texts.append(str(tokenizer.decode(given, skip_special_tokens=True)))
        return texts


class InLlamaCpp(Served):
    """llama.cpp, which reads GGUF files.

    Raises:
        MissingDependencyError: a package that it takes is absent.
    """

    def __init__(self, recipe: Recipe, device: Device) -> None:
        super().__init__(recipe, device)
        assert recipe.engine is not None
        self.engine, self.dtype = ENGINES[recipe.engine.name], recipe.engine.dtype
        with installed():
            import gguf  # noqa: F401
        package = self.engine.installed.package
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(
                f"{package} is not installed", remedy=f"pip install {package}"
            )

    @property
    def identity(self) -> Any:
        """The processor, the type of the files, and the engine's version."""
        package = self.engine.installed.package
        return [self.device.identity, self.dtype, package, version(package)]

    def check(self, parent: Path, config: ParentConfig, space: SearchSpace) -> None:
        """Plan the parent's export, and the points of the profile."""
        plan_export(parent, self.engine.installed.name, dtype=self.dtype)
        self.engine.grid(config, self.grid).check(config)
        _, skipped = self.engine.stacks(config, space, (1,))
        if skipped:
            raise InputError(
                f"{self.recipe.space}: {skipped[0]['point']}: {skipped[0]['why']}",
                remedy="leave it out of the search space",
            )

    def file(self, model: Path, folder: Path) -> Path:
        """The checkpoint's GGUF file, written into the folder."""
        file = folder / "model.gguf"
        if not file.exists():
            plan = plan_export(model, self.engine.installed.name, dtype=self.dtype)
            write_export(plan, model, file)
        return file

    def profile(self, config: ParentConfig, space: SearchSpace, folder: Path) -> Profile:
        """Measure every variant in the engine."""
        measured = measure_engine_profile(
            self.engine,
            config,
            space,
            parse_dtype(self.dtype),
            self.engine.grid(config, self.grid),
            journal=Journal(folder / JOURNAL),
            progress=Progress("profile"),
        )
        shutil.rmtree(folder / "children")  # the files that were measured
        return measured

    def measure(self, served: Sequence[tuple[Path, int]], title: str) -> list[Throughput]:
        """Serve batches of GGUF files, in turn."""
        files, batches = zip(*served, strict=True)
        return measure_gguf_files(
            files,
            self.scenario,
            batch=batches,
            iterations=self.recipe.bench.iterations,
            progress=Progress(title),
        )

    def texts(self, served: Path) -> list[str]:
        """What a GGUF file adds to the recipe's prompts, or answers; greedy."""
        asked = self.recipe.generate
        return [
            "".join(
                generated_text(served, prompt, chat=asked.chat, max_new_tokens=asked.max_new_tokens)
            )
            for prompt in asked.prompts
        ]


def served_by(recipe: Recipe, device: Device) -> Served:
    """What a recipe names.

    Raises:
        MissingDependencyError: a package that it takes is absent.
    """
    return (OwnRuntime if recipe.engine is None else InLlamaCpp)(recipe, device)


def prompt_tokens(recipe: Recipe, prompt: str, tokenizer: Any) -> list[int]:
    """Token ids of a prompt of the recipe: a message where it chats.

    Raises:
        InputError: there is no chat template.
    """
    if recipe.generate.chat:
        return chat_tokens(prompt, tokenizer)
    return text_tokens(prompt, tokenizer, "a prompt of the recipe")
