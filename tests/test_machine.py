"""What a machine is called."""

import torch

from ribray import machine
from ribray.machine import describe_machine, processor


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
