"""Small drawn data in the layouts that people have, to be spoilt as they were: nine pictures, three of each class."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

CLASSES = ("cat", "dog", "sea")
"""Drawn as a disc, a square and a rhombus; of these names or of others."""
COLOURS = ((210, 60, 50), (50, 80, 210), (60, 180, 80))
SIZE = (48, 64)
"""Height and width."""
VOC_NAMES = {"cat": "cat", "dog": "dog", "sea": "boat"}
VOC_VALUES = {"cat": 8, "dog": 12, "sea": 4}

Item = tuple[str, Sequence[str]]
"""An id and the classes to be seen."""


def nine() -> list[Item]:
    """Return three images of each class."""
    return [(f"img{number:02d}", [CLASSES[number % 3]]) for number in range(9)]


def picture(number: int, kinds: Iterable[str], classes: Sequence[str] = CLASSES) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture (H, W, 3) uint8 and its mask (H, W) uint8: 0, or a class's place in ``classes`` from 1."""
    rng = np.random.default_rng(number)
    height, width = SIZE
    rows, columns = np.mgrid[:height, :width]
    pixels = np.linspace(90, 150, width)[None, :, None] + rng.normal(0, 12, (height, width, 3))
    mask = np.zeros(SIZE, np.uint8)
    radius = min(SIZE) // 4
    for kind in kinds:
        place = classes.index(kind)
        down = abs(rows - rng.integers(radius, height - radius))
        across = abs(columns - rng.integers(radius, width - radius))
        shapes = (down**2 + across**2 < radius**2, np.maximum(down, across) < radius, down + across < radius)
        inside = shapes[place % 3]
        pixels[inside] = COLOURS[place % 3] + rng.normal(0, 12, (int(inside.sum()), 3))
        mask[inside] = place + 1
    return pixels.clip(0, 255).astype(np.uint8), mask


def save(pixels: np.ndarray, path: Path, **options: Any) -> None:
    """Write a picture, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def folder(
    root: Path, items: Sequence[Item] | None = None, *, masks: bool = True, classes: Sequence[str] = CLASSES
) -> list[Item]:
    """Write a folder of photographs with labels.csv (and masks/), and return what is in it."""
    items = nine() if items is None else list(items)
    lines = ["id,classes"]
    for number, (id, kinds) in enumerate(items):
        pixels, mask = picture(number, kinds, classes)
        save(pixels, root / f"{id}.jpg", quality=92)
        if masks:
            save(mask, root / "masks" / f"{id}.png")
        lines.append(f"{id},{';'.join(kinds)}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return items


def voc(
    root: Path,
    *,
    suffix: str = ".jpg",
    line: str = "{id}",
    names: Mapping[str, str] = VOC_NAMES,
    masks: bool = True,
    lists: str = "Segmentation",
) -> list[str]:
    """Write data in VOC layout with one list ``train``, and return its ids."""
    ids, lines = [], []
    for number, (_, kinds) in enumerate(nine()):
        id = f"2007_{number:06d}"
        pixels, mask = picture(number, kinds)
        file_format = "PNG" if suffix.lower() == ".png" else "JPEG"
        save(pixels, root / "JPEGImages" / f"{id}{suffix}", format=file_format)
        if masks:
            values = np.zeros(256, np.uint8)
            for place, kind in enumerate(CLASSES, start=1):
                values[place] = VOC_VALUES[kind]
            save(values[mask], root / "SegmentationClass" / f"{id}.png")
        objects = "".join(f"<object><name>{names[kind]}</name></object>" for kind in kinds)
        (root / "Annotations").mkdir(exist_ok=True)
        (root / "Annotations" / f"{id}.xml").write_text(f"<annotation>{objects}</annotation>")
        ids.append(id)
        lines.append(line.format(id=id, sign=1 if "dog" in kinds else -1))
    target = root / "ImageSets" / lists / "train.txt"
    target.parent.mkdir(parents=True)
    target.write_text("\n".join(lines) + "\n")
    return ids


def coco(
    root: Path,
    *,
    split: str = "train2014",
    image: Callable[[dict[str, Any], int], dict[str, Any]] = lambda entry, number: entry,
    instance: Callable[[dict[str, Any], int, np.ndarray], dict[str, Any] | None] = lambda one, number, mask: one,
    files: Callable[[str], str] = "{}.jpg".format,
) -> dict[str, Any]:
    """Write data in COCO layout, each object the box around it, and return the annotations.

    Args:
        root: where.
        split: name of the folder of images.
        image: changes an entry of the images, given its number.
        instance: changes an annotation, given the number of its image and the image's mask; None drops it.
        files: the file of an image below the folder, by its id.
    """
    images, annotations = [], []
    for number, (id, kinds) in enumerate(nine()):
        pixels, mask = picture(number, kinds)
        save(pixels, root / split / files(id), quality=92)
        entry = {"id": number + 1, "file_name": files(id), "height": SIZE[0], "width": SIZE[1]}
        images.append(image(entry, number))
        for kind in kinds:
            category = CLASSES.index(kind) + 1
            rows, columns = np.nonzero(mask == category)
            top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
            corners = [int(side) for side in (left, top, right, top, right, bottom, left, bottom)]
            one = {"id": len(annotations) + 1, "image_id": number + 1, "category_id": category, "iscrowd": 0}
            one |= {"area": float((right - left) * (bottom - top)), "segmentation": [corners]}
            if (changed := instance(one, number, mask)) is not None:
                annotations.append(changed)
    categories = [{"id": place, "name": name} for place, name in enumerate(CLASSES, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return content


def recipe(file: Path, root: Path, kind: str = "folder", split: str = "all", **sections: Mapping[str, Any]) -> Path:
    """Write a recipe for such data that trains, refines and judges in seconds; ``sections`` change keys of it."""
    crops = {"crop_size": 48, "resize_long": [48, 64]}
    values: dict[str, dict[str, Any]] = {
        "data": {"kind": kind, "root": str(root), "train_split": split, "eval_split": split},
        "classifier": {
            "backbone": "small",
            "output_stride": 8,
            "weights": "none",
            "epochs": 1,
            "batch_size": 4,
            **crops,
        },
        "refine": {"iterations": 2, "batch_size": 3, "scales": [1.0, 0.5], "loss_scales": [1.0], **crops},
        "cluster": {"workers": 1},
        "tracking": {"wandb": "disabled"},
    }
    for name, changes in sections.items():
        values[name] = {**values.get(name, {}), **changes}
    file.write_text(yaml.safe_dump(values))
    return file
