"""The recipes of VOC 2012 and COCO 2014 on real photographs in their layouts, scaled down by overrides only."""

import subprocess
import sys

import numpy as np
import pytest
from pycocotools.coco import COCO
from rich.console import Console

from ribray import storage
from ribray.commands.run import Request, plan_chain
from ribray.config import load_experiment
from ribray.data import open_dataset
from ribray.data.mask_files import mask_path, read_mask_file
from ribray.methods.maps import MapRecord, localization_maps

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1200)]

SCALED_DOWN = [
    "data.train_split=train",
    "data.eval_split=train",
    "classifier.weights=none",
    "classifier.epochs=1",
    "classifier.batch_size=4",
    "classifier.crop_size=128",
    "classifier.resize_long=[128,160]",
    "refine.iterations=2",
    "refine.batch_size=3",
    "refine.crop_size=96",
    "refine.resize_long=[96,128]",
    "refine.scales=[1.0,0.5]",
    "refine.loss_scales=[1.0]",
    "irn.epochs=1",
    "irn.batch_size=4",
    "irn.crop_size=128",
    "segmentation.iterations=3",
    "segmentation.batch_size=4",
    "segmentation.crop_size=129",
]
LITE = "timm/tf_efficientnet_lite0"
OWN = {
    "voc12": [f"classifier.backbone={LITE}", f"segmentation.backbone={LITE}"],
    "coco14": [
        "classifier.backbone=resnet18",
        "segmentation.backbone=resnet18",
        "segmentation.scales=[1.0]",  # 81 classes take their time
        "evaluate.crf=none",
    ],
}


@pytest.fixture(
    scope="module",
    params=[("voc12", "voc-mini", 19), ("coco14", "coco-mini", 26)],
    ids=["voc12", "coco14"],
)
def finished(request, shared_dir, tmp_path_factory):
    """A whole run by the command line: recipe, data and run directory."""
    recipe, folder, images = request.param
    settings = [f"data.root={shared_dir / 'data' / folder}", *SCALED_DOWN, *OWN[recipe]]
    overrides = [part for setting in settings for part in ("--set", setting)]
    out = tmp_path_factory.mktemp(recipe) / "run"
    done = ribray("run", recipe, "--out", out, *overrides)
    assert "from maps to masks" in done.stdout
    assert "published" in done.stdout
    dataset = open_dataset(load_experiment(recipe, settings).data, "train")
    assert len(dataset) == images
    return recipe, dataset, out


