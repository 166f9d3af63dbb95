"""The small world of invented creatures (`ribray.demo.creatures`) as a data set in VOC layout, with its truth."""

import hashlib
import io
import itertools
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from ribray import storage
from ribray.config import DataConfig, SyntheticConfig
from ribray.data.dataset import IGNORE, Dataset
from ribray.data.mask_files import write_mask
from ribray.data.voc import VocDataset
from ribray.demo.creatures import class_names, draw, head_style, hsv, kinds_of
from ribray.errors import UsageError

MANIFEST = "synthetic.json"
VERSION = 1  # of the drawing; a world drawn otherwise is not taken for this one
JPEG_QUALITY, WRITERS = 95, 4


def make_world(root: Path, config: SyntheticConfig, seed: int) -> None:
    """Write a world in VOC layout; its manifest says "finished" only at the end, so that the rest is made again."""
    if is_drawn(root, config, seed):
        return
    manifest = _manifest(config, seed)
    storage.write_json(root / MANIFEST, manifest | {"finished": False})
    colours = palette(config.classes)

    def make(split: str, index: int) -> None:
        image, mask, _ = draw(split, index, seed, config.image_size, config.classes)
        name = picture_id(split, index)
        storage.write_bytes(root / "JPEGImages" / f"{name}.jpg", _jpeg(image))
        write_mask(root / "SegmentationClass" / f"{name}.png", mask, colours)

    for split, count in _splits(config).items():
        with ThreadPoolExecutor(WRITERS) as writers:  # each file waits for the disk
            deque(writers.map(make, itertools.repeat(split), range(count)), maxlen=0)
        ids = "".join(f"{picture_id(split, index)}\n" for index in range(count))
        storage.write_text(root / "ImageSets" / "Segmentation" / f"{split}.txt", ids)
    storage.write_text(root / "classes.txt", "".join(f"{name}\n" for name in class_names(config.classes)))
    storage.write_json(root / MANIFEST, manifest | {"finished": True})


def is_drawn(root: Path, config: SyntheticConfig, seed: int) -> bool:
    """Whether there is nothing left for `make_world` to do; a folder of anything else is refused."""
    if not (root / MANIFEST).exists():
        if root.exists() and next(iter(root.iterdir()), None) is not None:
            raise UsageError(f"{root} holds other data: give data.root a new or empty folder for the synthetic world.")
        return False
    manifest, found = _manifest(config, seed), storage.read_json(root / MANIFEST)
    found = found if isinstance(found, dict) else {}
    if differing := [key for key, value in manifest.items() if found.get(key) != value]:
        what = ", ".join(f"{key} {found.get(key)} instead of {manifest[key]}" for key in differing)
        raise UsageError(f"{root} holds another synthetic world ({what}): give data.root another folder, or remove it.")
    return found.get("finished") is True


def open_synthetic(data: DataConfig, split: str, root: Path, labelled: bool = True) -> Dataset:
    """Open a split, `train` or `val`, of the world in `root`; nothing is written where it is not there yet."""
    splits = _splits(data.synthetic)
    if split not in splits:
        raise UsageError(f"The synthetic world has no split '{split}', only {' and '.join(splits)}.")
    if is_drawn(root, data.synthetic, data.seed):
        return DrawnWorld(root, split, data.synthetic)
    return UndrawnWorld(root, split, data.synthetic, data.seed)


class DrawnWorld(VocDataset):
    def __init__(self, root: Path, split: str, config: SyntheticConfig) -> None:
        super().__init__(root, split, class_names(config.classes), palette(config.classes))
        self._size = config.image_size

    def fingerprint(self) -> str:
        return _with_size(super().fingerprint(), self._size)


class UndrawnWorld(Dataset):
    """A split of a world that is not written, for those who only look: pictures are drawn when asked for."""

    def __init__(self, root: Path, split: str, config: SyntheticConfig, seed: int) -> None:
        self._root, self._split, self._config, self._seed = root, split, config, seed
        labels = np.zeros((_splits(config)[split], config.classes), bool)
        for index, shown in enumerate(labels):
            shown[kinds_of(split, index, seed, config.classes)[1]] = True
        names, ids = class_names(config.classes), [picture_id(split, index) for index in range(len(labels))]
        super().__init__(f"split '{split}' of {root}", names, ids, labels, palette=palette(config.classes))

    def fingerprint(self) -> str:
        return _with_size(super().fingerprint(), self._config.image_size)

    @property
    def has_masks(self) -> bool:
        return True

    def size(self, id: str) -> tuple[int, int]:
        return self._config.image_size, self._config.image_size

    def image_path(self, id: str) -> Path:
        return self._root / "JPEGImages" / f"{id}.jpg"

    def image(self, id: str) -> np.ndarray:
        return np.array(Image.open(io.BytesIO(_jpeg(self._draw(id)[0]))))

    def _read_mask(self, id: str) -> np.ndarray | None:
        return self._draw(id)[1]

    def _draw(self, id: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return draw(self._split, self.index(id), self._seed, self._config.image_size, self._config.classes)


def _with_size(fingerprint: str, size: int) -> str:
    """Tell apart worlds of the same labels in other sizes; of the usual size, the fingerprint is any data's."""
    if size == SyntheticConfig().image_size:
        return fingerprint
    return hashlib.sha256(f"{fingerprint} {size}".encode()).hexdigest()


def picture_id(split: str, index: int) -> str:
    return f"{split}_{index:04d}"


def palette(classes: int) -> np.ndarray:
    """Colours (256, 3) uint8 of mask values: those of the heads, black for background, white for ignored."""
    colours = np.zeros((256, 3), np.uint8)
    for kind in range(classes):
        colours[kind + 1] = hsv(head_style(kind)[0], 0.75, 0.95).astype(np.uint8)
    colours[IGNORE] = 255
    return colours


def _splits(config: SyntheticConfig) -> dict[str, int]:
    return {"train": config.train_images, "val": config.eval_images}


def _manifest(config: SyntheticConfig, seed: int) -> dict[str, int]:
    return {"version": VERSION, "seed": seed} | config.model_dump()


def _jpeg(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()
