"""The paper's claims on a small real parent, beside the paper's own numbers.

    python experiments/paper/paper.py runs/paper --out bench/results

Trains block libraries, scores, solves, builds, distils and measures; about two hours on two cores.
A run that was interrupted goes on where it was. Prints the tables and one JSON line; writes them
and the plots into ``--out``, named by date. ``--only`` takes some claims; ``--pico`` spends so
little on each that only the machinery is tried. On a machine with a GPU, ``--device cuda`` first
trains a parent of 79M parameters (``--train-minutes`` at most), then repeats the same tables on it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from paper_claims import CLAIMS, Claims
from paper_lab import Lab, LabSettings
from paper_pairing import TOLERANCE
from paper_parent import EXAMPLE, LARGE, SUMMARY, trained_parent
from paper_parent import PICO as PICO_SHAPE
from paper_report import markdown, plot

from puzzle_search.files import write_text

PICO = LabSettings(
    batches=(8,), bld_tokens=2048, score_tokens=256, test_tokens=512, gkd_tokens=4096,
    long_gkd_tokens=8192, random_specs=5, iterations=1,
)  # fmt: skip
ON_GPU = LabSettings(
    batches=(64, 256), bld_tokens=2**18, score_tokens=2**14, test_tokens=2**16, gkd_tokens=2**18,
    long_gkd_tokens=2**22, gkd_batch_tokens=2**14,
)  # fmt: skip
GPU_TRAIN_MINUTES = 15.0


def parent_of(args: argparse.Namespace, *, bf16: bool) -> tuple[Path, Path]:
    """Checkpoint folder and search space: as named, trained first, or the example's."""
    if args.parent is not None:
        return args.parent, args.space
    minutes = args.train_minutes or (GPU_TRAIN_MINUTES if args.device == "cuda" else None)
    if minutes is None:
        return EXAMPLE / "parent", EXAMPLE / "space.yaml"
    return trained_parent(
        args.work / "trained",
        PICO_SHAPE if args.pico else LARGE,
        device=args.device,
        bf16=bf16,
        max_seconds=60 * minutes,
    )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path, help="folder of the run")
    parser.add_argument("--out", type=Path, help="folder for tables and plots")
    parser.add_argument("--parent", type=Path, help="of another run, with --space")
    parser.add_argument("--space", type=Path)
    parser.add_argument(
        "--train-minutes", type=float, help="train a parent first; the default on a GPU: 15"
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", choices=["fp32", "bf16"], help="default: bf16 on a GPU")
    parser.add_argument("--only", nargs="+", choices=CLAIMS, default=CLAIMS)
    parser.add_argument("--pico", action="store_true", help="try the machinery only")
    args = parser.parse_args()
    if (args.parent is None) != (args.space is None):
        parser.error("--parent and --space belong together")
    on_gpu = args.device == "cuda"
    given = asdict(PICO if args.pico else ON_GPU if on_gpu else LabSettings())
    dtype = args.dtype or ("bf16" if on_gpu else "fp32")
    settings = LabSettings(**(given | {"device": args.device, "dtype": dtype}))
    parent, space = parent_of(args, bf16=dtype == "bf16")
    lab = Lab(parent, space, args.work, settings)
    claims = Claims(lab)
    setting = {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "parent": f"{lab.config.name}, {sum(p.numel() for p in lab.model.parameters()):,} "
        "parameters",
        "device": f"{lab.device.name}, {os.cpu_count()} cores, torch {torch.__version__}",
        "evidence": "measured; KL in nats a token on the test split, which no search sees",
        "throughput": f"children are matched by measured throughput, to {TOLERANCE:.0%} where a "
        "way has choices that fine; additive and rounds ask the profile",
        "spent": ", ".join(f"{name} {value}" for name, value in asdict(settings).items()),
    }
    if (parent / SUMMARY).exists():
        summary = json.loads((parent / SUMMARY).read_text())
        setting["training"] = ", ".join(f"{name} {value}" for name, value in summary.items())
    found = []
    for name in args.only:
        claim = getattr(claims, name)()
        found.append(claim)
        print(markdown([claim], {}), flush=True)
        if args.out is not None:
            stem = f"{setting['date']}-paper"
            write_text(args.out / f"{stem}.md", markdown(found, setting))
            result = {"bench": "paper", **setting, "claims": [asdict(c) for c in found]}
            write_text(args.out / f"{stem}.json", json.dumps(result, indent=1))
            plot(claim, args.out / stem)
    print(json.dumps({"bench": "paper", **setting, "verdicts": {c.name: c.verdict for c in found}}))


if __name__ == "__main__":
    main()
