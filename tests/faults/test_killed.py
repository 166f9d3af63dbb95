"""The command with a Ray cluster of its own, as a person starts it: its workers are killed, and then itself."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.faults.cases import IMAGES, finished, refined, require_same
from tests.tiny import TINY, chain

pytestmark = [pytest.mark.slow, pytest.mark.ray]


@pytest.fixture
def start(settings):
    """Start a refinement by two workers, from the command line."""
    started = []
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}

    def start(out: Path) -> subprocess.Popen[str]:
        sets = [part for setting in [*TINY, *settings, "cluster.workers=2"] for part in ("--set", setting)]
        command = [sys.executable, "-m", "ribray.cli", "run", "quickstart", "--out", str(out), "--stages", "refine"]
        process = subprocess.Popen(
            [*command, *sets],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=environment,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def test_killed_workers_and_then_a_killed_driver_cost_nothing_but_time(settings, start, trained, undisturbed, tmp_path):
    out = Path(shutil.copytree(trained, tmp_path / "run"))
    process = start(out)
    wait_for(process, out, 2)
    workers = workers_of(process)
    assert len(workers) == 2
    for worker in workers:
        worker.kill()
    count = len(refined(out))
    wait_for(process, out, count + 1)
    left = workers_of(process)
    process.kill()
    process.wait()
    # They may still finish what they were at, be it an image whose map was written but whose reply was lost with its
    # first worker.
    assert not psutil.wait_procs(left, timeout=60)[1]
    earlier = finished(out)
    assert 2 < len(earlier) < IMAGES
    _, text = chain(out, settings, stages="refine")
    assert " earlier)" in text
    require_same(out, undisturbed, earlier)


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return [child for child in psutil.Process(process.pid).children(recursive=True) if "_Actor" in child.name()]


def wait_for(process: subprocess.Popen[str], out: Path, maps: int) -> None:
    """Wait until a run has so many maps."""
    deadline = time.monotonic() + 240
    while len(refined(out)) < maps:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
