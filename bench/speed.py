"""The work that computes here, side by side with another checkout of this project.

Each work is a command of a fresh process, the two checkouts in turns, with the same inputs and
threads. A figure is the median of the rounds: seconds, seconds of all cores, and peak memory; of
distillation tokens a second as well, the median of its steps after the first. Beside it stands the
floor: the FLOPs of its matrix products over the rate at which this machine multiplies, in the
faster of fp32 and bf16.

    python bench/speed.py OTHER_CHECKOUT --parent PARENT --library LIBRARY --child CHILD --data TEXT
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from puzzle_search.arch import ArchitectureSpec, ParentConfig
from puzzle_search.arch.parameters import subblock_parameters
from puzzle_search.arch.variants import parse_variant
from puzzle_search.files import write_text

HERE = Path(__file__).resolve().parents[1]
BUSY = "while True: pass"
TOKENS, LENGTH, GENERATED = 2048, 256, 24
# Layers whose variants are built and scored: the whole of a model takes minutes.
SPACE = """\
format: puzzle-search.search-space/1
attention: [{attention}]
ffn: [{ffn}]
exceptions:
  - {{layers: {layers}, attention: [{attention}, linear, no_op], ffn: [{ffn}, mlp_512, no_op]}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", type=Path, help="another checkout, such as an older commit's")
    for name in ("parent", "library", "child", "data"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--layers", default="14-15", help="built and scored")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", default="generate,score,library,distill")
    parser.add_argument("--beside", action="store_true", help="beside one busy process")
    parser.add_argument("--out", type=Path, help="where to write the JSON")
    asked = parser.parse_args()
    checkouts = {"here": HERE, "other": asked.other.resolve()}
    rate = max(map(product_rate, (torch.float32, torch.bfloat16))) * asked.threads
    busy = subprocess.Popen([sys.executable, "-c", BUSY]) if asked.beside else None
    try:
        rows = [measured(name, asked, checkouts, rate) for name in asked.work.split(",")]
    finally:
        if busy is not None:
            busy.kill()
    report = {"threads": asked.threads, "rounds": asked.rounds, "beside": asked.beside}
    report |= {"flops_per_s": rate, "work": rows}
    print(json.dumps(report))
    if asked.out is not None:
        write_text(asked.out, json.dumps(report, indent=1) + "\n")


def measured(
    name: str, asked: argparse.Namespace, checkouts: dict[str, Path], rate: float
) -> dict[str, object]:
    """One work in both checkouts, printed as a line."""
    found: dict[str, list[dict[str, float]]] = {which: [] for which in checkouts}
    for number in range(asked.rounds):
        turns = list(checkouts) if number % 2 == 0 else list(checkouts)[::-1]
        for which in turns:
            found[which].append(run(name, asked, checkouts[which]))
    medians = {
        which: {key: statistics.median(one[key] for one in runs) for key in runs[0]}
        for which, runs in found.items()
    }
    floor_s = flops(name, asked) / rate
    here, other = medians["here"], medians["other"]
    print(
        f"{name:9} {other['s']:7.1f} s -> {here['s']:6.1f} s ({other['s'] / here['s']:.2f} x), "
        f"cores {other['core_s']:6.1f} s -> {here['core_s']:6.1f} s, floor {floor_s:5.2f} s, "
        f"{other['peak_gb']:.2f} GB -> {here['peak_gb']:.2f} GB"
        + (
            f", {other['tokens_per_s']:.0f} -> {here['tokens_per_s']:.0f} tokens/s"
            if "tokens_per_s" in here
            else ""
        ),
        flush=True,
    )
    return {"name": name, "floor_s": floor_s, **medians}


def run(name: str, asked: argparse.Namespace, checkout: Path) -> dict[str, float]:
    """One work in a fresh process of a checkout; seconds and peak memory by the system's count."""
    with tempfile.TemporaryDirectory() as folder:
        config = ParentConfig.from_file(asked.parent)
        space = Path(folder) / "space.yaml"
        space.write_text(
            SPACE.format(attention=config.attention, ffn=config.ffn, layers=asked.layers)
        )
        environment = os.environ | {
            "PYTHONPATH": str(checkout),
            "OMP_NUM_THREADS": str(asked.threads),
        }
        command = [sys.executable, "-m", "puzzle_search", *words(name, asked, space)]
        started = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        assert process.stderr is not None
        said = process.stderr.read().decode()
        _, status, used = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{name} of {checkout} failed: {said}")
        result = {
            "s": time.perf_counter() - started,
            "core_s": used.ru_utime + used.ru_stime,
            "peak_gb": used.ru_maxrss * 1024 / 1e9,
        }
        metrics = Path(folder) / "out.run" / "metrics.jsonl"
        if metrics.exists():
            lines = [json.loads(line) for line in metrics.read_text().splitlines()][2:]
            result["tokens_per_s"] = statistics.median(line["tokens_per_s"] for line in lines)
        shutil.rmtree(Path(folder) / "out", ignore_errors=True)
        return result


def words(name: str, asked: argparse.Namespace, space: Path) -> list[str]:
    """The command line of a work."""
    text = ["--data", str(asked.data), "--length", str(LENGTH)]
    of_parent = ["--parent", str(asked.parent), *text]
    commands: dict[str, Callable[[], list[str]]] = {
        "generate": lambda: [
            str(asked.parent), "--prompt", "The capital of France is",
            "--max-new-tokens", str(GENERATED),
        ],
        "score": lambda: [
            *of_parent, "--library", str(asked.library), "--space", str(space),
            "--out", "scores.csv", "--tokens", str(TOKENS),
        ],
        "library": lambda: [
            *of_parent, "--space", str(space), "--out", "out", "--tokens", str(TOKENS),
            "--calibration-tokens", str(TOKENS), "--held-out-tokens", str(TOKENS),
        ],
        "distill": lambda: [
            *of_parent, "--child", str(asked.child), "--out", "out", "--tokens", str(4 * TOKENS),
            "--batch-tokens", str(TOKENS), "--held-out-tokens", str(LENGTH),
        ],
    }  # fmt: skip
    return [name, *commands[name]()]


def product_rate(dtype: torch.dtype) -> float:
    """FLOP/s of one thread at a product of a decoder's size, the best of some."""
    torch.set_num_threads(1)
    rows, matrix = (torch.ones(size, 576, dtype=dtype) for size in (512, 1536))
    seconds = []
    for _ in range(20):
        started = time.perf_counter()
        rows @ matrix.T
        seconds.append(time.perf_counter() - started)
    return 2.0 * 512 * 576 * 1536 / min(seconds)


def flops(name: str, asked: argparse.Namespace) -> float:
    """Of the matrix products that the work cannot do without: two a parameter and token."""
    config = ParentConfig.from_file(asked.parent)
    head = config.vocab_size * config.hidden_size
    own = [parameters("attention", config.attention, config)]
    own.append(parameters("ffn", config.ffn, config))
    parent, layers = config.num_layers * sum(own), config.num_layers
    if name == "generate":
        return 2.0 * GENERATED * (parent + head)
    first, last = map(int, asked.layers.split("-"))
    if name == "score":
        passed = sum(layers - layer for layer in range(first, last + 1)) * sum(own)
        count = 8  # of three by three variants, all but the parent's own
        return 2.0 * TOKENS * (parent + head + count * (passed + (last + 1 - first) * head))
    if name == "library":
        # The parent once over both sets of tokens; of each variant a training and two held-out
        # passes, which a variant of half the parent's size stands for.
        variants = 2 * (last + 1 - first)
        return 2.0 * TOKENS * (2 * parent + variants * (3 + 2) * sum(own) / 2)
    child = sum(
        parameters("attention", block.attention, config) + parameters("ffn", block.ffn, config)
        for block in ArchitectureSpec.from_file(asked.child / "architecture.yaml").blocks
    )
    return 2.0 * 4 * TOKENS * (parent + head + 3 * (child + head))


def parameters(subblock: str, name: str, config: ParentConfig) -> int:
    variant = parse_variant(subblock, name)  # type: ignore[arg-type]
    return subblock_parameters(variant, config)


if __name__ == "__main__":
    main()
