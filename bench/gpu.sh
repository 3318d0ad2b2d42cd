#!/usr/bin/env bash
# The GPU check: profile the GPU, run children of Llama-3.1-70B on it, hold predictions against them.
#
#   bash bench/gpu.sh                          all stages on one Hopper GPU, within 9 minutes
#   bash bench/gpu.sh --stages tests           some of them; these first on a GPU that is new to the package
#   bash bench/gpu.sh --device cpu             the same for the small parent on this CPU
#   bash bench/gpu.sh --device cpu --pico      a dry run in a minute or two; its figures mean nothing
#
# Needs Python 3.11 with torch 2.11 or later, transformers, and the package's other dependencies, of which
# OR-Tools is for the stages headline and small alone; no network, no installation. Results go into the
# folder $OUT (default: runs/gpu-check/results) as they come, so that a time limit leaves what was
# measured. Work is kept in $WORK (default: runs/gpu-check): run again, the check goes on where it was;
# models.jsonl and the unpacked profile.tar.gz of the results, put into an empty $WORK, do as well.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
WORK="${WORK:-runs/gpu-check}"
exec "$PYTHON" -u experiments/gpu/gpu.py --work "$WORK" --out "${OUT:-$WORK/results}" "$@"
