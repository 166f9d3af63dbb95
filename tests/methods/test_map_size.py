"""A map file is much smaller than what the published code writes for the same image."""

import numpy as np
import pytest

from ribray.config import load_experiment
from ribray.data import open_dataset
from ribray.data.transforms import target_views
from ribray.methods.maps import MapRecord, localization_maps, to_arrays
from ribray.methods.rib import Refiner
from ribray.networks import build_classifier
from ribray.networks.weights import load_backbone_weights
from ribray.storage import write_npz


@pytest.mark.slow
def test_a_map_file_takes_an_eighteenth_of_two_float32_maps_per_class(shared_dir, tmp_path):
    settings = [
        f"data.root={shared_dir / 'data' / 'voc-mini'}",
        "refine.batch_size=1",
        "refine.iterations=2",
        "refine.loss_scales=[1.0]",
    ]
    experiment = load_experiment("voc12", settings)
    ratios = []
    for split in ("train", "val"):
        dataset = open_dataset(experiment.data, split)
        classifier = build_classifier("resnet18", len(dataset.classes), 16)
        load_backbone_weights(classifier.backbone, "none")
        refiner = Refiner(classifier, experiment.refine)
        for id in dataset.ids[::4]:  # all 29 photographs take minutes
            image, present = dataset.image(id), np.flatnonzero(dataset.labels[dataset.index(id)]).tolist()
            views = target_views(image, experiment.refine.scales)
            arrays = to_arrays(refiner.refine(views, present, lambda step: None), image.shape[:2], (1.0, 0.5, 1.5, 2.0))
            write_npz(tmp_path / "map.npz", **arrays)
            record = MapRecord.read(tmp_path / "map.npz")
            published = sum(localization_maps(record, size=size).nbytes for size in ("stride4", "full"))
            ratios.append(published / (tmp_path / "map.npz").stat().st_size)
    assert len(ratios) == 8
    assert np.median(ratios) >= 18, np.median(ratios)
    print(f"median {np.median(ratios):.1f}, from {min(ratios):.1f} to {max(ratios):.1f}")
