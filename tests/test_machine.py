"""What a machine is called, and how a process keeps memory."""

import platform
import subprocess
import sys

import pytest
import torch

from ribray import machine
from ribray.machine import best_precision, describe_machine, processor


def test_a_machine_is_its_cpu_its_cores_and_its_gpus(tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name\t: A CPU\nmodel name\t: A CPU\n")
    monkeypatch.setattr(machine, "CPU_FILE", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert describe_machine() == "A CPU, 8 cores"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: ("A GPU", "A GPU", "Another")[number])
    assert describe_machine() == "A CPU, 8 cores, 2 × A GPU, Another"


def test_a_system_without_that_file_names_its_architecture(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "CPU_FILE", tmp_path / "nothing")
    assert processor()


@pytest.mark.parametrize(
    ("model", "units", "found"),
    [
        ("Intel(R) Xeon(R)", {"amx_tile", "avx512_bf16"}, "bfloat16"),
        ("Intel(R) Xeon(R)", {"avx512_bf16"}, "float32"),
        ("AMD EPYC", {"avx512_bf16"}, "bfloat16"),
        ("AMD Ryzen", set(), "float32"),
    ],
)
def test_bfloat16_is_for_cpus_that_multiply_it_faster(model, units, found, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(f"model name\t: {model}\n")
    monkeypatch.setattr(machine, "CPU_FILE", tmp_path / "cpuinfo")
    for unit in ("amx_tile", "avx512_bf16"):
        monkeypatch.setattr(torch.cpu, f"_is_{unit}_supported", lambda unit=unit: unit in units)
    assert best_precision(on_gpu=False) == found


FAULTS = """
import resource
import numpy as np
from ribray.machine import keeping_memory

def faults(blocks, mebibytes=100):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(blocks):
        np.ones(mebibytes * 2**20, dtype=np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults(8))
with keeping_memory():
    faults(1)
    print(faults(8))
print(faults(8))
faults(1, 10)
print(faults(8, 10))
"""
"""Prints how many pages the system has to give for eight blocks, one after the other; at last for smaller ones."""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps memory in its own way")
def test_a_block_that_was_freed_is_used_again_and_given_back_at_the_end():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    usual, keeping, afterwards, smaller = map(int, done.stdout.split())
    assert keeping < usual / 4
    assert afterwards > usual / 2
    assert smaller < usual / 40  # of the size of a training's tensors
