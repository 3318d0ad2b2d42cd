"""Measure what every variant costs on this device, and write it as a profile."""

from puzzle_search.profile.hardware.device import Device, cpu_device, cuda_device, open_device
from puzzle_search.profile.measure import measure_profile
from puzzle_search.profile.points.grid import ProfileGrid, Sizes

__all__ = [
    "Device",
    "ProfileGrid",
    "Sizes",
    "cpu_device",
    "cuda_device",
    "measure_profile",
    "open_device",
]
