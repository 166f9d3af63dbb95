"""What this machine is, in a few words, to stand beside times that were measured on it."""

import os
import platform
from collections import Counter
from pathlib import Path

import torch

CPU_FILE = Path("/proc/cpuinfo")


def processor() -> str:
    """Return the CPU's model, as far as the system tells it."""
    lines = CPU_FILE.read_text(encoding="utf-8").splitlines() if CPU_FILE.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def describe_machine() -> str:
    """Return CPU, cores and GPUs: ``AMD EPYC, 16 cores, 2 × NVIDIA A100``."""
    cores = os.cpu_count() or 1
    gpus = Counter(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
    parts = [processor(), f"{cores} core{'s' if cores > 1 else ''}"]
    return ", ".join([*parts, *(f"{count} × {name}" if count > 1 else name for name, count in gpus.items())])
