"""The seed's numbers: of every step, and their intervals."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ribray import storage
from ribray.commands.report import write_report
from ribray.commands.run import read_status
from ribray.config import DataConfig
from ribray.data import open_dataset
from ribray.evaluation.confusion import confusion, miou
from ribray.evaluation.threshold_curve import ThresholdCurve
from ribray.masks.seed import seed, winner
from ribray.methods import maps
from ribray.methods.maps import MapRecord, empty_arrays, localization_maps, to_arrays
from ribray.methods.method import Refined
from ribray.methods.stop_reasons import EXPLOSION, FINISHED
from ribray.pipeline.maps import map_path
from ribray.stages.seed import SeedWorker, merge_steps, step_scores
from tests.made import CLASSES, save_picture
from tests.tiny import chain, experiment

THRESHOLDS = (0.2, 0.4, 0.6)
STEPS = 3


def best_of(dataset, records, which, thresholds):
    """The best mIoU of some maps and its threshold, by the plain functions."""
    curve = ThresholdCurve(len(dataset.classes) + 1, thresholds)
    for id, record in records.items():
        curve.add(*winner(localization_maps(record, which), record.classes), dataset.mask(id))
    return {"miou": curve.best().miou, "threshold": curve.best().threshold}


@pytest.mark.usefixtures("ray_session")
def test_the_first_step_is_plain_cam_the_last_one_rib_and_each_is_judged_by_its_own_map(undisturbed):
    rib, cam = (storage.read_json(undisturbed / "metrics.json")["seed"][method] for method in ("rib", "cam"))
    config = experiment()
    dataset = open_dataset(config.data, config.data.train_split, next((undisturbed / "data").iterdir()))
    records = {file.stem: MapRecord.read(file) for file in (undisturbed / "maps").rglob("*.npz")}
    expected = [
        {"step": step + 1, **best_of(dataset, records, ("rib", step), config.seed_eval.thresholds)}
        for step in range(STEPS)
    ]
    assert rib["by_step"] == expected
    assert expected[0] == {"step": 1, "miou": cam["miou"], "threshold": cam["threshold"]}
    assert expected[-1] == {"step": STEPS, "miou": rib["miou"], "threshold": rib["threshold"]}
    assert "by_step" not in cam
    with (undisturbed / "seed" / "steps.csv").open() as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert rows == [{**one, "miou": pytest.approx(one["miou"], abs=1e-6)} for one in expected]


@pytest.mark.usefixtures("ray_session")
def test_the_mean_iou_has_its_interval_beside_it(undisturbed):
    metrics = storage.read_json(undisturbed / "metrics.json")["seed"]
    for method in ("cam", "rib"):
        low, high = metrics[method]["miou_interval"]
        assert 0 < low < high < 100
        assert list(metrics[method])[:2] == ["miou", "miou_interval"]


@pytest.mark.usefixtures("ray_session")
def test_without_kept_steps_there_is_no_curve_over_steps(trained, copy_of):
    out = copy_of(trained)
    result, _ = chain(out, ["refine.keep_steps=false", "refine.limit=3"])
    assert "by_step" not in result.metrics["seed"]["rib"]
    assert len(result.metrics["seed"]["rib"]["miou_interval"]) == 2
    assert not (out / "seed" / "steps.csv").exists()
    assert (out / "seed" / "curve.csv").exists()


@pytest.mark.usefixtures("ray_session")
def test_the_seed_is_of_the_wanted_images_as_the_masks_are(undisturbed, copy_of, tmp_path):
    out, settings = copy_of(undisturbed), ["masks.crf=none", "refine.limit=4"]
    metrics = chain(out, settings, stages="seed,confident")[0].metrics
    assert metrics["seed"]["rib"]["images"] == metrics["confident"]["seed_crf"]["images"] == 4
    (tmp_path / "list.txt").write_text("train_0007\ntrain_0001\ntrain_0020\n")  # the last one has no map
    settings[1] = f"data.image_list={tmp_path / 'list.txt'}"
    metrics = chain(out, settings, stages="seed")[0].metrics
    assert metrics["seed"]["rib"]["images"] == metrics["seed"]["cam"]["images"] == 2
    assert "seed: 2 of 2 images, done already" in chain(out, settings, stages="seed")[1]
    assert "2 refined" in write_report(out).read_text(encoding="utf-8")


@pytest.mark.usefixtures("ray_session")
def test_without_a_truth_nothing_is_left_to_judge(photographs, recipe, ribray, tmp_path, capsys):
    shutil.rmtree(photographs / "masks")
    out = tmp_path / "run"
    assert ribray("run", recipe, "--out", out, "--stages", "classifier,refine,seed") == 0
    assert "has no masks, so there is no mIoU to compute" in capsys.readouterr().out
    assert [(status.stage, status.total - status.done) for status in read_status(out)[1]] == [
        ("classifier", 0),
        ("refine", 0),
        ("seed", 0),
    ]


@pytest.mark.usefixtures("ray_session")
def test_of_images_known_to_be_empty_alone_there_is_no_mean(photographs, recipe, ribray, tmp_path, capsys):
    ids = ["empty0", "empty1"]
    for number, id in enumerate(ids):
        save_picture(photographs / f"{id}.jpg", number, "cat")
        Image.new("L", (60, 44)).save(photographs / "masks" / f"{id}.png")
    (photographs / "labels.csv").write_text((photographs / "labels.csv").read_text() + "empty0,\nempty1,\n")
    (tmp_path / "list.txt").write_text("\n".join(ids))
    out, settings = tmp_path / "run", ("--set", f"data.image_list={tmp_path / 'list.txt'}", "--set", "masks.crf=none")
    stages = "classifier,refine,seed,confident"
    assert ribray("run", recipe, "--out", out, "--stages", stages, *settings) == 0
    shown = capsys.readouterr().out
    for stage in ("seed", "confident"):
        assert f"{stage}: no pixel of a class counts in the truth of the 2 images judged, so there is no mIoU" in shown
    metrics = storage.read_json(out / "metrics.json")
    for part in (metrics["seed"]["cam"], metrics["seed"]["rib"], metrics["confident"]["seed_crf"]):
        assert (part["miou"], part["miou_interval"], part["images"]) == (None, None, 2)
    assert (out / "seed" / "curve.csv").read_text() == "threshold,cam_miou,rib_miou\n"
    assert "mIoU – → –" in shown
    assert ribray("report", out) == 0


# --- images that stopped early -----------------------------------------------------------------------------------


def refinement(classes: list[int], steps: int, kept: bool = True) -> Refined:
    """Draw the growing maps of some steps."""
    rng = np.random.default_rng([steps, *classes])
    by_step = list(rng.random((steps, 1, len(classes), 3, 4), np.float32).cumsum(axis=0))
    sums = [list(one) for one in by_step]
    stop_reason = FINISHED if steps == STEPS else EXPLOSION
    maps = {"cam": sums[0], "rib": sums[-1]}
    return Refined(np.array(classes), maps, steps, stop_reason, {"rib": sums} if kept else {}, [0.0] * steps)


def write_maps(folder: Path, kept: bool = True) -> dict[str, MapRecord]:
    """Write maps of images that ran to the end, that stopped in their second or first step, and of one without any."""
    made = {
        "cat0": refinement([0], STEPS, kept),
        "cat1": refinement([0, 2], STEPS - 1, kept),
        "dog0": refinement([1, 2], STEPS, kept),
        "dog1": refinement([1], 1, kept),
    }
    arrays = {id: to_arrays(one, (44, 60), (1.0,)) for id, one in made.items()}
    arrays["sea0"] = empty_arrays((44, 60), (1.0,))
    for id, values in arrays.items():
        maps.write_maps(map_path(folder, id), id, values)
    return {id: MapRecord.read(map_path(folder, id)) for id in arrays}


def judged(dataset, folder: Path, ids, by_step: bool = True):
    """Return the curves of both methods, and the numbers of the steps."""
    worker = SeedWorker(dataset, {"rib": folder}, THRESHOLDS, ["rib"] if by_step else [])
    curves = {method: ThresholdCurve(len(CLASSES) + 1, THRESHOLDS) for method in ("cam", "rib")}
    steps = [ThresholdCurve(len(CLASSES) + 1, THRESHOLDS) for _ in range(STEPS if by_step else 0)]
    for id in ids:
        record = worker.process(id)
        for method, curve in curves.items():
            curve.merge_sparse(record["curves"][method])
        merge_steps(steps, record["steps"].get("rib"))
    return {method: curve.best() for method, curve in curves.items()}, step_scores(steps)


@pytest.fixture
def dataset(photographs):
    return open_dataset(DataConfig(kind="folder", root=str(photographs), train_split="all", eval_split="all"), "all")


def test_an_image_that_stopped_early_keeps_its_last_map(dataset, tmp_path):
    records = write_maps(tmp_path)
    methods, steps = judged(dataset, tmp_path, records)
    for step, found in enumerate(steps):
        means = {}
        for threshold in THRESHOLDS:
            total = np.zeros((len(CLASSES) + 1, len(CLASSES) + 1), np.int64)
            for id, record in records.items():
                maps = localization_maps(record, ("rib", step) if record.by_step else "cam")
                total += confusion(dataset.mask(id), seed(maps, record.classes, threshold), len(CLASSES) + 1)
            means[threshold] = float(miou(total))
        best = max(means, key=means.__getitem__)
        assert found == {"step": step + 1, "miou": means[best], "threshold": best}
    assert (steps[0]["miou"], steps[0]["threshold"]) == (methods["cam"].miou, methods["cam"].threshold)
    assert (steps[-1]["miou"], steps[-1]["threshold"]) == (methods["rib"].miou, methods["rib"].threshold)
    assert len({one["miou"] for one in steps}) == STEPS
    assert judged(dataset, tmp_path, reversed(list(records)))[1] == steps


def test_steps_that_were_not_kept_or_not_asked_for_are_not_told(dataset, tmp_path):
    records = write_maps(tmp_path / "kept")
    assert judged(dataset, tmp_path / "kept", records, by_step=False)[1] == []
    write_maps(tmp_path / "imported", kept=False)
    assert judged(dataset, tmp_path / "imported", records)[1] == []
