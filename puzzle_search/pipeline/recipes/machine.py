"""What this machine has to work with: processor, memory, disk, GPUs, packages, and what is fast."""

from __future__ import annotations

import os
import platform
import re
import shutil
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puzzle_search import __version__
from puzzle_search.packages import DISTRIBUTIONS, EXTRAS

if TYPE_CHECKING:
    from puzzle_search.profile.hardware.products import ProductSpeed

_CORE = ("torch", "transformers", "safetensors", "tokenizers", "ortools")
# Distributions of the engines that children can be made for, and programs where there are any.
_ENGINES = {
    "trtllm": ("tensorrt-llm", "trtllm-serve"),
    "vllm": ("vllm", "vllm"),
    "sglang": ("sglang", None),
    "llama.cpp": ("xllamacpp", "llama-server"),
    "mlx-lm": ("mlx-lm", "mlx_lm.server"),
}
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU as NVML sees it."""

    name: str
    memory_bytes: int
    free_bytes: int
    driver: str


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What this machine has.

    Attributes:
        cores: that this process may use.
        threads: that torch uses; None without torch.
        memory_bytes: what this process may take, no more than its control group allows.
        available_bytes: what of it is free, or can be freed.
        disk_free_bytes: in the working directory.
        gpus: visible to NVML.
        no_gpus: why there are none; empty where there are some.
        cuda: version that torch was built for; None where for none.
        packages: versions, by what they are for and name; None where not installed.
        products: measured times, by device: ``cpu``, ``cuda``.
    """

    python: str
    system: str
    processor: str
    cores: int
    threads: int | None
    memory_bytes: int
    available_bytes: int
    disk_free_bytes: int
    gpus: tuple[Gpu, ...]
    no_gpus: str
    cuda: str | None
    packages: dict[str, dict[str, str | None]]
    products: dict[str, tuple[ProductSpeed, ...]]

    def as_dict(self) -> dict[str, Any]:
        """As ``doctor --json`` prints it."""
        shown = {key: value for key, value in vars(self).items() if key != "products"}
        shown["gpus"] = [asdict(gpu) for gpu in self.gpus]
        shown["products"] = {
            device: [asdict(p) | {"flops_per_second": p.flops_per_second} for p in speeds]
            for device, speeds in self.products.items()
        }
        return {"package_version": __version__} | shown | {"notes": self.notes()}

    def notes(self) -> list[str]:
        """What stands in the way of good work."""
        found = []
        if self.threads is None:
            found.append(
                "torch is not installed: this machine can ask (solve, frontier, explain), not make "
                "children; pip install puzzle-search"
            )
        elif self.threads > self.cores:
            found.append(
                f"torch uses {self.threads} threads on {self.cores} cores, which wait for each "
                f"other: set OMP_NUM_THREADS={self.cores}"
            )
        if self.gpus and self.threads is not None and "cuda" not in self.products:
            found.append(
                "there is a GPU that torch does not use: install a CUDA build of torch for driver "
                f"{self.gpus[0].driver}"
            )
        return found


def examine() -> Machine:
    """Look at this machine, and time products on it for about a second a device."""
    memory, available = _memory()
    gpus, no_gpus = _gpus()
    threads, cuda, products = _torch()
    return Machine(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        processor=_processor(),
        cores=_cores(),
        threads=threads,
        memory_bytes=memory,
        available_bytes=available,
        disk_free_bytes=shutil.disk_usage(Path.cwd()).free,
        gpus=gpus,
        no_gpus=no_gpus,
        cuda=cuda,
        packages=_packages(),
        products=products,
    )


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.M) if info.exists() else None
    return named[1] if named else platform.processor() or platform.machine()


def _memory() -> tuple[int, int]:
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    info = Path("/proc/meminfo")
    told = (
        re.search(r"^MemAvailable:\s*(\d+) kB$", info.read_text(), re.M) if info.exists() else None
    )
    available = int(told[1]) * 1024 if told else whole
    if _CGROUP_LIMIT.exists() and (limit := _CGROUP_LIMIT.read_text().strip()).isdecimal():
        whole = min(whole, int(limit))
    return whole, min(available, whole)


def _gpus() -> tuple[tuple[Gpu, ...], str]:
    """The GPUs, or why there are none."""
    try:
        import pynvml
    except ModuleNotFoundError:
        return (), "nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return (), str(error)
    try:
        driver = str(pynvml.nvmlSystemGetDriverVersion())
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            name = str(pynvml.nvmlDeviceGetName(handle))
            found.append(
                Gpu(name=name, memory_bytes=memory.total, free_bytes=memory.free, driver=driver)
            )
        return tuple(found), "" if found else "NVML sees none"
    except pynvml.NVMLError as error:
        return (), str(error)
    finally:
        pynvml.nvmlShutdown()


def _packages() -> dict[str, dict[str, str | None]]:
    engines: dict[str, str | None] = {}
    for engine, (distribution, program) in _ENGINES.items():
        found = _version(distribution)
        engines[engine] = found or (shutil.which(program) if program else None)
    extras: dict[str, str | None] = {}
    for module in EXTRAS:
        distribution = DISTRIBUTIONS.get(module, module)
        extras[distribution] = _version(distribution)
    return {"core": {name: _version(name) for name in _CORE}, "engines": engines, "extras": extras}


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _torch() -> tuple[int | None, str | None, dict[str, tuple[ProductSpeed, ...]]]:
    """Threads, CUDA version and product speeds."""
    try:
        import torch
    except ModuleNotFoundError:
        return None, None, {}
    from puzzle_search.profile.hardware.products import measure_products

    dtypes: dict[str, tuple[str, ...]] = {"cpu": ("fp32", "bf16")}
    if torch.cuda.is_available():
        dtypes["cuda"] = ("fp32", "bf16", "fp8")
    products = {
        device: tuple(measure_products(torch.device(device), names))
        for device, names in dtypes.items()
    }
    return torch.get_num_threads(), torch.version.cuda, products
