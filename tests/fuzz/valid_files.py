"""Valid files of every kind that is read, for the fuzzing to change."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.build import build_child
from puzzle_search.checkpoint import (
    CheckpointReader,
    CheckpointWriter,
)
from puzzle_search.checkpoint.names import all_names
from puzzle_search.cost.modelled.hardware import find_cost_model
from puzzle_search.files import file_hash
from tests.cost.synthetic_profile import whole_profile
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
SCORES = """\
first_layer,last_layer,attention,ffn,metric,value,stderr,tokens
0,0,gqa_1,,kl,0.5,0.1,512
1,1,,mlp_256,kl,0.25,,512
2,2,gqa_1,mlp_256,lm_loss,1.25,0.01,512
0,1,gqa_2,mlp_512,kl,3,0.5,512
"""
SCORES_SIDECAR = "format: puzzle-search.scores/1\nparent: pico\nevidence: measured\ndata: words\n"


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


def child(folder: Path, pico: Pico) -> None:
    spec = ArchitectureSpec.of(
        pico.config.name, [("gqa_1", "mlp_256"), ("no_op", "mlp_512"), ("linear", "no_op")]
    )
    build_child(pico.parent, pico.parent.parent / "library", spec, folder / "c")


def library(folder: Path, pico: Pico) -> None:
    shutil.copytree(pico.parent.parent / "library", folder / "library")


def vouch_library(folder: Path) -> None:
    index = folder / "library" / "library.json"
    content = json.loads(index.read_text())
    for entry in content["entries"]:
        parts = ("attention", entry["attention"]), ("ffn", entry["ffn"])
        names = "+".join(f"{part}.{variant}" for part, variant in parts if variant)
        file = index.parent / f"layer_{entry['first_layer']:03d}" / f"{names}.safetensors"
        entry["sha256"] = file_hash(file)
    index.write_text(json.dumps(content))


def profile(folder: Path, pico: Pico) -> None:
    whole_profile().write(folder / "profile")


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


def gguf(folder: Path, pico: Pico) -> None:
    from tests.imports.gguf_files import PicoGguf, published_tokenizer

    tokenizer = published_tokenizer("gpt-2", ["a few words of text, and some more"] * 3, size=300)
    PicoGguf(tokenizer=tokenizer).write(folder / "model.gguf")


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


def documents(folder: Path, pico: Pico) -> None:
    message = {"role": "user", "content": "words"}
    jsonl(folder / "text.jsonl", {"text": "words"}, {"messages": [message]}, {"text": "more"})
