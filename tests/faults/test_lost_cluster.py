"""Ray's node dies under the command: one that the command started is started again, another is told of."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.faults.cases import IMAGES, finished, refined, require_same
from tests.tiny import TINY

pytestmark = [pytest.mark.slow, pytest.mark.ray]

COMMAND = """
from ribray import supervisor

supervise = supervisor.supervise

def supervise_impatiently(say):
    supervise(say)
    from ribray.cluster import watch
    watch.PING_SECONDS, watch.SILENT_PINGS = 1.0, {pings}

supervisor.supervise = supervise_impatiently
from ribray.cli import main
main()
"""
"""The command line, with less patience for a node that does not answer; the watch is imported in the child only."""
ELSEWHERE = """
import logging, ray, time
options = dict(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, object_store_memory=10**8)
ray.init(address="local", num_cpus=1, **options)
print(ray.get_runtime_context().gcs_address, flush=True)
time.sleep(1000)
"""


@pytest.fixture
def start():
    """Start a program as a person would, in a process group of its own."""
    started: list[subprocess.Popen[str]] = []

    def start(program: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**inherited, **environment},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()


def arguments(out: Path, settings: list[str], stages: str = "refine") -> list[str]:
    sets = [part for setting in [*TINY, *settings] for part in ("--set", setting)]
    return ["run", "quickstart", "--out", str(out), "--stages", stages, *sets]


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def processes_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def of_ray(processes: list[psutil.Process], name: str) -> psutil.Process:
    (found,) = [process for process in processes if name in process.name() or name in process.cmdline()[0]]
    return found


def end_of(process: subprocess.Popen[str], seconds: float = 240) -> tuple[int, str]:
    """Its exit code, and what it has printed."""
    text, _ = process.communicate(timeout=seconds)
    return process.returncode, text


def require_gone(processes: list[psutil.Process]) -> None:
    """Whatever Ray had running is to end by itself."""
    _, alive = psutil.wait_procs(processes, timeout=15)
    assert not alive


STRIKES = {
    "agent killed": ("ray::DashboardAgent", signal.SIGKILL),
    "raylet killed": ("raylet", signal.SIGKILL),
    "raylet stopped": ("raylet", signal.SIGSTOP),
}


@pytest.mark.parametrize("strike", STRIKES)
def test_a_node_that_is_lost_while_images_are_refined_costs_nothing_but_time(
    strike, settings, start, trained, undisturbed, copy_of
):
    out = copy_of(trained)
    process = start(COMMAND.format(pings=3), *arguments(out, [*settings, "cluster.workers=2"]))
    wait_until(lambda: len(refined(out)) >= 2, process)
    processes, (name, number) = processes_of(process), STRIKES[strike]
    earlier = finished(out)
    of_ray(processes, name).send_signal(number)
    assert len(earlier) < IMAGES
    code, text = end_of(process)
    assert code == 0, text
    assert "Ray on this machine was lost: " in text
    assert "It is started again (1 of 3)" in text
    assert "Traceback" not in text
    require_same(out, undisturbed, earlier)
    require_gone(processes)


@pytest.mark.on_demand
def test_a_training_whose_node_is_lost_ends_with_the_same_weights(start, tmp_path):
    settings = ["classifier.epochs=8", "data.synthetic.train_images=40"]
    process = start(COMMAND.format(pings=3), *arguments(tmp_path / "lost", settings, "classifier"))
    log = tmp_path / "lost" / "classifier" / "metrics.jsonl"
    wait_until(lambda: log.exists() and log.read_text().count("validation") >= 2, process)
    of_ray(processes_of(process), "raylet").kill()
    code, text = end_of(process)
    assert code == 0, text
    assert "It is started again (1 of 3)" in text
    undisturbed = start(COMMAND.format(pings=3), *arguments(tmp_path / "undisturbed", settings, "classifier"))
    assert end_of(undisturbed)[0] == 0
    for file in ("weights.safetensors", "metrics.jsonl"):
        lost, other = (tmp_path / name / "classifier" / file for name in ("lost", "undisturbed"))
        assert lost.read_bytes() == other.read_bytes()


def test_to_stop_takes_no_longer_where_nothing_can_be_finished(settings, start, trained, copy_of):
    out = copy_of(trained)
    process = start(COMMAND.format(pings=1000), *arguments(out, settings))
    wait_until(lambda: len(refined(out)) >= 1, process)
    processes = processes_of(process)
    of_ray(processes, "raylet").suspend()
    for worker in processes:
        if "_Actor" in worker.name():
            worker.kill()
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    code, text = end_of(process)
    assert time.monotonic() - began < 12  # and a little for what is slow here
    assert code == 130, text
    assert "Stopped; the same command continues." in text
    require_gone(processes)


def test_a_cluster_elsewhere_that_is_lost_is_told_of(settings, start, trained, undisturbed, copy_of):
    out = copy_of(trained)
    cluster = start(ELSEWHERE, RAY_AUTH_MODE="disabled")
    address = cluster.stdout.readline().strip()
    options = arguments(out, [*settings, f"cluster.address={address}"])
    process = start(COMMAND.format(pings=3), *options, RAY_AUTH_MODE="disabled")
    wait_until(lambda: len(refined(out)) >= 1, process)
    of_ray(processes_of(cluster), "raylet").suspend()
    code, text = end_of(process)
    assert code == 3, text
    assert "Ray that this command was connected to was lost" in text
    assert text.strip().endswith("what is finished is kept, and the same command continues.")
    assert "Traceback" not in text
    earlier = finished(out)
    shutil.rmtree(out / "figures", ignore_errors=True)
    code, text = end_of(start(COMMAND.format(pings=3), *arguments(out, settings)))
    assert code == 0, text
    require_same(out, undisturbed, earlier)
