"""Write a commented recipe for a model and a device."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import BaseModel

from puzzle_search.arch import (
    ArchitectureSpec,
    ParentConfig,
    SearchSpace,
    architecture_parameters,
)
from puzzle_search.cost import Scenario
from puzzle_search.cost.modelled.hardware import CostModel, find_cost_model
from puzzle_search.data.documents import PYTHON_STDLIB
from puzzle_search.errors import InputError
from puzzle_search.files import written_whole
from puzzle_search.pipeline.checks import check_early
from puzzle_search.pipeline.recipes.faults import section_in
from puzzle_search.pipeline.recipes.propose import Device, Sizes, propose, propose_space
from puzzle_search.pipeline.recipes.recipe import Recipe, read_recipe
from puzzle_search.pipeline.recipes.reference import summary_of
from puzzle_search.profile import open_device
from puzzle_search.profile.hardware.products import measure_products
from puzzle_search.resources import resource
from puzzle_search.solve.question.run_folder import RECIPE_FORMAT

SPACE_FORMAT = "puzzle-search.search-space/1"
_LONG_TEXT = 50e6  # parameters from which blocks of text are longer
_PROMPTS = {True: "def read_json(path):\n    ", False: "The first thing to know is"}
_COMMENT_COLUMN = 30


@dataclass(frozen=True, kw_only=True)
class Written:
    """A recipe that was written.

    Attributes:
        space: search space that was written beside it; None where the model has one.
        notes: what its user should know before running it.
    """

    recipe: Path
    space: Path | None
    config: ParentConfig
    device: Device
    sizes: Sizes
    notes: tuple[str, ...]


def named_device(gpu: str | None) -> Device:
    """A GPU by its cost model's data sheet, or this machine, whose rate is measured.

    Raises:
        InputError: no cost model ships for that GPU, or a run cannot use it.
    """
    if gpu is not None:
        model = CostModel.from_file(find_cost_model(gpu))
        if model.sheet.vendor != "nvidia":
            raise InputError(
                f"{model.gpu} is of {model.sheet.vendor}: runs are made on CPUs and NVIDIA GPUs",
                remedy="leave out --gpu, or name another",
            )
        return Device(
            name=model.gpu,
            kind="cuda",
            dtype="bf16",
            memory_bytes=model.memory_limit_bytes,
            flops_per_second=model.sheet.flops_per_second["bf16"],
            evidence="datasheet",
        )
    opened = open_device("cuda" if torch.cuda.is_available() else "cpu")
    speeds = measure_products(opened.torch_device, ("fp32", "bf16"))
    [few_plain, many_plain, few_half, many_half] = speeds
    half = few_half.us < few_plain.us and many_half.us < many_plain.us
    return Device(
        name=opened.name,
        kind=opened.torch_device.type,
        dtype="bf16" if half else "fp32",
        memory_bytes=opened.memory_limit_bytes,
        flops_per_second=(many_half if half else many_plain).flops_per_second,
        evidence="measured",
    )


def write_recipe(
    model: str,
    out: Path,
    *,
    device: Device,
    hours: float = 2.0,
    scenario: str = "128/128",
    source: str = PYTHON_STDLIB,
    target_speedup: float = 1.5,
) -> Written:
    """Write a recipe that passes its own check, and a search space where the model has none.

    Args:
        model: checkpoint folder, or a shipped example.
        out: file to write; neither it nor the space may be there.
        device: that it is sized for.
        hours: that the run may take at the device's highest rate.
        scenario: input/output tokens.
        source: of text.
        target_speedup: what the child shall reach.

    Raises:
        InputError: the model cannot be read, a value is not valid, or a file is there already.
    """
    folder, space_file = _find(model)
    written_space = out.with_name(f"{out.stem}.space.yaml") if space_file is None else None
    for file in (out, *([written_space] if written_space else [])):
        if file.exists():
            raise InputError(f"{file} is there already", remedy="name another file with --out")
    config = ParentConfig.from_file(folder)
    lists = propose_space(config)
    space = (
        SearchSpace.uniform(config, **lists)
        if space_file is None
        else SearchSpace.from_file(space_file, config)
    )
    sizes = propose(config, space, Scenario.parse(scenario), device, hours)
    parameters = architecture_parameters(ArchitectureSpec.identity(config), config)
    length = min(512 if parameters >= _LONG_TEXT else 128, config.max_context)
    found_space = space_file or written_space
    assert found_space is not None
    values: dict[str, Any] = {
        "format": RECIPE_FORMAT,
        "name": re.sub(r"[^\w.-]", "-", folder.resolve().name).lstrip("-.") or "run",
        "parent": _beside(out, folder),
        "space": _beside(out, found_space),
        "device": device.kind,
        "dtype": device.dtype,
        "scenario": scenario,
        "data": {"source": source, "length": length},
        "profile": {"batches": list(sizes.batches)},
        "library": {"tokens": sizes.library_tokens},
        "score": {"tokens": sizes.score_tokens, "composed": sizes.composed},
        "solve": {"target_speedup": target_speedup, "rounds": 2},
        "bench": {"iterations": 10},
        "evaluate": {"tokens": 32768},
        "generate": {"prompts": [_PROMPTS[source == PYTHON_STDLIB]]},
    }
    if source != PYTHON_STDLIB:
        values["data"]["source"] = _beside(out, Path(source))
    if sizes.distill_tokens is not None:
        tokens = {"tokens": sizes.distill_tokens, "batch_tokens": sizes.batch_tokens}
        values["distill"] = tokens
    text = _text(values, _comments(sizes, device), _heading(config, parameters, device, hours))
    has_weights = any(folder.glob("*.safetensors"))
    out.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
        if written_space is not None:
            shown = {"format": SPACE_FORMAT, **lists}
            written_space.write_text(
                yaml.safe_dump(shown, sort_keys=False, default_flow_style=None)
            )
        try:
            recipe = read_recipe(temporary)
            if has_weights:
                check_early(recipe, folder, config, space)
        except InputError:
            if written_space is not None:
                written_space.unlink()
            raise
    return Written(
        recipe=out,
        space=written_space,
        config=config,
        device=device,
        sizes=sizes,
        notes=tuple(_notes(folder, sizes, device, has_weights=has_weights)),
    )


def _find(model: str) -> tuple[Path, Path | None]:
    """The checkpoint folder, and its search space if it has one."""
    folder = Path(model) if Path(model).is_dir() else resource("examples", model.lower())
    own = folder / "space.yaml"
    space = own if own.is_file() else None
    for place in (folder, folder / "parent"):
        if (place / "config.json").is_file():
            return place, space
    raise InputError(
        f"model {model!r} is neither a shipped example nor a folder with config.json",
        remedy="name a checkpoint folder",
    )


def _beside(out: Path, path: Path) -> str:
    """A path as the recipe writes it: relative below its own folder, else absolute."""
    base, target = out.resolve().parent, path.resolve()
    return str(target.relative_to(base)) if target.is_relative_to(base) else str(target)


def _heading(config: ParentConfig, parameters: int, device: Device, hours: float) -> list[str]:
    return [
        f"{config.name}, {parameters / 1e6:,.1f}M parameters, on {device.name}: at most "
        f"{device.flops_per_second / 1e9:,.0f} GFLOP/s in {device.dtype} ({device.evidence}).",
        f"Sized for {hours:g} h of computing at that rate; real work is slower. Times below are",
        "least ones. docs/recipes.md has every key.",
    ]


def _comments(sizes: Sizes, device: Device) -> dict[str, str]:
    """What sizes were chosen by."""
    least = {stage: f"at least {_time(seconds)}" for stage, seconds in sizes.seconds.items()}
    short = {
        stage: f"; the model asks for {sizes.wanted[stage]:,}: raise it with the time you have"
        for stage, spent in (
            ("library", sizes.library_tokens), ("distill", sizes.distill_tokens or 0)
        )
        if spent < sizes.wanted[stage] // 1024 * 1024
    }  # fmt: skip
    return {
        "profile.batches": f"the parent fits {device.memory_bytes / 1e9:,.1f} GB with all of them"
        if sizes.fits
        else f"the parent does not fit {device.memory_bytes / 1e9:,.1f} GB at all",
        "library.tokens": least["library"] + short.get("library", ""),
        "score.tokens": least["score"],
        "distill.tokens": least["distill"] + short.get("distill", ""),
    }


def _time(seconds: float) -> str:
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} s"


def _notes(folder: Path, sizes: Sizes, device: Device, *, has_weights: bool) -> Iterator[str]:
    if not has_weights:
        yield f"{folder} has no weights: name the checkpoint's folder under parent before the run"
    if not sizes.fits:
        yield (
            f"the parent does not fit {device.name} at batch 1: a run needs it whole; "
            "use a larger device, or ask for a child with 'puzzle-search solve'"
        )
    if sizes.distill_tokens is None:
        yield (
            f"no distill section: it takes about {sizes.distill_bytes / 1e9:,.0f} GB "
            f"(weights, gradients, moments), {device.name} has {device.memory_bytes / 1e9:,.0f}; "
            "distil on several GPUs with 'puzzle-search distill' under torchrun"
        )


def _text(values: Mapping[str, Any], comments: Mapping[str, str], heading: list[str]) -> str:
    lines = [f"# {line}" for line in heading]
    for key, field in Recipe.model_fields.items():
        section = section_in(field.annotation)
        if section is None:
            lines.append(_line(key, values[key], field.description or ""))
        elif key in values:
            lines += ["", _commented(f"{key}:", summary_of(section))]
            lines += _section(key, section, values[key], comments)
    return "\n".join([*lines, ""])


def _section(
    name: str, section: type[BaseModel], values: Mapping[str, Any], comments: Mapping[str, str]
) -> Iterator[str]:
    for key, field in section.model_fields.items():
        told = "; ".join(filter(None, (field.description, comments.get(f"{name}.{key}"))))
        if key in values:
            yield _line(f"  {key}", values[key], told)
        elif name == "solve" and field.default is None:  # what else may be asked
            yield _commented(f"  # {key}:", told)


def _line(key: str, value: Any, comment: str) -> str:
    written = yaml.safe_dump([value], default_flow_style=True, width=float("inf")).strip()[1:-1]
    return _commented(f"{key}: {written}", comment)


def _commented(text: str, comment: str) -> str:
    return f"{text:{_COMMENT_COLUMN}} # {comment}" if comment else text
