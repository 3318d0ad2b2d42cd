"""Replace one block of the parent, or of a child, at a time and measure the damage to the parent.

Puzzle, section 4.1. Replacements are divided into jobs by layers; results are journaled as they
come.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from puzzle_search.arch import ArchitectureSpec, ParentConfig, Replacement
from puzzle_search.checkpoint.block_library import BlockLibrary
from puzzle_search.errors import InputError
from puzzle_search.executor import Executor, InProcess
from puzzle_search.files import Journal, value_hash
from puzzle_search.model.decoder import check_context
from puzzle_search.model.memory import gpu_memory_reported
from puzzle_search.progress import Progress
from puzzle_search.runtime import keep_freed_memory
from puzzle_search.score.around import base_blocks, check_replacements
from puzzle_search.score.measure import BASE, Judge, Measured
from puzzle_search.score.metrics import DEFAULT_METRICS, check_metrics
from puzzle_search.score.plan import chunk_rows, plan_sweeps
from puzzle_search.score.results import ScoreJournal, Scores
from puzzle_search.score.sweep import Sweeper
from puzzle_search.score.top_tokens import read_top_tokens, write_top_tokens
from puzzle_search.score.vocabulary import TopTokens, Wanted
from puzzle_search.score.weights import Sources, Weights


@dataclass(frozen=True, kw_only=True)
class _Job:
    """Some of the replacements; ``known`` are the parent's likeliest tokens from disk."""

    sources: Sources
    blocks: tuple[Replacement, ...]
    replacements: tuple[Replacement, ...]
    ids_BL: torch.Tensor
    wanted: Wanted
    max_memory_bytes: float | None
    known: TopTokens | None


