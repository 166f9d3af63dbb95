"""Maps of a second method are the same bytes, however many workers make them, and whoever is killed meanwhile."""

import shutil
import signal
import subprocess
import sys
import time

import pytest

from ribray.runs.run import Run
from ribray.stages import refine
from tests.faults.cases import IMAGES, faulty, half_written, killed
from tests.tiny import chain

pytestmark = [pytest.mark.slow, pytest.mark.ray]


@pytest.fixture(scope="module")
def climbing(settings):
    checkpoint, limit = settings[:2]
    return [checkpoint, limit, "refine.method=advcam", "refine.iterations=3"]


@pytest.fixture(scope="module")
def alone(climbing, trained, tmp_path_factory):
    """The maps that are made without Ray."""
    return made(trained, climbing, tmp_path_factory.mktemp("alone") / "run", "cluster.workers=0")


def made(trained, settings, out, *more):
    if not out.exists():
        shutil.copytree(trained, out)
    chain(out, [*settings, *more], "refine")
    assert Run.read(out).failures() == []
    return climbed(out)


def climbed(out):
    return {file.name: file.read_bytes() for file in (out / "maps_advcam").rglob("*.npz")}


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_makes_the_same_maps(climbing, trained, alone, tmp_path, workers):
    assert len(alone) == IMAGES
    assert made(trained, climbing, tmp_path / "run", f"cluster.workers={workers}") == alone


def test_a_worker_that_is_killed_at_half_a_file_costs_nothing(climbing, trained, alone, tmp_path, monkeypatch):
    faults = {min(alone).removesuffix(".npz"): (killed, 1)}
    monkeypatch.setattr(refine, "RefineWorker", faulty(tmp_path / "marks", faults, half_written))
    assert made(trained, climbing, tmp_path / "run", "cluster.workers=2") == alone
    assert len(list((tmp_path / "marks").iterdir())) == 1


def test_a_driver_that_is_killed_goes_on(climbing, trained, alone, tmp_path):
    out = shutil.copytree(trained, tmp_path / "run")
    sets = [part for setting in [*climbing, "cluster.workers=0"] for part in ("--set", setting)]
    recipe = str(out / "experiment.yaml")
    command = [sys.executable, "-m", "ribray.cli", "run", recipe, "--out", str(out), "--stages", "refine", *sets]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while len(climbed(out)) < 2 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    earlier = climbed(out)
    assert 2 <= len(earlier) < IMAGES
    assert made(trained, climbing, out, "cluster.workers=0") == alone
