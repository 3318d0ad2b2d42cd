"""Every reader of files: valid files to change, and what reads them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

from puzzle_search.arch import ArchitectureSpec, ParentConfig, SearchSpace
from puzzle_search.build import build_child
from puzzle_search.checkpoint import (
    CheckpointReader,
    CheckpointWriter,
    load_decoder,
    load_tokenizer,
    stop_tokens,
)
from puzzle_search.checkpoint.block_library import BlockLibrary
from puzzle_search.checkpoint.names import all_names
from puzzle_search.cost import Profile
from puzzle_search.cost.block_costs import BlockCosts
from puzzle_search.cost.fitting.operator_tables import OperatorTables, gpus_and_engines
from puzzle_search.cost.modelled.hardware import CostModel, find_cost_model
from puzzle_search.data.sources import files_below
from puzzle_search.distill.run_folder import RunFolder as DistillFolder
from puzzle_search.files import Journal, file_hash
from puzzle_search.imports import import_gguf, import_nvlabs, import_puzzletron
from puzzle_search.pipeline.recipes.recipe import read_recipe
from puzzle_search.pipeline.status import run_status
from puzzle_search.profile.engines.results import Results
from puzzle_search.profile.sampling.readings import Readings
from puzzle_search.report.frontier_file import read_frontier
from puzzle_search.score.results import ScoreJournal
from puzzle_search.solve import ScoreTable
from tests.cost.synthetic_profile import whole_profile
from tests.imports.nvlabs import write_library
from tests.imports.puzzletron import stats, write_puzzle
from tests.pico import ROOT, Pico

MADE_FROM = {"seed": 0}
EXAMPLE = ROOT / "examples" / "llama-3.1-70b"
SPACE = """\
format: puzzle-search.search-space/1
attention: [gqa_2, gqa_1, linear, no_op]
ffn: [mlp_512, mlp_256, no_op]
exceptions:
  - {layers: 0, attention: [gqa_2]}
  - {layers: 1-2, ffn: [mlp_512, mlp_256]}
runs:
  - {lengths: [2], layers: 0-1, attention: [gqa_2], ffn: [mlp_512]}
"""
SPEC = """\
format: puzzle-search.architecture/1
parent: pico
blocks:
  - {attention: gqa_1, ffn: mlp_256}
  - {attention: no_op, ffn: mlp_512, layers: [1, 2]}
