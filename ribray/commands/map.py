"""The command ``map``: maps of photographs by a pretrained network or a run's classifier; nothing is trained."""

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ribray import storage
from ribray.api import NOT_READ, RIB, ClassName, Result, read_settings
from ribray.config import change
from ribray.data.dataset import Dataset
from ribray.data.files import list_files
from ribray.data.folder import LABELS, WHOLE, FolderDataset
from ribray.data.images import read_image
from ribray.data.transforms import rescaled
from ribray.errors import ImageError, RibrayError, UsageError
from ribray.methods.stop_reasons import ENDED, StopTally, stop_hint, stopped_early
from ribray.networks.pretrained import open_network
from ribray.networks.weights import IMAGENET
from ribray.progress import show_progress

NETWORK = "timm/tf_efficientnet_lite0"
OUT = "maps"
LONG_SIDE = 500
"""Pixels: that of PASCAL VOC's photographs, for which the method's settings were chosen."""
DEFAULTS: Mapping[str, Any] = {"scales": (1.0, 0.5, 1.5), "batch_size": 4}
"""Settings of a network that comes from no run, where they differ from the method's: without the scale of 2.0, and with
three extra samples a step in place of 19, a photograph takes less than half the time."""
SECTION = "refine"


@dataclass(frozen=True)
class MapRequest:
    """What the command line asks for."""

    photographs: Sequence[Path]
    network: str = NETWORK
    """``timm/NAME``, the name of a network of torchvision's, or the directory of a run."""
    weights: str = IMAGENET
    """"imagenet", "none" or a file; of a run's classifier its own."""
    classes: str | None = None
    """Names or indices, separated by commas, that go for all photographs; None: what the network is confident of."""
    extras: Path | None = None
    settings: Sequence[str] = ()
    """``refine.KEY=VALUE``."""
    out: Path = Path(OUT)
    long_side: int = LONG_SIDE
    """Pixels to which larger photographs are scaled down; 0: as they are."""


@dataclass
class Mapped:
    """What has come of it."""

    photographs: int
    done: int = 0
    failed: int = 0
    stopped: bool = False


@dataclass(frozen=True)
class _Photograph:
    """A photograph whose classes are known."""

    path: Path
    shares: Mapping[int, float | None]
    """Classes with their probabilities; None where they were given."""


def map_photographs(request: MapRequest, console: Console, stop: threading.Event) -> Mapped:
    """Refine the maps of photographs, one after the other; write NAME.png and NAME.npz of each.

    Args:
        request: see there.
        console: for a line per photograph, and a bar where there are several.
        stop: set once the user asked to stop.

    Raises:
        UsageError: a photograph, class or setting does not exist, or the network cannot be had: nothing is written.
    """
    paths = _photographs(request)
    rib, source = _open(request)
    _say(console, f"{source}; on {rib.device}")
    given = None if request.classes is None else rib.indices(_classes(request.classes, rib))
    mapped = Mapped(len(paths))
    photographs = _look(paths, rib, given, mapped, console)
    extras = _extras(request.extras, rib, {*paths}, console)
    _tell_extras(photographs, extras, console)
    storage.require_writable(storage.absolute(request.out))
    if len(paths) == 1:
        _map_all(photographs, extras, request, rib, mapped, console, stop, None)
        return mapped
    with show_progress(console, "map", len(paths), unit="photographs") as bar:
        bar.advance(0, mapped.failed)
        tally = _map_all(photographs, extras, request, rib, mapped, console, stop, bar)
    if (early := stopped_early(tally.counts)) is not None:
        _say(console, stop_hint(tally.counts, rib.config.iterations) or f"Stopped early: {early}.")
    return mapped


def _map_all(
    photographs: Sequence[_Photograph],
    extras: Sequence[_Photograph],
    request: MapRequest,
    rib: RIB,
    mapped: Mapped,
    console: Console,
    stop: threading.Event,
    bar: Any,
) -> StopTally:
    """Return how the refinements ended."""
    out, taken, tally = storage.absolute(request.out), set[str](), StopTally(rib.config.iterations)
    notes: set[str] = set()
    for photograph in photographs:
        if stop.is_set():
            mapped.stopped = True
            break
        try:
            pixels, size = _read(photograph.path, request.long_side)
            others = [(other.path, list(other.shares)) for other in _disjoint(photograph, (*photographs, *extras))]
            result = rib(pixels, list(photograph.shares), extras=others)
        except ImageError as error:
            mapped.failed += 1
            _say(console, f"failed: {error}")
        else:
            target = _target(out, photograph.path, taken)
            storage.write_npz(target.with_suffix(".npz"), **result.arrays(), source=np.array(str(photograph.path)))
            result.save(target)
            mapped.done += 1
            tally.add(result.stop_reason, result.steps)
            for note in sorted({*result.notes} - notes):
                _say(console, f"Note: {note}")
            notes |= {*result.notes}
            _say(console, _line(photograph, result, size, rib, target))
        if bar is not None:
            bar.advance(mapped.done - bar.done, mapped.failed - bar.failed)
    return tally


