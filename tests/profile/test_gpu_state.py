"""What NVML tells, through its Python functions put in its place where there is no GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
import torch

from puzzle_search.profile.hardware.gpu_state import DeviceState, GpuMonitor

DEVICE = torch.device("cuda", 0)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """An NVML with one GPU; change the answers to change its state."""
    answers: dict[str, Any] = {
        "nvmlInit": None,
        "nvmlDeviceGetHandleByUUID": "handle",
        "nvmlDeviceGetUUID": "GPU-1234",
        "nvmlSystemGetDriverVersion": "580.1",
        "nvmlDeviceGetPowerManagementLimit": 700_000,
        "nvmlDeviceGetMaxClockInfo": 1980,
        "nvmlDeviceGetClockInfo": 1755,
        "nvmlDeviceGetTemperature": 61,
        "nvmlDeviceGetPowerUsage": 412_500,
        "nvmlDeviceGetCurrentClocksEventReasons": 0x1,  # idle
        "nvmlDeviceGetComputeRunningProcesses": ["this one"],
    }

    def answer(name: str) -> Any:
        if isinstance(answers[name], Exception):
            raise answers[name]
        return answers[name]

    for name in answers:
        monkeypatch.setattr(pynvml, name, lambda *_, name=name: answer(name))
    properties = SimpleNamespace(uuid="1234")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    return answers


def test_identity_and_state_are_what_nvml_says(
    gpu: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    monitor = GpuMonitor(DEVICE)
    identity = monitor.identity()
    assert identity.pop("uuid_sha256") != "GPU-1234"
    assert identity == {
        "driver": "580.1",
        "max_sm_clock_mhz": 1980,
        "max_memory_clock_mhz": 1980,
        "power_limit_watts": 700.0,
    }
    assert monitor.state() == DeviceState(
        sm_clock_mhz=1755,
        memory_clock_mhz=1755,
        temperature_c=61,
        power_watts=412.5,
        throttle="",
        other_processes=0,
    )
    assert capsys.readouterr().err == ""


def test_throttling_is_named_and_warned_of_once(
    gpu: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    gpu["nvmlDeviceGetCurrentClocksEventReasons"] = 0x4 | 0x20
    monitor = GpuMonitor(DEVICE)
    assert monitor.state().throttle == "power cap+temperature"
    monitor.state()
    [line] = capsys.readouterr().err.splitlines()
    assert "lowers its clock (power cap+temperature)" in line


def test_other_processes_are_counted_and_warned_of_once(
    gpu: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    gpu["nvmlDeviceGetComputeRunningProcesses"] = ["this one", "another", "a third"]
    monitor = GpuMonitor(DEVICE)
    assert monitor.state().other_processes == 2
    monitor.state()
    [line] = capsys.readouterr().err.splitlines()
    assert "other processes use this GPU" in line


def test_what_a_device_does_not_tell_is_unknown(gpu: dict[str, Any]) -> None:
    unsupported = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    for question in (
        "PowerUsage",
        "CurrentClocksEventReasons",
        "ComputeRunningProcesses",
        "PowerManagementLimit",
    ):
        gpu[f"nvmlDeviceGet{question}"] = unsupported
    monitor = GpuMonitor(DEVICE)
    state = monitor.state()
    assert (state.power_watts, state.throttle, state.other_processes) == (None, "", None)
    assert monitor.identity()["power_limit_watts"] is None


def test_without_nvml_it_goes_on_and_says_so_once(
    gpu: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    gpu["nvmlInit"] = pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    monitor = GpuMonitor(DEVICE)
    assert monitor.identity()["nvml"].startswith("unavailable")
    assert capsys.readouterr().err == "", "only measuring needs it"
    assert monitor.state() == monitor.state() == DeviceState()
    [line] = capsys.readouterr().err.splitlines()
    assert "NVML does not answer" in line
