"""The cost model of one device derived from another's measurements and both data sheets.

`transfer` says what scales with what. Nothing measured on the device itself goes
in, so that its own measurements can check the result (`bench/derive.py`).
"""

from __future__ import annotations

from puzzle_search.cost.modelled.constants import Provenance, Sheet
from puzzle_search.cost.modelled.hardware import CostModel
from puzzle_search.cost.modelled.transfer import carry
from puzzle_search.errors import InputError


def derive(model: CostModel, *, gpu: str, sheet: Sheet) -> CostModel:
    """The cost model of a device, from one that was calibrated on another device.

    A group of constants that was fitted to measurements becomes ``derived``; one that was not
    (``reconstructed``, ``datasheet``) stays what it was. Errors are unknown: None.

    Args:
        model: calibrated on the other device.
        gpu: name of the device.
        sheet: its data sheet.

    Raises:
        InputError: ``model`` has no constants of its own, is of the same device or another
            vendor's, or has no dtype that the sheet has a peak for.
    """
    if model.based_on is not None or not model.engines:
        raise InputError(
            f"nothing was measured on {model.gpu}: its cost model has no constants of its own",
            remedy=f"derive from {model.based_on or 'a calibrated GPU'}",
        )
    if model.gpu == gpu:
        raise InputError(
            f"{gpu} would be derived from itself", remedy="name the sheet of another device"
        )
    if model.sheet.vendor != sheet.vendor:
        raise InputError(
            f"{gpu} is a chip of {sheet.vendor}, {model.gpu} of {model.sheet.vendor}: its kernels "
            "run on no other vendor's",
            remedy="calibrate the chip, or profile it",
        )
    for engine, constants in model.engines.items():
        if not any(dtype in sheet.flops_per_second for dtype in constants.dtypes):
            raise InputError(
                f"the sheet of {gpu} has no peak for {', '.join(constants.dtypes)}, in which "
                f"{engine} was measured on {model.gpu}",
                remedy="add the peak to flops_per_second of the sheet, or derive from another GPU",
            )

    def provenance(old: Provenance) -> Provenance:
        fitted = old.evidence not in ("datasheet", "reconstructed")
        return Provenance(
            evidence="derived" if fitted else old.evidence,
            source=f"carried over from the {model.gpu} by the ratios of the data sheets; "
            f"there {old.evidence}: {old.source}",
            error_median=None,
            error_p90=None,
        )

    engines = {
        name: carry(constants, base=model.sheet, sheet=sheet, provenance=provenance)
        for name, constants in model.engines.items()
    }
    return CostModel(gpu=gpu, sheet=sheet, engines=engines)
