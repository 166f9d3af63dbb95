"""Benchmark ``refine`` and its baseline at a tiny size."""

import math

import pytest

from benchmarks.pictures import SMALL
from ribray.commands import bench
from tests.benchmarks.figures import values

TINY = ["classifier.backbone=resnet18", *SMALL]


@pytest.fixture(scope="module")
def result():
    return bench.load("refine").run(full=True, item=TINY, size=(48, 64), rounds=2)


def test_product_and_baseline_refine_the_same(result):
    found = values(result)
    assert found["largest relative difference, float32"] < 1e-5
    assert found["largest relative difference, float32"] < found["largest relative difference, bfloat16"] < 0.1


def test_an_image_is_its_set_up_its_steps_and_the_last_one(result):
    for way in ("baseline", "float32", "bfloat16"):
        runs = [result["figures"][f"{part}, {way}"] for part in ("set-up", "ordinary step", "last step")]
        assert all(run["min"] > 0 for run in runs)
        low, high = (
            sum(run[end] * times for run, times in zip(runs, (1, 2, 1), strict=True)) for end in ("min", "max")
        )
        image = result["figures"][f"image of K = 3, {way}"]
        assert low * 0.999 < image["min"] <= image["max"] < high * 1.001


def test_phases_add_up_to_a_step(result):
    found = values(result)
    for way in ("baseline", "float32", "bfloat16"):
        step = result["figures"][f"ordinary step, {way}"]
        phases = [result["figures"][name] for name in found if name.startswith("ordinary step, ") and way in name]
        phases.remove(step)
        assert len(phases) == 6
        assert sum(phase["min"] for phase in phases) <= step["max"] * 1.001
        assert sum(phase["max"] for phase in phases) >= step["min"] * 0.999


def test_a_phase_inside_another_counts_once(companion, monkeypatch):
    clock_module = companion("clock")
    now = iter([0.0, 1.0, 3.0, 7.0])
    monkeypatch.setattr(clock_module.time, "perf_counter", lambda: next(now))
    clock = clock_module.Clock()
    with clock.phase("outer"), clock.phase("inner"):
        pass
    assert clock.seconds == {"outer": 1.0 + 4.0, "inner": 2.0}
    assert math.isclose(sum(clock.seconds.values()), 7.0)
