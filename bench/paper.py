"""The paper's claims on a small real parent, beside the paper's own numbers.

    python bench/paper.py runs/paper --out bench/results

Trains block libraries, scores, solves, builds, distils and measures; about an hour on two cores.
A run that was interrupted goes on where it was. Prints the tables and one JSON line; writes them
and the plots into ``--out``, named by date. ``--only`` takes some claims; ``--pico`` spends so
little on each that only the machinery is tried. On a machine with a GPU, ``--device cuda`` and a
``--parent`` of 60M parameters or more repeat the same tables.
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
from paper_report import markdown, plot

from puzzle_search.files import write_text

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "stdlib-lm"
PICO = LabSettings(
    batches=(8,), bld_tokens=2048, score_tokens=256, test_tokens=512, gkd_tokens=4096,
    long_gkd_tokens=8192, random_specs=5, iterations=1,
)  # fmt: skip


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path, help="folder of the run")
    parser.add_argument("--out", type=Path, help="folder for tables and plots")
    parser.add_argument("--parent", type=Path, default=EXAMPLE / "parent")
    parser.add_argument("--space", type=Path, default=EXAMPLE / "space.yaml")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--only", nargs="+", choices=CLAIMS, default=CLAIMS)
    parser.add_argument("--pico", action="store_true", help="try the machinery only")
    args = parser.parse_args()
    given = asdict(PICO if args.pico else LabSettings())
    settings = LabSettings(**(given | {"device": args.device, "dtype": args.dtype}))
    lab = Lab(args.parent, args.space, args.work, settings)
    claims = Claims(lab)
    setting = {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "parent": f"{lab.config.name}, {sum(p.numel() for p in lab.model.parameters()):,} "
        "parameters",
        "device": f"{lab.device.name}, {os.cpu_count()} cores, torch {torch.__version__}",
        "evidence": "measured; KL in nats a token on the test split, which no search sees",
        "spent": ", ".join(f"{name} {value}" for name, value in asdict(settings).items()),
    }
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
