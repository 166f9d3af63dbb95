"""Benchmark ``advcam`` at a tiny size, and its plain reading against the product."""

import copy

import pytest
import torch

from benchmarks.pictures import SMALL
from ribray.commands import bench
from ribray.config import AdvCAMConfig
from ribray.methods.advcam import AdvCAM
from tests.benchmarks.figures import values
from tests.methods.test_advcam import PRESENT, make_classifier, make_views, relative_error


def test_the_plain_reading_is_the_method(companion):
    classifier, config = make_classifier(), AdvCAMConfig(iterations=4, regularizer=30.0, step_size=0.3)
    baseline = companion("advcam_baseline").Baseline(copy.deepcopy(classifier), config, torch.device("cpu"))
    climbed = AdvCAM(classifier, config).climb(make_views(), PRESENT)
    for place, index in enumerate(PRESENT):
        for sums, attributions in zip(climbed.sums, baseline.climb(make_views(), 4, index), strict=True):
            assert (
                relative_error(sums[-1][place], torch.stack(attributions).sum(0)) < 1e-7
            )  # its clip is not rounded to float32


@pytest.mark.slow
def test_every_way_is_timed_and_begins_as_the_plain_reading(monkeypatch):
    advcam = bench.load("advcam")
    monkeypatch.setattr(advcam, "NETWORKS", (advcam.LITE,))
    found = values(advcam.run(settings=SMALL, size=(48, 64), rounds=1))
    assert all(value > 0 for value in found.values())
    assert len(found) == 8
    (difference,) = (value for name, value in found.items() if "difference" in name)
    assert difference < advcam.FIRST_DIFFERENCE
