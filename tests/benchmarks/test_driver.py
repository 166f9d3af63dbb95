"""Benchmark ``driver`` at a tiny size, and at its own."""

import pytest

from ribray import storage
from ribray.commands import bench
from tests.benchmarks.figures import values


@pytest.mark.slow
def test_the_stage_goes_through_simulated_images_and_on_where_it_stopped(ray_session, tmp_path):
    driver = bench.load("driver")
    first = driver.refine_simulated(tmp_path, 330, 300)
    assert first["images_per_second"] > 0
    assert first["peak"] > first["data"]
    made = {file: file.stat().st_mtime_ns for file in (tmp_path / "maps").rglob("*.npz")}
    assert len(made) == 300
    driver.refine_simulated(tmp_path, 330, 330)
    assert len(list((tmp_path / "maps").rglob("*.npz"))) == 330
    assert all(file.stat().st_mtime_ns == time for file, time in made.items())
    assert storage.read_json(tmp_path / "metrics.json")["refine"]["images"] == 330


@pytest.mark.on_demand
@pytest.mark.timeout(3600)
def test_a_million_images_fit_the_driver():
    result = bench.load("driver").run(full=True)
    required = {name: figure["required"] for name, figure in result["figures"].items() if figure["required"]}
    assert len(required) == 4
    assert all(requirement["met"] for requirement in required.values()), values(result)
