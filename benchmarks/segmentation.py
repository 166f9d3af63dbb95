"""Images per second of the segmentation network's training.

ribray bench segmentation
"""

from pathlib import Path
from typing import Any

from training_steps import measure, write_masks

from ribray.config import Experiment
from ribray.data import Dataset
from ribray.networks.deeplab import build_deeplab
from ribray.networks.weights import load_backbone_weights, save_network
from ribray.stages.segmentation import SegmentationTask

ON_CPU = ["segmentation.backbone=resnet50", "segmentation.batch_size=2", "segmentation.crop_size=161"]
"""The recipe's ResNet-101 on ten crops of 321 pixels would take a minute a step."""


def run(**options: Any) -> dict[str, Any]:
    """Return the figures; the options are those of `training_steps.measure`."""
    return measure("segmentation", ON_CPU, _task, **options)


def _task(experiment: Experiment, dataset: Dataset, folder: Path, loader_workers: int) -> tuple[SegmentationTask, str]:
    config, start, labels = experiment.segmentation, folder / "start.safetensors", folder / "labels"
    write_masks(dataset, labels)  # the true ones, as pseudo masks
    model = build_deeplab(config, len(dataset.classes))
    load_backbone_weights(model.backbone, experiment.classifier.weights)
    save_network(model, start)
    task = SegmentationTask(config, dataset, labels, dataset.ids, start, loader_workers)
    return task, f"DeepLab-v2 on {config.backbone}"
