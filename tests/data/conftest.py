"""Small data roots to be spoilt, and pictures to fill them with."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

# The same 500 examples on every run: a fuzzer must not fail somebody else's change.
settings.register_profile("parsers", max_examples=500, deadline=None, derandomize=True, database=None)


def gradient(height: int, width: int) -> np.ndarray:
    """A picture (height, width, 3) uint8 in which every corner looks different."""
    rows, columns = np.mgrid[0:height, 0:width]
    red, green = rows * 255 // max(height - 1, 1), columns * 255 // max(width - 1, 1)
    return np.stack((red, green, 255 - red), axis=-1).astype(np.uint8)


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95)
    return path


def annotation(*names: str) -> str:
    """A VOC annotation that lists objects of these names."""
    objects = "".join(f"<object><name>{name}</name><difficult>0</difficult></object>" for name in names)
    return f"<annotation><filename>x.jpg</filename>{objects}</annotation>"


@pytest.fixture
def voc_root(tmp_path: Path) -> Path:
    """Three images of 20 × 30 pixels in VOC layout: a (dog, person), b (cat), c (bird, by its mask alone)."""
    for id, names in {"a": ("dog", "person", "dog"), "b": ("cat",)}.items():
        (tmp_path / "Annotations").mkdir(exist_ok=True)
        (tmp_path / "Annotations" / f"{id}.xml").write_text(annotation(*names))
    for id, value in {"a": 12, "b": 8, "c": 3}.items():
        save(tmp_path / "JPEGImages" / f"{id}.jpg", gradient(20, 30))
        mask = np.zeros((20, 30), np.uint8)
        mask[5:10, 5:10], mask[0] = value, 255
        save(tmp_path / "SegmentationClass" / f"{id}.png", mask)
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nb\nc\n")
    return tmp_path


@pytest.fixture
def folder_root(tmp_path: Path) -> Path:
    """Three images: beach/one (dog, sea), beach/two (none of the classes), three (cat)."""
    for name in ("beach/one.jpg", "beach/two.PNG", "three.jpeg"):
        save(tmp_path / name, gradient(20, 30))
    (tmp_path / "labels.csv").write_text("id,classes\nbeach/one,dog;sea\nbeach/two,\nthree,cat\n")
    return tmp_path


@pytest.fixture
def coco_content() -> dict[str, Any]:
    """Two images of 20 × 30: a large cat (polygon) under a small dog (run lengths), and an empty one."""
    square = [2.0, 2.0, 22.0, 2.0, 22.0, 18.0, 2.0, 18.0]
    dog = {"size": [20, 30], "counts": [5 * 20 + 5, 4, 16, 4, 20 * 30 - 5 * 20 - 29]}  # 4 × 2 pixels
    return {
        "images": [
            {"id": 7, "file_name": "one.jpg", "height": 20, "width": 30},
            {"id": 3, "file_name": "two.jpg", "height": 20, "width": 30},
        ],
        "categories": [{"id": 90, "name": "dog"}, {"id": 4, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 90, "iscrowd": 0, "area": 8, "segmentation": dog},
            {"id": 2, "image_id": 7, "category_id": 4, "iscrowd": 0, "area": 320, "segmentation": [square]},
        ],
    }


@pytest.fixture
def coco_root(tmp_path: Path) -> Callable[[Any], Path]:
    """Write annotations of split train, with the two images of `coco_content`, and return the data root."""

    def write(content: Any) -> Path:
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / "instances_train2014.json").write_text(json.dumps(content))
        for name in ("one.jpg", "two.jpg"):
            save(tmp_path / "train2014" / name, gradient(20, 30))
        return tmp_path

    return write
