"""How close the back ends of decode attention come to the bandwidth of memory.

    python bench/decode_attention.py
    python bench/decode_attention.py --pico

Every sequence of a batch holds as many tokens as the context says. A call reads its keys and
values once, so its bandwidth is their bytes over its time. "of copy" sets it against a copy of
1 GiB on the same device, reads and writes counted. On CUDA, calls go round over caches that exceed
the L2 cache together, captured in one graph and replayed; medians of rounds, back ends in turn.
"off by" is the largest difference to SDPA. --pico, for a CPU, runs SDPA at tiny sizes and shows
nothing but that this works.

Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from puzzle_search.files import write_text
from puzzle_search.runtime.attention import DecodeAttention, make_decode_attention

KV_DTYPES = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
NUM_HEADS = 64  # query heads of Llama-3.1-70B
ROUNDS = 7


@dataclass(frozen=True, kw_only=True)
class Point:
    """What is measured.

    Attributes:
        batch: sequences.
        context: tokens of each.
        kv_heads: heads of keys and values.
        kv_dtype: their name in KV_DTYPES.
        num_heads: query heads.
        head_dim: of all.
    """

    batch: int
    context: int
    kv_heads: int
    kv_dtype: str
    num_heads: int = NUM_HEADS
    head_dim: int = 128

    @property
    def kv_bytes(self) -> int:
        """Keys and values that a call reads."""
        elements = self.batch * self.context * self.kv_heads * self.head_dim
        return 2 * elements * KV_DTYPES[self.kv_dtype].itemsize


class Caches:
    """Queries of a step and caches of as many layers as exceed ``least_bytes`` together."""

    def __init__(self, point: Point, device: torch.device, least_bytes: float) -> None:
        layers = max(1, math.ceil(least_bytes / point.kv_bytes))
        generator = torch.Generator(device).manual_seed(0)

        def drawn(*shape: int) -> torch.Tensor:
            return torch.randn(shape, dtype=torch.bfloat16, device=device, generator=generator)

        shape = (point.batch, point.context, point.kv_heads, point.head_dim)
        dtype = KV_DTYPES[point.kv_dtype]
        self.q = drawn(point.batch, point.num_heads, point.head_dim)
        self.layers = [(drawn(*shape).to(dtype), drawn(*shape).to(dtype)) for _ in range(layers)]
        self.lengths = [point.context] * point.batch
        self.lengths_B = torch.tensor(self.lengths, dtype=torch.int32, device=device)

    def step(self, attend: DecodeAttention) -> torch.Tensor:
        """Attend in every layer; what the last gave."""
        for keys, values in self.layers:
            out = attend(self.q, keys, values, self.lengths_B)
        return out


def seconds(run: Callable[[], Any], device: torch.device) -> float:
    """Of one run, the device's work included."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def repeatable(run: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """Warmed up, and on CUDA the replay of a graph."""
    if device.type != "cuda":
        run()
        return run
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    return graph.replay


def copy_bytes_per_s(device: torch.device, size_bytes: int) -> float:
    """Bandwidth of a copy, reads and writes counted."""
    source = torch.zeros(size_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    run = repeatable(lambda: target.copy_(source), device)
    return 2 * size_bytes / statistics.median(seconds(run, device) for _ in range(ROUNDS))


def measure(
    point: Point, names: list[str], device: torch.device, least_bytes: float, copy: float
) -> list[dict[str, Any]]:
    """One row for each back end."""
    caches = Caches(point, device, least_bytes)
    runs, outs = {}, {}
    for name in names:
        attend = make_decode_attention(
            name,
            device,
            num_heads=point.num_heads,
            kv_heads=point.kv_heads,
            head_dim=point.head_dim,
            slots=point.batch,
            max_length=point.context,
            dtype=caches.q.dtype,
            kv_dtype=KV_DTYPES[point.kv_dtype],
        )
        attend.prepare(caches.lengths)
        outs[name] = caches.step(attend)
        runs[name] = repeatable(lambda attend=attend: caches.step(attend), device)
    took: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            took[name].append(seconds(run, device) / len(caches.layers))
    rows = []
    for name in names:
        call_s = statistics.median(took[name])
        rows.append(
            {
                "back_end": name,
                "batch": point.batch,
                "context": point.context,
                "kv_heads": point.kv_heads,
                "kv_dtype": point.kv_dtype,
                "layers": len(caches.layers),
                "call_us": 1e6 * call_s,
                "call_us_of_rounds": [1e6 * one for one in took[name]],
                "bytes_per_s": point.kv_bytes / call_s,
                "share_of_copy": point.kv_bytes / call_s / copy,
                "off_by": float((outs[name].float() - outs["sdpa"].float()).abs().max()),
            }
        )
    return rows


def table_line(row: dict[str, Any]) -> str:
    """A row of the table."""
    return (
        f"{row['kv_dtype']:5} {row['kv_heads']:8} {row['batch']:6} {row['context']:8} "
        f"{row['back_end']:11} {row['call_us']:10.1f} {row['bytes_per_s'] / 1e9:9.1f} "
        f"{row['share_of_copy']:7.1%} {row['off_by']:8.2g}"
    )


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pico", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--context", type=int, nargs="+", default=[256, 1024, 4096, 16384])
    parser.add_argument("--kv-heads", type=int, nargs="+", default=[1, 2, 8])
    parser.add_argument("--max-cache-gb", type=float, default=8.0, help="larger caches are left")
    parser.add_argument("--out", type=Path, help="write the JSON here as well")
    args = parser.parse_args()
    if args.pico:
        device, machine = torch.device("cpu"), f"CPU, {torch.get_num_threads()} threads"
        points = [
            Point(batch=2, context=32, kv_heads=2, kv_dtype=dtype, num_heads=4, head_dim=16)
            for dtype in KV_DTYPES
        ]
        names, least_bytes, copy_size = ["sdpa"], 0.0, 2**20
    else:
        device = torch.device("cuda")
        properties = torch.cuda.get_device_properties(device)
        machine = properties.name
        names = ["sdpa"] + [
            name for name in ("triton", "flashinfer") if importlib.util.find_spec(name) is not None
        ]
        points = [
            Point(batch=batch, context=context, kv_heads=kv_heads, kv_dtype=dtype)
            for dtype, kv_heads, batch, context in itertools.product(
                KV_DTYPES, args.kv_heads, args.batch, args.context
            )
        ]
        points = [point for point in points if point.kv_bytes <= 1e9 * args.max_cache_gb]
        least_bytes, copy_size = 4.0 * properties.L2_cache_size, 2**30
    copy = copy_bytes_per_s(device, copy_size)
    print(f"{machine}: a copy of {copy_size / 2**20:.0f} MiB moves {copy / 1e9:.1f} GB/s")
    print(
        f"{'KV':5} {'KV heads':>8} {'batch':>6} {'context':>8} {'back end':11} {'us a call':>10} "
        f"{'GB/s':>9} {'of copy':>7} {'off by':>8}"
    )
    rows = []
    for point in points:
        for row in measure(point, names, device, least_bytes, copy):
            rows.append(row)
            print(table_line(row), flush=True)
    result = {
        "bench": "decode_attention",
        "torch": torch.__version__,
        "machine": machine,
        "evidence": "measured",
        "copy_bytes_per_s": copy,
        "rows": rows,
    }
    if args.out:
        write_text(args.out, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
