"""Benchmark ``floor`` at a tiny size."""

import pytest

from benchmarks.pictures import SMALL
from ribray.commands import bench
from tests.benchmarks.figures import values


@pytest.mark.slow
def test_an_image_takes_longer_than_its_products_alone():
    found = values(bench.load("floor").run(settings=SMALL, size=(48, 64), rounds=1))
    for network in ("resnet50", "timm/tf_efficientnet_lite0"):
        assert 0 < found[f"{network}, its products alone"] < found[f"{network}, an image of two steps"]
        shares = [value for name, value in found.items() if name.startswith(f"{network}, share of")]
        assert len(shares) == 8
        assert sum(shares) <= 100
