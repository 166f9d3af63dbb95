"""From uint8 photographs to what a network sees: views of a target image, random crops of a training image.

Nothing here draws from a global random generator. Pixels stay uint8 up to the normalisation, which is one
multiplication and one addition per value and gives the same bits on a crop alone and in a batch.

Shapes: H W an image's height and width, h w those of a resized image, S the side of a crop, N a batch.
"""

import functools
import hashlib
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from ribray.data.dataset import IGNORE

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Normalisation:
    """What a network sees of a value v in 0…1: (v − mean) / std, per channel (red, green, blue)."""

    mean: Triple
    std: Triple


IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of ImageNet, with which most networks were trained."""

Box = tuple[int, int, int, int]
"""The real pixels of a crop: top, left, bottom, right; bottom and right are the first ones outside."""


def keyed_rng(*parts: str | int) -> np.random.Generator:
    """Return a generator that depends on ``parts`` alone: the same on every platform and in every process.

    Neighbouring keys, such as (0, "a", 1) and (0, "a", 2), give unrelated streams; "1" and 1 differ.
    """
    digest = hashlib.sha256()
    for part in parts:
        text = f"s{part}" if isinstance(part, str) else f"i{operator.index(part)}"
        content = text.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "big") + content)  # ("ab", "c") and ("a", "bc") must differ
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest.digest(), "big")))


@functools.lru_cache(maxsize=4)
def shuffled(name: str, seed: int, epoch: int, count: int) -> np.ndarray:
    """Return the order of ``count`` images in one epoch: a permutation that depends on the arguments alone."""
    return keyed_rng(name, seed, epoch).permutation(count)


def normalise(image: np.ndarray, normalisation: Normalisation = IMAGENET) -> torch.Tensor:
    """Return a uint8 image (H, W, 3) as float32 (3, H, W): scaled to 0…1, minus mean, divided by deviation."""
    return _normalised(torch.from_numpy(image if image.flags.writeable else image.copy()), normalisation)


def rescaled(image: np.ndarray, scale: float) -> np.ndarray:
    """Resize a uint8 image (H, W, 3) bicubically; sizes are rounded half to even, as for the published maps."""
    height, width = (max(int(np.round(side * scale)), 1) for side in image.shape[:2])
    if (height, width) == image.shape[:2]:
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def target_views(
    image: np.ndarray, scales: Sequence[float], normalisation: Normalisation = IMAGENET
) -> list[torch.Tensor]:
    """Return, per scale, the resized, normalised image and its horizontal flip as float32 (2, 3, h, w)."""
    views = (normalise(rescaled(image, scale), normalisation) for scale in scales)
    return [torch.stack((view, view.flip(-1))) for view in views]


def augment(
    image: np.ndarray, rng: np.random.Generator, resize_long: tuple[int, int], crop_size: int
) -> tuple[np.ndarray, Box]:
    """Resize, flip and crop a training image at random.

    The long side becomes any integer of ``resize_long`` (both ends included) and the aspect is kept. Along an
    axis on which the resized image is larger than the crop, the crop is a random window of it; along one on
    which it is smaller, the image lies at a random place in the crop, which is zero around it. Four numbers are
    drawn, whatever the image. Returns the crop (S, S, 3) uint8 and the box of its real pixels.
    """
    long_side = int(rng.integers(resize_long[0], resize_long[1] + 1))
    is_flipped = bool(rng.random() < 0.5)
    places = rng.random(2)
    sides = [max(round(side * long_side / max(image.shape[:2])), 1) for side in image.shape[:2]]
    return _crop(image, sides, is_flipped, places, crop_size, Image.Resampling.BICUBIC)


def augment_pair(
    image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, scale: float, crop_size: int
) -> tuple[np.ndarray, np.ndarray, Box]:
    """Resize a training image and its mask by ``scale``; flip and crop them at random, both in the same way.

    The crop is placed as by `augment`; three numbers are drawn. The image is resized with the bicubic filter, the mask
    by nearest neighbour. Returns the crops (S, S, 3) and (S, S) uint8, zero and `IGNORE` where there is no image, and
    the box of their real pixels.
    """
    is_flipped = bool(rng.random() < 0.5)
    places = rng.random(2)
    sides = [max(round(side * scale), 1) for side in image.shape[:2]]
    crop, box = _crop(image, sides, is_flipped, places, crop_size, Image.Resampling.BICUBIC)
    mask_crop, _ = _crop(mask, sides, is_flipped, places, crop_size, Image.Resampling.NEAREST, outside=IGNORE)
    return crop, mask_crop, box


def normalise_crops(
    crops: np.ndarray | torch.Tensor, boxes: Sequence[Box], normalisation: Normalisation = IMAGENET
) -> torch.Tensor:
    """Normalise crops (N, S, S, 3) uint8 to (N, 3, S, S) float32 on their device; outside its box each is exactly 0."""
    pixels = torch.from_numpy(crops) if isinstance(crops, np.ndarray) else crops
    bounds = torch.tensor(boxes)
    if pixels.is_cuda:  # without the host waiting for it
        bounds = bounds.pin_memory().to(pixels.device, non_blocking=True)
    return normalise_within(pixels, bounds, normalisation)


def normalise_within(pixels: torch.Tensor, bounds: torch.Tensor, normalisation: Normalisation) -> torch.Tensor:
    """Do as `normalise_crops` with pixels and boxes (N, 4) that are on one device."""
    place = torch.arange(pixels.shape[1], device=pixels.device)
    after, before = place >= bounds[:, :2, None], place < bounds[:, 2:, None]  # (N, 2, S) each: rows, columns
    rows, columns = (after & before).unbind(1)
    normalised = _normalised(pixels, normalisation)
    return normalised.masked_fill_(~(rows[:, None, :, None] & columns[:, None, None, :]), 0.0)


def _crop(
    image: np.ndarray,
    sides: Sequence[int],
    is_flipped: bool,
    places: np.ndarray,
    crop_size: int,
    resample: Image.Resampling,
    outside: int = 0,
) -> tuple[np.ndarray, Box]:
    """Resize a uint8 image (H, W) or (H, W, 3) to ``sides``, flip it, and cut or pad it to (S, S) or (S, S, 3)."""
    (rows, top), (columns, left) = (_place(side, crop_size, at) for side, at in zip(sides, places, strict=True))
    resized = Image.fromarray(image).resize((sides[1], sides[0]), resample)
    window = resized.crop((columns.start, rows.start, columns.stop, rows.stop))
    if is_flipped:
        window = window.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        left = crop_size - window.width - left
    box = (top, left, top + window.height, left + window.width)
    crop = np.full((crop_size, crop_size, *image.shape[2:]), outside, np.uint8)
    crop[box[0] : box[2], box[1] : box[3]] = np.asarray(window)
    return crop, box


def _place(side: int, crop_size: int, at: float) -> tuple[slice, int]:
    """Say which pixels of the resized image are used along one axis, and where in the crop they begin; at: 0…1."""
    spare = abs(side - crop_size)
    start = min(int(at * (spare + 1)), spare)
    return (slice(start, start + crop_size), 0) if side > crop_size else (slice(0, side), start)


@functools.cache
def _gain_and_offset(normalisation: Normalisation, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """``value · gain + offset`` normalises a uint8 value; each (3, 1, 1) float32, copied to a device once."""
    gain = torch.tensor([1 / (255 * std) for std in normalisation.std])
    offset = torch.tensor([-mean / std for mean, std in zip(normalisation.mean, normalisation.std, strict=True)])
    return gain.reshape(3, 1, 1).to(device), offset.reshape(3, 1, 1).to(device)


def _normalised(image: torch.Tensor, normalisation: Normalisation) -> torch.Tensor:
    """(…, H, W, 3) uint8 → (…, 3, H, W) float32, in two rounded operations that give the same on every device."""
    gain, offset = _gain_and_offset(normalisation, image.device)
    return image.movedim(-1, -3).contiguous().to(torch.float32).mul_(gain).add_(offset)
