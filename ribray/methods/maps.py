"""The maps file of one image, and the localization maps computed from it (docs/method.md, section 2).

A file holds, for the present classes only, the sum of the class activation maps at the network's own stride:
after step 0 (``initial``, the plain map) and at the end (``refined``), optionally after every step. Any
larger size is computed on reading.

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
from ribray.errors import DamagedError, RibrayError
from ribray.methods.rib import Refinement
from ribray.methods.stop_reasons import FINISHED

Which = Literal["initial", "refined"] | int
Size = Literal["full", "stride4"]

_DIVISION_GUARD = 1e-5


@dataclass(frozen=True)
class MapRecord:
    """The content of a maps file.

    Attributes:
        classes: (P,) int64, the present classes in increasing order; empty for an image without any object.
        size: height and width of the image.
        scales: scales of the views.
        initial: per scale (P, h_i, w_i) float32, the sum after step 0.
        refined: per scale (P, h_i, w_i) float32, the sum over all steps.
        by_step: ``by_step[k][i]``, the sums after every step; empty where they were not kept.
        losses: loss of every step that updated the network.
        target_losses: the target's summed logits of every step that came to them.
        steps: steps begun; 0 for an image without any object.
        stop_reason: "finished", "target_loss" or "explosion".
        id: of the image; empty in arrays that come from no file of a run.
    """

    classes: np.ndarray
    size: tuple[int, int]
    scales: tuple[float, ...]
    initial: list[np.ndarray]
    refined: list[np.ndarray]
    by_step: list[list[np.ndarray]]
    losses: np.ndarray
    target_losses: np.ndarray
    steps: int
    stop_reason: str
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

        initial, refined = sums("initial"), sums("refined")
        by_step: list[list[np.ndarray]] = []
        while f"step_{len(by_step)}_0" in arrays:
            by_step.append(sums(f"step_{len(by_step)}"))
        for later in (refined, *by_step):
            for scale, (maps, first) in enumerate(zip(later, initial, strict=True)):
                if maps.shape != first.shape:
                    raise ValueError(f"scale {scale} has maps of shapes {first.shape} and {maps.shape}")
        return cls(
            classes=classes,
            size=(height, width),
            scales=tuple(scales),
            initial=initial,
            refined=refined,
            by_step=by_step,
            losses=arrays["losses"],
            target_losses=arrays["target_losses"],
            steps=int(arrays["steps"]),
            stop_reason=str(arrays["stop_reason"]),
            id=str(arrays.get("id", "")),
        )


def to_arrays(refinement: Refinement, size: tuple[int, int], scales: Sequence[float]) -> dict[str, np.ndarray]:
    """Return the arrays of a maps file.

    Args:
        refinement: of an image with at least one present class.
        size: the image's height and width.
        scales: the scales of its views.
    """
    arrays = {"size": np.array(size, dtype=np.int64), "scales": np.array(scales, dtype=np.float64)}
    arrays["classes"] = refinement.classes.astype(np.int64)
    for scale, (initial, refined) in enumerate(zip(refinement.initial, refinement.refined, strict=True)):
        arrays[f"initial_{scale}"] = initial
        arrays[f"refined_{scale}"] = refined
    for step, sums in enumerate(refinement.by_step or []):
        for scale, maps in enumerate(sums):
            arrays[f"step_{step}_{scale}"] = maps
    arrays["losses"] = np.array(refinement.losses, dtype=np.float64)
    arrays["target_losses"] = np.array(refinement.target_losses, dtype=np.float64)
    arrays["steps"] = np.array(refinement.steps, dtype=np.int64)
    arrays["stop_reason"] = np.array(refinement.stop_reason)
    return arrays


def empty_arrays(size: tuple[int, int], scales: Sequence[float]) -> dict[str, np.ndarray]:
    """Return the arrays of a maps file for an image that is known to have no object."""
    nothing = [np.zeros((0, 1, 1), np.float32) for _ in scales]
    return to_arrays(Refinement(np.zeros(0, np.int64), nothing, nothing, None, [], [], 0, FINISHED), size, scales)


def write_maps(location: Path, id: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write the arrays of a maps file, with the image that they are of.

    Raises:
        OSError: as the file system gives it.
    """
    storage.write_npz(location, **arrays, id=np.array(id))


def localization_maps(record: MapRecord, which: Which = "refined", size: Size = "full") -> np.ndarray:
    """Return localization maps (P, height, width) float32, each class divided by its maximum.

    The sums of all scales are resized bilinearly, cropped and added; the division by (maximum + 1e-5) comes
    last.

    Args:
        record: content of a maps file.
        which: "initial" (the plain class activation map), "refined", or k for the sum after steps 0 … k
            (after the last one where the refinement stopped earlier).
        size: "full": H×W; "stride4": every fourth pixel, ((H−1)//4+1, (W−1)//4+1).

    Raises:
        RibrayError: the sums after each step were not kept.
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


def _sums(record: MapRecord, which: Which) -> list[np.ndarray]:
    if which == "initial":
        return record.initial
    if which == "refined":
        return record.refined
    if not record.by_step:
        raise RibrayError("These maps were made without refine.keep_steps: only 'initial' and 'refined' are kept.")
    if not isinstance(which, int) or which < 0:
        raise ValueError(f"which is 'initial', 'refined' or the index of a step, not {which!r}.")
    return record.by_step[min(which, len(record.by_step) - 1)]


def _map(arrays: Mapping[str, np.ndarray], name: str, classes: int) -> np.ndarray:
    maps = arrays[name]
    if maps.dtype != np.float32 or maps.ndim != 3 or maps.shape[0] != classes or 0 in maps.shape[1:]:
        raise ValueError(f"{name} is {maps.dtype} of shape {maps.shape} for {classes} present classes")
    if not np.isfinite(maps).all():
        raise ValueError(f"{name} holds values that are no numbers")
    return maps
