"""What NVML tells of a GPU: what it is, and its state while it works."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pynvml
import torch

# Reasons for a clock below the highest, by what they mean. Idleness, and clocks that the owner has
# set, are none.
_REASONS = {
    pynvml.nvmlClocksEventReasonSwPowerCap: "power cap",
    pynvml.nvmlClocksEventReasonHwSlowdown: "hardware slowdown",
    pynvml.nvmlClocksEventReasonSyncBoost: "sync boost",
    pynvml.nvmlClocksEventReasonSwThermalSlowdown: "temperature",
    pynvml.nvmlClocksEventReasonHwThermalSlowdown: "hardware temperature",
    pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown: "power brake",
    pynvml.nvmlClocksEventReasonDisplayClockSetting: "display clocks",
}


@dataclass(frozen=True, kw_only=True)
class DeviceState:
    """State of a device at work; None where it does not tell.

    Attributes:
        sm_clock_mhz: clock of the processors.
        memory_clock_mhz: clock of the memory.
        temperature_c: of the chip.
        power_watts: drawn.
        throttle: reasons for a lowered clock, joined by ``+``; empty for none.
        other_processes: processes on the device besides this one.
    """

    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    temperature_c: int | None = None
    power_watts: float | None = None
    throttle: str = ""
    other_processes: int | None = None


class GpuMonitor:
    """NVML's view of one CUDA device, by its UUID.

    Where NVML does not answer, everything is unknown, and once asked, a line on stderr says so.

    Args:
        device: of torch.
    """

    def __init__(self, device: torch.device) -> None:
        self._warned: set[str] = set()
        self._handle: Any = None
        try:
            pynvml.nvmlInit()
            uuid = torch.cuda.get_device_properties(device).uuid
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        except pynvml.NVMLError as error:
            self._unavailable = str(error)

    def identity(self) -> dict[str, Any]:
        """What stays the same from run to run: driver, highest clocks, power limit."""
        if self._handle is None:
            return {"nvml": f"unavailable: {self._unavailable}"}
        handle = self._handle
        uuid = str(pynvml.nvmlDeviceGetUUID(handle))
        limit = _told(lambda: pynvml.nvmlDeviceGetPowerManagementLimit(handle))
        return {
            "uuid_sha256": hashlib.sha256(uuid.encode()).hexdigest()[:16],
            "driver": _told(lambda: str(pynvml.nvmlSystemGetDriverVersion())),
            "max_sm_clock_mhz": _told(
                lambda: pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM)
            ),
            "max_memory_clock_mhz": _told(
                lambda: pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_MEM)
            ),
            "power_limit_watts": None if limit is None else limit / 1000,
        }

    def state(self) -> DeviceState:
        """The state now; ask while the device works. Warns once of what disturbs measurements."""
        if self._handle is None:
            self._warn(
                f"NVML does not answer ({self._unavailable}): clocks, temperature, throttling and "
                "other processes stay unknown; install the driver's NVML library to record them"
            )
            return DeviceState()
        handle = self._handle
        power = _told(lambda: pynvml.nvmlDeviceGetPowerUsage(handle))
        reasons = _told(lambda: pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle)) or 0
        processes = _told(lambda: pynvml.nvmlDeviceGetComputeRunningProcesses(handle))
        state = DeviceState(
            sm_clock_mhz=_told(lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)),
            memory_clock_mhz=_told(
                lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM)
            ),
            temperature_c=_told(
                lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)
            ),
            power_watts=None if power is None else power / 1000,
            throttle="+".join(word for bit, word in _REASONS.items() if reasons & bit),
            # This process is one of them; inside a container, by another number or not at all.
            other_processes=None if processes is None else max(0, len(processes) - 1),
        )
        if state.throttle:
            self._warn(
                f"the GPU lowers its clock ({state.throttle}): rows measured meanwhile carry it in "
                "groups.csv; cool it, or raise its power limit"
            )
        if state.other_processes:
            self._warn(
                "other processes use this GPU: what is measured is not its own speed; stop them "
                "and measure again"
            )
        return state

    def _warn(self, message: str) -> None:
        """One line on stderr, once for each kind of trouble."""
        kind = message.partition("(")[0]
        if kind not in self._warned:
            self._warned.add(kind)
            print(f"profile: {message}", file=sys.stderr, flush=True)


def _told(ask: Callable[[], Any]) -> Any:
    """What NVML answers; None where this device does not tell."""
    try:
        return ask()
    except pynvml.NVMLError:
        return None