# --- the network -------------------------------------------------------------------------------------------------


def _open(request: MapRequest) -> tuple[RIB, str]:
    """Return what refines, and a phrase on the network and its weights.

    Raises:
        UsageError: a setting is unknown or the network cannot be had.
    """
    settings = _settings(request.settings)
    if "://" in request.network or storage.absolute(request.network).is_dir():
        if request.weights != IMAGENET:
            raise UsageError(
                f"--weights goes with a network by name; the run {request.network} has weights of its own."
            )
        return RIB.from_run(request.network, **settings), f"Network: the classifier of {request.network}"
    settings = {**DEFAULTS, **settings}
    read_settings(settings)  # before a network is loaded
    network, source = open_network(request.network, request.weights, "--weights")
    return RIB(network, **settings), f"Network: {request.network}, weights {source}"


def _settings(overrides: Iterable[str]) -> dict[str, Any]:
    """Return the settings of ``--set refine.KEY=VALUE``.

    Raises:
        UsageError: a key that `map` does not read.
    """
    values = change({}, overrides)
    for key, inner in values.items():
        if key != SECTION or not isinstance(inner, dict):
            named = f"{key}.{next(iter(inner))}" if isinstance(inner, dict) and inner else key
            raise UsageError(
                f"--set {named}: map reads keys of the section {SECTION} alone, such as refine.iterations=5."
            )
        for name in set(inner).intersection(NOT_READ):
            raise UsageError(f"--set {SECTION}.{name}: map does not read it, as it belongs to a run.")
    return values.get(SECTION, {})


def _classes(text: str, rib: RIB) -> list[ClassName]:
    """Return the classes of ``--classes``; a number is an index unless it is a class's name."""
    named = [part.strip() for part in text.split(",") if part.strip()]
    return [int(name) if name.isdecimal() and name not in (rib.names or ()) else name for name in named]


# --- photographs and extra samples -------------------------------------------------------------------------------


def _photographs(request: MapRequest) -> list[Path]:
    """Return the photographs, each once.

    Raises:
        UsageError: one does not exist, or a number is out of range.
    """
    if request.long_side < 0:
        raise UsageError(
            f"--long-side {request.long_side} must be a number of pixels, or 0 for photographs as they are."
        )
    paths = list(dict.fromkeys(storage.absolute(path) for path in request.photographs))
    for path in paths:
        if path.is_dir():
            raise UsageError(f"{path} is a folder: give photographs, such as {path.name}/*.jpg.")
        if not path.exists():
            raise UsageError(f"{path} does not exist.")
    return paths


def _look(
    paths: Iterable[Path], rib: RIB, given: Sequence[int] | None, mapped: Mapped, console: Console
) -> list[_Photograph]:
    """Return the photographs that can be read, with their classes."""
    found = []
    for path in paths:
        try:
            image = read_image(path)
        except ImageError as error:
            mapped.failed += 1
            _say(console, f"failed: {error}")
            continue
        found.append(_Photograph(path, dict.fromkeys(given) if given is not None else rib.confident(image)))
    return found


