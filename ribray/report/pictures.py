"""The pictures of a run: maps growing over the steps for a few images, and the seed's curve."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ribray.data.dataset import Dataset
from ribray.errors import ImageError
from ribray.report.figures import ImageRow, curve_figure, growth_figure
from ribray.report.tables import METHOD_NAMES
from ribray.rib.maps import MapRecord, localization_maps

STEPS_SHOWN = (1, 3, 10)
IMAGES_SHOWN = 6


def draw_growth(dataset: Dataset, map_files: Mapping[str, Path], destination: Path) -> Path | None:
    """Draw a few images with their truth, plain CAM and the map after steps 1, 3, 10 (those that were kept).

    Args:
        dataset: where the images are.
        map_files: map file by image id; the images with the most various classes are shown.
        destination: the PNG to write.

    Returns:
        `destination`, or None where no image has an object.
    """
    rows = [row for id in _choose(dataset, list(map_files)) if (row := _row(dataset, id, map_files[id])) is not None]
    if not rows:
        return None
    growth_figure(rows, destination)
    return destination


def draw_curve(seed_metrics: Mapping[str, Any], destination: Path) -> Path:
    """Draw the seed's mIoU over the threshold for every method of a run's ``seed`` metrics."""
    curves = {
        METHOD_NAMES.get(method, method): (numbers["curve"]["thresholds"], numbers["curve"]["miou"])
        for method, numbers in seed_metrics.items()
    }
    curve_figure(curves, destination, title="Seed mIoU over the background threshold")
    return destination


def _choose(dataset: Dataset, ids: Sequence[str]) -> list[str]:
    """Return a few images, each time one whose classes were shown least so far."""
    shown = np.zeros(len(dataset.classes))
    labels = {id: dataset.labels[dataset.index(id)] for id in ids}
    left = [id for id in ids if labels[id].any()]
    chosen: list[str] = []
    while left and len(chosen) < IMAGES_SHOWN:
        id = min(left, key=lambda id: shown[labels[id]].mean())
        left.remove(id)
        chosen.append(id)
        shown += labels[id]
    return chosen


def _row(dataset: Dataset, id: str, map_file: Path) -> ImageRow | None:
    record = MapRecord.read(map_file)
    maps = {"plain CAM": localization_maps(record, "initial")}
    for step in STEPS_SHOWN:
        if record.by_step:  # a refinement that stopped early keeps its last sum
            maps[f"step {step}"] = localization_maps(record, min(step, len(record.by_step)) - 1)
    if not record.by_step:
        maps["RIB"] = localization_maps(record, "refined")
    try:
        image, truth = dataset.image(id), dataset.mask(id)
    except ImageError:
        return None
    names = [dataset.classes[int(index)] for index in record.classes]
    return ImageRow(image, names, maps, dataset.palette, truth)
