"""Benchmark ``cost`` at a tiny size."""

import pytest

from benchmarks.pictures import SMALL
from ribray.commands import bench
from tests.benchmarks.figures import values


@pytest.mark.slow
def test_every_setting_has_its_seconds_its_memory_and_what_a_plan_says():
    cost = bench.load("cost")
    found = values(cost.run(settings=SMALL, size=(48, 64), networks=("resnet18",), rounds=1))
    assert len(found) == 2 * (len(cost.RIB) * 5 + 3)
    for name, value in found.items():
        low, high = (0.1, 10) if "plan over" in name else (0.2, 10) if name.endswith("memory") else (0, 60)
        assert low < value < high, name
