"""Jobs on a real head that runs with token authentication, submitted as a user submits them."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT
from tests.tiny import TINY

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1200)]

RAY = Path(sys.executable).with_name("ray")
OBJECT_STORE_BYTES = 100 * 2**20
START_SECONDS = 180
STOP_SECONDS = 30
JOB_SECONDS = 600
PORTS = (
    "port",
    "dashboard-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "ray-client-server-port",
    "metrics-export-port",
    "runtime-env-agent-port",
)
MAPS = 10


@dataclass(frozen=True)
class Head:
    """A running head node and the environment of those who know its token."""

    address: str
    environment: Mapping[str, str]

    def submit(
        self, script: str, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Submit the checkout with one of its entrypoints and wait for the end of the job."""
        return subprocess.run(
            [
                *(RAY, "job", "submit", "--address", self.address, "--working-dir", "."),
                *("--", "python", f"entrypoints/{script}.py", *arguments),
            ],
            cwd=ROOT,
            env=dict(self.environment if environment is None else environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=JOB_SECONDS,
            check=False,
        )


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="ribray-"))  # short: sockets live in it
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
            "HOME": str(folder),  # where the token is kept
            "PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # it ends at once when told to
        }
        subprocess.run(
            [RAY, "get-auth-token", "--generate"], env=environment, stdout=subprocess.DEVNULL, timeout=120, check=True
        )
        ports = free_ports()
        log = folder / "head.log"
        with open(log, "w") as stream:
            process = subprocess.Popen(
                [
                    *(RAY, "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=2"),
                    *(f"--object-store-memory={OBJECT_STORE_BYTES}", f"--temp-dir={folder / 'ray'}"),
                    *(f"--{name}={port}" for name, port in ports.items()),
                ],
                env=environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        stack.callback(end, process)
        deadline = time.monotonic() + START_SECONDS
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield Head(f"http://127.0.0.1:{ports['dashboard-port']}", environment)


def free_ports() -> dict[str, int]:
    """Return a port that nobody listens on for every service that would take a fixed one."""
    with contextlib.ExitStack() as stack:
        ports = {}
        for name in PORTS:
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            ports[name] = listener.getsockname()[1]
        return ports


def end(process: subprocess.Popen[bytes]) -> None:
    """End a head and whatever it started, and nothing else."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid)
        members = [family, *family.children(recursive=True)]
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        for member in members:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(members, STOP_SECONDS)
    process.wait()


def arguments(out: Path | str, *settings: str) -> list[str]:
    return ["quickstart", "--out", str(out), *(part for setting in (*TINY, *settings) for part in ("--set", setting))]


def maps(run: Path) -> dict[Path, tuple[bytes, int]]:
    return {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in (run / "maps").rglob("*.npz")}


@pytest.fixture(scope="module")
def refined(head, tmp_path_factory) -> Path:
    """A run whose classifier and maps were made by one job each."""
    run = tmp_path_factory.mktemp("shared") / "run"
    for script in ("classifier", "refine"):
        done = head.submit(script, *arguments(run))
        assert done.returncode == 0, done.stdout
    return run


def test_a_submitted_refinement_writes_its_maps_and_metrics(refined):
    assert len(maps(refined)) == MAPS
    assert (refined / "classifier" / "weights.safetensors").exists()
    assert (refined / "metrics" / "refine.json").exists()


def test_a_job_that_is_submitted_again_does_nothing_twice(head, refined):
    before = maps(refined)
    done = head.submit("refine", *arguments(refined))
    assert done.returncode == 0, done.stdout
    assert f"{MAPS} of {MAPS} images, done already" in done.stdout
    assert maps(refined) == before


@pytest.mark.parametrize(
    ("folder", "setting", "sentence"),
    [
        ("{}/run", "refine.batch_sise=5", "refine.batch_sise"),
        ("run", "refine.batch_size=5", "--out run is relative, and a job runs in a temporary copy"),
    ],
)
def test_a_job_that_fails_says_why_and_returns_non_zero(head, tmp_path, folder, setting, sentence):
    done = head.submit("refine", *arguments(folder.format(tmp_path), setting))
    assert done.returncode != 0
    assert sentence in done.stdout.partition("error: ")[2].splitlines()[0]
    assert "Traceback" not in done.stdout
    assert not any(tmp_path.iterdir())


SWEEP = """\
# Two batch sizes that the run itself does not have.
base: quickstart
stages: [refine, seed]
space: {refine.batch_size: [2, 3]}
metric: seed.rib.miou
mode: max
"""


def test_a_submitted_sweep_over_a_run_makes_its_table(head, refined, tmp_path):
    file, out = tmp_path / "sizes.yaml", tmp_path / "sweep"
    file.write_text(SWEEP)
    done = head.submit("sweep", str(file), "--base", str(refined), "--out", str(out))
    assert done.returncode == 0, done.stdout
    trials = json.loads((out / "sweep.json").read_text())["trials"]
    assert [trial["settings"] for trial in trials] == [{"refine.batch_size": 2}, {"refine.batch_size": 3}]
    assert all(trial["status"] == "finished" and trial["value"] > 0 for trial in trials)
    assert all(len(maps(out / trial["directory"])) == MAPS for trial in trials)
    assert (out / "table.md").exists()


@pytest.mark.parametrize(
    ("changes", "answer"),
    [({"RAY_AUTH_MODE": "disabled"}, "Unauthorized"), ({"RAY_AUTH_TOKEN": "another"}, "Forbidden")],
)
def test_a_job_without_the_token_is_refused(head, tmp_path, changes, answer):
    done = head.submit("refine", *arguments(tmp_path / "run"), environment={**head.environment, **changes})
    assert done.returncode != 0
    assert answer in done.stdout
    assert not (tmp_path / "run").exists()
