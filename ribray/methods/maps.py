"""The maps file of one image, and the localization maps computed from it (docs/method.md, section 2).

A file holds, for the present classes only, the sums of a method's maps at the network's own stride: ``cam`` (the plain
class activation map), the method's own, and optionally these after every step. Any larger size is computed on reading.

The names of the maps stand in the file. RIB's are older than other methods: its arrays are ``initial`` (cam),
``refined`` (rib) and ``step_k``.

Shapes: P present classes, H W the image's pixels, h_i w_i the cells of scale i.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.nn.functional import interpolate

from ribray import storage
from ribray.config import CAM
from ribray.errors import DamagedError, ImageError, RibrayError
from ribray.methods.method import Maps, Refined

Which = str | tuple[str, int]
"""A map by its name, or by its name and k: after the steps 0 … k (the last one where there are fewer)."""
Size = Literal["full", "stride4"]

SUFFIX = ".npz"

_NAMES, _SERIES = "maps", "numbers"
"""Arrays of a file: what its maps, and its further series of numbers, are called."""
_RIB = {CAM: "initial", "rib": "refined"}
"""What arrays are called in files without names."""
_RIB_SERIES = ("target_losses",)
_LAST = ("steps", "stop_reason", "id")
"""What stands behind a method's own numbers."""
_DIVISION_GUARD = 1e-5


def map_path(folder: Path, id: str) -> Path:
    """Return where an image's map file lies."""
    return storage.spread(folder, id, SUFFIX)


@dataclass(frozen=True, kw_only=True)
class MapRecord(Refined):
    """The content of a maps file.

    Attributes:
        size: height and width of the image.
        scales: scales of the views.
        id: of the image; empty in arrays that come from no file of a run.
    """

    size: tuple[int, int]
    scales: tuple[float, ...]
    id: str = ""

    @classmethod
    def read(cls, location: str | Path, id: str | None = None) -> "MapRecord":
        """Read a maps file, of any image or of the one that is named.

        Raises:
            DamagedError: it is damaged, no maps file, or another image's.
            RibrayError: it is missing, or cannot be read.
        """
        record = cls.from_arrays(storage.read_npz(storage.path(location)), str(location))
        if id is not None and record.id != id:
            whose = f"those of '{record.id}'" if record.id else "of no known image"
            raise DamagedError(f"{location} should hold the maps of '{id}', and has {whose}; {storage.MADE_AGAIN}.")
        return record

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], source: str = "these arrays") -> "MapRecord":
        """Check the arrays of a maps file, called ``source`` in errors.

        Raises:
            DamagedError: an array is missing, of the wrong type or shape, or holds what is no number.
        """
        try:
            return cls._checked(arrays)
        except KeyError as error:
            reason = f"it has no {error.args[0]!r}"
            raise DamagedError(f"{source} is no maps file: {reason}; {storage.MADE_AGAIN}.") from None
        except (ValueError, TypeError) as error:
            raise DamagedError(f"{source} is a damaged maps file: {error}; {storage.MADE_AGAIN}.") from None

    @classmethod
    def _checked(cls, arrays: Mapping[str, np.ndarray]) -> "MapRecord":
        classes, scales = arrays["classes"].astype(np.int64), arrays["scales"].tolist()
        height, width = (int(side) for side in arrays["size"])

        def sums(name: str) -> list[np.ndarray]:
            return [_map(arrays, f"{name}_{scale}", len(classes)) for scale in range(len(scales))]

        is_of_rib = _NAMES not in arrays
        names = list(_RIB) if is_of_rib else arrays[_NAMES].tolist()
        maps = {name: sums(_RIB[name] if is_of_rib else name) for name in names}
        by_step: dict[str, list[Maps]] = {}
        for name in names:
            step = "step" if is_of_rib and name != CAM else f"{name}_step"
            while f"{step}_{len(by_step.get(name, ()))}_0" in arrays:
                by_step.setdefault(name, []).append(sums(f"{step}_{len(by_step.get(name, ()))}"))
        for later in (*maps.values(), *(kept for steps in by_step.values() for kept in steps)):
            for scale, (one, first) in enumerate(zip(later, maps[names[0]], strict=True)):
                if one.shape != first.shape:
                    raise ValueError(f"scale {scale} has maps of shapes {first.shape} and {one.shape}")
        series = _RIB_SERIES if is_of_rib else arrays[_SERIES].tolist()
        return cls(
            classes=classes,
            size=(height, width),
            scales=tuple(scales),
            maps=maps,
            by_step=by_step,
            losses=arrays["losses"],
            numbers={name: arrays[name] for name in series},
            steps=int(arrays["steps"]),
            stop_reason=str(arrays["stop_reason"]),
            id=str(arrays.get("id", "")),
        )