def _read(path: Path, long_side: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Return a photograph, scaled down where it is larger, and the height and width that it came with."""
    image = read_image(path)
    height, width = image.shape[:2]
    scale = long_side / max(height, width) if long_side else 1.0
    return (rescaled(image, scale) if scale < 1 else image), (height, width)


def _extras(folder: Path | None, rib: RIB, without: set[Path], console: Console) -> list[_Photograph]:
    """Return the extra samples of a folder: with its labels, or with the classes that the network sees.

    Raises:
        UsageError: there is no such folder, or its table of labels is broken.
    """
    if folder is None:
        return []
    folder = storage.absolute(folder)
    if not folder.is_dir():
        raise UsageError(f"--extras {folder} must be a folder of photographs.")
    dataset = _labelled(folder)
    found = [] if dataset is None else _with_labels(dataset, rib, console)
    if not found:
        paths = [folder / name for name in list_files(folder).photographs]
        if not paths:
            raise UsageError(f"--extras {folder} holds no photograph.")
        _say(console, f"Extras: the classes of the photographs in {folder} are those that the network sees.")
        found = _look([path for path in paths if path not in without], rib, None, Mapped(0), console)
    return [photograph for photograph in found if photograph.path not in without]


def _labelled(folder: Path) -> Dataset | None:
    """Return the folder's data set, or None where nothing labels its photographs."""
    try:
        return FolderDataset(folder, WHOLE)
    except UsageError:
        if (folder / LABELS).exists():
            raise
        return None


def _with_labels(dataset: Dataset, rib: RIB, console: Console) -> list[_Photograph]:
    """Return the photographs of a data set all of whose classes the network knows."""
    indices: dict[int, int] = {}
    for place, name in enumerate(dataset.classes):
        try:
            indices[place] = rib.indices([name])[0]
        except UsageError:
            continue
    found = []
    for id, row in zip(dataset.ids, dataset.labels, strict=True):
        places = np.flatnonzero(row).tolist()
        if places and all(place in indices for place in places):
            found.append(_Photograph(dataset.image_path(id), dict.fromkeys(sorted({indices[each] for each in places}))))
    if not found:
        _say(console, f"Extras: the labels of {dataset.name} name no class of the network; its own guesses are used.")
    elif len(found) < len(dataset):
        left = len(dataset) - len(found)
        _say(console, f"Extras: {left} photographs have no label, or one that the network lacks, and are left out.")
    return found


def _disjoint(photograph: _Photograph, others: Iterable[_Photograph]) -> list[_Photograph]:
    """Return the photographs that share no class with one."""
    return [other for other in others if not photograph.shares.keys() & other.shares.keys()]


def _tell_extras(photographs: Sequence[_Photograph], extras: Sequence[_Photograph], console: Console) -> None:
    """Say in one line what is left out as an extra sample."""
    together = [*photographs, *extras]
    if not photographs or len(together) < 2:
        return
    counts = [len(_disjoint(photograph, together)) for photograph in photographs]
    least, most = min(counts), max(counts)
    of = f"{least}" if least == most else f"{least} to {most}"
    _say(
        console,
        f"Extras: {of} of {len(together) - 1} for each photograph; those that share a class with it are left out."
        if most
        else "Extras: none, since all share a class; each photograph is refined alone.",
    )


# --- files and lines ---------------------------------------------------------------------------------------------


def _target(out: Path, path: Path, taken: set[str]) -> Path:
    """Return the PNG to write: NAME.png, or NAME-2.png … where that is of another photograph."""
    number = 1
    while True:
        name = path.stem if number == 1 else f"{path.stem}-{number}"
        target = out / f"{name}.png"
        if name.casefold() not in taken and _is_free(target, path):
            taken.add(name.casefold())
            return target
        number += 1


def _is_free(target: Path, path: Path) -> bool:
    """Whether a file may be written: it does not exist, or it is this photograph's maps."""
    arrays = target.with_suffix(".npz")
    if not arrays.exists():
        return not target.exists()
    try:
        return str(storage.read_npz(arrays).get("source")) == str(path)
    except RibrayError:
        return False


def _line(photograph: _Photograph, result: Result, size: tuple[int, int], rib: RIB, target: Path) -> str:
    names = ", ".join(
        _named(name.partition(",")[0], photograph.shares[index], rib.confidence)
        for index, name in zip(result.classes, result.names, strict=True)
    )
    height, width = result.maps.shape[1:]
    scaled = "" if (height, width) == size else f" (scaled down from {size[1]} × {size[0]} to {width} × {height})"
    steps = f"{result.steps} of {rib.config.iterations} steps"
    ended = f"{steps}: {ENDED[result.stop_reason]}" if result.stop_reason in ENDED else steps
    return f"{photograph.path.name}{scaled}: {names}; {ended}; {target}"


def _named(name: str, share: float | None, confidence: float) -> str:
    """Return a class with its probability; one below ``confidence`` is a guess."""
    if share is None:
        return name
    return f"{name} {share:.2f}" if share >= confidence else f"perhaps {name} {share:.2f}"


def _say(console: Console, sentence: str) -> None:
    console.print(sentence, highlight=False, markup=False, soft_wrap=True)
