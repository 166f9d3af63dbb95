"""Processes that a stage finds there from the one before, on a real local cluster."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import ray

from ribray.cluster.pool import Pool, PoolPlan
from ribray.cluster.session import connect
from ribray.cluster.warm import clear_the_way, prepare
from ribray.config import ClusterConfig

pytestmark = pytest.mark.usefixtures("ray_session")
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Worker:
    """Says where it is."""

    def __init__(self, ballast: int = 0):
        self.ballast = b"x" * ballast

    def process(self, item: str) -> dict:
        time.sleep(0.3)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return {"pid": os.getpid(), "memory": pages * os.sysconf("SC_PAGE_SIZE")}


class Silent:
    def advance(self, done, failed):
        """Nobody looks."""


def fill(workers: int = 2, worker: type = Worker, arguments: dict | None = None, stop=lambda: False, **plan):
    records: list[dict] = []
    pool = Pool(PoolPlan("test", workers, **plan), worker, arguments or {})
    items = [f"item{number}" for number in range(4 * workers)]
    result = pool.run(items, lambda item, record: records.append(record), lambda *_: pytest.fail(), Silent(), stop)
    return {record["pid"] for record in records}, records, result


def await_free(cpus: int) -> None:
    deadline = time.monotonic() + 20
    while ray.available_resources().get("CPU", 0) != cpus:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]


def await_gone(*pids: int) -> None:
    deadline = time.monotonic() + 20
    while not all(map(is_gone, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_pool_has_the_processes_of_the_pool_before_and_they_end_with_the_command():
    with connect(ClusterConfig()):
        first, _, cold = fill()
        second, _, warm = fill()
        assert len(first) == 2
        assert second == first
        assert fill(workers=1)[0] < first
        assert warm.start_seconds < cold.start_seconds
    await_gone(*first)
    await_free(2)


def test_a_pool_finds_the_processes_that_were_prepared_for_it(tmp_path):
    class Ready:
        def __init__(self):
            (tmp_path / str(os.getpid())).touch()

    with connect(ClusterConfig()):
        prepare(PoolPlan("to come", 2), Ready)
        at_work, _, _ = fill()
    assert {int(file.name) for file in tmp_path.iterdir()} == at_work


def test_outside_of_a_command_nothing_is_kept():
    first, _, _ = fill()
    await_gone(*first)


def test_the_memory_of_the_worker_before_is_free():
    with connect(ClusterConfig()):
        _, before, _ = fill(workers=1)
        _, heavy, _ = fill(workers=1, arguments={"ballast": 300 * 2**20})
        _, after, _ = fill(workers=1)
    assert heavy[0]["pid"] == after[0]["pid"]
    assert heavy[0]["memory"] > before[0]["memory"] + 250 * 2**20
    assert after[0]["memory"] < before[0]["memory"] + 50 * 2**20


def test_another_shape_finds_the_cluster_free():
    with connect(ClusterConfig()):
        first, _, _ = fill()
        other, _, _ = fill(workers=1, cpus_per_worker=2)
        assert other.isdisjoint(first)
        await_gone(*first)
        again, _, _ = fill()
        assert again.isdisjoint(other | first)


def test_more_threads_are_another_shape():
    with connect(ClusterConfig()):
        assert fill(workers=1)[0].isdisjoint(fill(workers=1, threads_per_worker=2)[0])


def test_a_process_that_dies_without_work_costs_nothing():
    with connect(ClusterConfig()):
        (first, *_), _, _ = fill(workers=1)
        os.kill(first, signal.SIGKILL)
        await_gone(first)
        assert first not in fill(workers=1, tries=1)[0]


def test_a_stopped_pool_leaves_no_processes():
    with connect(ClusterConfig()):
        begun = time.monotonic()
        first, _, result = fill(stop=lambda: time.monotonic() > begun + 2)
        assert result.stopped
        await_gone(*first)


def test_what_is_kept_does_not_keep_others_waiting():
    """Ray Train, on a cluster that others may use too, and a worker that is asked what it computes in."""
    with connect(ClusterConfig()) as session:
        first, _, _ = fill()
        assert session.resolve_precision("auto", ClusterConfig(workers=1)) in ("bfloat16", "float32")
        assert fill()[0] == first
        clear_the_way()
        await_gone(*first)
        await_free(2)


class Broken(Worker):
    def process(self, item: str) -> dict:
        raise OSError(28, "No space left on device")


def test_processes_in_which_something_went_wrong_are_not_handed_on():
    with connect(ClusterConfig()):
        first, _, _ = fill()
        with pytest.raises(Exception, match="No space left"):
            fill(worker=Broken)
        await_gone(*first)
        await_free(2)
