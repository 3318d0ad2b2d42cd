"""What the operators of a subblock must at least compute and move, whatever kernels run them.

Bytes are weights, each read once, and KV cache, read and written once: activations may stay on the
chip. Biases, norms and rope are left out. So no implementation does less; of experts those are
read that a uniform router is expected to pick, and a floor counts the fewest of any router.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from puzzle_search.arch import Gqa, Mlp, Moe, NoOp, ParentConfig, Variant
from puzzle_search.cost.experts import distinct_experts
from puzzle_search.cost.memory import Dtype, kv_bytes_per_token
from puzzle_search.cost.step import Step


@dataclass(frozen=True, kw_only=True)
class OperatorWork:
    """Least work of one operator on one device.

    Attributes:
        name: ``qkv``, ``attention``, ``o``, ``router``, ``gate_up``, ``down``, ``linear`` or
            ``head``.
        dtype: that it computes in.
        flops: additions and multiplications.
        moved_bytes: weights and KV cache.
    """

    name: str
    dtype: str
    flops: float
    moved_bytes: float

    def seconds(self, flops_per_second: float | None, bytes_per_second: float) -> float:
        """Least time at these rates; None where the rate of compute is not known."""
        compute = self.flops / flops_per_second if flops_per_second else 0.0
        return max(compute, self.moved_bytes / bytes_per_second)


def subblock_work(
    variant: Variant,
    config: ParentConfig,
    dtype: Dtype,
    *,
    batch: int,
    tokens: int,
    context: int,
    tp: int,
    experts_read: Literal["expected", "fewest"] = "expected",
) -> list[OperatorWork]:
    """Operators of one subblock in a step, on one of ``tp`` devices.

    Args:
        variant: of the subblock.
        config: the parent.
        dtype: serving precision.
        batch: sequences.
        tokens: new tokens of each.
        context: tokens that each attends to at the end, the new ones among them.
        tp: tensor-parallel degree.
        experts_read: as a uniform router is expected to, or as few as any can.
    """
    rows, hidden = batch * tokens, config.hidden_size

    def matrix(name: str, columns: float, inner: float) -> OperatorWork:
        return OperatorWork(
            name=name,
            dtype=variant.weights or dtype.name,
            flops=2 * rows * columns * inner,
            moved_bytes=columns * inner * dtype.bytes_of(variant),
        )

    if isinstance(variant, NoOp):
        return []
    if isinstance(variant, Mlp):
        width = variant.intermediate_size / tp
        return [matrix("gate_up", 2 * width, hidden), matrix("down", hidden, width)]
    if isinstance(variant, Moe):
        top_k, fewest = variant.top_k_in(config), experts_read == "fewest"
        read = top_k if fewest else float(distinct_experts(variant.experts, top_k, rows))
        width = variant.width_in(config) / tp
        router = OperatorWork(
            name="router",
            dtype=dtype.vector_dtype,
            flops=2 * rows * variant.experts * hidden,
            moved_bytes=variant.experts * hidden * dtype.vector_bytes,
        )
        products = [matrix("gate_up", 2 * width, hidden), matrix("down", hidden, width)]
        return [router] + [
            replace(one, flops=one.flops * top_k, moved_bytes=one.moved_bytes * read)
            for one in products
        ]
    if not isinstance(variant, Gqa):
        return [matrix("linear", hidden, hidden / tp)]
    heads, kv_heads = config.num_heads / tp, -(-variant.kv_heads // tp)
    window = variant.window(config)
    piece = Step.of(tp=tp, prompts=batch, prompt_tokens=tokens, prompt_context=context)
    read = tokens + float(piece.prompt_history(window))
    attention = OperatorWork(
        name="attention",
        dtype=dtype.name,
        flops=4 * rows * heads * config.head_dim * float(piece.prompt_attended(window)),
        moved_bytes=batch * read * kv_bytes_per_token(variant, config, dtype, tp),
    )
    qkv = matrix("qkv", (heads + 2 * kv_heads) * config.head_dim, hidden)
    return [qkv, attention, matrix("o", hidden, heads * config.head_dim)]


def head_work(config: ParentConfig, dtype: Dtype, *, batch: int, tp: int) -> OperatorWork:
    """The output head for one token of each sequence; bf16 under fp8."""
    values = config.vocab_size / tp * config.hidden_size
    return OperatorWork(
        name="head",
        dtype=dtype.vector_dtype,
        flops=2 * batch * values,
        moved_bytes=values * dtype.table_bytes,
    )


def subblock_floor(
    variant: Variant,
    config: ParentConfig,
    dtype: Dtype,
    *,
    batch: int,
    tokens: int,
    context: int,
    tp: int,
) -> tuple[float, float]:
    """Fewest FLOPs and bytes of a whole subblock; arguments as `subblock_work`."""
    work = subblock_work(
        variant,
        config,
        dtype,
        batch=batch,
        tokens=tokens,
        context=context,
        tp=tp,
        experts_read="fewest",
    )
    return sum(one.flops for one in work), sum(one.moved_bytes for one in work)


def least_us(
    work: Iterable[OperatorWork], flops_per_second: Mapping[str, float], bytes_per_second: float
) -> float:
    """Microseconds of operators one after the other, each at the better of these rates.

    Args:
        work: the operators.
        flops_per_second: by dtype; what is not in it counts its bytes alone.
        bytes_per_second: of the memory.
    """
    return 1e6 * sum(one.seconds(flops_per_second.get(one.dtype), bytes_per_second) for one in work)
