"""Constants carried from the device that they were calibrated on to another one.

What scales with the data sheet follows it; what does not, a launch or an efficiency, stays:

| constants | on the other device |
|---|---|
| launches, floors, the cost per step and sequence | the same microseconds |
| fractions of peak, corners, ratios of matrix products and of prefill | the same |
| work bound by memory | times the ratio of bandwidths |
| work bound on chip | times the ratio of SM counts |
| slopes of the all-reduce | times the ratio of link bandwidths |

Only some of the kernels that read or write memory wait for it. A kernel's ceiling is the largest
share of the bandwidth that the engine reaches on the calibrated device: in any of its matrix
products for matrix products, in any of its kernels for the others. What takes longer than its bytes
at the ceiling is bound on chip for the rest, the two overlapping as (on chip^p + memory^p)^(1/p).
So fp8 decode attention, which may stop short of the bandwidth, gets a ratio of its own at every
size, from measurements of the calibrated device alone.

`bench/derive.py` prints how far constants, so carried, are from measurements on the other device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from puzzle_search.cost.modelled.constants import (
    AllReduceConstants,
    AllReduceLines,
    DecodeAttentionConstants,
    DecodeKernel,
    EngineConstants,
    GemmConstants,
    PrefillAttentionConstants,
    PrefillKernel,
    Provenance,
    Sheet,
)
from puzzle_search.cost.modelled.operators import (
    BYTES_PER_VALUE,
    STREAM_BYTES,
    decode_guess_us,
    decode_ratio,
)

_Array = NDArray[np.float64]
_Group = TypeVar("_Group", GemmConstants, PrefillAttentionConstants, DecodeAttentionConstants)

# How sharply time on chip and time of memory overlap: the mean of the corners that fit the matrix
# products of the H200, in bf16 and fp8, with TensorRT-LLM and vLLM (2.6 to 3.5).
_CORNER = 3.2
# The table of decode attention that says how well its kernels use the device, and the context at
# which that is judged.
_BY_SIZE, _CONTEXT = "group work", 1024.0


def transfer(
    constants: EngineConstants, *, name: str, base: Sheet, sheet: Sheet
) -> EngineConstants:
    """One engine's constants on a device that nothing vouches for but its data sheet.

    Args:
        constants: of the engine on the calibrated device.
        name: of the calibrated device, for the record.
        base: its sheet.
        sheet: the sheet of the other device.
    """
    provenance = Provenance(
        evidence="datasheet",
        source=f"constants of the {name} carried over by the ratios of the data sheets",
        error_median=None,
        error_p90=None,
    )
    return carry(constants, base=base, sheet=sheet, provenance=lambda _: provenance)


def carry(
    constants: EngineConstants,
    *,
    base: Sheet,
    sheet: Sheet,
    provenance: Callable[[Provenance], Provenance],
) -> EngineConstants:
    """One engine's constants on another device, in the dtypes that this device computes in.

    Args:
        constants: of the engine on the calibrated device.
        base: the sheet of the calibrated device.
        sheet: the sheet of the other device.
        provenance: what to say of a group of constants, given what its source says.
    """
    products = max(gemm.memory_fraction for gemm in constants.gemm.values())
    kernels = max(
        products,
        constants.elementwise.memory_fraction,
        *(
            kernel.ceiling_fraction
            for decode in constants.decode_attention.values()
            for kernel in decode.head_dims.values()
        ),
    )
    matrices = _Move(base=base, sheet=sheet, ceiling=products)
    others = _Move(base=base, sheet=sheet, ceiling=kernels)

    def carried(
        groups: Mapping[str, _Group], move: Callable[[_Group, str], _Group]
    ) -> dict[str, _Group]:
        return {
            dtype: replace(move(old, dtype), provenance=provenance(old.provenance))
            for dtype, old in groups.items()
            if dtype in sheet.flops_per_second
        }

    return EngineConstants(
        version=f"{constants.version}; not calibrated on this device",
        gemm=carried(constants.gemm, matrices.gemm),
        prefill_attention=carried(constants.prefill_attention, others.prefill),
        decode_attention=carried(constants.decode_attention, others.decode),
        elementwise=replace(
            constants.elementwise, provenance=provenance(constants.elementwise.provenance)
        ),
        all_reduce=_all_reduce(constants.all_reduce, provenance, base=base, sheet=sheet),
        step=replace(constants.step, provenance=provenance(constants.step.provenance)),
    )


@dataclass(frozen=True, kw_only=True)
class _Move:
    """From one device to another; ``ceiling`` is the share of bandwidth that kernels can reach."""

    base: Sheet
    sheet: Sheet
    ceiling: float

    def us(self, us: _Array, moved_bytes: _Array) -> _Array:
        """Microseconds on the other device of what takes ``us`` and moves so many bytes."""
        slower_memory = self.base.hbm_bytes_per_second / self.sheet.hbm_bytes_per_second
        fewer_sms = self.base.num_sms / self.sheet.num_sms
        bytes_per_us = self.ceiling * self.base.hbm_bytes_per_second / 1e6
        memory_us = np.minimum(us, moved_bytes / bytes_per_us)
        # memory^p / us^p: what is left of us^p is the time on chip.
        share = np.divide(memory_us, us, out=np.ones_like(us), where=us > 0) ** _CORNER
        sums = (1 - share) * fewer_sms**_CORNER + share * slower_memory**_CORNER
        return np.asarray(us * sums ** (1 / _CORNER))

    def memory_fraction(self, fraction: float) -> float:
        """Share of the other device's bandwidth, of a kernel that reaches so much of this one's."""
        us_per_byte = 1e6 / (fraction * self.base.hbm_bytes_per_second)
        moved_us = float(self.us(np.array(us_per_byte), np.array(1.0)))
        return min(self.ceiling, 1e6 / (moved_us * self.sheet.hbm_bytes_per_second))

    def gemm(self, old: GemmConstants, dtype: str) -> GemmConstants:
        """Carry the share of the bandwidth, and the quantisation."""
        # Quantisation reads a value of the residual stream and writes one for the product.
        quantised_bytes = np.array(float(STREAM_BYTES[dtype] + BYTES_PER_VALUE[dtype]))
        per_value_us = self.us(np.array(old.quantisation_us_per_value), quantised_bytes)
        return replace(
            old,
            memory_fraction=self.memory_fraction(old.memory_fraction),
            quantisation_us_per_value=float(per_value_us),
        )

    def prefill(self, old: PrefillAttentionConstants, dtype: str) -> PrefillAttentionConstants:
        """Carry the share of the bandwidth."""

        def moved(kernel: PrefillKernel) -> PrefillKernel:
            return replace(kernel, memory_fraction=self.memory_fraction(kernel.memory_fraction))

        return replace(old, head_dims={size: moved(of) for size, of in old.head_dims.items()})

    def decode(self, old: DecodeAttentionConstants, dtype: str) -> DecodeAttentionConstants:
        """Carry the guess, and its ratio at every size: how far memory binds depends on that."""
        fewer_sms = self.base.num_sms / self.sheet.num_sms

        def moved(head_dim: int, old: DecodeKernel) -> DecodeKernel:
            kernel = replace(
                old,
                us_per_stream=old.us_per_stream * fewer_sms,
                memory_fraction=self.memory_fraction(old.memory_fraction),
                ceiling_fraction=self.memory_fraction(old.ceiling_fraction),
            )
            if old.ratios is None:
                return kernel
            knots = [old.ratios.axes[axis] for axis in _BY_SIZE.split()]
            group, work = np.meshgrid(*knots, indexing="ij")
            streams = np.maximum(1.0, work / _CONTEXT)
            context = work / streams

            def guess_us(of: DecodeKernel, sheet: Sheet) -> _Array:
                shape = (streams, context)
                return decode_guess_us(
                    *shape, head_dim=head_dim, dtype=dtype, sheet=sheet, kernel=of
                )

            ratio = decode_ratio(streams, context, group, old.ratios)
            known_us = np.asarray(ratio * guess_us(old, self.base))
            launch_us = np.minimum(known_us, old.floor_us)
            kv_bytes = np.asarray(2 * head_dim * BYTES_PER_VALUE[dtype] * work)
            moved_us = launch_us + self.us(known_us - launch_us, kv_bytes)
            change = moved_us / guess_us(kernel, self.sheet) / ratio
            tables = dict(old.ratios.tables)
            tables[_BY_SIZE] = np.asarray(tables[_BY_SIZE] * change)
            return replace(kernel, ratios=replace(old.ratios, tables=tables))

        return replace(old, head_dims={size: moved(size, of) for size, of in old.head_dims.items()})


def _all_reduce(
    old: AllReduceConstants | None,
    provenance: Callable[[Provenance], Provenance],
    *,
    base: Sheet,
    sheet: Sheet,
) -> AllReduceConstants | None:
    if old is None or base.link_bytes_per_second is None or sheet.link_bytes_per_second is None:
        return None
    slower = base.link_bytes_per_second / sheet.link_bytes_per_second

    def scaled(lines: AllReduceLines) -> AllReduceLines:
        """The latency of the smallest message stays, what the link adds is scaled."""
        launch_us = lines.us.min()
        return replace(lines, us=launch_us + (lines.us - launch_us) * slower)

    by_tp = {tp: scaled(lines) for tp, lines in old.by_tp.items()}
    return AllReduceConstants(provenance=provenance(old.provenance), by_tp=by_tp)
