"""A recipe for a model and a device: sizes that its parameters ask for, cut to the time there is.

What a model asks for is read off what worked. Blockwise distillation took 65,536 tokens a variant
for 4.7M parameters here (`bench/results`), and a billion for 70B in the Puzzle paper: a token for
72 parameters both times. Global distillation with 0.45 tokens a parameter kept 99.2% of the small
parent's accuracy, and the paper's longest has 0.64. Time is that of the operations at the device's
highest rate: real work takes longer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from puzzle_search.arch import (
    ArchitectureSpec,
    ParentConfig,
    SearchSpace,
    Subblock,
    architecture_parameters,
    parse_variant,
    subblock_parameters,
)
from puzzle_search.arch.experts import Experts
from puzzle_search.arch.variants import STOCK_WIDTH_MULTIPLE
from puzzle_search.cost import Scenario, parse_dtype
from puzzle_search.cost.memory import (
    activation_bytes,
    kv_bytes_per_token,
    outside_bytes,
    weight_bytes,
)

_PARAMETERS_PER_LIBRARY_TOKEN = 72
_DISTILL_TOKENS_PER_PARAMETER = 0.5
_SCORE_TOKENS = 16384
_LEAST_TOKENS = 4096  # of anything: below, what is learnt or measured is noise
_BATCH_TOKENS = 1024  # of a step of distillation; larger models than _LARGE average over more
_LARGE, _LARGE_BATCH_TOKENS, _LEAST_STEPS = 1e9, 16384, 20
_LARGEST_BATCH = {"cpu": 32, "cuda": 256}
_PARTS = (0.75, 0.5, 0.25)  # of an FFN's width, or of its experts
# Parts of the time that stages may take; the rest is profile, bench and evaluation.
_SHARES = {"library": 0.3, "score": 0.15, "distill": 0.45}
# Operations of a token for each weight that it passes, forward, and forward with both gradients.
_FORWARD, _TRAINED = 2, 6
# Bytes of a parameter in distillation: weights, gradient and two moments in fp32.
_TRAINING_BYTES = 16


@dataclass(frozen=True, kw_only=True)
class Device:
    """What a recipe is sized for.

    Attributes:
        name: for people.
        kind: ``cpu`` or ``cuda``.
        dtype: in which it computes.
        memory_bytes: for weights, caches and training.
        flops_per_second: its highest rate in that precision.
        evidence: how the rate is known.
    """

    name: str
    kind: str
    dtype: str
    memory_bytes: float
    flops_per_second: float
    evidence: str


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a recipe should spend.

    Attributes:
        batches: for the profile; those at which the parent fits.
        composed: whether pairs are scored.
        distill_tokens: None where the memory does not hold the training.
        wanted: tokens that the model asks for, by stage: more than are spent where time is short.
        seconds: that stages take at least.
        fits: whether the parent fits the device at all.
    """

    batches: tuple[int, ...]
    library_tokens: int
    score_tokens: int
    composed: bool
    distill_tokens: int | None
    batch_tokens: int
    wanted: dict[str, int]
    seconds: dict[str, float]
    distill_bytes: int
    fits: bool


def propose_space(config: ParentConfig) -> dict[str, list[str]]:
    """Variants for every layer: fewer KV heads, narrower FFNs or fewer experts, linear, none."""
    heads = config.num_kv_heads
    fewer = [f"gqa_{heads // part}" for part in (2, 4, 8) if heads % part == 0]
    ffn = _narrower(config) if config.experts is None else _fewer(config.experts)
    return {
        "attention": [config.attention, *fewer, "linear", "no_op"],
        "ffn": [config.ffn, *ffn, "linear", "no_op"],
    }


def _narrower(config: ParentConfig) -> list[str]:
    width, step = config.intermediate_size, STOCK_WIDTH_MULTIPLE
    widths = [round(width * part / step) * step for part in _PARTS]
    return [f"mlp_{n}" for n in dict.fromkeys(widths) if 0 < n < width]


def _fewer(experts: Experts) -> list[str]:
    counts = [round(experts.count * part) for part in _PARTS]
    return [f"moe_{n}" for n in dict.fromkeys(counts) if experts.top_k <= n < experts.count]


