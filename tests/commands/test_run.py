"""Stages in a run directory: reuse, refusal, resume, and results that do not depend on how the work was spread."""

import json
import threading

import numpy as np
import pytest

from ribray import storage
from ribray.cluster import session
from ribray.commands import run as running
from ribray.commands.run import read_status
from ribray.demo.world import make_world
from ribray.errors import UsageError
from ribray.methods.maps import MapRecord, localization_maps
from ribray.pipeline import stage as stages
from ribray.runs.run import Run
from tests.tiny import chain, map_bytes

pytestmark = pytest.mark.usefixtures("ray_session")


def without_timing(metrics: dict) -> dict:
    return {stage: numbers for stage, numbers in metrics.items() if stage != "timing"}


def records(out) -> list[MapRecord]:
    return [MapRecord.read(file) for file in (out / "maps").rglob("*.npz")]


def test_every_wanted_image_ends_as_a_map_and_the_seed_is_judged(undisturbed):
    maps = map_bytes(undisturbed)
    assert len(maps) == 10
    metrics = storage.read_json(undisturbed / "metrics.json")
    for method in ("cam", "rib"):
        assert metrics["seed"][method]["images"] == 10
        assert metrics["seed"][method]["failed"] == 0
        assert 0 < metrics["seed"][method]["miou"] < 100
        assert len(metrics["seed"][method]["curve"]["miou"]) == 48
    assert metrics["classifier"]["images"] == 30
    assert set(metrics["timing"]) == {"classifier", "refine", "seed"}
    assert not (undisturbed / "failures.jsonl").exists()
    record = MapRecord.read(next((undisturbed / "maps").rglob("*.npz")))
    assert record.steps == 3
    assert len(record.by_step["rib"]) == 3
    np.testing.assert_array_equal(localization_maps(record, ("rib", 0)), localization_maps(record, "cam"))


def test_a_new_run_connects_while_its_world_is_drawn_and_another_once_nothing_is_refused(tmp_path, monkeypatch):
    connected = threading.Event()

    def connect(*arguments):
        connected.set()
        return session.connect(*arguments)

    def draw(*arguments):
        assert connected.wait(20)
        make_world(*arguments)

    monkeypatch.setattr(stages, "connect", connect)
    monkeypatch.setattr(running, "make_world", draw)
    for is_new in (True, False):
        connected.clear()
        with pytest.raises(UsageError, match="no such stage"):
            chain(tmp_path / "run", ["cluster.workers=0"], redo="everything")
        assert connected.is_set() == is_new


def test_two_workers_and_one_give_the_same_bytes_and_metrics(undisturbed, trained, copy_of):
    out = copy_of(trained)
    chain(out, ["cluster.workers=2", "cluster.loader_threads=3"])
    assert map_bytes(out) == map_bytes(undisturbed)
    theirs, ours = (without_timing(storage.read_json(run / "metrics.json")) for run in (undisturbed, out))
    assert ours == theirs


def test_a_limit_neither_changes_a_map_nor_shrinks_the_pool_of_extras(undisturbed, trained, copy_of):
    out = copy_of(trained)
    chain(out, ["refine.limit=3"], stages="refine")
    first = map_bytes(out)
    assert len(first) == 3
    assert first.items() <= map_bytes(undisturbed).items()
    _, text = chain(out, stages="refine")
    assert "10 of 10 images (3 earlier)" in text
    assert map_bytes(out) == map_bytes(undisturbed)
    theirs, ours = (storage.read_json(run / "metrics.json")["refine"] for run in (undisturbed, out))
    assert ours == theirs
    assert sum(ours["stop_reasons"].values()) == sum(record.steps > 0 for record in records(out))
    assert ours["mean_steps"] == np.mean([record.steps for record in records(out) if record.steps])


def test_the_same_command_again_does_nothing(undisturbed, copy_of):
    out = copy_of(undisturbed)
    before = map_bytes(out)
    _, text = chain(out)
    assert text.count("done already") == 3
    assert map_bytes(out) == before


def test_only_what_is_missing_is_made_again(undisturbed, copy_of):
    out = copy_of(undisturbed)
    lost = sorted((out / "maps").rglob("*.npz"))[:2]
    kept = {file: file.stat().st_mtime_ns for file in (out / "maps").rglob("*.npz") if file not in lost}
    for file in lost:
        file.unlink()
    (out / "maps" / "00").mkdir(exist_ok=True)
    leftover = out / "maps" / "00" / f"{storage.TEMPORARY_PREFIX}half"
    leftover.write_bytes(b"half a file")
    chain(out, stages="refine")
    assert map_bytes(out) == map_bytes(undisturbed)
    assert all(file.stat().st_mtime_ns == time for file, time in kept.items())
    assert not leftover.exists()


def test_other_settings_are_refused_before_anything_starts(undisturbed, copy_of):
    out = copy_of(undisturbed)
    before = map_bytes(out)
    with pytest.raises(UsageError, match=r"stage 'refine'.*refine.lr \(there 0.0004, now 0.001\).*--redo refine"):
        chain(out, ["refine.lr=0.001"])
    with pytest.raises(UsageError, match=r"stage 'classifier'.*classifier.epochs"):
        chain(out, ["classifier.epochs=2"], stages="seed")
    assert map_bytes(out) == before
    assert Run.read(out).read_experiment().refine.lr == 0.0004


def test_what_no_result_depends_on_is_never_refused(undisturbed, copy_of):
    _, text = chain(copy_of(undisturbed), ["cluster.workers=2", "cluster.tries=5", "tracking.tags=[a]"])
    assert text.count("done already") == 3


