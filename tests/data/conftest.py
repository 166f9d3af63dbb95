"""Small data roots to be spoilt, and pictures to fill them with."""

import json
import struct
import zlib
from collections.abc import Callable, Mapping
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


def png(width: int, height: int, depth: int, colour_type: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG file by hand, for the kinds that Pillow does not write; ``extra`` holds more chunks."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(range(48))) if colour_type == 3 else b""
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + palette + pixels + chunk(b"IEND", b"")


def chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def tiff(
    pixels: np.ndarray, *, order: str = "<", is_planar: bool = False, tags: Mapping[int, int] | None = None
) -> bytes:
    """A TIFF file by hand, of any type of numbers; ``tags`` are added, or replace others."""
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    height, width, channels = pixels.shape
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    planes = channels if is_planar else 1
    data = (pixels.transpose(2, 0, 1) if is_planar else pixels).astype(pixels.dtype.newbyteorder(order)).tobytes()
    single = {256: width, 257: height, 259: 1, 262: 1 if channels == 1 else 2, 277: channels, 278: height}
    values = {tag: [value] for tag, value in (single | {284: 1 + is_planar} | dict(tags or {})).items()}
    values |= {258: [8 * pixels.dtype.itemsize] * channels, 339: [kind] * channels}
    start = 8 + 2 + 12 * (len(values) + 2) + 4 + 4 * 4 * channels  # behind the entries, and room for four lists
    values |= {
        273: [start + place * len(data) // planes for place in range(planes)],
        279: [len(data) // planes] * planes,
    }
    entries, lists, place = b"", b"", start - 4 * 4 * channels
    for tag, numbers in sorted(values.items()):
        content = struct.pack(f"{order}{len(numbers)}I", *numbers)
        if len(numbers) > 1:
            content, lists = struct.pack(f"{order}I", place + len(lists)), lists + content
        entries += struct.pack(f"{order}HHI", tag, 4, len(numbers)) + content
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(values))
    return head + entries + bytes(4) + lists.ljust(4 * 4 * channels, b"\0") + data


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
