"""Benchmark ``networks`` at a tiny size."""

import pytest

from benchmarks.pictures import SMALL
from ribray.commands import bench
from tests.benchmarks.figures import values


@pytest.mark.slow
def test_every_way_refines_as_the_plain_reading(monkeypatch):
    networks = bench.load("networks")
    monkeypatch.setattr(networks, "RESNET", "resnet18")
    monkeypatch.setattr(networks, "ENGINES", {"resnet18": ("plain", "folded"), networks.LITE: ("plain",)})
    found = values(networks.run(settings=SMALL, size=(48, 64), rounds=1))
    off = {name: value for name, value in found.items() if "difference" in name}
    assert len(off) == 6
    assert all(value < 1e-5 for name, value in off.items() if "float32" in name)
    assert all(value > 0 for name, value in found.items() if "difference" not in name)
