"""Every reader of files: what it is given, and how it reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from puzzle_search.arch import ArchitectureSpec, ParentConfig, SearchSpace
from puzzle_search.checkpoint import (
    CheckpointReader,
    load_decoder,
    load_tokenizer,
    stop_tokens,
)
from puzzle_search.checkpoint.block_library import BlockLibrary
from puzzle_search.cost import Profile
from puzzle_search.cost.block_costs import BlockCosts
from puzzle_search.cost.fitting.operator_tables import OperatorTables, gpus_and_engines
from puzzle_search.cost.modelled.hardware import CostModel
from puzzle_search.data.sources import files_below
from puzzle_search.distill.run_folder import RunFolder as DistillFolder
from puzzle_search.files import Journal
from puzzle_search.imports import import_gguf, import_nvlabs, import_puzzletron
from puzzle_search.pipeline.recipes.recipe import read_recipe
from puzzle_search.pipeline.status import run_status
from puzzle_search.profile.engines.results import Results
from puzzle_search.profile.sampling.readings import Readings
from puzzle_search.report.frontier_file import read_frontier
from puzzle_search.score.results import ScoreJournal
from puzzle_search.solve import ScoreTable
from tests.cost.test_block_costs import CSV, YAML
from tests.fuzz.valid_files import (
    EXAMPLE,
    MADE_FROM,
    SCORES,
    SCORES_SIDECAR,
    SPACE,
    SPEC,
    child,
    copied,
    cost_model,
    distill_folder,
    documents,
    engine_results,
    frontier,
    gguf,
    library,
    operator_tables,
    profile,
    readings,
    recipe,
    run_folder,
    score_journal,
    sharded,
    texts,
    tokenizer,
    vouch_library,
    vouch_profile,
)
from tests.imports.nvlabs import write_library
from tests.imports.puzzletron import stats, write_puzzle
from tests.pico import Pico


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Something that reads files.

    Attributes:
        prepare: writes valid files into a folder.
        changed: patterns of the files that are changed.
        read: reads them, as commands do; returns what it took.
        vouch: makes hashes right again after a change, so that what lies behind them is reached.
    """

    name: str
    prepare: Callable[[Path, Pico], None]
    changed: tuple[str, ...]
    read: Callable[[Path, Pico], Any]
    vouch: Callable[[Path], None] = lambda folder: None


def weights(folder: Path, pico: Pico) -> Any:
    model = load_decoder(folder)
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3]]))
    return model.config


def read_library(folder: Path, pico: Pico) -> Any:
    opened = pico.open_library(folder / "library")
    for key in list(opened.entries):
        opened.block(*key)
    return list(opened.entries.values())


def resume_library(folder: Path, pico: Pico) -> Any:
    opened = BlockLibrary(folder / "library", pico.config, CheckpointReader(pico.parent))
    first = (pico.parent.parent / "library" / "journal.jsonl").read_bytes().splitlines()[0]
    made_from = json.loads(first)["made_from"]
    opened.resume({key: made_from[key] for key in made_from if key != "parent_sha256"})
    return list(opened.entries.values())


def read_profile(folder: Path, pico: Pico) -> Any:
    found = Profile.from_folder(folder / "profile")
    return found.rows, found.memory, found.groups, found.config, found.chunk_tokens


def read_operator_tables(folder: Path, pico: Pico) -> Any:
    timed = gpus_and_engines(folder)
    return [
        table
        for gpu, engines in timed.items()
        for engine in engines
        for table in vars(OperatorTables.from_folder(folder, gpu=gpu, framework=engine)).values()
    ]


def read_gguf(folder: Path, pico: Pico) -> Any:
    return import_gguf(folder / "model.gguf", folder / "out").config


def read_score_journal(folder: Path, pico: Pico) -> Any:
    journal = ScoreJournal(Journal(folder / "journal.jsonl"), {"metrics": ["kl"]})
    return journal.rows(list(journal.found), tokens=512)


def read_readings(folder: Path, pico: Pico) -> Any:
    found = Readings(Journal(folder / "journal.jsonl"), MADE_FROM)
    return found.groups, list(found.all.items()), [one.steady for one in found.all.values()]


def read_engine_results(folder: Path, pico: Pico) -> Any:
    return vars(Results(Journal(folder / "journal.jsonl"), MADE_FROM))


def read_distill_folder(folder: Path, pico: Pico) -> Any:
    run = DistillFolder(folder / "run")
    run.resume(MADE_FROM)
    best = run.best()
    return run.newest(), best, best and (run.best_weights(best), run.held_out(best))


def read_run_folder(folder: Path, pico: Pico) -> Any:
    from puzzle_search.solve.question.run_folder import RunFolder

    status = run_status(folder / "run")
    run = RunFolder.open(folder / "run")
    return status.as_dict(), run.target().latency, run.scores, run.spec, run.measured()


def read_tokenizer(folder: Path, pico: Pico) -> Any:
    found = load_tokenizer(folder)
    found("a few words")
    return sorted(stop_tokens(folder, found))


def check_space(folder: Path, pico: Pico) -> Any:
    space = SearchSpace.from_file(folder / "space.yaml", pico.config)
    return space, list(space.replacements(pico.config))


