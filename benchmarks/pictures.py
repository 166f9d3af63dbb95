"""Photographs to measure with: those beside the checkout, or drawn ones of their size."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ribray.demo.creatures import class_names, draw

ROOT = Path(__file__).resolve().parents[1]
VOC_MINI = ROOT.parent / "shared" / "data" / "voc-mini"
SIZE = (375, 500)
"""Height and width of most photographs of PASCAL VOC, in pixels."""
CLASSES = 20
SMALL = [
    "refine.scales=[1.0,0.5]",
    "refine.loss_scales=[1.0]",
    "refine.iterations=3",
    "refine.batch_size=3",
    "refine.crop_size=64",
    "refine.resize_long=[60,90]",
]
"""Settings of a refinement of small pictures that takes a moment."""
PHOTOGRAPHS = "photographs"
DRAWN = "drawn pictures"


def data_settings(
    folder: Path, size: tuple[int, int] | None = None, count: int = 24, in_turn: bool = False
) -> tuple[list[str], str]:
    """Return the configuration of the data, and what the images are.

    Args:
        folder: where pictures are drawn if there are no photographs.
        size: (height, width) of pictures to draw even where there are photographs.
        count: how many are drawn.
        in_turn: label the pictures with one class each, in turn, whatever they show.
    """
    there = size is None and VOC_MINI.is_dir()
    if there and not in_turn:
        settings = {"kind": "voc", "root": VOC_MINI, "train_split": "train", "eval_split": "val"}
        return _as_settings(settings), PHOTOGRAPHS
    if there:
        shutil.copytree(VOC_MINI / "JPEGImages", folder)
    else:
        draw_pictures(folder, size or SIZE, count)
    if in_turn:
        label_in_turn(folder)
    settings = {"kind": "folder", "root": folder, "train_split": "all", "eval_split": "all"}
    return _as_settings(settings), PHOTOGRAPHS if there else DRAWN


def draw_pictures(folder: Path, size: tuple[int, int], count: int) -> None:
    """Write pictures of (height, width), their masks and labels, as a data root of kind ``folder``."""
    height, width = size
    classes = {}
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    for index in range(count):
        image, mask, labels = draw("train", index, 0, max(size), CLASSES)
        id = f"drawn_{index:04d}"
        Image.fromarray(image[:height, :width]).save(folder / f"{id}.jpg", quality=95)
        Image.fromarray(mask[:height, :width]).save(folder / "masks" / f"{id}.png")
        classes[id] = np.flatnonzero(labels).tolist()
    write_labels(folder, classes)


def label_in_turn(folder: Path) -> None:
    """Give each picture of a data root of kind ``folder`` one class, so that it shares it with hardly any other."""
    ids = sorted(path.stem for path in folder.glob("*.jpg"))
    write_labels(folder, {id: [place % CLASSES] for place, id in enumerate(ids)})


def write_labels(folder: Path, classes: Mapping[str, Sequence[int]]) -> None:
    """Write which classes the pictures of a data root of kind ``folder`` show."""
    names = class_names(CLASSES)
    rows = ["id,classes", *(f"{id},{';'.join(names[kind] for kind in kinds)}" for id, kinds in classes.items())]
    (folder / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / "classes.txt").write_text("\n".join(names) + "\n", encoding="utf-8")


def _as_settings(values: dict[str, str | Path]) -> list[str]:
    return [f"data.{key}={value}" for key, value in values.items()]