def propose(
    config: ParentConfig, space: SearchSpace, scenario: Scenario, device: Device, hours: float
) -> Sizes:
    """Sizes of a run that takes about so many hours at the device's best."""
    parent = ArchitectureSpec.identity(config)
    parameters = architecture_parameters(parent, config)
    replacements = {
        composed: len(list(space.replacements(config, composed=composed)))
        for composed in (False, True)
    }
    # A token of each stage in operations; a replacement runs the layers behind it, half on average.
    per_token: dict[str, float] = {
        "library": _FORWARD * parameters + _TRAINED * sum(_trained(config, space)),
        "score": parameters * replacements[False],
        "distill": (_FORWARD + _TRAINED) * parameters,
    }
    seconds = {stage: share * hours * 3600 for stage, share in _SHARES.items()}
    affordable = {
        stage: seconds[stage] * device.flops_per_second / per_token[stage] for stage in _SHARES
    }
    wanted = {
        "library": max(_LEAST_TOKENS, round(parameters / _PARAMETERS_PER_LIBRARY_TOKEN)),
        "score": _SCORE_TOKENS,
        "distill": max(_LEAST_TOKENS, round(parameters * _DISTILL_TOKENS_PER_PARAMETER)),
    }
    tokens = {
        stage: _round(max(_LEAST_TOKENS, min(wanted[stage], affordable[stage])))
        for stage in _SHARES
    }
    pairs = replacements[True] / replacements[False]
    composed = tokens["score"] * pairs <= affordable["score"]
    if composed:
        per_token["score"] *= pairs
    distill_bytes = math.ceil(
        parameters * (_TRAINING_BYTES + parse_dtype(device.dtype).matrix_bytes)
    )
    fitting = [
        batch
        for batch in _powers(_LARGEST_BATCH[device.kind])
        if _bytes(config, scenario, device.dtype, batch) <= device.memory_bytes
    ]
    return Sizes(
        batches=_spread(fitting or [1]),
        library_tokens=tokens["library"],
        score_tokens=tokens["score"],
        composed=composed,
        distill_tokens=tokens["distill"] if distill_bytes <= device.memory_bytes else None,
        batch_tokens=_step_tokens(parameters, tokens["distill"]),
        wanted=wanted,
        seconds={
            stage: tokens[stage] * per_token[stage] / device.flops_per_second for stage in _SHARES
        },
        distill_bytes=distill_bytes,
        fits=bool(fitting),
    )


def _trained(config: ParentConfig, space: SearchSpace) -> Iterator[int]:
    """Parameters of every variant that a library trains."""
    subblocks: tuple[tuple[Subblock, str], ...] = (
        ("attention", config.attention),
        ("ffn", config.ffn),
    )
    for subblock, own in subblocks:
        for names in space.variants(subblock):
            for name in names:
                if name != own:
                    yield subblock_parameters(parse_variant(subblock, name), config)


def _bytes(config: ParentConfig, scenario: Scenario, dtype_name: str, batch: int) -> float:
    """What the parent takes on one device."""
    dtype = parse_dtype(dtype_name)
    attention = parse_variant("attention", config.attention)
    ffn = parse_variant("ffn", config.ffn)
    layer = weight_bytes(attention, config, dtype, 1) + weight_bytes(ffn, config, dtype, 1)
    tokens = batch * (scenario.input_len + scenario.output_len)
    cache = tokens * kv_bytes_per_token(attention, config, dtype, 1)
    activations = activation_bytes(
        config,
        dtype,
        batch=batch,
        input_len=scenario.input_len,
        tp=1,
        widest_ffn=config.intermediate_size,
    )
    return config.num_layers * (layer + cache) + outside_bytes(config, dtype, 1) + activations


def _powers(largest: int) -> Iterator[int]:
    batch = 1
    while batch <= largest:
        yield batch
        batch *= 2


def _spread(fitting: list[int]) -> tuple[int, ...]:
    """The ends and the middle."""
    return tuple(dict.fromkeys((fitting[0], fitting[len(fitting) // 2], fitting[-1])))


def _step_tokens(parameters: int, tokens: int) -> int:
    if parameters < _LARGE:
        return _BATCH_TOKENS
    return min(_LARGE_BATCH_TOKENS, _round(tokens / _LEAST_STEPS))


def _round(tokens: float) -> int:
    """Whole thousands of 1,024."""
    return max(1, int(tokens) // 1024) * 1024
