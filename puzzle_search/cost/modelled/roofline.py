"""The uncalibrated model: a roofline of the data sheet, with no constant fitted to anything.

It is what a calibrated model is compared with, and the fastest that the device could be.
"""

from __future__ import annotations

import numpy as np

from puzzle_search.cost.modelled.constants import (
    AllReduceConstants,
    AllReduceLines,
    DecodeAttentionConstants,
    DecodeGroup,
    ElementwiseConstants,
    EngineConstants,
    GemmConstants,
    PrefillAttentionConstants,
    Provenance,
    Sheet,
    StepConstants,
    Tile,
)

_SHARP = 1000.0  # exponent of a corner that is a plain maximum


def roofline_engine(
    sheet: Sheet, *, max_batch: int = 1024, max_tokens: int = 8192
) -> EngineConstants:
    """An engine that reaches every peak of the sheet and costs nothing beside.

    Args:
        sheet: the device.
        max_batch: largest batch.
        max_tokens: most tokens in one step; longer prefills are cut into chunks.
    """
    provenance = Provenance(
        evidence="datasheet",
        source="peaks of the data sheet, no calibration",
        error_median=None,
        error_p90=None,
    )
    gemm = GemmConstants(
        provenance=provenance,
        tiles={1: (Tile(cluster=1, rows=1, columns=1),)},
        max_split=1,
        launch_us=0.0,
        memory_fraction=1.0,
        compute_fraction=1.0,
        corner=_SHARP,
        tile_us=0.0,
        tile_penalty=0.0,
        padding_penalty=0.0,
        split_us=0.0,
        power_slowdown=0.0,
        quantisation_us=0.0,
        quantisation_us_per_value=0.0,
    )
    prefill = PrefillAttentionConstants(
        provenance=provenance,
        packs_groups=True,
        launch_us=0.0,
        corner=_SHARP,
        compute_fraction=1.0,
        block_tokens=0.0,
        wave_share=1.0,
        us_per_sequence_head=0.0,
        us_per_token=0.0,
        us_per_token_query_head=0.0,
        us_per_token_kv_head=0.0,
    )
    decode = DecodeAttentionConstants(
        provenance=provenance,
        work_log2=np.array([6.0, 22.0]),
        context_log2=np.array([6.0, 17.0]),
        groups={
            1: DecodeGroup(
                floor_us=0.0, us_per_stream=0.0, memory_fraction=1.0, ratio=np.ones((2, 2))
            )
        },
    )
    line = AllReduceLines(
        one_shot_us=0.0, one_shot_us_per_mib=0.0, two_shot_us=0.0, two_shot_us_per_mib=0.0
    )
    linked = sheet.link_bytes_per_second is not None
    return EngineConstants(
        version="none: peaks of the data sheet",
        gemm=dict.fromkeys(sheet.flops_per_second, gemm),
        prefill_attention=dict.fromkeys(sheet.flops_per_second, prefill),
        decode_attention=dict.fromkeys(sheet.flops_per_second, decode),
        elementwise=ElementwiseConstants(provenance=provenance, launch_us=0.0, memory_fraction=1.0),
        all_reduce=AllReduceConstants(provenance=provenance, by_tp=dict.fromkeys((2, 4, 8), line))
        if linked
        else None,
        step=StepConstants(
            provenance=provenance,
            engine_scalar=1.0,
            step_us=0.0,
            step_us_per_sequence=0.0,
            step_us_per_root_sequence=0.0,
            rank_us_per_root_sequence=0.0,
            max_batch=max_batch,
            max_tokens=max_tokens,
        ),
    )
