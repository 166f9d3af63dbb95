"""Workers of the refinement pool that die, break or hang: every image is done all the same, or told of."""

import pytest

from ribray.stages import refine
from tests.faults.cases import (
    ANY,
    EVER,
    between_steps,
    faulty,
    finished,
    half_written,
    hung,
    killed,
    left,
    raised,
    refined,
    require_same,
)
from tests.tiny import chain

LIMIT = 20
"""Seconds of an image; one takes a fraction of that, unless the machine has much else to do."""


@pytest.fixture
def disturbed(monkeypatch, settings, half_done, undisturbed, tmp_path):
    """Go on with a run that is half done, while workers meet with faults; then once more without any."""

    def disturb(faults, failed=(), during=between_steps, workers=2, more=()):
        earlier, marks = finished(half_done), tmp_path / "marks"
        own = [*settings, f"cluster.workers={workers}", "cluster.tries=2", *more]
        with monkeypatch.context() as patched:
            patched.setattr(refine, "RefineWorker", faulty(marks, faults, during))
            result, _ = chain(half_done, own, stages="refine")
        struck = {name: len(list(marks.glob(f"{name}.*"))) for name in faults}
        assert all(struck.values())
        require_same(half_done, undisturbed, earlier, failed)
        if failed:
            chain(half_done, own, stages="refine")
            require_same(half_done, undisturbed, earlier)
        return struck, {failure.id: failure for failure in result.failures}

    return disturb


@pytest.fixture
def missing(half_done, undisturbed):
    """The images that are still to be refined."""
    return sorted(set(refined(undisturbed)) - set(refined(half_done)))


def test_whatever_happens_to_workers_every_other_image_is_done(disturbed, missing):
    once = {id: (fault, 1) for id, fault in zip(missing, (killed, left, raised), strict=False)}
    killer, broken = missing[3:5]
    struck, failures = disturbed({**once, killer: (killed, EVER), broken: (raised, EVER)}, failed=[killer, broken])
    assert "its worker died 2 times" in failures[killer].error
    assert failures[broken].error == "ZeroDivisionError: division by zero"
    assert (failures[killer].tries, failures[broken].tries, struck[broken]) == (2, 2, 2)
    assert struck[killer] in (2, 3)  # the first time it may not have been alone


@pytest.mark.slow
def test_a_worker_killed_while_it_writes_leaves_no_half_a_map(disturbed, missing):
    disturbed({missing[0]: (killed, 1)}, during=half_written, workers=1)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [killed, left, raised, hung])
def test_a_fault_at_one_image_costs_time_and_nothing_else(fault, disturbed, missing):
    struck, failures = disturbed({missing[2]: (fault, 1)}, more=[f"cluster.seconds_per_image={LIMIT}"])
    assert set(struck.values()) == {1}
    assert not failures


@pytest.mark.slow
def test_every_worker_killed_once_costs_time_and_nothing_else(disturbed):
    struck, failures = disturbed({ANY: (killed, 3)}, workers=3, more=["cluster.cpus_per_worker=0.5", "cluster.tries=4"])
    assert struck == {ANY: 3}
    assert not failures