def ribray(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ribray.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_every_photograph_ends_as_a_map_and_as_masks(finished):
    recipe, dataset, out = finished
    without_objects = 0
    for id in dataset.ids:
        present = np.flatnonzero(dataset.labels[dataset.index(id)]).tolist()
        record = MapRecord.read(next((out / "maps").glob(f"*/{id}.npz")))
        assert record.classes.tolist() == present
        maps = localization_maps(record)
        assert maps.shape == (len(record.classes), *dataset.image(id).shape[:2])
        assert np.isfinite(maps).all()
        for folder in ("confident", "pseudo", "predictions"):
            mask, counts = read_mask_file(mask_path(out / folder, id))
            assert mask.shape == maps.shape[1:]
            assert counts["mask"]["images"] == [1]
            if folder != "predictions":
                assert set(np.unique(mask)) <= {0, 255, *(place + 1 for place in present)}
        if not present:
            without_objects += 1
            assert not read_mask_file(mask_path(out / "pseudo", id))[0].any()
    assert without_objects == (~dataset.labels.any(1)).sum()
    if recipe == "coco14":
        assert without_objects > 0
        assert np.flatnonzero(dataset.labels.any(0)).max() >= 20
    metrics = storage.read_json(out / "metrics.json")
    for stage in ("pseudo", "evaluate"):
        assert metrics[stage]["images"] == len(dataset)
        assert metrics[stage]["failed"] == 0
    for weights in ("classifier", "irn", "segmentation"):
        assert (out / weights / "weights.safetensors").stat().st_size > 0


def test_a_plan_says_roughly_what_the_refinement_took(finished, tmp_path):
    """What it comes to with nothing else running is said in docs/cost.md; here images are small, and others at work."""
    recipe, _, out = finished
    request = Request(load_experiment(out / "experiment.yaml"), recipe, tmp_path / "new", ("classifier", "refine"))
    planned = {each.stage: each for each in plan_chain(request, Console(quiet=True))}
    took = storage.read_json(out / "metrics.json")["timing"]["refine"]["seconds"]
    assert took / 8 < planned["refine"].estimate.seconds < 8 * took


def test_the_masks_go_out_as_coco_annotations(finished, tmp_path):
    _, dataset, out = finished
    ribray("export", out, "--format", "coco", "--out", tmp_path / "pseudo.json")
    exported = COCO(tmp_path / "pseudo.json")
    names = {category["id"]: category["name"] for category in exported.dataset["categories"]}
    pixels = 0
    for image in exported.dataset["images"]:
        id = image["file_name"].rsplit("/")[-1].rsplit(".")[0]
        mask, _ = read_mask_file(mask_path(out / "pseudo", id))
        for annotation in exported.loadAnns(exported.getAnnIds(image["id"])):
            value = dataset.classes.index(names[annotation["category_id"]]) + 1
            np.testing.assert_array_equal(exported.annToMask(annotation), mask == value)
            pixels += annotation["area"]
    assert len(exported.dataset["images"]) == len(dataset)
    assert pixels > 0


ADVCAM = ["iterations=2", "scales=[0.5,0.25]"]


def test_a_second_method_joins_a_finished_run(finished):
    recipe, dataset, out = finished
    if recipe != "voc12":
        pytest.skip("one of the runs is enough; AdvCAM on COCO's photographs is seen below")
    before = storage.read_json(out / "metrics.json")
    settings = [each.replace("refine.", "refine.rib.") for each in [*SCALED_DOWN, *OWN[recipe]]]
    settings += ["refine.method=[rib,advcam]", *(f"refine.advcam.{each}" for each in ADVCAM)]
    root = f"data.root={load_experiment(out / 'experiment.yaml').data.root}"
    ribray("run", recipe, "--out", out, *(part for each in [root, *settings] for part in ("--set", each)))
    metrics = storage.read_json(out / "metrics.json")
    assert metrics["refine"] == before["refine"]
    assert metrics["refine_advcam"]["failed"] == 0
    assert len(list((out / "maps_advcam").glob("*/*.npz"))) == len(dataset)
    for name in ("cam", "rib"):
        assert metrics["seed"][name]["miou"] == before["seed"][name]["miou"]
    assert metrics["seed"]["advcam"]["miou"] > 0
    assert metrics["pseudo"] == before["pseudo"]  # the masks are RIB's, as before


@pytest.mark.parametrize(("recipe", "folder"), [("voc12_advcam", "voc-mini"), ("coco14", "coco-mini")])
def test_advcam_goes_from_photographs_to_masks(recipe, folder, shared_dir, tmp_path):
    settings = [f"data.root={shared_dir / 'data' / folder}", "classifier.backbone=resnet18"]
    settings += ["segmentation.backbone=resnet18", *(each for each in SCALED_DOWN if not each.startswith("refine."))]
    settings += ["segmentation.scales=[1.0]", "evaluate.crf=none", "refine.method=advcam"]
    settings += [f"refine.{each}" for each in ADVCAM]
    arguments = [part for each in settings for part in ("--set", each)]
    ribray("run", recipe, "--out", tmp_path / "run", *arguments)
    metrics = storage.read_json(tmp_path / "run" / "metrics.json")
    assert {"cam", "advcam"} == metrics["seed"].keys() & {"cam", "rib", "advcam"}
    assert metrics["pseudo"]["failed"] == metrics["evaluate"]["failed"] == 0
