"""However a run is carried out, its maps are the same bytes, and its numbers the same but for timing."""

import random
import shutil

import pytest

from ribray import storage
from ribray.pipeline.maps import wanted_ids
from ribray.stages import refine
from tests.faults.cases import finished, require_same
from tests.tiny import chain

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def numbers(out):
    metrics = storage.read_json(out / "metrics.json")
    del metrics["timing"]
    return metrics


def test_two_workers_in_a_shuffled_order_do_what_one_does_in_the_order_of_the_split(
    monkeypatch, settings, trained, copy_of, undisturbed
):
    in_order = wanted_ids

    def shuffled(context):
        return random.Random(0).sample(in_order(context), len(in_order(context)))

    monkeypatch.setattr(refine, "wanted_ids", shuffled)
    out = copy_of(trained)
    chain(out, [*settings, "cluster.workers=2"])
    require_same(out, undisturbed, {})
    assert numbers(out) == numbers(undisturbed)


def test_three_workers_go_on_where_one_has_stopped(settings, half_done, undisturbed):
    shutil.rmtree(half_done / "metrics")
    (half_done / "metrics.json").unlink()
    earlier = finished(half_done)
    chain(half_done, [*settings, "cluster.workers=3", "cluster.cpus_per_worker=0.5"])
    require_same(half_done, undisturbed, earlier)
    assert numbers(half_done) == numbers(undisturbed)
