"""A maps file against what published code writes: bytes, writing, reading.

ribray bench maps
"""

import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import figure, interleave, ratios
from pictures import data_settings

from ribray import storage
from ribray.config import load_experiment
from ribray.data import open_dataset
from ribray.data.transforms import target_views
from ribray.methods.maps import MapRecord, localization_maps, to_arrays
from ribray.methods.rib import Refiner
from ribray.networks import build_classifier
from ribray.networks.weights import load_backbone_weights

Arrays = dict[str, np.ndarray]

ITEM = ["classifier.backbone=resnet18", "refine.iterations=1"]
"""The bytes depend on the sizes of the maps, hardly on how well they were learnt."""
TIMES_SMALLER = 18
"""Required; see tests/methods/test_map_size.py, which has trained for two steps on every photograph."""


def run(
    *, images: int = 8, rounds: int = 7, item: Sequence[str] = ITEM, size: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Return the figures.

    Args:
        images: to refine, write and read.
        rounds: in which either form of all of them is written and read.
        item: settings of the refinement.
        size: (height, width) of drawn pictures; default: photographs where there are any.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, what = data_settings(folder / "pictures", size, images)
        made = _maps_files([*data, *item], images)
        records = [MapRecord.from_arrays(arrays) for arrays in made]
        published = [_published(record) for record in records]
        ours = [folder / f"{number}.npz" for number in range(len(made))]
        theirs = [folder / f"{number}-published.npz" for number in range(len(made))]
        seconds = interleave(
            {
                "written": functools.partial(_write, made, ours),
                "published form written": functools.partial(
                    _write, published, theirs, functools.partial(np.savez, allow_pickle=False)
                ),
                "read": functools.partial(_read, ours),
                "published form read": functools.partial(_read, theirs, _read_published),
                "read, full-size maps made": functools.partial(_read, ours, _read_full),
            },
            rounds,
        )
        full = [folder / f"{number}-filled.npz" for number in range(len(made))]
        _write([_filled(arrays) for arrays in made], full)
        bytes_ours, bytes_theirs, bytes_full = (
            [file.stat().st_size for file in files] for files in (ours, theirs, full)
        )
    smaller = [theirs / ours for theirs, ours in zip(bytes_theirs, bytes_ours, strict=True)]
    smaller_full = [theirs / ours for theirs, ours in zip(bytes_theirs, bytes_full, strict=True)]
    each = {name: [1000 * value / len(made) for value in found] for name, found in seconds.items()}
    return {
        "settings": {"images": len(made), "of": what, "scales": list(records[0].scales)},
        "figures": {
            "bytes of an image": figure(np.array(bytes_ours) / 1e3, "kB"),
            "bytes of an image, published form": figure(np.array(bytes_theirs) / 1e3, "kB"),
            "times smaller": figure(smaller, "", at_least=TIMES_SMALLER),
            "times smaller, were no cell empty": figure(smaller_full, ""),
            **{f"an image {name}": figure(found, "ms") for name, found in each.items()},
            "writing, over the published form": figure(ratios(each["written"], each["published form written"]), ""),
            "full-size maps, over the published form": figure(
                ratios(each["read, full-size maps made"], each["published form read"]), ""
            ),
        },
        "notes": [
            f"Baseline: what published code writes for the present classes of an image: its localization maps at "
            "stride 4 and at full size, float32, not compressed. A maps file holds the sums at the network's own "
            "stride, before and after refinement, at all scales; full-size maps are computed on reading. Bytes are "
            f"over images, times over rounds in which the maps of {len(made)} {what} are written and read in either "
            "form, one after the other. The network has random weights, which leave half of the cells or more empty; "
            "filled ones compress worst."
        ],
    }


def _maps_files(settings: Sequence[str], images: int) -> list[Arrays]:
    """Return the arrays of the maps files of a few images, of a network with random weights."""
    experiment = load_experiment("voc12", [*settings, "classifier.weights=none"])
    config, scales = experiment.classifier, experiment.refine.scales
    dataset = open_dataset(experiment.data, experiment.data.train_split)
    torch.manual_seed(0)
    model = build_classifier(config.backbone, len(dataset.classes), config.output_stride)
    load_backbone_weights(model.backbone, config.weights)
    refiner = Refiner(model, experiment.refine)
    made = []
    for id in dataset.ids[:images]:
        image, present = dataset.image(id), np.flatnonzero(dataset.labels[dataset.index(id)]).tolist()
        refinement = refiner.refine(target_views(image, scales), present, lambda step: None)
        made.append(to_arrays(refinement, image.shape[:2], scales))
    return made


def _published(record: MapRecord) -> Arrays:
    return {
        "keys": record.classes,
        "cam": localization_maps(record, size="stride4"),
        "high_res": localization_maps(record, size="full"),
    }


def _filled(arrays: Arrays) -> Arrays:
    """Return the same arrays with a random value in every cell."""
    rng = np.random.default_rng(0)
    return {
        name: rng.random(array.shape, np.float32) if name.startswith(("initial_", "refined_")) else array
        for name, array in arrays.items()
    }


def _write(made: Sequence[Arrays], files: Sequence[Path], write: Callable[..., None] = storage.write_npz) -> None:
    for arrays, file in zip(made, files, strict=True):
        write(file, **arrays)


def _read(files: Sequence[Path], read: Callable[[Path], Any] = MapRecord.read) -> None:
    for file in files:
        read(file)


def _read_full(file: Path) -> None:
    localization_maps(MapRecord.read(file))


def _read_published(file: Path) -> None:
    with np.load(file, allow_pickle=False) as archive:
        archive["keys"], archive["high_res"]