def test_redo_makes_a_stage_and_what_follows_again(undisturbed, copy_of):
    out = copy_of(undisturbed)
    weights = (out / "classifier" / "weights.safetensors").stat().st_mtime_ns
    _, text = chain(out, ["refine.iterations=2"], redo="refine")
    assert text.count("done already") == 1
    assert MapRecord.read(next((out / "maps").rglob("*.npz"))).steps == 2
    assert (out / "classifier" / "weights.safetensors").stat().st_mtime_ns == weights
    assert storage.read_json(out / "metrics.json")["seed"] != storage.read_json(undisturbed / "metrics.json")["seed"]


def test_redo_with_settings_that_lead_nowhere_removes_nothing(undisturbed, copy_of):
    out = copy_of(undisturbed)
    for settings, stage in (
        (["data.image_list=/nowhere.txt"], "refine"),
        (["classifier.weights=/nowhere.pth"], "classifier"),
    ):
        with pytest.raises(UsageError, match="nowhere"):
            chain(out, settings, redo=stage)
    assert map_bytes(out) == map_bytes(undisturbed)
    assert (out / "classifier" / "weights.safetensors").exists()


def test_maps_without_their_record_are_not_trusted(undisturbed, copy_of):
    out = copy_of(undisturbed)
    (out / "maps" / "stage.json").unlink()  # a removal that was cut short
    _, text = chain(out, ["refine.iterations=2"], stages="refine")
    assert "earlier" not in text
    assert MapRecord.read(next((out / "maps").rglob("*.npz"))).steps == 2


def test_a_fork_takes_over_the_maps_there_are_and_redo_makes_its_own(undisturbed, tmp_path):
    fork = tmp_path / "fork"
    _, text = chain(undisturbed, ["refine.limit=11"], stages="refine", fork=fork)
    assert "11 of 11 images (10 earlier)" in text
    assert map_bytes(undisturbed).items() <= map_bytes(fork).items()
    second = tmp_path / "second"
    _, text = chain(undisturbed, stages="refine", fork=second, redo="refine")
    assert "10 of 10 images in" in text
    assert map_bytes(second) == map_bytes(undisturbed)


def test_fork_reuses_in_place_what_still_fits(undisturbed, tmp_path):
    fork = tmp_path / "fork"
    _, text = chain(undisturbed, ["refine.iterations=2"], fork=fork)
    assert f"done already in {undisturbed}" in text
    assert not (fork / "classifier").exists()
    assert len(map_bytes(fork)) == 10
    assert len(map_bytes(undisturbed)) == 10
    _, again = chain(fork, ["refine.iterations=2"])
    assert again.count("done already") == 3


def test_a_stage_without_its_predecessor_says_what_to_add(trained, tmp_path, copy_of):
    with pytest.raises(UsageError, match=r"needs stage 'classifier'.*--stages classifier,refine"):
        chain(tmp_path / "new", stages="refine")
    with pytest.raises(UsageError, match=r"needs stage 'refine'"):
        chain(copy_of(trained), stages="seed")


def test_a_checkpoint_takes_the_place_of_training(undisturbed, tmp_path):
    weights = undisturbed / "classifier" / "weights.safetensors"
    chain(tmp_path / "given", [f"classifier.checkpoint={weights}", "refine.limit=2"], stages="classifier,refine")
    assert map_bytes(tmp_path / "given").items() <= map_bytes(undisturbed).items()


def test_an_image_list_chooses_what_is_refined(undisturbed, trained, copy_of, tmp_path):
    names = sorted(map_bytes(undisturbed))[:2]
    (tmp_path / "list.txt").write_text("\n".join(name.removesuffix(".npz") for name in names))
    out = copy_of(trained)
    chain(out, [f"data.image_list={tmp_path / 'list.txt'}"], stages="refine")
    assert map_bytes(out) == {name: map_bytes(undisturbed)[name] for name in names}
    (tmp_path / "list.txt").write_text("nobody\n")
    with pytest.raises(UsageError, match=r"data\.image_list names 'nobody'"):
        chain(out, [f"data.image_list={tmp_path / 'list.txt'}"], stages="refine")


def test_a_truncated_map_file_fails_in_the_seed_and_says_so(undisturbed, copy_of):
    out = copy_of(undisturbed)
    victim = next((out / "maps").rglob("*.npz"))
    victim.write_bytes(victim.read_bytes()[:100])
    (out / "seed" / "stage.json").unlink()
    result, _ = chain(out, stages="seed")
    assert [failure.id for failure in result.failures] == [victim.stem]
    assert "not a readable npz" in result.failures[0].error
    assert result.metrics["seed"]["rib"]["images"] == 9
    assert result.metrics["seed"]["rib"]["failed"] == 1


def test_status_counts_what_is_there(undisturbed):
    held, statuses = read_status(undisturbed)
    assert not held
    assert [(status.stage, status.done, status.total) for status in statuses] == [
        ("classifier", 1, 1),
        ("refine", 10, 10),
        ("seed", 10, 10),
    ]


def test_events_tell_what_happened(undisturbed):
    lines = [
        json.loads(line)
        for file in sorted((undisturbed / "events").glob("*.jsonl"))
        for line in file.read_text().splitlines()
    ]
    assert [(line["stage"], line["what"]) for line in lines if line["what"] in ("started", "finished")] == [
        (stage, what) for stage in ("classifier", "refine", "seed") for what in ("started", "finished")
    ]
