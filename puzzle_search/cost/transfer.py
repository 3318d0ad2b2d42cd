"""Constants carried from a calibrated device to one that nothing was measured on.

What scales with the data sheet follows it; what does not, a launch or an efficiency, stays:

| constants | on the other device |
|---|---|
| fractions of peak and of bandwidth, corners, penalties, tables of ratios | the same |
| launches, floors, the cost per tile, split, step and sequence | the same microseconds |
| times per value or per token moved | times the ratio of bandwidths |
| times per stream of decode attention | times the ratio of SM counts |
| slopes of the all-reduce | times the ratio of link bandwidths |

`bench/cost_model.py` prints how far H100 constants, so carried, are from measurements on an H200.
"""

from __future__ import annotations

from dataclasses import replace

from puzzle_search.cost.constants import (
    AllReduceConstants,
    AllReduceLines,
    DecodeAttentionConstants,
    EngineConstants,
    GemmConstants,
    PrefillAttentionConstants,
    Provenance,
    Sheet,
)


def transfer(
    constants: EngineConstants, *, name: str, base: Sheet, sheet: Sheet
) -> EngineConstants:
    """One engine's constants on another device, in the dtypes that this device computes in.

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
    slower_memory = base.hbm_bytes_per_second / sheet.hbm_bytes_per_second
    fewer_sms = base.num_sms / sheet.num_sms

    def gemm(old: GemmConstants) -> GemmConstants:
        per_value_us = old.quantisation_us_per_value * slower_memory
        return replace(old, provenance=provenance, quantisation_us_per_value=per_value_us)

    def prefill(old: PrefillAttentionConstants) -> PrefillAttentionConstants:
        return replace(
            old,
            provenance=provenance,
            us_per_token=old.us_per_token * slower_memory,
            us_per_token_query_head=old.us_per_token_query_head * slower_memory,
            us_per_token_kv_head=old.us_per_token_kv_head * slower_memory,
        )

    def decode(old: DecodeAttentionConstants) -> DecodeAttentionConstants:
        groups = {
            size: replace(group, us_per_stream=group.us_per_stream * fewer_sms)
            for size, group in old.groups.items()
        }
        return replace(old, provenance=provenance, groups=groups)

    return EngineConstants(
        version=f"{constants.version}; not calibrated on this device",
        gemm={d: gemm(old) for d, old in constants.gemm.items() if d in sheet.flops_per_second},
        prefill_attention={
            d: prefill(old)
            for d, old in constants.prefill_attention.items()
            if d in sheet.flops_per_second
        },
        decode_attention={
            d: decode(old)
            for d, old in constants.decode_attention.items()
            if d in sheet.flops_per_second
        },
        elementwise=replace(constants.elementwise, provenance=provenance),
        all_reduce=_all_reduce(constants.all_reduce, provenance, base=base, sheet=sheet),
        step=replace(constants.step, provenance=provenance),
    )


def _all_reduce(
    old: AllReduceConstants | None, provenance: Provenance, *, base: Sheet, sheet: Sheet
) -> AllReduceConstants | None:
    if old is None or base.link_bytes_per_second is None or sheet.link_bytes_per_second is None:
        return None
    slower = base.link_bytes_per_second / sheet.link_bytes_per_second

    def scaled(lines: AllReduceLines) -> AllReduceLines:
        return replace(
            lines,
            one_shot_us_per_mib=lines.one_shot_us_per_mib * slower,
            two_shot_us_per_mib=lines.two_shot_us_per_mib * slower,
        )

    by_tp = {tp: scaled(lines) for tp, lines in old.by_tp.items()}
    return AllReduceConstants(provenance=provenance, by_tp=by_tp)
