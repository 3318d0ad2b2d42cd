"""Measure what every variant costs on this device, and write it as a profile."""

from puzzle_search.profile.device import Device, cpu_device, cuda_device, open_device
from puzzle_search.profile.measure import ProfileGrid, measure_profile

__all__ = [
    "Device",
    "ProfileGrid",
    "cpu_device",
    "cuda_device",
    "measure_profile",
    "open_device",
]
