"""The pool on a simulated cluster: every item once, at the expected time, and at the same cost with many workers."""

import sys
import tracemalloc
import zlib
from collections import Counter

import pytest

from ribray.cluster import actors, pool
from ribray.cluster.pool import Pool, PoolPlan
from ribray.commands import bench
from ribray.errors import ImageError

SECONDS = 0.5
SILENT = type("Silent", (), {"advance": lambda self, done, failed: None})()


class Worker:
    """Fails at some items by name."""

    def process(self, item):
        if item.startswith("bad"):
            raise ImageError(f"{item} is unreadable.")
        if item.startswith("broken"):
            raise ZeroDivisionError("division by zero")
        return {"item": item}


@pytest.fixture
def simulation(companion):
    return companion("simulated_cluster").SimulatedCluster


def run(cluster, items, workers, on_done=lambda item, record: None, on_failed=lambda *_: None, **plan):
    with cluster.replacing():
        return Pool(PoolPlan("test", workers, **plan), Worker, {}).run(items, on_done, on_failed, SILENT)


def names(count):
    return (f"item{number}" for number in range(count))


@pytest.mark.parametrize(("workers", "chunk_size"), [(1, 1), (50, 1), (10, 5)])
def test_items_take_as_long_as_workers_side_by_side_need(simulation, workers, chunk_size):
    done = Counter()
    cluster = simulation(lambda item: SECONDS)
    result = run(cluster, names(1000), workers, lambda item, record: done.update([item]), chunk_size=chunk_size)
    assert done == Counter(names(1000))
    assert (result.done, result.failed, result.stopped) == (1000, 0, False)
    assert result.start_seconds == cluster.start_seconds
    assert result.seconds == pytest.approx(1000 * SECONDS / workers)


def test_every_item_is_done_once_or_failed_once_whatever_is_lost(simulation):
    items = list(names(2000))
    items[100:900:100] = (f"bad{number}" for number in range(8))
    items[150:950:100] = (f"broken{number}" for number in range(8))
    items[170] = "killer"
    losses = [(10.0 + 0.7 * number, 3 * number % 40) for number in range(30)]
    cluster = simulation(lambda item: SECONDS, losses=losses, killers=["killer"])
    done, failed = Counter(), {}

    def on_failed(item, error, tries, traceback):
        assert item not in failed
        failed[item] = (error, tries)

    result = run(cluster, items, 40, lambda item, record: done.update([record["item"]]), on_failed)
    assert done == Counter(item for item in items if item.startswith("item"))
    assert set(failed) == {item for item in items if not item.startswith("item")}
    assert {tries for item, (_, tries) in failed.items() if item.startswith("bad")} == {1}
    assert {tries for item, (_, tries) in failed.items() if item.startswith("broken")} == {3}
    assert failed["killer"][0].startswith("its worker died 3 times")
    assert result.seconds > 2000 * SECONDS / 40


def test_a_worker_that_is_lost_costs_its_own_time_only(simulation):
    cluster = simulation(lambda item: SECONDS, losses=[(20.0, 7)])
    result = run(cluster, names(4000), 40)
    lost = cluster.start_seconds + SECONDS  # a start, and the item in flight
    assert result.done == 4000
    assert 50.0 < result.seconds <= 50.0 + lost / 40 + 2 * SECONDS


def test_the_drivers_own_time_moves_the_clock_where_it_is_asked_for(companion, simulation):
    costs = companion("simulated_cluster").RayCosts(call=0.1, get=0.1, look=0.0, look_at_one=0.0)
    result = run(simulation(lambda item: SECONDS, costs=costs), names(1000), 1000)
    assert 300.0 <= result.start_seconds + result.seconds < 420.0  # 200 s for all items, 100 s to send the starts


def lines_of(simulation, items, workers):
    """Count the lines of the pool that a run goes through."""
    count = 0

    def counting(frame, event, argument):
        nonlocal count
        count += event == "line"
        return counting

    def entering(frame, event, argument):
        return counting if frame.f_code.co_filename in (actors.__file__, pool.__file__) else None

    cluster = simulation(lambda item: 0.25 + 0.5 * zlib.crc32(item.encode()) / 2**32)  # hardly two end at once
    before = sys.gettrace()
    sys.settrace(entering)
    try:
        assert run(cluster, names(items), workers).done == items
    finally:
        sys.settrace(before)
    return count


def test_an_item_costs_the_driver_the_same_with_more_workers(simulation):
    assert lines_of(simulation, 3000, 200) < 1.5 * lines_of(simulation, 3000, 10)


def test_what_the_pool_holds_does_not_grow_with_the_items(simulation):
    def peak(items):
        cluster = simulation(lambda item: SECONDS)
        tracemalloc.start()
        try:
            run(cluster, names(items), 20)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(500)
    assert peak(5000) < peak(500) + 100_000  # an id alone is 60 bytes


@pytest.mark.parametrize("trouble", [None, "lost", "failing"])
def test_the_benchmark_refines_every_simulated_image(trouble):
    scale = bench.load("scale")
    seen = scale.simulate(images=2000, workers=100, trouble=trouble)
    failing = scale.FAILING if trouble == "failing" else 0
    assert (seen["done"], seen["failed"]) == (2000 - failing, failing)
    assert seen["clock"] > 2000 / 100 * 0.35 * 0.98
    assert seen["driver"] > 0
