"""The command that starts an installed engine on an exported child."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

from puzzle_search.checkpoint import read_model_config
from puzzle_search.checkpoint.child import OWN_TYPE, STOCK_TYPE
from puzzle_search.errors import InputError, MissingDependencyError
from puzzle_search.files import read_json
from puzzle_search.solve.problem.portability import verdicts

_PROGRAMS = {
    "llama.cpp": ("llama-server", "install llama.cpp and put its llama-server on PATH"),
    "vllm": ("vllm", "pip install vllm, and run this where it is installed"),
}


def engine_command(
    engine: str,
    model: Path,
    *,
    host: str,
    port: int,
    name: str,
    max_model_len: int | None,
    max_num_seqs: int,
) -> list[str]:
    """The command, with the flags that a child needs.

    Args:
        engine: ``llama.cpp`` or ``vllm``.
        model: what the engine reads: a GGUF file, or a folder.
        host: address to listen on.
        port: likewise.
        name: what clients call the model.
        max_model_len: tokens of a prompt and its output; the engine's own limit by default.
        max_num_seqs: requests that run at once.

    Raises:
        InputError: the engine does not read that.
        MissingDependencyError: it is not installed.
    """
    _check_readable(engine, model)
    program, remedy = _PROGRAMS[engine]
    found = shutil.which(program)
    if found is None:
        raise MissingDependencyError(f"{program} is not installed", remedy=remedy)
    address = ["--host", host, "--port", str(port)]
    if engine == "vllm":
        length = [] if max_model_len is None else ["--max-model-len", str(max_model_len)]
        return [
            *(found, "serve", str(model), *address, "--served-model-name", name),
            *("--trust-remote-code", "--max-num-seqs", str(max_num_seqs), *length),
        ]
    # Its context is that of all slots together; 0 is the model's own, for each.
    context = 0 if max_model_len is None else max_model_len * max_num_seqs
    return [
        *(found, "--model", str(model), *address, "--alias", name),
        *("--parallel", str(max_num_seqs), "--ctx-size", str(context)),
    ]


def _check_readable(engine: str, model: Path) -> None:
    if engine == "llama.cpp":
        if model.is_dir():
            raise InputError(
                f"llama.cpp reads no folder such as {model}",
                remedy=f"puzzle-search export {model} --to llama.cpp --out child.gguf, and serve "
                "child.gguf",
            )
        if not model.exists():
            raise InputError(f"{model} is not there", remedy="name a GGUF file")
        return
    config, spec = read_model_config(model)
    raw = read_json(model / "config.json", remedy="name a checkpoint folder")
    # Where both are installed, vLLM has this package's plugin.
    known_as = "vllm-plugin" if find_spec("vllm") else engine
    (verdict,) = (one for one in verdicts(spec, config) if one.engine == known_as)
    # Any other type is that of a parent, which the engine knows.
    if raw["model_type"] in (STOCK_TYPE, OWN_TYPE) and not verdict.as_built:
        raise InputError(
            f"{engine} does not compute {model} as it is",
            remedy=f"puzzle-search export {model} --to {engine} --out DIR, and serve that",
        )
