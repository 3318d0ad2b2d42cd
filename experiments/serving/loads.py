"""Requests in flight, predicted and measured: models in vLLM's server on this machine's processor.

    export OMP_NUM_THREADS=1 VLLM_CPU_KVCACHE_SPACE=1
    python experiments/serving/loads.py PROFILE PARENT CHILD --python VLLM_PYTHON --out FOLDER

PROFILE is a folder with a profile of vLLM here, or is measured first: the variants of the models,
which are folders that vLLM reads, each served alone under five loads. vLLM runs eagerly, on one
thread, so that server and client have the other processor. A prediction is that of the profile's
steps by `simulate`, and of one cost beside them: what a request waits outside the engine, in HTTP,
the tokeniser, queues between processes and the client. It is measured on short prompts sent one by
one, as the client's time to the first token less the engine's own time by its counters.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from client import Sent, closed_loop, counters, poisson, request, server

from puzzle_search.arch import SearchSpace
from puzzle_search.checkpoint import read_model_config
from puzzle_search.cost import Dtype, Profile, Scenario, parse_dtype
from puzzle_search.cost.serving import ServingOptions
from puzzle_search.cost.simulation import Load, simulate
from puzzle_search.engines.process import worker_command
from puzzle_search.files import Journal, write_text
from puzzle_search.profile.engines import EngineGrid, measure_engine_profile
from puzzle_search.profile.engines.vllm import Vllm
from puzzle_search.solve.question.targets import profile_target

SCENARIO = Scenario(input_len=128, output_len=64)
STREAMS = (1, 4, 16)
PLACES = max(STREAMS)
RATES = (0.3, 0.7)  # of the requests per second that all places serve
COUNTED = {1: 8, 4: 20, 16: 48}
ARRIVALS, SEED = 40, 0
SHORT, SHORT_REQUESTS = 16, 16
OWN_TIME = ("vllm:request_queue_time_seconds", "vllm:request_prefill_time_seconds")
MEASURES = ("ttft_ms", "tpot_ms", "tokens_per_second")
DTYPES = {"bf16": "bfloat16", "fp32": "float32"}
Figures = dict[str, float]


def figures_of(done: list[Sent]) -> Figures:
    """Medians over requests, and tokens per second at the rate at which they were done."""
    ttft = [one.first - one.sent for one in done]
    tpot = [(one.last - one.first) / SCENARIO.decode_steps for one in done]
    ends = sorted(one.last for one in done)
    rate = (len(done) - 1) / (ends[-1] - ends[0])
    medians = (1e3 * float(np.median(ttft)), 1e3 * float(np.median(tpot)))
    return dict(zip(MEASURES, (*medians, rate * SCENARIO.output_len), strict=True))


class Eager(Vllm):
    """vLLM without compilation, which takes a minute for every child on a CPU."""

    def settings(self, dtype: Dtype, grid: EngineGrid) -> dict[str, Any]:
        """As `Vllm`."""
        return {"engine": super().settings(dtype, grid)["engine"] | {"enforce_eager": True}}


def profile_of(folder: Path, models: list[Path], python: str) -> Profile:
    """The profile in a folder, measured where there is none."""
    if not (folder / "profile.yaml").exists():
        config, _ = read_model_config(models[0])
        blocks = [block for model in models for block in read_model_config(model)[1].blocks]
        space = SearchSpace.uniform(
            config,
            attention=sorted({block.attention for block in blocks}),
            ffn=sorted({block.ffn for block in blocks}),
        )
        grid = EngineGrid(
            batches=STREAMS,
            prefill_tokens=(SCENARIO.input_len,),
            decode_contexts=(SCENARIO.input_len + 1, SCENARIO.tokens),
            blocks=config.num_layers // 2,
            max_seconds=5.0,
        )
        measure_engine_profile(
            Eager(), config, space, parse_dtype("bf16"), grid,
            journal=Journal(folder.with_name(f"{folder.name}.journal.jsonl")),
            command=worker_command(Vllm.installed, python),
        ).write(folder)  # fmt: skip
    return Profile.from_folder(folder)


class Predictor:
    """Figures of a model under a load, from a profile and what a request waits outside."""

    def __init__(self, profile: Profile, model: Path) -> None:
        self.config, self.spec = read_model_config(model)
        self.profile = profile

    def figures(self, load: Load, outside_ms: float) -> Figures:
        """What clients see, each of whose requests waits so long outside the engine."""
        batch = min(PLACES, load.concurrency or PLACES)
        target = profile_target(self.profile, serving=ServingOptions(max_batch=batch))
        found = simulate(self.spec, target, SCENARIO, load, batch=batch, tp=1)
        per_second = found.tokens_per_second
        if load.concurrency:  # clients that wait outside the engine, by Little's law
            cycle = load.concurrency * SCENARIO.output_len / per_second + outside_ms / 1e3
            per_second = load.concurrency * SCENARIO.output_len / cycle
        values = (found.ttft_ms.p50 + outside_ms, found.tpot_ms.p50, per_second)
        return dict(zip(MEASURES, values, strict=True))


def measured_loads(port: int, predictor: Predictor, outside_ms: float) -> Iterator[dict[str, Any]]:
    """Predicted and measured figures under every load."""
    sizes = (SCENARIO.input_len, SCENARIO.output_len, predictor.config.vocab_size)
    capacity = 0.0
    for streams in STREAMS:
        predicted = predictor.figures(Load(concurrency=streams), outside_ms)
        capacity = predicted["tokens_per_second"] / SCENARIO.output_len
        done = asyncio.run(
            closed_loop(
                port,
                sizes,
                streams=streams,
                requests=COUNTED[streams],
                lifetime_seconds=streams / capacity,
            )
        )
        yield {"load": f"{streams} at once", "predicted": predicted, "measured": figures_of(done)}
    for share in RATES:
        rate = round(share * capacity, 2)
        load = Load(requests=ARRIVALS, requests_per_second=rate, seed=SEED)
        done = asyncio.run(poisson(port, sizes, per_second=rate, requests=ARRIVALS, seed=SEED))
        predicted = predictor.figures(load, outside_ms)
        yield {"load": f"{rate:g}/s", "predicted": predicted, "measured": figures_of(done)}


def outside_engine_ms(port: int, vocabulary: int) -> float:
    """What a request waits outside the engine, on average of short prompts sent one by one."""

    async def short() -> list[Sent]:
        return [await request(port, SHORT, 2, vocabulary) for _ in range(SHORT_REQUESTS)]

    asyncio.run(short())  # warms up
    before = counters(port, *OWN_TIME)
    seen = sum(one.first - one.sent for one in asyncio.run(short()))
    return 1e3 * (seen - counters(port, *OWN_TIME) + before) / SHORT_REQUESTS


def measure(profile: Profile, model: Path, python: str) -> dict[str, Any]:
    """All loads of one model."""
    predictor = Predictor(profile, model)
    flags = [
        *("--dtype", DTYPES[profile.dtype.name], "--max-num-seqs", str(PLACES)),
        *("--max-num-batched-tokens", str(profile.chunk_tokens), "--no-enable-prefix-caching"),
        *("--max-model-len", str(2 * SCENARIO.tokens), "--generation-config", "vllm"),
        *("--uvicorn-log-level", "error", "--trust-remote-code", "--enforce-eager"),
    ]
    # The engine's core runs the model itself, as where it was profiled.
    env = {
        "OMP_NUM_THREADS": str(profile.sidecar["device"]["threads"]),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    sizes = (SCENARIO.input_len, 8, predictor.config.vocab_size)
    with server(python, model, flags, env) as port:
        asyncio.run(closed_loop(port, sizes, streams=PLACES, requests=PLACES, lifetime_seconds=0.0))
        outside_ms = outside_engine_ms(port, predictor.config.vocab_size)
        rows = list(measured_loads(port, predictor, outside_ms))
    return {"model": model.name, "outside_engine_ms": outside_ms, "loads": rows}


def errors(models: list[dict[str, Any]]) -> list[float]:
    """Relative errors of every figure of every load."""
    return [
        abs(row["predicted"][name] / row["measured"][name] - 1)
        for model in models
        for row in model["loads"]
        for name in MEASURES
    ]


def report(models: list[dict[str, Any]], profile: Profile, date: str) -> str:
    """The table for people."""
    device = profile.sidecar["device"]
    lines = [
        f"# Requests in flight in vLLM's server, predicted and measured, {date}",
        "",
        f"{profile.sidecar['engine']} on {device['name']}, {device['threads']} threads, "
        f"{profile.dtype.name}; {SCENARIO}, at most {PLACES} sequences at once. Predicted by "
        "`simulate` from a profile of vLLM's steps, with what a request waits outside the engine. "
        "Command: `python experiments/serving/loads.py`.",
        "",
        "| model | load | TTFT P50, ms: predicted | measured | TPOT P50, ms: predicted | measured "
        "| tok/s: predicted | measured |",
        "|---" * 8 + "|",
    ]
    for model in models:
        for row in model["loads"]:
            cells = [
                f"{row[side][name]:.1f}" for name in MEASURES for side in ("predicted", "measured")
            ]
            lines.append(f"| {model['model']} | {row['load']} | {' | '.join(cells)} |")
    outside = ", ".join(f"{m['model']} {m['outside_engine_ms']:.1f} ms" for m in models)
    found = errors(models)
    return "\n".join([
        *lines, "",
        f"Outside the engine a request waits: {outside}.", "",
        f"Error over {len(found)} figures: median {np.median(found):.1%}, worst {max(found):.1%}.",
        "",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("profile", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--python", required=True, help="interpreter that has vLLM")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    profile = profile_of(given.profile, given.models, given.python)
    date = datetime.date.today().isoformat()
    models = [measure(profile, model, given.python) for model in given.models]
    text, place = report(models, profile, date), given.out / f"{date}-vllm-loads"
    write_text(place.with_suffix(".md"), text)
    content = {"profile": profile.sidecar["latency_sha256"], "models": models}
    write_text(place.with_suffix(".json"), json.dumps(content, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
