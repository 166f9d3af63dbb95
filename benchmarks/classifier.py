"""Images per second of the classifier's training.

ribray bench classifier
"""

from pathlib import Path
from typing import Any

from training_steps import measure

from ribray.config import Experiment
from ribray.data import Dataset
from ribray.networks import build_classifier
from ribray.networks.weights import load_backbone_weights, save_network
from ribray.stages.classifier import ClassifierTask

ON_CPU = ["classifier.batch_size=4", "classifier.crop_size=192", "classifier.resize_long=[160,256]"]
"""The recipe's batches of 16 crops of 512 pixels would take minutes a step."""
ENDLESS = {"epochs": 10_000}


def run(**options: Any) -> dict[str, Any]:
    """Return the figures; the options are those of `training_steps.measure`."""
    return measure("classifier", ON_CPU, _task, **options)


def _task(experiment: Experiment, dataset: Dataset, folder: Path, loader_workers: int) -> tuple[ClassifierTask, str]:
    config, start = experiment.classifier.model_copy(update=ENDLESS), folder / "start.safetensors"
    model = build_classifier(config.backbone, len(dataset.classes), config.output_stride)
    load_backbone_weights(model.backbone, config.weights)
    save_network(model, start)
    return ClassifierTask(config, dataset, dataset, start, loader_workers), f"Classifier on {config.backbone}"