def to_arrays(refined: Refined, size: tuple[int, int], scales: Sequence[float]) -> dict[str, np.ndarray]:
    """Return the arrays of a maps file.

    Args:
        refined: what a method has made of an image.
        size: the image's height and width.
        scales: the scales of its views.

    Raises:
        ImageError: its numbers have a name that is taken.
    """
    arrays = {"size": np.array(size, dtype=np.int64), "scales": np.array(scales, dtype=np.float64)}
    arrays["classes"] = refined.classes.astype(np.int64)
    is_of_rib = refined.maps.keys() == _RIB.keys()
    if not is_of_rib:
        arrays |= {_NAMES: np.array(list(refined.maps)), _SERIES: np.array(list(refined.numbers), dtype=np.str_)}
    for scale in range(len(scales)):
        for name, maps in refined.maps.items():
            arrays[f"{_RIB[name] if is_of_rib else name}_{scale}"] = maps[scale]
    for name, steps in refined.by_step.items():
        for step, sums in enumerate(steps):
            for scale, cells in enumerate(sums):
                arrays[f"{'' if is_of_rib else f'{name}_'}step_{step}_{scale}"] = cells
    arrays["losses"] = np.array(refined.losses, dtype=np.float64)
    if taken := refined.numbers.keys() & {*arrays, *_LAST}:
        raise ImageError(f"Numbers named '{min(taken)}' would take the place of a map file's own.")
    for name in _RIB_SERIES if is_of_rib else refined.numbers:
        arrays[name] = np.array(refined.numbers.get(name, ()), dtype=np.float64)
    arrays["steps"] = np.array(refined.steps, dtype=np.int64)
    arrays["stop_reason"] = np.array(refined.stop_reason)
    return arrays


def empty_arrays(
    size: tuple[int, int], scales: Sequence[float], names: Sequence[str] = tuple(_RIB)
) -> dict[str, np.ndarray]:
    """Return the arrays of a maps file for an image that is known to have no object, of maps by ``names``."""
    nothing = [np.zeros((0, 1, 1), np.float32) for _ in scales]
    return to_arrays(Refined(np.zeros(0, np.int64), dict.fromkeys(names, nothing), steps=0), size, scales)


def write_maps(location: Path, id: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write the arrays of a maps file, with the image that they are of.

    Raises:
        OSError: as the file system gives it.
    """
    storage.write_npz(location, **arrays, id=np.array(id))


def localization_maps(record: MapRecord, which: Which | None = None, size: Size = "full") -> np.ndarray:
    """Return localization maps (P, height, width) float32, each class divided by its maximum.

    The sums of all scales are resized bilinearly, cropped and added; the division by (maximum + 1e-5) comes last.

    Args:
        record: content of a maps file.
        which: the name of a map, such as "cam"; or name and k for the sum after steps 0 … k; default: the method's own.
        size: "full": H×W; "stride4": every fourth pixel, ((H−1)//4+1, (W−1)//4+1).

    Raises:
        RibrayError: there is no such map, or its sums after each step were not kept.
    """
    height, width = record.size
    if size == "stride4":
        kept = resized = ((height - 1) // 4 + 1, (width - 1) // 4 + 1)
    else:
        kept, resized = (height, width), (((height - 1) // 16 + 1) * 16, ((width - 1) // 16 + 1) * 16)
    if not len(record.classes):
        return np.zeros((0, *kept), np.float32)
    total = torch.zeros(len(record.classes), *kept)
    for maps in _sums(record, which):
        enlarged = interpolate(torch.from_numpy(maps)[None], resized, mode="bilinear", align_corners=False)[0]
        total += enlarged[:, : kept[0], : kept[1]]
    return (total / (total.amax((1, 2), keepdim=True) + _DIVISION_GUARD)).numpy()


def _sums(record: MapRecord, which: Which | None) -> Maps:
    name, step = (which, None) if isinstance(which, str | None) else which
    name = name or record.own
    if name not in record.maps:
        raise RibrayError(f"There are maps {', '.join(record.maps)}, and none named '{name}'.")
    if step is None:
        return record.maps[name]
    if name not in record.by_step:
        raise RibrayError(f"These maps '{name}' were made without refine.keep_steps: only the last ones are kept.")
    if step < 0:
        raise ValueError(f"Steps count from 0, not {step}.")
    steps = record.by_step[name]
    return steps[min(step, len(steps) - 1)]


def _map(arrays: Mapping[str, np.ndarray], name: str, classes: int) -> np.ndarray:
    maps = arrays[name]
    if maps.dtype != np.float32 or maps.ndim != 3 or maps.shape[0] != classes or 0 in maps.shape[1:]:
        raise ValueError(f"{name} is {maps.dtype} of shape {maps.shape} for {classes} present classes")
    if not np.isfinite(maps).all():
        raise ValueError(f"{name} holds values that are no numbers")
    return maps
