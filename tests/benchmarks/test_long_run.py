"""Long runs: one worker that refines on and on keeps nothing of what it has done."""

import pytest

from ribray.commands import bench
from tests.benchmarks.figures import values

GROWTH = ("file handles more than at the start", "threads more than at the start")


@pytest.mark.slow
def test_a_hundred_refinements_leave_no_file_open_and_no_thread():
    result = bench.load("long-run").run(images=100)
    found = values(result)
    assert [found[name] for name in GROWTH] == [0, 0]
    assert found["images/s, last quarter"] > 0
    assert result["figures"]["last quarter over second"]["required"]["at_most"] == 1.03


def test_nothing_stays_prepared(companion, tmp_path):
    long_run, refinements = bench.load("long-run"), companion("refinements")
    workload = refinements.prepare(tmp_path, long_run.ITEM, long_run.SIZE)
    worker = refinements.RefineWorker(**workload.arguments())
    refinements.one_after_the_other(worker, workload.ids()[:6])
    assert worker._prepared == {}
    assert worker._threads._work_queue.empty()


@pytest.mark.on_demand
@pytest.mark.timeout(3600)
def test_two_thousand_refinements_keep_memory_flat():
    result = bench.load("long-run").run()
    assert result["settings"]["images"] == 2000
    required = {name: figure["required"] for name, figure in result["figures"].items() if figure["required"]}
    assert len(required) == 3
    assert all(requirement["met"] for requirement in required.values()), values(result)
