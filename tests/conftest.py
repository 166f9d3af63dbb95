"""Fixtures shared by the whole test suite."""

import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("shared machine", deadline=None)  # how long an example takes says nothing there
hypothesis.settings.load_profile("shared machine")

os.environ.setdefault("OMP_NUM_THREADS", "1")  # networks this small wait for one another's threads; before torch
for _side in ("COLUMNS", "LINES"):  # a process of pytest-xdist has them, and the command's console keeps them for good
    os.environ.pop(_side, None)

pytest_plugins = ["tests.made"]
ROOT = Path(__file__).resolve().parent.parent
with socket.socket() as _free:
    _free.bind(("127.0.0.1", 0))
    STORE_PORT = _free.getsockname()[1]
SECRET = "a-secret-that-no-file-of-a-run-may-hold"
# Set before any Ray cluster starts, whose workers inherit it; nor can a test reach anybody's real bucket.
os.environ.update(
    AWS_ENDPOINT_URL=f"http://127.0.0.1:{STORE_PORT}",
    AWS_ACCESS_KEY_ID="access-key-of-the-tests",
    AWS_SECRET_ACCESS_KEY=SECRET,
    AWS_DEFAULT_REGION="us-east-1",
)


LENGTHY = (
    "benchmarks/",
    "cluster/test_in_process.py",
    "commands/test_bench.py",
    "commands/test_map.py",
    "commands/test_tracking.py",
    "commands/test_verify.py",
    "networks/test_contract.py",
    "networks/test_deeplab.py",
    "networks/test_folded.py",
    "report/test_browser.py",
    "report/test_pictures.py",
    "test_object_store.py",
    "test_tracking.py",
)
"""Below tests/: files whose tests take seconds each. `make quick` leaves them to `make test`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "ray_session" in getattr(item, "fixturenames", ()):
            item.add_marker("ray")
        if item.path.relative_to(ROOT / "tests").as_posix().startswith(LENGTHY):
            item.add_marker("lengthy")


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with recorded outputs and small photographs that may lie beside the checkout."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared beside the checkout (recorded outputs and photographs)")
    return folder


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray cluster of two CPUs for all tests of a process."""
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 * 2**20,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def object_store() -> Iterator[None]:
    """A server on this machine that speaks the S3 protocol, in a process of its own."""
    command = [sys.executable, "-m", "moto.server", "-p", str(STORE_PORT)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while True:
        assert server.poll() is None, "the server has ended"
        assert time.monotonic() < deadline
        try:
            socket.create_connection(("127.0.0.1", STORE_PORT), timeout=1).close()
            break
        except OSError:
            time.sleep(0.1)
    yield
    server.kill()
    server.wait()


@pytest.fixture
def bucket(object_store) -> Path:
    """An empty bucket, as a location."""
    from ribray import storage

    location = storage.path(f"s3://bucket-{uuid.uuid4().hex[:12]}")
    location.fs.mkdir(location.path)
    return location
