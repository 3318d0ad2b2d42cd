"""``puzzle-search serve``."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from puzzle_search.choices import ServingEngine
from puzzle_search.cli.options import DeviceOption, MeasuredDtypeOption

_OF_OURS = "Of this package's own server"


def serve(
    model: Annotated[
        Path,
        typer.Argument(help="Checkpoint folder, parent or child; with --engine, what it reads."),
    ],
    engine: Annotated[
        ServingEngine | None,
        typer.Option(help="Start this installed engine. (default: this package's own runtime)"),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for other machines.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any free one.")] = 8000,
    served_model_name: Annotated[
        str | None, typer.Option(help="What clients call the model. (default: the folder's name)")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="PUZZLE_SEARCH_API_KEY",
            help="Key that requests must carry. Other users of the machine see what is given "
            "here; the variable they do not. (default: none)",
        ),
    ] = None,
    max_model_len: Annotated[
        int | None,
        typer.Option(
            min=2, help="Tokens of a prompt and its output. (default: the model's, at most 4096)"
        ),
    ] = None,
    max_num_seqs: Annotated[int, typer.Option(min=1, help="Requests that run at once.")] = 16,
    max_waiting: Annotated[
        int,
        typer.Option(
            min=0, help="Requests that may wait; others get 429.", rich_help_panel=_OF_OURS
        ),
    ] = 256,
    device: DeviceOption = "cpu",
    dtype: MeasuredDtypeOption = "fp32",
) -> None:
    """Answer OpenAI's completions and chat completions over HTTP."""
    name = served_model_name or model.resolve().name
    if engine is not None:
        from puzzle_search.serve.engines import engine_command

        command = engine_command(
            engine,
            model,
            host=host,
            port=port,
            name=name,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
        )
        print(shlex.join(command), flush=True)
        # Engines read their keys there, where other users of the machine do not see them.
        key = {} if api_key is None else {"VLLM_API_KEY": api_key, "LLAMA_API_KEY": api_key}
        os.execve(command[0], command, os.environ | key)

    from puzzle_search.packages import installed
    from puzzle_search.profile import open_device

    with installed():
        from puzzle_search.serve.app import ServedName, make_app
        from puzzle_search.serve.server import ServerSettings, listen, open_worker, run_server

    listening = listen(host, port)
    opened = open_device(device)
    settings = ServerSettings(
        dtype=dtype,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_waiting=max_waiting,
    )
    worker, tokenizer = open_worker(
        model, settings, opened.torch_device, memory_limit_bytes=opened.memory_limit_bytes
    )
    app = make_app(worker, tokenizer, ServedName(name=name), api_key=api_key)
    address, actual = listening.getsockname()[:2]
    print(f"{name} on http://{address}:{actual}/v1", flush=True)
    run_server(app, listening)
