"""A description of the machine, for the head of every result."""

import os
import platform
from importlib.metadata import version

import torch as th


def describe() -> str:
    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            cpu = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), cpu)
    packages = " ".join(f"{name} {version(name)}" for name in ("torch", "stable-baselines3", "gymnasium"))
    gpu = f", {th.cuda.get_device_name()}" if th.cuda.is_available() else ""
    return f"{cpu}, {os.cpu_count()} cores{gpu}, Python {platform.python_version()}, {packages}"
