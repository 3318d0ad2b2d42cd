"""What scoring costs against the obvious way, and whether it keeps within its memory.

    python bench/scoring.py --small --big

--small: all singles and composed blocks of examples/stdlib-lm, untrained library. The obvious way
puts each replacement into the model, which stays in memory, and runs it whole; "same KL" measures
its hidden states as scoring does, "plain KL" takes log-softmax against the parent's cached
log-probabilities. The floor runs exactly the replaced block and the blocks after it, and measures
once. The ways are measured in turn; medians of rounds.

--big: a random parent of 1B shape, scored in a fresh process with --max-memory at 25% of the
model's bytes, and without a limit; its peak memory above what imports take.

Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig

from puzzle_search.arch import ParentConfig, Replacement, SearchSpace, parse_variant
from puzzle_search.checkpoint import (
    CheckpointReader,
    CheckpointWriter,
    load_decoder,
    load_tokenizer,
    outside_names,
    subblock_from_tensors,
)
from puzzle_search.checkpoint.block_library import BlockLibrary, LibraryEntry
from puzzle_search.checkpoint.names import checkpoint_name, subblock_shapes
from puzzle_search.data import load_documents, pack_tokens
from puzzle_search.files import Journal, write_text
from puzzle_search.library import BldSettings, build_library
from puzzle_search.model import HeterogeneousDecoder, SubblockModule
from puzzle_search.model.losses import kl_to_log_probs, log_probs
from puzzle_search.score import DEFAULT_METRICS, METRICS, score_replacements
from puzzle_search.score.measure import Judge
from puzzle_search.score.plan import chunk_rows
from puzzle_search.score.vocabulary import Wanted
from puzzle_search.score.weights import Sources, Weights

SMALL = Path(__file__).resolve().parents[1] / "examples" / "stdlib-lm"
Values = dict[Replacement, float]


class Whole:
    """The parent in memory, with modules put into it."""

    def __init__(self, parent: Path, library: BlockLibrary, ids: torch.Tensor) -> None:
        self.model: HeterogeneousDecoder = load_decoder(parent)
        self.config, self.library = self.model.config, library
        rows = chunk_rows(torch.device("cpu"), ids.shape[1])
        self.ids = ids.split(rows)
        sources = Sources(
            parent=parent,
            library=library.folder,
            entries=library.entries,
            config=self.config,
            device="cpu",
            dtype=torch.float32,
        )
        weights = Weights(sources, ())
        wanted = Wanted(metrics=("kl",))
        self.judge = Judge(weights, self.ids, wanted, known=None, one_by_one=True)
        with torch.inference_mode():
            self.rotary = self.model.rotary.slice(0, ids.shape[1], self.model.embedding.weight)
            before: list[list[torch.Tensor]] = [[self.model.embedding(part) for part in self.ids]]
            for block in self.model.blocks:
                before.append([block(chunk, self.rotary) for chunk in before[-1]])
            self.before = before
            self.parent_log_probs = [log_probs(self.model.logits(chunk)) for chunk in before[-1]]
            self.judge.learn(before[-1])

    def modules(self, replacement: Replacement) -> list[SubblockModule]:
        """Attention and FFN of a replacement in one layer."""
        names = replacement[2:]
        tensors = self.library.block(*replacement)
        own = (self.config.attention, self.config.ffn)
        return [
            subblock_from_tensors(
                parse_variant(subblock, name or parents),
                self.config,
                tensors[subblock],
                dtype=torch.float32,
                device="cpu",
            )
            for subblock, name, parents in zip(("attention", "ffn"), names, own, strict=True)
        ]

    def child(self, layer: int, modules: list[SubblockModule], start: int) -> list[torch.Tensor]:
        """Final hidden states with these modules in a layer, from a layer on."""
        final = []
        for hidden in self.before[start]:
            for number, block in enumerate(self.model.blocks[start:], start=start):
                if number != layer:
                    hidden = block(hidden, self.rotary)
                    continue
                for module in modules:
                    hidden = module(hidden, self.rotary, None)
            final.append(hidden)
        return final

    def same_kl(self, replacement: Replacement, start: int) -> float:
        """Run from a layer on, measure as scoring does."""
        final = self.child(replacement[0], self.modules(replacement), start)
        [(_, estimates)] = self.judge.measure([(replacement, final)])
        return estimates["kl"].value

    def plain_kl(self, replacement: Replacement) -> float:
        """Run whole, take the KL as anyone would."""
        final = self.child(replacement[0], self.modules(replacement), 0)
        kl = [
            kl_to_log_probs(teacher, self.model.logits(chunk)).double()
            for teacher, chunk in zip(self.parent_log_probs, final, strict=True)
        ]
        return float(torch.cat(kl).mean())


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Wall time and result."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def small(tokens: int, rounds: int) -> dict[str, Any]:
    """All singles and composed blocks of the small parent."""
    parent = SMALL / "parent"
    config = ParentConfig.from_file(parent)
    space = SearchSpace.from_file(SMALL / "space.yaml", config)
    tokenizer = load_tokenizer(parent)
    ids = {
        split: pack_tokens(
            load_documents("python-stdlib", split), tokenizer, length=128, max_tokens=tokens
        ).ids
        for split in ("train", "validation")
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        library = build_library(
            parent, space, ids["train"], ids["validation"], folder / "library",
            BldSettings(tokens=0), calibration_tokens=tokens,
        )  # fmt: skip
        held_out, asked = ids["validation"], list(space.replacements(config))
        whole = Whole(parent, library, held_out)
        took: dict[str, list[float]] = {}
        values: dict[str, Values] = {}

        def ours(metrics: tuple[str, ...]) -> Values:
            (folder / "journal.jsonl").unlink(missing_ok=True)
            scores = score_replacements(
                parent, library, asked, held_out, journal=Journal(folder / "journal.jsonl"),
                metrics=metrics,
            )  # fmt: skip
            rows = [row for row in scores.rows if row.metric == "kl"]
            return {(r.first_layer, r.last_layer, r.attention, r.ffn): r.value for r in rows}

        @torch.inference_mode()
        def each(run: Callable[[Replacement], float]) -> Values:
            return {replacement: run(replacement) for replacement in asked}

        ways: dict[str, Callable[[], Values]] = {
            "scoring, kl": lambda: ours(("kl",)),
            "floor": lambda: each(lambda r: whole.same_kl(r, r[0])),
            "obvious, same KL": lambda: each(lambda r: whole.same_kl(r, 0)),
            "obvious, plain KL": lambda: each(whole.plain_kl),
            "scoring, default": lambda: ours(DEFAULT_METRICS),
            "scoring, all metrics": lambda: ours(METRICS),
        }
        for number in range(rounds):
            for way, run in ways.items():
                if number and way in ("scoring, default", "scoring, all metrics"):
                    continue  # once is enough to see what the metrics cost
                wall, values[way] = seconds(run)
                took.setdefault(way, []).append(wall)
                print(f"round {number + 1}: {way:24} {wall:8.2f} s", file=sys.stderr, flush=True)
    walls = {way: statistics.median(walls) for way, walls in took.items()}
    differences = [abs(values["scoring, kl"][r] - values["obvious, plain KL"][r]) for r in asked]
    result = {
        "replacements": len(asked),
        "tokens": held_out.numel(),
        "seconds": walls,
        "seconds_of_rounds": took,
        "to_obvious_same_kl": walls["scoring, kl"] / walls["obvious, same KL"],
        "to_obvious_plain_kl": walls["scoring, kl"] / walls["obvious, plain KL"],
        "to_floor": walls["scoring, kl"] / walls["floor"],
        "largest_difference": max(differences),
        "largest_score": max(values["scoring, kl"].values()),
    }
    print(f"small parent: {len(asked)} replacements, {held_out.numel()} tokens")
    for way, wall in walls.items():
        print(f"  {way:24} {wall:8.2f} s  {wall / walls['floor']:6.3f} x floor")
    for name in ("to_obvious_same_kl", "to_obvious_plain_kl", "to_floor", "largest_difference"):
        print(f"  {name:24} {result[name]:10.3g}")
    return result


def write_big(folder: Path, layers: int) -> tuple[ParentConfig, int]:
    """A random parent of 1B shape with a library of two variants a layer; its bytes."""
    raw = LlamaConfig(
        hidden_size=2048, num_hidden_layers=layers, num_attention_heads=32,
        num_key_value_heads=8, intermediate_size=8192, vocab_size=32000,
        max_position_embeddings=2048, tie_word_embeddings=False, architectures=["LlamaForCausalLM"],
    ).to_dict()  # fmt: skip
    parent = folder / "parent"
    parent.mkdir()
    (parent / "config.json").write_text(json.dumps(raw))
    config = ParentConfig.from_file(parent)
    generator = torch.Generator().manual_seed(0)

    def random_tensor(shape: tuple[int, ...]) -> torch.Tensor:
        drawn = torch.empty(shape).normal_(0, 0.02, generator=generator)
        return drawn if len(shape) > 1 else torch.ones(shape)

    writer = CheckpointWriter(parent, shard_bytes=2**30)
    for name, shape in outside_names(config).items():
        writer.add(name, random_tensor(shape))
    own = {"attention": config.attention, "ffn": config.ffn}
    for layer in range(layers):
        for subblock, variant in own.items():
            shapes = subblock_shapes(parse_variant(subblock, variant), config)
            for local, shape in shapes.items():
                writer.add(checkpoint_name(subblock, layer, local), random_tensor(shape))
    writer.finish()
    library = BlockLibrary(folder / "library", config, CheckpointReader(parent))
    for layer in range(layers):
        for subblock, variant in (("attention", "linear"), ("ffn", "mlp_2048")):
            shapes = subblock_shapes(parse_variant(subblock, variant), config)
            names = {key: variant if key == subblock else "" for key in own}
            entry = LibraryEntry(
                first_layer=layer, last_layer=layer, **names, initialised_by="random", tokens=0,
                loss_initial=1.0, loss_trained=1.0, sha256="",
            )  # fmt: skip
            library.add(entry, {subblock: {n: random_tensor(s) for n, s in shapes.items()}})
    library.finish({})
    return config, sum(file.stat().st_size for file in parent.glob("*.safetensors"))


def memory_kib(name: str) -> int:
    """A line of this process's status: VmHWM is the peak, VmRSS what is held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def big_ids(tokens: int) -> torch.Tensor:
    """Random tokens in blocks of 32."""
    return torch.randint(0, 32000, (tokens // 32, 32), generator=torch.Generator().manual_seed(1))


def big_replacements(layers: int) -> list[Replacement]:
    """The no-op and both trained variants of every other layer, as a pair and alone."""
    pairs = (("linear", ""), ("", "mlp_2048"), ("linear", "mlp_2048"), ("no_op", "no_op"))
    return [(layer, layer, *pair) for layer in range(0, layers, 2) for pair in pairs]


def score_big(folder: Path, tokens: int, limit: float | None) -> None:
    """In a process of its own: print peak memory above that after imports, and the scores."""
    config = ParentConfig.from_file(folder / "parent")
    library = BlockLibrary.from_folder(
        folder / "library", config, CheckpointReader(folder / "parent")
    )
    held = memory_kib("VmHWM")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        wall, scores = seconds(
            lambda: score_replacements(
                folder / "parent", library, big_replacements(config.num_layers), big_ids(tokens),
                journal=Journal(Path(scratch) / "journal.jsonl"), max_memory_bytes=limit,
                metrics=METRICS,
            )
        )  # fmt: skip
    peak = 1024 * (memory_kib("VmHWM") - held)
    kl = [row.value for row in scores.rows if row.metric == "kl"]
    print(json.dumps({"peak_bytes": peak, "seconds": wall, "kl": kl}))


def big(tokens: int, layers: int) -> dict[str, Any]:
    """Peak memory at 25% of the model, scores against no limit and against whole children."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config, size = write_big(folder, layers)
        runs = {}
        for way, limit in (("limited", 0.25 * size), ("unlimited", None)):
            done = subprocess.run(
                [sys.executable, __file__, "--score-big", folder, "--tokens", str(tokens)]
                + (["--limit", str(limit)] if limit else []),
                capture_output=True, text=True, check=True, env=dict(os.environ),
            )  # fmt: skip
            runs[way] = json.loads(done.stdout.splitlines()[-1])
            print(f"{way}: {runs[way]['seconds']:.1f} s", file=sys.stderr, flush=True)
        # Some children the obvious way: assembled in memory, run whole, plain KL.
        whole = Whole(
            folder / "parent",
            BlockLibrary.from_folder(
                folder / "library", config, CheckpointReader(folder / "parent")
            ),
            big_ids(tokens),
        )
        asked = big_replacements(layers)
        checked = range(0, len(asked), 5)
        with torch.inference_mode():
            differences = [
                abs(whole.plain_kl(asked[n]) - runs["limited"]["kl"][n]) for n in checked
            ]
    result = {
        "model_bytes": size,
        "tokens": tokens,
        "replacements": len(asked),
        "limit_bytes": 0.25 * size,
        "peak_bytes": {way: run["peak_bytes"] for way, run in runs.items()},
        "seconds": {way: run["seconds"] for way, run in runs.items()},
        "same_scores": runs["limited"]["kl"] == runs["unlimited"]["kl"],
        "largest_score": max(runs["limited"]["kl"]),
        "checked": len(differences),
        "largest_difference": max(differences),
    }
    print(f"1B shape: model {size / 2**30:.2f} GiB, {len(asked)} replacements, {tokens} tokens")
    for way, run in runs.items():
        share = run["peak_bytes"] / size
        print(f"  {way:12} peak {run['peak_bytes'] / 2**20:7.0f} MiB = {share:5.1%} of the model, "
              f"{run['seconds']:6.1f} s")  # fmt: skip
    print(f"  same scores: {result['same_scores']}; largest difference to {len(differences)} whole "
          f"children: {max(differences):.2g}")  # fmt: skip
    return result


def main() -> None:
    """Print the tables and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--big", action="store_true")
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--out", type=Path, help="write the JSON here as well")
    parser.add_argument("--score-big", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.score_big:
        score_big(args.score_big, args.tokens, args.limit)
        return
    result: dict[str, Any] = {
        "bench": "scoring",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": "2-core x86 CPU (AVX2), shared with other work",
        "evidence": "measured",
    }
    if args.small:
        result["small"] = small(args.tokens or 1024, args.rounds)
    if args.big:
        result["big"] = big(args.tokens or 64, args.layers)
    if args.out:
        write_text(args.out, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
