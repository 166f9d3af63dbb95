"""The actor pool on a real local cluster: every item once, whatever happens to the processes."""

import ctypes
import errno
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import ray

from ribray.cluster.pool import Pool, PoolPlan
from ribray.cluster.session import connect
from ribray.config import ClusterConfig
from ribray.errors import ImageError, RibrayError, UsageError

pytestmark = pytest.mark.usefixtures("ray_session")
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Worker:
    """Writes a file per item; some items misbehave by name."""

    def __init__(self, folder: str):
        self.folder = Path(folder)
        self.announced: dict[str, int] = {}
        self.begun = 0

    def prefetch(self, item: str) -> None:
        self.announced.setdefault(item, self.begun)
        if item.startswith("trap"):
            os._exit(1)

    def process(self, item: str) -> dict:
        ahead = self.announced.get(item, self.begun) < self.begun
        self.begun += 1
        tries = self.folder / f"{item}.tries"
        with tries.open("a") as stream:
            stream.write(f"{os.getpid()}\n")
        count = len(tries.read_text().splitlines())
        if item.startswith("killer") or (item.startswith("fragile") and count == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if item.startswith("bad"):
            raise ImageError(f"{item} is unreadable.")
        if item.startswith("broken") or (item.startswith("shaky") and count < 3):
            raise ZeroDivisionError("division by zero")
        if item.startswith("slow"):
            time.sleep(0.3)
        if item.startswith("slower"):
            time.sleep(1.2)
        if item.startswith("hanging"):
            holds_the_interpreter = item == "hanging_outside_of_python"
            (ctypes.PyDLL if holds_the_interpreter else ctypes.CDLL)(None).sleep(1000)
        if item.startswith("faltering") and count < 3:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        (self.folder / item).write_text(item)
        return {"announced": ahead, "pid": os.getpid()}


class Heard:
    """Collects what the pool reports."""

    def __init__(self) -> None:
        self.done: dict[str, dict] = {}
        self.failed: dict[str, tuple[str, int]] = {}
        self.tracebacks: dict[str, str] = {}
        self.advanced = [0, 0]

    def take(self, item, record):
        assert item not in self.done
        self.done[item] = record

    def refuse(self, item, error, tries, traceback):
        assert item not in self.failed
        self.failed[item] = (error, tries)
        if traceback is not None:
            self.tracebacks[item] = traceback

    def advance(self, done, failed):
        self.advanced[0] += done
        self.advanced[1] += failed


def run(folder, items, workers=2, stop=lambda: False, worker=Worker, **plan):
    heard = Heard()
    plan = PoolPlan("test", workers, **plan)
    result = Pool(plan, worker, {"folder": str(folder)}).run(items, heard.take, heard.refuse, heard, stop)
    assert (result.done, result.failed) == (len(heard.done), len(heard.failed)) == tuple(heard.advanced)
    return heard, result


def tries(folder, item):
    return len((folder / f"{item}.tries").read_text().splitlines())


@pytest.mark.parametrize("chunk_size", [1, 4])
def test_every_item_is_done_once_and_announced_ahead(tmp_path, chunk_size):
    items = [f"slow{number}" for number in range(33)]
    heard, result = run(tmp_path, iter(items), chunk_size=chunk_size)
    assert sorted(heard.done) == sorted(items)
    assert not result.stopped
    assert all(tries(tmp_path, item) == 1 for item in items)
    assert len({record["pid"] for record in heard.done.values()}) == 2
    assert sum(record["announced"] for record in heard.done.values()) > len(items) // 2


def test_an_item_that_kills_its_worker_is_given_up_and_its_neighbours_are_done(tmp_path):
    items = ["slow0", "killer", *(f"slow{number}" for number in range(1, 7)), "fragile"]
    heard, _ = run(tmp_path, items, workers=1)
    assert set(heard.failed) == {"killer"}
    error, count = heard.failed["killer"]
    assert "its worker died 3 times" in error
    assert count == 3
    assert tries(tmp_path, "killer") in (3, 4)  # the first time it may not have been alone
    assert sorted(heard.done) == sorted(set(items) - {"killer"})
    assert tries(tmp_path, "fragile") == 2


def test_a_killer_in_a_chunk_takes_no_neighbour_with_it(tmp_path):
    items = ["a", "b", "killer", "c", "d", "e"]
    heard, _ = run(tmp_path, items, chunk_size=6)
    assert set(heard.failed) == {"killer"}
    assert sorted(heard.done) == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_fail_at_once_and_other_errors_after_some_tries(workers, tmp_path):
    heard, _ = run(tmp_path, ["bad", "broken", "shaky", "good"], workers)
    assert heard.failed == {
        "bad": ("bad is unreadable.", 1),
        "broken": ("ZeroDivisionError: division by zero", 3),
    }
    assert sorted(heard.done) == ["good", "shaky"]
    assert (tries(tmp_path, "bad"), tries(tmp_path, "shaky")) == (1, 3)
    assert heard.tracebacks.keys() == {"broken"}
    assert heard.tracebacks["broken"].count('raise ZeroDivisionError("division by zero")') == 1


def test_a_worker_killed_from_outside_loses_nothing(tmp_path):
    killed = []

    class Killing(Heard):
        def take(self, item, record):
            super().take(item, record)
            if not killed:
                killed.append(record["pid"])
                os.kill(record["pid"], signal.SIGKILL)

    heard = Killing()
    items = [f"slow{number}" for number in range(10)]
    result = Pool(PoolPlan("test", 2), Worker, {"folder": str(tmp_path)}).run(items, heard.take, heard.refuse, heard)
    assert killed
    assert result.done == 10
    assert result.failed == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stop_request_finishes_what_runs_and_starts_no_more(workers, tmp_path):
    heard = Heard()
    plan = PoolPlan("test", workers)
    result = Pool(plan, Worker, {"folder": str(tmp_path)}).run(
        (f"slow{number}" for number in range(100)),
        heard.take,
        heard.refuse,
        heard,
        lambda: heard.advanced[0] >= 3,
    )
    assert result.stopped
    assert 3 <= len(heard.done) <= 5
    assert not heard.failed


@pytest.mark.parametrize("item", ["hanging", "hanging_outside_of_python"])
def test_an_item_that_hangs_is_given_up_and_its_neighbours_are_done(item, tmp_path):
    items = ["a", item, *"bcdef"]
    heard, _ = run(tmp_path, items, workers=1, tries=2, seconds_per_item=2)
    assert heard.failed == {item: ("it took longer than 2 s (cluster.seconds_per_image), 2 times", 2)}
    assert sorted(heard.done) == list("abcdef")
    assert tries(tmp_path, item) == 3  # the first time it was not alone


def test_a_hanging_item_of_a_chunk_takes_no_neighbour_with_it(tmp_path):
    heard, _ = run(tmp_path, ["a", "hanging", "b"], tries=1, chunk_size=3, seconds_per_item=0.5)
    assert set(heard.failed) == {"hanging"}
    assert sorted(heard.done) == ["a", "b"]


@pytest.mark.parametrize("chunk_size", [1, 3])
def test_waiting_behind_another_item_does_not_count_as_taking_long(chunk_size, tmp_path):
    items = [f"slower{number}" for number in range(6)]
    heard, _ = run(tmp_path, items, workers=1, chunk_size=chunk_size, seconds_per_item=2)
    assert sorted(heard.done) == items
    assert all(tries(tmp_path, item) == 1 for item in items)


def test_an_item_that_kills_while_it_is_loaded_ahead_takes_no_neighbour_with_it(tmp_path):
    items = ["slow0", "slow1", "slow2", "trap", "slow3", "slow4"]
    heard, _ = run(tmp_path, items, workers=1, tries=2)
    assert {item: count for item, (_, count) in heard.failed.items()} == {"trap": 2}
    assert sorted(heard.done) == sorted(set(items) - {"trap"})


class Unloadable(Worker):
    """Cannot begin to load items of some names."""

    def prefetch(self, item: str) -> None:
        with (self.folder / f"{item}.loads").open("a") as stream:
            stream.write(f"{os.getpid()}\n")
        count = len((self.folder / f"{item}.loads").read_text().splitlines())
        if item.startswith("bad"):
            raise ImageError(f"{item} is unreadable.")
        if item.startswith("broken") or (item.startswith("restless") and count < 3):
            raise ZeroDivisionError("division by zero")

    def process_batch(self, items: list[str]) -> dict:
        assert not any(item.startswith(("bad", "broken")) for item in items)
        return {item: self.process(item) for item in items}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("chunk_size", [1, 3])
def test_an_exception_while_an_item_is_loaded_ahead_is_of_that_item_alone(chunk_size, workers, tmp_path):
    items = ["slow0", "bad", "slow1", "broken", "slow2", "restless", "slow3"]
    heard, _ = run(tmp_path, items, workers, worker=Unloadable, chunk_size=chunk_size)
    assert heard.failed == {
        "bad": ("bad is unreadable.", 1),
        "broken": ("ZeroDivisionError: division by zero", 3),
    }
    assert sorted(heard.done) == ["restless", "slow0", "slow1", "slow2", "slow3"]
    assert all(tries(tmp_path, item) == 1 for item in heard.done)


class FullDisk(Worker):
    error = errno.ENOSPC

    def process(self, item: str) -> dict:
        super().process(item)
        raise OSError(self.error, os.strerror(self.error))


class FailingDisk(FullDisk):
    error = errno.EIO


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("worker", "error", "count"), [(FullDisk, "No space left", 1), (FailingDisk, "Input/output", 3)]
)
def test_storage_that_cannot_be_written_ends_the_pool_instead_of_failing_every_image(
    worker, error, count, workers, tmp_path
):
    with pytest.raises(RibrayError, match=f"Nothing can be written any more .*{error}"):
        run(tmp_path, [f"item{number}" for number in range(50)], workers, worker=worker)
    written = list(tmp_path.glob("*.tries"))
    assert 0 < len(written) < 50
    assert max(tries(tmp_path, file.stem) for file in written) == count