def score_replacements(
    parent: str | Path,
    library: BlockLibrary,
    replacements: Sequence[Replacement],
    ids: torch.Tensor,
    *,
    journal: Journal,
    base: ArchitectureSpec | None = None,
    metrics: Sequence[str] = DEFAULT_METRICS,
    max_memory_bytes: float | None = None,
    kl_top_k: int | None = None,
    executor: Executor | None = None,
    jobs: int = 1,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> Scores:
    """Damage to the parent's predictions when blocks of the base are replaced.

    Args:
        parent: its checkpoint folder.
        library: trained variants.
        replacements: to score; in a single layer an empty name is the parent's own subblock.
        ids: (blocks, length) held-out tokens.
        journal: results are appended here, and those already there are not measured again.
        base: a child whose blocks are replaced; the parent itself by default. The child's own
            damage is measured too.
        metrics: names out of ``METRICS``, all of them damage: lower is better.
        max_memory_bytes: for weights, hidden states and logits together, in every job.
        kl_top_k: KL over the parent's so many likeliest tokens and one bucket for all others,
            which are kept beside the journal; over the whole vocabulary by default.
        executor: where the jobs run; in this process by default.
        jobs: how many the replacements are divided into.
        device: torch device of the work.
        dtype: that matrices are multiplied in; hidden states, and the parent's logits, are fp32.
        progress: shows how far it is.

    Raises:
        InputError: the library lacks a variant or is damaged, a replacement does not fit the base,
            the journal is of something else or in use, memory or disk are too small, or the
            parent's hidden states or a score are not finite.
    """
    config = ParentConfig.from_file(parent)
    check_context(config, ids.shape[1], "use shorter blocks of tokens")
    if kl_top_k is not None and not 0 < kl_top_k <= config.vocab_size:
        raise InputError(
            f"KL over {kl_top_k} tokens: {config.name} has {config.vocab_size}",
            remedy="use fewer, or leave it out for all of them",
        )
    wanted = Wanted(metrics=check_metrics(metrics), kl_top_k=kl_top_k)
    blocks = base_blocks(config, base)
    asked = check_replacements(replacements, config, base)
    made_from = {
        "library_sha256": library.sha256,
        "tokens_sha256": value_hash(ids.tolist()),
        "dtype": str(dtype),
        "metrics": list(wanted.metrics),
        "kl_top_k": kl_top_k,
        "base": None if base is None else [list(block) for block in blocks],
    }
    with journal.held():
        scores = ScoreJournal(journal, made_from)
        everything = asked if base is None else [*asked, BASE]
        missing = [replacement for replacement in everything if replacement not in scores.found]
        top_file = journal.path.with_suffix(".parent-top.safetensors")
        top_from = {key: made_from[key] for key in ("tokens_sha256", "dtype")}
        top_from |= {"parent_sha256": library.parent_sha256, "k": wanted.parent_top}
        job = _Job(
            sources=Sources(
                parent=Path(parent),
                library=library.folder,
                entries=library.entries,
                config=config,
                device=device,
                dtype=dtype,
            ),
            blocks=blocks,
            replacements=(),
            ids_BL=ids.cpu(),
            wanted=wanted,
            max_memory_bytes=max_memory_bytes,
            known=read_top_tokens(top_file, top_from) if kl_top_k is not None else None,
        )
        work = [replace(job, replacements=part) for part in _divided(missing, blocks, jobs)]
        done = len(everything) - len(missing)
        with (progress or Progress("score")).over(len(everything), done=done) as advance:
            for result in (executor or InProcess()).run(_score, work):
                if isinstance(result, TopTokens):
                    write_top_tokens(result, top_file, top_from)
                    continue
                scores.add(*result)
                first, _, attention, ffn = result[0]
                advance(f"layer {first} {attention} {ffn}" if result[0] != BASE else "the child")
    own = scores.rows([] if base is None else [BASE], tokens=ids.numel())
    last_layer = config.num_layers - 1
    return Scores(
        rows=scores.rows(asked, tokens=ids.numel()),
        base=[replace(row, first_layer=0, last_layer=last_layer) for row in own],
        tokens=ids.numel(),
        made_from=made_from,
        parent_config=value_hash(dict(config.raw)),
    )


def _divided(
    replacements: Sequence[Replacement], blocks: Sequence[Replacement], jobs: int
) -> list[tuple[Replacement, ...]]:
    """Parts of about equal work, whole layers each; the base itself goes with the last."""
    layers = blocks[-1][1] + 1
    ordered = sorted(replacements, key=lambda r: layers if r == BASE else r[0])
    work = [layers - replacement[0] for replacement in ordered]
    parts: list[list[Replacement]] = [[] for _ in range(jobs)]
    passed, part = 0, 0
    for number, replacement in enumerate(ordered):
        new_layer = number > 0 and replacement[0] != ordered[number - 1][0]
        if new_layer and replacement != BASE:
            part = min(jobs - 1, passed * jobs // sum(work))
        parts[part].append(replacement)
        passed += work[number]
    return [tuple(part) for part in parts if part]


@torch.inference_mode()
def _score(job: _Job) -> Iterator[Measured | TopTokens]:
    """Score the replacements of one job, in one pass over the weights if they fit.

    Raises:
        InputError: the GPU's memory ran out, or as ``score_replacements`` says.
    """
    with gpu_memory_reported("scoring"):
        yield from _sweeps(job)


def _sweeps(job: _Job) -> Iterator[Measured | TopTokens]:
    replacements = [replacement for replacement in job.replacements if replacement != BASE]
    rows, length = job.ids_BL.shape
    plan = plan_sweeps(
        job.sources, job.blocks, replacements, (rows, length), job.wanted, job.max_memory_bytes
    )
    if job.max_memory_bytes is None:
        keep_freed_memory(torch.device(job.sources.device))
    weights = Weights(job.sources, job.blocks if plan.resident else None)
    ids = job.ids_BL.to(weights.device).split(chunk_rows(weights.device, length))
    judge = Judge(weights, ids, job.wanted, known=job.known, one_by_one=plan.resident)
    sweeper = Sweeper(weights, job.blocks, ids, judge)
    sweeps = list(plan.sweeps(replacements)) or [[]]
    for number, sweep in enumerate(sweeps, start=1):
        with_base = BASE in job.replacements and number == len(sweeps)
        yield from sweeper.sweep(sweep, with_base=with_base)
        if number == 1 and job.wanted.kl_top_k is not None and job.known is None:
            yield judge.top_tokens
