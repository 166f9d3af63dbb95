"""Benchmarks ``pool`` and ``scaling``: what is read from workers' time stamps, and both at a tiny size."""

import pytest

from ribray.commands import bench
from tests.benchmarks.figures import values

TINY = {
    "size": (48, 64),
    "item": [
        "classifier.backbone=small",
        "classifier.output_stride=8",
        "refine.iterations=2",
        "refine.batch_size=2",
        "refine.crop_size=48",
        "refine.resize_long=[40,60]",
        "refine.scales=[1.0]",
        "refine.loss_scales=[1.0]",
    ],
}


def record(process, began, ended, waited=0.0):
    return {"process": process, "began": began, "ended": ended, "waited": waited}


def test_waiting_is_what_lies_between_images_and_what_is_spent_on_pixels(companion):
    refinements = companion("refinements")
    first = [record(1, 0, 5), record(1, 6, 10, 0.5), record(1, 10, 15)]
    assert refinements.waiting_share(first) == pytest.approx(100 * 1.5 / 10)
    assert refinements.seconds_per_image(first) == [5, 5]
    idle = [record(2, 0, 5), record(2, 5, 15)]
    assert refinements.waiting_share([*reversed(first), *idle]) == pytest.approx(100 * 1.5 / 20)


def test_throughput_counts_the_time_in_which_all_are_at_work(companion):
    refinements = companion("refinements")
    first = [record(1, 0, 2), record(1, 2, 4), record(1, 4, 6), record(1, 6, 8)]
    second = [record(2, 0, 3), record(2, 4, 7)]  # at work from 3 to 7, with a gap of 1
    assert refinements.images_per_second([*first, *second]) == pytest.approx((0.5 + 1 + 0.5 + 1) / 4)
    assert refinements.images_per_second(first) == pytest.approx(3 / 6)
    with pytest.raises(ValueError, match="too few"):
        refinements.images_per_second([record(1, 0, 2), record(2, 0, 3)])


def test_pictures_are_drawn_as_a_data_root(companion, tmp_path):
    refinements = companion("refinements")
    workload = refinements.prepare(tmp_path, **TINY)
    dataset = workload.arguments()["dataset"]
    assert (len(dataset), len(dataset.classes), workload.images) == (24, 20, "drawn pictures")
    assert dataset.image(dataset.ids[0]).shape == (48, 64, 3)
    assert dataset.mask(dataset.ids[0]).shape == (48, 64)
    assert sorted(workload.ids()) == sorted(dataset.ids)


@pytest.mark.slow
def test_a_process_without_ray_refines_as_this_one_does(companion, tmp_path):
    refinements = companion("refinements")
    workload = refinements.prepare(tmp_path, **TINY)
    ids = workload.ids()[:4]
    worker = refinements.RefineWorker(**workload.arguments())
    here = refinements.one_after_the_other(worker, ids)
    bytes_here = {file.name: file.read_bytes() for file in (tmp_path / "maps").rglob("*.npz")}
    with refinements.Processes(workload, 2) as processes:
        there = processes.refine(ids)
    assert len(refinements.by_process(here)) == 1
    assert [len(own) for own in refinements.by_process(there)] == [2, 2]
    assert {file.name: file.read_bytes() for file in (tmp_path / "maps").rglob("*.npz")} == bytes_here


@pytest.mark.slow
def test_the_pool_is_measured_against_the_same_work_without_ray(ray_session):
    result = bench.load("pool").run(images=3, rounds=1, **TINY)
    found = values(result)
    assert result["figures"]["pool over process"]["runs"] == 1
    assert found["an image in a process"] > 0 and found["an image in the pool"] > 0
    assert 0 <= found["a pool worker waits for work or data"] < 100
    assert "Baseline" in result["notes"][0]


@pytest.mark.slow
def test_two_workers_are_measured_against_two_processes(ray_session):
    result = bench.load("scaling").run(images=40, rounds=1, **TINY)
    found = values(result)
    share = 100 * found["two pool workers"] / found["two Ray-free processes"]
    assert found["two pool workers, share of two processes"] == pytest.approx(share)
    assert found["two pool workers over one"] == pytest.approx(found["two pool workers"] / found["one pool worker"])
    assert result["figures"]["two pool workers, share of two processes"]["required"]["at_least"] == 97
