"""``puzzle-search generate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from puzzle_search.cli.compute import computed_in, let_threads_sleep
from puzzle_search.cli.options import ComputeDtypeOption, DeviceOption


def generate(
    model: Annotated[
        Path,
        typer.Argument(
            help="Checkpoint folder, parent or child; a run directory: its child; or a GGUF file, "
            "which runs in llama.cpp."
        ),
    ],
    prompt: Annotated[str, typer.Option(help="Text to complete; with --chat, what you say.")],
    chat: Annotated[
        bool, typer.Option("--chat", help="Answer, by the tokenizer's chat template.")
    ] = False,
    system: Annotated[
        str | None, typer.Option(help="System message of --chat. (default: the template's)")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to add at most.")] = 64,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Nucleus sampling. (default: 1, all tokens)"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of sampling. (default: 0)")] = None,
    device: DeviceOption = "cpu",
    dtype: ComputeDtypeOption = "auto",
) -> None:
    """Complete a text or answer a message, streaming what comes."""
    let_threads_sleep()
    import torch

    from puzzle_search.checkpoint import (
        CheckpointReader,
        load_decoder,
        load_tokenizer,
        stop_tokens,
    )
    from puzzle_search.data import chat_tokens, text_tokens
    from puzzle_search.errors import InputError
    from puzzle_search.model import Sampling
    from puzzle_search.model import generate as generate_tokens
    from puzzle_search.model.dtypes import torch_dtype
    from puzzle_search.profile import open_device
    from puzzle_search.solve.question.children import find_checkpoint

    if system is not None and not chat:
        raise InputError("--system is of --chat", remedy="add --chat, or drop it")
    if not temperature and (top_p is not None or seed is not None):
        raise InputError(
            "--top-p and --seed are of sampling, and --temperature 0 is greedy",
            remedy="raise --temperature, or drop them",
        )
    if model.suffix == ".gguf":
        from puzzle_search.engines.gguf_text import generated_text

        if (device, dtype) != ("cpu", "auto"):
            raise InputError(
                "--device and --dtype are of checkpoint folders", remedy="leave them out"
            )
        print("" if chat else prompt, end="", flush=True)
        for piece in generated_text(
            model,
            prompt,
            chat=chat,
            system=system,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=1.0 if top_p is None else top_p,
            seed=seed or 0,
        ):
            print(piece, end="", flush=True)
        print()
        return
    model = find_checkpoint(model)
    tokenizer = load_tokenizer(model)
    if chat:
        ids = chat_tokens(prompt, tokenizer, system=system)
    else:
        ids = text_tokens(prompt, tokenizer, "the prompt")
    if not ids:
        raise InputError("the prompt is empty", remedy="give some text with --prompt")
    opened = open_device(device)
    rounds = dtype == "auto" and not CheckpointReader(model).is_bf16
    precision = torch_dtype("fp32" if rounds else computed_in(dtype, device))
    decoder = load_decoder(model, dtype=precision, device=opened.torch_device)
    print("" if chat else prompt, end="", flush=True)
    shown, tokens = "", []
    for token in generate_tokens(
        decoder,
        torch.tensor([ids], device=opened.torch_device),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(
            temperature=temperature, top_p=1.0 if top_p is None else top_p, seed=seed or 0
        ),
        stop_tokens=stop_tokens(model, tokenizer),
    ):
        tokens.append(int(token))
        text = str(tokenizer.decode(tokens, skip_special_tokens=True))
        if text.endswith("\ufffd"):  # the first bytes of a character: wait for the rest
            continue
        print(text[len(shown) :], end="", flush=True)
        shown = text
    print(text[len(shown) :])