def check_spec(folder: Path, pico: Pico) -> Any:
    spec = ArchitectureSpec.from_file(folder / "spec.yaml")
    spec.check_fits(pico.config)
    return spec


def pair(name: str) -> tuple[str, str]:
    return f"{name}.csv", f"{name}.yaml"


READERS = {
    reader.name: reader
    for reader in (
        Reader(
            name="config",
            prepare=copied("config.json"),
            changed=("config.json",),
            read=lambda folder, pico: ParentConfig.from_file(folder),
        ),
        Reader(
            name="config of Llama-3.1",
            prepare=lambda folder, pico: shutil.copy(EXAMPLE / "config.json", folder) and None,
            changed=("config.json",),
            read=lambda folder, pico: ParentConfig.from_file(folder),
        ),
        Reader(
            name="search space",
            prepare=texts(space_yaml=SPACE),
            changed=("space.yaml",),
            read=check_space,
        ),
        Reader(name="spec", prepare=texts(spec_yaml=SPEC), changed=("spec.yaml",), read=check_spec),
        Reader(
            name="scores",
            prepare=texts(scores_csv=SCORES, scores_yaml=SCORES_SIDECAR),
            changed=pair("scores"),
            read=lambda folder, pico: ScoreTable.from_file(folder / "scores.csv").rows,
        ),
        Reader(
            name="block costs",
            prepare=texts(block_costs_csv=CSV, block_costs_yaml=YAML),
            changed=pair("block_costs"),
            read=lambda folder, pico: BlockCosts.from_file(folder / "block_costs.csv"),
        ),
        Reader(
            name="profile",
            prepare=profile,
            changed=("profile/*",),
            read=read_profile,
            vouch=vouch_profile,
        ),
        Reader(
            name="cost model",
            prepare=cost_model("cpu"),
            changed=("gpu.yaml",),
            read=lambda folder, pico: CostModel.from_file(folder / "gpu.yaml"),
        ),
        Reader(
            name="cost model of an A100",
            prepare=cost_model("a100"),
            changed=("gpu.yaml",),
            read=lambda folder, pico: CostModel.from_file(folder / "gpu.yaml"),
        ),
        Reader(
            name="recipe",
            prepare=recipe,
            changed=("recipe.yaml",),
            read=lambda folder, pico: read_recipe(folder / "recipe.yaml").to_yaml(),
        ),
        Reader(
            name="library",
            prepare=library,
            changed=("library/library.json", "library/*/*.safetensors"),
            read=read_library,
            vouch=vouch_library,
        ),
        Reader(
            name="safetensors",
            prepare=copied("config.json", "model.safetensors"),
            changed=("model.safetensors", "config.json"),
            read=weights,
        ),
        Reader(
            name="safetensors and index",
            prepare=sharded,
            changed=("*.safetensors", "*.index.json"),
            read=weights,
        ),
        Reader(
            name="child",
            prepare=child,
            changed=("c/config.json",),
            read=lambda folder, pico: weights(folder / "c", pico),
        ),
        Reader(
            name="tokenizer",
            prepare=tokenizer,
            changed=("tokenizer*.json", "generation_config.json"),
            read=read_tokenizer,
        ),
        Reader(
            name="Puzzletron",
            prepare=lambda folder, pico: write_puzzle(folder / "puzzle", [stats(4)]) and None,
            changed=("puzzle/*.json", "puzzle/*/*.json"),
            read=lambda folder, pico: vars(import_puzzletron(folder / "puzzle")),
        ),
        Reader(
            name="NVlabs/puzzle",
            prepare=lambda folder, pico: write_library(folder / "toy") and None,
            changed=("toy/*.json",),
            read=lambda folder, pico: vars(import_nvlabs(folder / "toy")),
        ),
        Reader(name="GGUF", prepare=gguf, changed=("model.gguf",), read=read_gguf),
        Reader(
            name="operator tables",
            prepare=operator_tables,
            changed=("*.csv",),
            read=read_operator_tables,
        ),
        Reader(
            name="journal of a library",
            prepare=library,
            changed=("library/journal.jsonl",),
            read=resume_library,
        ),
        Reader(
            name="journal of scores",
            prepare=score_journal,
            changed=("journal.jsonl",),
            read=read_score_journal,
        ),
        Reader(
            name="journal of a profile",
            prepare=readings,
            changed=("journal.jsonl",),
            read=read_readings,
        ),
        Reader(
            name="journal of an engine's profile",
            prepare=engine_results,
            changed=("journal.jsonl",),
            read=read_engine_results,
        ),
        Reader(
            name="journals of a distillation",
            prepare=distill_folder,
            changed=("run/*.jsonl", "run/checkpoints/*/state.json"),
            read=read_distill_folder,
        ),
        Reader(
            name="run directory",
            prepare=run_folder,
            changed=("run/*.*", "run/*/*.json"),
            read=read_run_folder,
        ),
        Reader(
            name="frontier",
            prepare=frontier,
            changed=("frontier.json",),
            read=lambda folder, pico: read_frontier(folder / "frontier.json"),
        ),
        Reader(
            name="text",
            prepare=documents,
            changed=("text.jsonl",),
            read=lambda folder, pico: list(files_below(folder / "text.jsonl")),
        ),
    )
}
