"""The uncalibrated model: a roofline of the data sheet, with no constant fitted to anything.

It is what a calibrated model is compared with, and the fastest that the device could be.
"""

from __future__ import annotations

import numpy as np

from puzzle_search.cost.modelled.constants import (
    AllReduceConstants,
    AllReduceLines,
    DecodeAttentionConstants,
    DecodeKernel,
    ElementwiseConstants,
    EngineConstants,
    GemmConstants,
    PrefillAttentionConstants,
    PrefillKernel,
    Provenance,
    Sheet,
    StepConstants,
)

_SHARP = 1000.0  # exponent of a corner that is a plain maximum
_ANY_HEAD_DIM = 128  # a roofline is the same in all


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
        launch_us=0.0,
        memory_fraction=1.0,
        compute_fraction=1.0,
        corner=_SHARP,
        ratios=None,
        quantisation_us=0.0,
        quantisation_us_per_value=0.0,
    )
    prefill = PrefillKernel(
        launch_us=0.0, memory_fraction=1.0, compute_fraction=1.0, corner=_SHARP, ratios=None
    )
    decode = DecodeKernel(
        floor_us=0.0, us_per_stream=0.0, memory_fraction=1.0, ceiling_fraction=1.0, ratios=None
    )
    # As good as nothing: what binds is the link of the sheet.
    line = AllReduceLines(message_bytes=np.array([1.0, 2.0]), us=np.array([1e-9, 2e-9]))
    linked = sheet.link_bytes_per_second is not None
    return EngineConstants(
        version="none: peaks of the data sheet",
        gemm=dict.fromkeys(sheet.flops_per_second, gemm),
        prefill_attention=dict.fromkeys(
            sheet.flops_per_second,
            PrefillAttentionConstants(provenance=provenance, head_dims={_ANY_HEAD_DIM: prefill}),
        ),
        decode_attention=dict.fromkeys(
            sheet.flops_per_second,
            DecodeAttentionConstants(provenance=provenance, head_dims={_ANY_HEAD_DIM: decode}),
        ),
        elementwise=ElementwiseConstants(provenance=provenance, launch_us=0.0, memory_fraction=1.0),
        all_reduce=AllReduceConstants(
            provenance=provenance, by_tp=dict.fromkeys((2, 4, 8, 16), line)
        )
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
