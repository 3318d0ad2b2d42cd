"""Export a parent or child: a plan, then the files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from puzzle_search.checkpoint import CheckpointReader, read_model_config
from puzzle_search.errors import InputError
from puzzle_search.export import decilm_plan, gguf_plan, transformers_plan
from puzzle_search.export.decilm_folder import write_folder
from puzzle_search.export.gguf_file import write_gguf
from puzzle_search.export.gguf_tokenizer import tokenizer_header
from puzzle_search.export.plan import ExportPlan

TARGETS = (gguf_plan.ENGINE, *decilm_plan.ENGINES, transformers_plan.ENGINE)


def plan_export(model: str | Path, to: str, *, dtype: str | None = None) -> ExportPlan:
    """Plan the export of a checkpoint folder, parent or child; no weights are read.

    Args:
        model: checkpoint folder.
        to: one of ``TARGETS``.
        dtype: of the matrices; f16 for llama.cpp and bf16 for others if left out.

    Raises:
        InputError: the engine or the type is not known, the checkpoint is incomplete, or the
            engine cannot compute the model; says which, and why.
    """
    if to not in TARGETS:
        raise InputError(f"engine {to!r} is not known", remedy=f"use one of {', '.join(TARGETS)}")
    config, spec = read_model_config(model)
    reader = CheckpointReader(model)
    if to == transformers_plan.ENGINE:
        return transformers_plan.plan_transformers(config, spec, reader, dtype or "bf16")
    if to != gguf_plan.ENGINE:
        return decilm_plan.plan_decilm(to, config, spec, reader, dtype or "bf16")
    plan = gguf_plan.plan_gguf(config, spec, reader, dtype or "f16")
    keys, notes = tokenizer_header(Path(model), config.vocab_size)
    return replace(plan, header=plan.header | keys, notes=(*plan.notes, *notes))


def write_export(plan: ExportPlan, model: str | Path, out: str | Path) -> None:
    """Write what was planned for a checkpoint folder, whole or not at all.

    Raises:
        InputError: weights are missing or damaged, the disk is full, or a folder of that name is
            there.
        MissingDependencyError: a package that writes the format is absent.
    """
    if plan.engine == gguf_plan.ENGINE:
        write_gguf(plan, Path(out))
    else:
        write_folder(plan, Path(model), Path(out))
