"""The recipes of VOC 2012 and COCO 2014 on real photographs in their layouts, scaled down by overrides only."""

import subprocess
import sys

import numpy as np
import pytest

from ribray.config import load_experiment
from ribray.data import open_dataset
from ribray.rib.maps import MapRecord, localization_maps

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

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
]


@pytest.mark.parametrize(("recipe", "folder", "images"), [("voc12", "voc-mini", 19), ("coco14", "coco-mini", 26)])
def test_every_photograph_ends_as_a_map(recipe, folder, images, shared_dir, tmp_path):
    settings = [f"data.root={shared_dir / 'data' / folder}", *SCALED_DOWN]
    overrides = [part for setting in settings for part in ("--set", setting)]
    command = ["run", recipe, "--out", str(tmp_path / "run"), "--stages", "classifier,refine,seed", *overrides]
    done = subprocess.run([sys.executable, "-m", "ribray.cli", *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mean IoU" in done.stdout

    dataset = open_dataset(load_experiment(recipe, settings).data, "train")
    assert len(dataset) == images
    without_objects = 0
    for id in dataset.ids:
        record = MapRecord.read(next((tmp_path / "run" / "maps").glob(f"*/{id}.npz")))
        assert record.classes.tolist() == np.flatnonzero(dataset.labels[dataset.index(id)]).tolist()
        maps = localization_maps(record)
        assert maps.shape == (len(record.classes), *dataset.image(id).shape[:2])
        assert np.isfinite(maps).all()
        without_objects += len(record.classes) == 0
    assert without_objects == (~dataset.labels.any(1)).sum()
    if recipe == "coco14":
        assert without_objects > 0
        assert np.flatnonzero(dataset.labels.any(0)).max() >= 20