@pytest.mark.parametrize("workers", [0, 2])
def test_storage_that_falters_for_a_moment_loses_nothing(workers, tmp_path):
    heard, _ = run(tmp_path, ["faltering", "good"], workers)
    assert sorted(heard.done) == ["faltering", "good"]
    assert tries(tmp_path, "faltering") == 3


class Unbuildable:
    def __init__(self, folder: str):
        raise UsageError("These weights are of another architecture.")

    def process(self, item: str) -> dict:
        raise NotImplementedError


class Dying(Unbuildable):
    def __init__(self, folder: str):
        os._exit(1)


def test_a_worker_that_cannot_start_ends_the_pool_with_its_sentence(tmp_path):
    for workers in (0, 2):
        with pytest.raises(UsageError, match="another architecture"):
            run(tmp_path, ["a"], workers, worker=Unbuildable)
    with pytest.raises(RibrayError, match="died 3 times while starting"):
        run(tmp_path, ["a"], worker=Dying, workers=1)


def test_nothing_to_do_is_done_at_once(tmp_path):
    began = time.monotonic()
    _, result = run(tmp_path, [])
    assert result.done == 0
    assert time.monotonic() - began < 10


def test_the_placement_group_is_removed(tmp_path):
    run(tmp_path, ["a"])
    deadline = time.monotonic() + 10
    while ray.available_resources().get("CPU") != 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ray.available_resources()["CPU"] == 2


def test_pool_size_follows_the_configuration_or_the_machine():
    with connect(ClusterConfig()) as session:
        assert session.pool_size(ClusterConfig(workers=5)) == 5
        assert session.pool_size(ClusterConfig()) == min(2, int(session.memory_gb / 3))
        assert session.pool_size(ClusterConfig(cpus_per_worker=2)) == 1
        assert session.pool_size(ClusterConfig(memory_gb_per_worker=10_000)) == 1
        assert session.gpus_per_worker(ClusterConfig()) == 0
