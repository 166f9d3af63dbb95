"""Whole stages on a run directory and data under ``s3://``: the numbers of a local run, continued after a kill."""

import subprocess
import sys
import time

import pytest

from ribray import storage
from ribray.commands.report import write_report
from tests.conftest import SECRET
from tests.tiny import EVERYTHING, RETRAINED, TINY, chain, map_bytes


def objects(location) -> dict[str, bytes]:
    """Every object below a location, by name; s3fs may give the location itself while the first one is written."""
    keys = [key for key in location.fs.find(location.path) if key != location.path]
    return {key.removeprefix(location.path + "/"): location.fs.cat_file(key) for key in keys}


def maps_of(location) -> dict[str, bytes]:
    maps = objects(location / "maps")
    return {name.rpartition("/")[2]: content for name, content in maps.items() if name.endswith(".npz")}


@pytest.fixture
def on_store(trained, bucket):
    """A run on the store that has its classifier, and the data it was drawn from beside it."""
    storage.copy_folder(trained, bucket / "run")
    return bucket / "run"


def test_maps_and_numbers_are_those_of_a_local_run(on_store, undisturbed, ray_session):
    result, _ = chain(on_store, ["cluster.workers=2"])
    assert not result.failures
    assert maps_of(on_store) == map_bytes(undisturbed)
    local, there = (storage.read_json(run / "metrics.json") for run in (undisturbed, on_store))
    assert {**there, "timing": None} == {**local, "timing": None}
    _, again = chain(on_store)
    assert "done already" in again
    assert f"{on_store}" in str(result.figures[0])


@pytest.mark.slow
def test_all_stages_and_the_report_work_there_and_tell_no_secret(on_store, ray_session, tmp_path):
    result, _ = chain(on_store, [*RETRAINED, "tracking.wandb=offline"], stages=EVERYTHING)
    assert not result.failures
    chain(on_store, [*RETRAINED, "masks.source=cam"], stages="confident,irn,pseudo")
    write_report(on_store)
    found = objects(on_store)
    for file in (
        "report.html",
        "figures/masks.png",
        "segmentation/weights.safetensors",
        "variants/cam/pseudo/stage.json",
    ):
        assert file in found, sorted(found)
    assert any(name.startswith("wandb/offline-run-") and name.endswith(".wandb") for name in found)
    assert not [name for name in found if "/train/" in name or ".writing-" in name]
    assert [name for name, content in found.items() if SECRET.encode() in content] == []
    assert result.sync_command


@pytest.mark.slow
def test_a_killed_driver_is_continued_by_the_same_command(on_store, undisturbed):
    settings = [part for setting in (*TINY, "cluster.workers=1") for part in ("--set", setting)]
    command = [sys.executable, "-m", "ribray.cli", "run", "quickstart", "--out", str(on_store), *settings]
    command += ["--stages", "refine,seed"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(maps_of(on_store)) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    refused = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    process.kill()
    process.wait()
    assert refused.returncode == 2
    assert "Another run is working" in refused.stderr
    assert 2 <= len(maps_of(on_store)) <= 10
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert maps_of(on_store) == map_bytes(undisturbed)
