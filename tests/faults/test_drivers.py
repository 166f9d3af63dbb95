"""Drivers that are killed or stopped, and the same command again."""

import random
import shutil
import signal
import time

import pytest

from ribray import storage
from ribray.errors import HeldError
from tests.faults.cases import IMAGES, finished, refined, require_same
from tests.faults.drivers import SECONDS, Driver
from tests.tiny import chain

pytestmark = [pytest.mark.slow, pytest.mark.ray]

SEED = 20
MOMENTS = 10


@pytest.fixture(scope="module")
def own(settings):
    return [*settings, "cluster.workers=2"]


@pytest.fixture(scope="module")
def duration(own, trained, undisturbed, tmp_path_factory):
    """The seconds that a driver takes here from its start to its end."""
    out = tmp_path_factory.mktemp("timed") / "run"
    shutil.copytree(trained, out)
    began = time.monotonic()
    driver = Driver(out, own)
    assert driver.wait() == 0, driver.text
    require_same(out, undisturbed, {})
    return time.monotonic() - began


@pytest.mark.parametrize("number", range(MOMENTS))
def test_a_driver_killed_at_any_moment_is_continued_by_the_same_command(
    number, own, duration, trained, undisturbed, copy_of
):
    moment = random.Random(SEED + number).uniform(0, duration)
    out = copy_of(trained)
    driver = Driver(out, own)
    time.sleep(moment)
    driver.kill()
    earlier = finished(out)
    print(f"killed after {moment:.2f} of {duration:.2f} s, {len(earlier)} of {IMAGES} images done")
    again = Driver(out, own)
    assert again.wait() == 0, again.text
    require_same(out, undisturbed, earlier)
    metrics, expected = (storage.read_json(run / "metrics.json") for run in (out, undisturbed))
    assert metrics["seed"] == expected["seed"]
    assert metrics["refine"] == expected["refine"]


@pytest.fixture
def working(own, trained, copy_of):
    """A driver that has written its first maps, and its directory."""
    out = copy_of(trained)
    driver = Driver(out, own, stages="refine")
    deadline = time.monotonic() + SECONDS
    while len(refined(out)) < 2:
        assert driver.is_running, driver.text
        assert time.monotonic() < deadline
        time.sleep(0.02)
    yield driver, out
    driver.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_driver_that_is_told_to_stop_finishes_what_is_in_flight(number, own, working, undisturbed):
    driver, out = working
    driver.send(number)
    assert driver.wait() == 130
    assert "Stopping: images in flight are finished first" in driver.text
    assert "Traceback" not in driver.text
    earlier = finished(out)
    assert 2 <= len(earlier) < IMAGES
    chain(out, own, stages="refine")
    require_same(out, undisturbed, earlier)


def test_a_second_run_on_a_busy_directory_is_refused(own, working, undisturbed):
    driver, out = working
    driver.send(signal.SIGSTOP)  # it keeps its lock, and cannot end in the meantime
    with pytest.raises(HeldError, match="Another run is working"):
        chain(out, own, stages="refine")
    earlier = finished(out)
    driver.send(signal.SIGCONT)
    assert driver.wait() == 0, driver.text
    require_same(out, undisturbed, earlier)


def test_a_training_whose_driver_was_killed_ends_with_the_same_weights(tmp_path):
    settings = ["classifier.epochs=8", "data.synthetic.train_images=40"]
    driver = Driver(tmp_path / "killed", settings, "classifier")
    log = tmp_path / "killed" / "classifier" / "metrics.jsonl"
    deadline = time.monotonic() + SECONDS
    while not log.exists() or log.read_text().count("validation") < 2:
        assert driver.is_running, driver.text
        assert time.monotonic() < deadline
        time.sleep(0.02)
    driver.kill()
    assert not (log.parent / "weights.safetensors").exists()
    for out in (tmp_path / "killed", tmp_path / "undisturbed"):
        again = Driver(out, settings, "classifier")
        assert again.wait() == 0, again.text
    killed, undisturbed = (tmp_path / name / "classifier" for name in ("killed", "undisturbed"))
    assert (killed / "weights.safetensors").read_bytes() == (undisturbed / "weights.safetensors").read_bytes()
    assert log.read_text() == (undisturbed / "metrics.jsonl").read_text()
