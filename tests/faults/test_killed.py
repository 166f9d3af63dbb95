"""Killed processes: the maps are, byte for byte, those of an undisturbed run. Each run starts its own Ray cluster."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from tests.tiny import TINY, map_bytes

pytestmark = pytest.mark.slow

IMAGES = 12
SETTINGS = [*TINY, "refine.iterations=6", f"refine.limit={IMAGES}", "cluster.workers=2"]


def command(out: Path, stages: str = "refine", settings: Sequence[str] = ()) -> list[str]:
    overrides = [part for setting in (*SETTINGS, *settings) for part in ("--set", setting)]
    return [sys.executable, "-m", "ribray.cli", "run", "quickstart", "--out", str(out), "--stages", stages, *overrides]


def run(out: Path, stages: str = "refine", settings: Sequence[str] = ()) -> subprocess.CompletedProcess:
    return subprocess.run(command(out, stages, settings), capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    done = run(out, "classifier")
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def undisturbed(trained, tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    shutil.copytree(trained, out)
    done = run(out)
    assert done.returncode == 0, done.stderr
    assert len(map_bytes(out)) == IMAGES
    return map_bytes(out)


@pytest.fixture
def started(trained, tmp_path):
    """A refinement that has written its first maps, and its directory."""
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    process = subprocess.Popen(
        command(out), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while len(map_bytes(out)) < 2:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    yield process, out
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def workers_of(process: subprocess.Popen) -> list[psutil.Process]:
    return [child for child in psutil.Process(process.pid).children(recursive=True) if "_Actor" in child.name()]


def test_a_killed_worker_costs_nothing_but_time(started, undisturbed):
    process, out = started
    workers = workers_of(process)
    assert workers
    for worker in workers:
        worker.kill()
    assert process.wait(timeout=240) == 0, process.stdout.read()
    assert map_bytes(out) == undisturbed
    assert not (out / "failures.jsonl").exists()


def test_a_killed_driver_is_continued_by_the_same_command(started, undisturbed):
    process, out = started
    process.kill()
    process.wait()
    finished = {file: file.stat().st_mtime_ns for file in (out / "maps").rglob("*.npz")}
    assert 2 <= len(finished) < IMAGES
    done = run(out)
    assert done.returncode == 0, done.stderr
    assert "earlier" in done.stdout
    assert map_bytes(out) == undisturbed
    assert all(file.stat().st_mtime_ns == time for file, time in finished.items())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_or_the_end_of_a_job_finishes_what_is_in_flight_and_the_rest_follows_later(number, started, undisturbed):
    process, out = started
    process.send_signal(number)
    assert process.wait(timeout=120) == 130
    text = process.stdout.read()
    assert "Stopping: images in flight are finished first" in text
    assert "Traceback" not in text
    assert 2 <= len(map_bytes(out)) < IMAGES
    assert run(out).returncode == 0
    assert map_bytes(out) == undisturbed


def test_a_second_run_on_a_busy_directory_is_refused(started):
    process, out = started
    process.send_signal(signal.SIGSTOP)  # it keeps its lock, and cannot end in the meantime
    done = run(out)
    assert done.returncode == 2
    assert "Another run is working" in done.stderr


def test_a_training_whose_driver_was_killed_ends_with_the_same_weights(tmp_path):
    settings = ["classifier.epochs=12", "data.synthetic.train_images=60"]
    process = subprocess.Popen(command(tmp_path / "killed", "classifier", settings), stdout=subprocess.DEVNULL)
    log = tmp_path / "killed" / "classifier" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not log.exists() or log.read_text().count("validation") < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not (log.parent / "weights.safetensors").exists()
    for out in (tmp_path / "killed", tmp_path / "undisturbed"):
        done = run(out, "classifier", settings)
        assert done.returncode == 0, done.stderr
    killed, undisturbed = (tmp_path / name / "classifier" for name in ("killed", "undisturbed"))
    assert (killed / "weights.safetensors").read_bytes() == (undisturbed / "weights.safetensors").read_bytes()
    assert log.read_text() == (undisturbed / "metrics.jsonl").read_text()
