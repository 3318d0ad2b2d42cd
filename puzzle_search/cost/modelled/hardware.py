"""A device as the cost model sees it: its data sheet and the constants calibrated for each engine.

One YAML file per device, ``format: puzzle-search.cost-model/2``. Every group of constants says
where it comes from (``evidence``, ``source``) and how far it is from points outside the fit
(``error_median``, ``error_p90``, relative). A device that nothing was measured on has a sheet and
``based_on``, the device whose constants are transferred to it (`transfer`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from puzzle_search.cost.modelled.constants import EngineConstants, Sheet
from puzzle_search.cost.modelled.model_file import (
    plain,
    read_engines,
    read_sheet,
    read_text_value,
    to_yaml,
)
from puzzle_search.cost.modelled.transfer import transfer
from puzzle_search.errors import InputError
from puzzle_search.files import check_keys, read_yaml
from puzzle_search.resources import resource

FORMAT = "puzzle-search.cost-model/2"

# Between the memory that CUDA reports and that of the sheet; other sizes of a card differ by more.
_MEMORY_TOLERANCE = 0.05


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """The data sheet of a device and its constants by engine.

    ``based_on`` names the device whose constants were transferred, None where they are its own.
    """

    gpu: str
    sheet: Sheet
    engines: Mapping[str, EngineConstants]
    based_on: str | None = None

    @property
    def memory_limit_bytes(self) -> int:
        """Bytes left for weights, KV cache and activations."""
        return self.sheet.memory_limit_bytes

    def engine(self, name: str) -> EngineConstants:
        """The constants of an engine.

        Raises:
            InputError: the engine was not calibrated on this device.
        """
        if name not in self.engines:
            known = f"use one of {', '.join(self.engines)}" if self.engines else "calibrate it"
            raise InputError(
                f"the cost model of {self.gpu} has no engine {name!r}",
                remedy=f"{known}, or profile the device",
            )
        return self.engines[name]

    @classmethod
    def from_file(cls, path: str | Path) -> CostModel:
        """Read a cost model.

        Raises:
            InputError: unknown or missing keys, values that are no finite non-negative numbers,
                fractions above 1, missing evidence, or a ``based_on`` without constants of its own.
        """
        data = read_yaml(path, format=FORMAT)
        constants = "based_on" if "based_on" in data else "engines"
        check_keys(data, path, required={"format", "gpu", "sheet", constants})
        where = str(path)
        gpu = read_text_value(data["gpu"], f"{where}, gpu")
        sheet = read_sheet(data["sheet"], f"{where}, sheet")
        if constants == "engines":
            return cls(gpu=gpu, sheet=sheet, engines=read_engines(data["engines"], where, sheet))
        name = read_text_value(data["based_on"], f"{where}, based_on")
        if name.lower() == Path(path).stem.lower():
            raise InputError(f"{where} is based on itself", remedy="name a calibrated GPU")
        base = cls.from_file(find_cost_model(name))
        if base.based_on is not None:
            raise InputError(
                f"{where}: based_on is {name}, which is itself based on {base.based_on}",
                remedy=f"write based_on: {base.based_on}",
            )
        if base.sheet.vendor != sheet.vendor:
            raise InputError(
                f"{where}: based_on is {name}, a chip of {base.sheet.vendor}, not of "
                f"{sheet.vendor}: its kernels run on no other vendor's",
                remedy="calibrate the chip, or profile it",
            )
        engines = {
            engine: transfer(constants, name=base.gpu, base=base.sheet, sheet=sheet)
            for engine, constants in base.engines.items()
        }
        return cls(gpu=gpu, sheet=sheet, engines=engines, based_on=name)

    def to_yaml(self) -> str:
        """The cost model as its file holds it, numbers to five digits."""
        data = {"format": FORMAT, "gpu": self.gpu, "sheet": plain(self.sheet)}
        if self.based_on is None:
            data["engines"] = plain(self.engines)
        else:
            data["based_on"] = self.based_on
        return to_yaml(data)


def short_name(gpu: str) -> str:
    """The name of a GPU without the form that only tables of timings spell out."""
    return gpu.lower().removesuffix("_sxm").removesuffix("_server")


def known_gpus() -> list[str]:
    """Names of the GPUs that a cost model ships for."""
    return sorted(path.stem for path in resource("cost_models").glob("*.yaml"))


def find_cost_model(gpu: str) -> Path:
    """Path of a cost model: of a shipped one by its GPU's name, in any case, or of a YAML file.

    Raises:
        InputError: no cost model ships for that GPU, and it is no YAML file.
    """
    name = short_name(gpu)
    if name in known_gpus():
        return resource("cost_models", f"{name}.yaml")
    if Path(gpu).suffix in (".yaml", ".yml"):
        if Path(gpu).is_file():
            return Path(gpu)
        raise InputError(f"{gpu} does not exist", remedy=f"give the path of a {FORMAT} file")
    raise InputError(
        f"no cost model for GPU {gpu!r}",
        remedy=f"use one of {', '.join(known_gpus())}, or give the path of a {FORMAT} file",
    )


def device_cost_model(name: str, memory_bytes: int) -> CostModel | None:
    """The shipped cost model of a device by the name that its driver gives, None without one.

    A card of that name with other memory is another device, and so are PCIe, NVL and workstation
    cards, whose bandwidths or clocks are not those that the sheets describe.

    Args:
        name: such as ``NVIDIA H100 80GB HBM3``.
        memory_bytes: as CUDA reports it, a little less than the driver does.
    """
    words = re.findall(r"[a-z0-9]+", name.lower())
    if {"pcie", "nvl", "workstation"} & set(words):
        return None
    terms = {"".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, i + 4)}
    for gpu in known_gpus():
        if gpu.replace("_", "") in terms:
            model = load_cost_model(gpu)
            if math.isclose(memory_bytes, model.sheet.hbm_bytes, rel_tol=_MEMORY_TOLERANCE):
                return model
    return None


@lru_cache(maxsize=8)
def load_cost_model(gpu: str) -> CostModel:
    """The shipped cost model of a GPU, read once.

    Raises:
        InputError: no cost model ships for that GPU, or its file cannot be used.
    """
    return CostModel.from_file(find_cost_model(gpu))
