"""Benchmark ``maps`` at a tiny size."""

import pytest

from ribray.commands import bench
from tests.benchmarks.figures import values

SMALL = ["classifier.backbone=small", "classifier.output_stride=8", "refine.iterations=1"]


def test_both_forms_are_written_and_read_in_turns():
    result = bench.load("maps").run(images=2, rounds=1, item=SMALL, size=(64, 80))
    found = values(result)
    cells = (16 * 20 + 64 * 80) * 4
    # One class or two in each picture, and what an archive needs beside the arrays.
    assert cells / 1e3 < found["bytes of an image, published form"] < (2 * cells + 1000) / 1e3
    assert result["figures"]["times smaller"]["required"]["at_least"] == 18
    read, made = found["an image published form read"], found["an image read, full-size maps made"]
    assert found["full-size maps, over the published form"] == pytest.approx(made / read)
    assert "Baseline" in result["notes"][0]