solution: {status: optimal, score: 0.5}
"""
COSTS = """\
first_layer,last_layer,attention,ffn,memory_bytes,runtime_us,parameters
0,0,gqa_2,mlp_64,1000,20.5,300
0,0,no_op,mlp_64,600,12,200
1,1,gqa_2,mlp_64,1000,20.5,300
"""
COSTS_SIDECAR = """\
format: puzzle-search.block-costs/1
package_version: 0.1.0
source: by hand
inputs: {table.json: 0123abcd}
evidence: measured
gpu: an abacus
dtype: fp8
batch: 4
sequence_length: 100
num_layers: 2
parent: {attention: gqa_2, ffn: mlp_64}
outside: {memory_bytes: 50, runtime_us: 1.5, parameters: 40}
"""
SCORES = """\
first_layer,last_layer,attention,ffn,metric,value,stderr,tokens
0,0,gqa_1,,kl,0.5,0.1,512
1,1,,mlp_256,kl,0.25,,512
2,2,gqa_1,mlp_256,lm_loss,1.25,0.01,512
0,1,gqa_2,mlp_512,kl,3,0.5,512
"""
SCORES_SIDECAR = "format: puzzle-search.scores/1\nparent: pico\nevidence: measured\ndata: words\n"


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


def texts(**files: str) -> Callable[[Path, Pico], None]:
    """Files of these texts, by name without dots."""

    def prepare(folder: Path, pico: Pico) -> None:
        for name, text in files.items():
            stem, _, suffix = name.rpartition("_")
            (folder / f"{stem}.{suffix}").write_text(text)

    return prepare


def copied(*names: str) -> Callable[[Path, Pico], None]:
    """Files of the parent."""

    def prepare(folder: Path, pico: Pico) -> None:
        for name in names:
            shutil.copy(pico.parent / name, folder)

    return prepare


def whole_parent(folder: Path, pico: Pico) -> None:
    shutil.copytree(pico.parent, folder, dirs_exist_ok=True)


def sharded(folder: Path, pico: Pico) -> None:
    shutil.copy(pico.parent / "config.json", folder)
    reader = CheckpointReader(pico.parent)
    writer = CheckpointWriter(folder, shard_bytes=100_000)
    for name, shape in all_names(pico.config, ArchitectureSpec.identity(pico.config)).items():
        writer.add(name, reader.tensor(name, shape))
    writer.finish()


def weights(folder: Path, pico: Pico) -> Any:
    model = load_decoder(folder)
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3]]))
    return model.config


def child(folder: Path, pico: Pico) -> None:
    spec = ArchitectureSpec.of(
        pico.config.name, [("gqa_1", "mlp_256"), ("no_op", "mlp_512"), ("linear", "no_op")]
    )
    build_child(pico.parent, pico.parent.parent / "library", spec, folder / "c")


def library(folder: Path, pico: Pico) -> None:
    shutil.copytree(pico.parent.parent / "library", folder / "library")


def read_library(folder: Path, pico: Pico) -> Any:
    opened = pico.open_library(folder / "library")
    for key in list(opened.entries):
        opened.block(*key)
    return list(opened.entries.values())


def vouch_library(folder: Path) -> None:
    index = folder / "library" / "library.json"
    content = json.loads(index.read_text())
    for entry in content["entries"]:
        parts = ("attention", entry["attention"]), ("ffn", entry["ffn"])
        names = "+".join(f"{part}.{variant}" for part, variant in parts if variant)
        file = index.parent / f"layer_{entry['first_layer']:03d}" / f"{names}.safetensors"
        entry["sha256"] = file_hash(file)
    index.write_text(json.dumps(content))


def resume_library(folder: Path, pico: Pico) -> Any:
    opened = BlockLibrary(folder / "library", pico.config, CheckpointReader(pico.parent))
    first = (pico.parent.parent / "library" / "journal.jsonl").read_bytes().splitlines()[0]
    made_from = json.loads(first)["made_from"]
    opened.resume({key: made_from[key] for key in made_from if key != "parent_sha256"})
    return list(opened.entries.values())


def profile(folder: Path, pico: Pico) -> None:
    whole_profile().write(folder / "profile")


def read_profile(folder: Path, pico: Pico) -> Any:
    found = Profile.from_folder(folder / "profile")
    return found.rows, found.memory, found.groups, found.config, found.chunk_tokens


def vouch_profile(folder: Path) -> None:
    file = folder / "profile" / "profile.yaml"
    sidecar = yaml.safe_load(file.read_text())
    for table in ("latency", "memory", "groups"):
        sidecar[f"{table}_sha256"] = file_hash(file.parent / f"{table}.csv")
    file.write_text(yaml.safe_dump(sidecar))


def cost_model(gpu: str) -> Callable[[Path, Pico], None]:
    return lambda folder, pico: shutil.copy(find_cost_model(gpu), folder / "gpu.yaml") and None


def recipe(folder: Path, pico: Pico) -> None:
    (folder / "parent").symlink_to(pico.parent)
    (folder / "corpus").symlink_to(pico.corpus)
    (folder / "space.yaml").write_text(SPACE)
    example = yaml.safe_load((ROOT / "examples" / "stdlib-lm" / "recipe.yaml").read_text())
    example |= {"parent": "parent", "space": "space.yaml"}
    example["data"]["source"] = "corpus"
    (folder / "recipe.yaml").write_text(yaml.safe_dump(example))


def operator_tables(folder: Path, pico: Pico) -> None:
    common = {"gpu": "toy", "fw": "vllm", "ver": "1.0", "kernel_source": "a_graph"}
    heads = {"num_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
    sizes = (1, 16, 256, 1024, 4096)
    tables: dict[str, list[dict[str, Any]]] = {
        "gemm": [{"gemm_dtype": "bfloat16", "m": m, "n": n, "k": 1024, "latency_ms": m * n * 1e-6}
                 for m in sizes for n in (1024, 2048)],
        "attn_prefill": [{"attn_dtype": "bfloat16", "kv_cache_dtype": "bfloat16", "batch_size": b,
                          "isl": n, "latency_ms": b * n * 1e-4, **heads}
                         for b in (1, 4) for n in sizes],
        "attn_decode": [{"kv_cache_dtype": "bfloat16", "batch_size": b, "kv_len": n,
                         "latency_ms": b * n * 1e-4, **heads} for b in (1, 4) for n in sizes],
        "allreduce": [{"num_gpus": 2, "message_size": n, "latency_ms": n * 1e-5} for n in sizes],
    }  # fmt: skip
    for name, rows in tables.items():
        pd.DataFrame([common | row for row in rows]).to_csv(folder / f"{name}.csv", index=False)


def read_operator_tables(folder: Path, pico: Pico) -> Any:
    timed = gpus_and_engines(folder)
    return [
        table
        for gpu, engines in timed.items()
        for engine in engines
        for table in vars(OperatorTables.from_folder(folder, gpu=gpu, framework=engine)).values()
    ]


def gguf(folder: Path, pico: Pico) -> None:
    from tests.imports.gguf_files import PicoGguf, published_tokenizer

    tokenizer = published_tokenizer("gpt-2", ["a few words of text, and some more"] * 3, size=300)
    PicoGguf(tokenizer=tokenizer).write(folder / "model.gguf")


def read_gguf(folder: Path, pico: Pico) -> Any:
    return import_gguf(folder / "model.gguf", folder / "out").config


def jsonl(path: Path, *entries: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def score_journal(folder: Path, pico: Pico) -> None:
    scores = [
        {"first_layer": layer, "last_layer": layer, "attention": "gqa_1", "ffn": "",
         "value": {"kl": 0.5 + layer}, "stderr": {"kl": None if layer else 0.1}}
        for layer in range(3)
    ]  # fmt: skip
    jsonl(folder / "journal.jsonl", {"made_from": {"metrics": ["kl"]}}, *scores)


def read_score_journal(folder: Path, pico: Pico) -> Any:
    journal = ScoreJournal(Journal(folder / "journal.jsonl"), {"metrics": ["kl"]})
    return journal.rows(list(journal.found), tokens=512)


def readings(folder: Path, pico: Pico) -> None:
    group = asdict(whole_profile().groups[0])
    point = {"phase": "decode", "batch": 1, "tokens": 1, "context": 16}
    lines = [
        {"group": group | {"group": number}, "readings": [
            {"subject": "gqa_2", "part": "attention", "point": point | {"batch": 2**number},
             "us": [1.5, 2.0, 1.75]}]}
        for number in range(3)
    ]  # fmt: skip
    jsonl(folder / "journal.jsonl", {"made_from": MADE_FROM}, *lines)


def read_readings(folder: Path, pico: Pico) -> Any:
    found = Readings(Journal(folder / "journal.jsonl"), MADE_FROM)
    return found.groups, list(found.all.items()), [one.steady for one in found.all.values()]


def engine_results(folder: Path, pico: Pico) -> None:
    place = {"stack": "gqa_2", "blocks": 2}
    point = {"phase": "decode", "batch": 1, "tokens": 1, "context": 16}
    jsonl(
        folder / "journal.jsonl",
        {"made_from": MADE_FROM},
        {"identity": {"engine": "vllm", "version": "1"}},
        {**place, "point": point, "seconds": [0.5, 0.25], "took_seconds": 1.5},
        {**place, "point": point | {"batch": 64}, "skipped": "memory"},
        {"stack": "gqa_1", "blocks": 8, "too_large": "memory"},
    )


def read_engine_results(folder: Path, pico: Pico) -> Any:
    return vars(Results(Journal(folder / "journal.jsonl"), MADE_FROM))


def distill_folder(folder: Path, pico: Pico) -> None:
    jsonl(folder / "run" / "journal.jsonl", {"made_from": MADE_FROM})
    metrics = [{"step": n, "loss": 2.0 - n, "held_out_loss": 1.5 - n / 2} for n in range(3)]
    jsonl(folder / "run" / "metrics.jsonl", *metrics)
    state = {"format": "puzzle-search.distillation-state/1", "step": 2,
             "position": {"epoch": 0, "document": 3, "token": 5}}  # fmt: skip
    file = folder / "run" / "checkpoints" / "step_000000002" / "state.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(state))
    for step in range(3):
        best = folder / "run" / "best" / f"step_{step:09d}" / "weights.safetensors"
        best.parent.mkdir(parents=True)
        best.touch()


def read_distill_folder(folder: Path, pico: Pico) -> Any:
    run = DistillFolder(folder / "run")
    run.resume(MADE_FROM)
    best = run.best()
    return run.newest(), best, best and (run.best_weights(best), run.held_out(best))


def run_folder(folder: Path, pico: Pico) -> None:
    run = folder / "run"
    recipe(folder, pico)
    jsonl(
        run / "journal.jsonl",
        *({"time": 1.0, "stage": stage, "event": event, "key": "k", "seconds": 1.5}
          for stage in ("profile", "baseline", "score", "solve") for event in ("begun", "done")),
    )  # fmt: skip
    shutil.copy(folder / "recipe.yaml", run / "recipe.yaml")
    for stage in ("profile", "baseline", "score", "solve", "bench"):
        (run / stage).mkdir()
        for name in ("begun", "done"):
            record = {"key": "k", "needs": {}, "seconds": 1.5}
            (run / stage / f"{name}.json").write_text(json.dumps(record))
    whole_profile().write(run / "profile")
    measured = {"tokens_per_second": 50.0, "batch": 4, "tokens_per_second_per_user": 5.0,
                "ttft_ms": 3.0}  # fmt: skip
    record = {"measured": measured, "engine_scalar": 1.25}
    (run / "baseline" / "baseline.json").write_text(json.dumps(record))
    (run / "bench" / "bench.json").write_text(json.dumps({"parent": measured, "child": measured}))
    (run / "score" / "scores.csv").write_text(SCORES)
    (run / "score" / "scores.yaml").write_text(SCORES_SIDECAR)
    (run / "solve" / "architecture.yaml").write_text(SPEC)
    solution = {"status": "optimal", "score": 0.5,
                "scenarios": [{"tokens_per_second_per_gpu": 100.0}]}  # fmt: skip
    (run / "solve" / "solution.json").write_text(json.dumps(solution))
    (run / "report.json").write_text(json.dumps({"rows": [], "notes": []}))


def read_run_folder(folder: Path, pico: Pico) -> Any:
    from puzzle_search.solve.question.run_folder import RunFolder

    status = run_status(folder / "run")
    run = RunFolder.open(folder / "run")
    return status.as_dict(), run.target().latency, run.scores, run.spec, run.measured()


def frontier(folder: Path, pico: Pico) -> None:
    block = {"attention": "gqa_2", "ffn": "mlp_512"}
    point = {"blocks": [block] * 3, "status": "optimal", "score": 0.5, "gap": 0.0, "scenarios": []}
    record = {"format": "puzzle-search.frontier/1", "parent": "pico", "axis": "speedup",
              "asked": {}, "evidence": "measured", "points": [point, point]}  # fmt: skip
    (folder / "frontier.json").write_text(json.dumps(record))


def tokenizer(folder: Path, pico: Pico) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(pico.parent / name, folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 1]}')


def read_tokenizer(folder: Path, pico: Pico) -> Any:
    found = load_tokenizer(folder)
    found("a few words")
    return sorted(stop_tokens(folder, found))


def documents(folder: Path, pico: Pico) -> None:
    message = {"role": "user", "content": "words"}
    jsonl(folder / "text.jsonl", {"text": "words"}, {"messages": [message]}, {"text": "more"})


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
            prepare=texts(block_costs_csv=COSTS, block_costs_yaml=COSTS_SIDECAR),
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
