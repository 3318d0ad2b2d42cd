"""The device that is measured: its identity, its memory, its clock."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from puzzle_search.errors import InputError, MissingDependencyError
from puzzle_search.profile.hardware.gpu_state import DeviceState, GpuMonitor

_UNKNOWN_CACHE_BYTES = 1 << 28


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device to measure on.

    Attributes:
        name: as results print it.
        torch_device: where tensors go.
        memory_limit_bytes: what a model may take.
        identity: what a profile records about the device and its software.
        clock: seconds now, once all work submitted to the device has ended.
        cache_bytes: size of its largest cache.
        state: clocks, temperature and what else it tells about itself, while it works.
    """

    name: str
    torch_device: torch.device
    memory_limit_bytes: int
    identity: dict[str, Any]
    clock: Callable[[], float]
    cache_bytes: int
    state: Callable[[], DeviceState] = DeviceState

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process, the device of the same name there."""
        return open_device, (self.torch_device.type,)


def open_device(name: str) -> Device:
    """The device of that name: ``cpu`` or ``cuda``.

    Raises:
        InputError: the name is another.
        MissingDependencyError: there is no CUDA device.
    """
    if name == "cpu":
        return cpu_device()
    if name == "cuda":
        return cuda_device()
    raise InputError(f"device {name!r} is not known", remedy="use cpu or cuda")


def cpu_device() -> Device:
    """This machine's processor, with the threads that torch uses."""
    model = _cpu_model()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    identity = {
        "kind": "cpu",
        "name": model,
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "memory_bytes": memory,
        **_software(),
    }
    return Device(
        name=f"cpu ({model}, {torch.get_num_threads()} threads)",
        torch_device=torch.device("cpu"),
        memory_limit_bytes=memory // 2,
        identity=identity,
        clock=time.perf_counter,
        cache_bytes=_cpu_cache_bytes(),
    )


def cuda_device() -> Device:
    """The first CUDA device, with its state from NVML.

    Raises:
        MissingDependencyError: there is none.
    """
    if not torch.cuda.is_available():
        raise MissingDependencyError(
            "no CUDA device is visible to torch",
            remedy="install a CUDA build of torch on a machine with a GPU, or use --device cpu",
        )
    device = torch.device("cuda", torch.cuda.current_device())
    properties = torch.cuda.get_device_properties(device)
    monitor = GpuMonitor(device)

    def clock() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    identity = {
        "kind": "cuda",
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        **monitor.identity(),
        **_software(),
    }
    return Device(
        name=properties.name,
        torch_device=device,
        memory_limit_bytes=int(properties.total_memory * 0.94),
        identity=identity,
        clock=clock,
        state=monitor.state,
        cache_bytes=properties.L2_cache_size,
    )


def _software() -> dict[str, str]:
    return {"torch": str(torch.__version__), "python": platform.python_version()}


def _cpu_cache_bytes() -> int:
    caches = Path("/sys/devices/system/cpu/cpu0/cache")
    sizes = [file.read_text().strip() for file in caches.glob("index*/size")]
    kib = [int(size.removesuffix("K")) for size in sizes if re.fullmatch(r"\d+K", size)]
    return max(kib) << 10 if kib else _UNKNOWN_CACHE_BYTES


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
