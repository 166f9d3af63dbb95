"""Images per second of IRNet's training.

ribray bench irn
"""

from pathlib import Path
from typing import Any

from training_steps import measure, write_masks

from ribray.config import Experiment
from ribray.data import Dataset
from ribray.networks.irnet import build_irnet
from ribray.networks.weights import load_backbone_weights, save_network
from ribray.stages.irn import IrnTask

ON_CPU = ["irn.batch_size=4", "irn.crop_size=192"]
"""The recipe's batches of 32 crops of 512 pixels would take minutes a step."""
ENDLESS = {"epochs": 10_000}


def run(**options: Any) -> dict[str, Any]:
    """Return the figures; the options are those of `training_steps.measure`."""
    return measure("irn", ON_CPU, _task, **options)


def _task(experiment: Experiment, dataset: Dataset, folder: Path, loader_workers: int) -> tuple[IrnTask, str]:
    config, start, labels = experiment.irn.model_copy(update=ENDLESS), folder / "start.safetensors", folder / "labels"
    write_masks(dataset, labels)  # the true ones, as confident labels
    backbone = (experiment.classifier.backbone, experiment.classifier.output_stride)
    model = build_irnet(*backbone, config.displacement_width)
    load_backbone_weights(model.backbone, experiment.classifier.weights)
    save_network(model, start)
    task = IrnTask(config, backbone, dataset, labels, dataset.ids, start, loader_workers)
    return task, f"IRNet on {backbone[0]}"
