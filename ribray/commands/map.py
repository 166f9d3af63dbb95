"""The command ``map``: maps of photographs by a pretrained network or a run's classifier; nothing is trained."""

import functools
import itertools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ribray import storage
from ribray.api import NOT_READ, MapMaker, Result, draw_side_by_side, map_maker, read_settings
from ribray.config import ENDED, by_method, change, settings_class, short
from ribray.data.dataset import Dataset
from ribray.data.files import list_files
from ribray.data.folder import LABELS, WHOLE, FolderDataset
from ribray.data.images import read_image
from ribray.data.transforms import rescaled
from ribray.errors import ImageError, RibrayError, UsageError
from ribray.methods.stop_reasons import StopTally, stop_hint, stopped_early
from ribray.networks.pretrained import open_network
from ribray.networks.weights import IMAGENET
from ribray.progress import Bar, show_progress

DEFAULTS: Mapping[str, Any] = {"scales": (1.0, 0.5, 1.5), "batch_size": 4}
"""Settings of a network that comes from no run, where they differ from a method's: without the scale of 2.0, and with
three extra samples a step in place of 19, a photograph takes less than half the time."""
SECTION = "refine"
KEPT_BYTES = 2**28
"""Photographs are decoded once as long as so much holds them; those beyond are read again when it is their turn."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class MapRequest:
    photographs: Sequence[Path]
    network: str  # ``timm/NAME``, the name of a network of torchvision's, or the directory of a run
    weights: str  # "imagenet", "none" or a file; of a run's classifier its own
    classes: str | None  # names or indices, separated by commas, of all; None: what the network is confident of
    extras: Path | None
    settings: Sequence[str]  # ``refine.KEY=VALUE``
    out: Path
    long_side: int  # pixels to which larger photographs are scaled down; 0: as they are
    methods: Sequence[str] = ("rib",)


@dataclass(frozen=True)
class _Photograph:
    path: Path
    shares: Mapping[int, float | None]  # its classes with their probabilities; None where they were given
    size: tuple[int, int] = (0, 0)  # height and width that it came with; of a labelled extra sample not known
    pixels: np.ndarray | None = None  # scaled down; None where they are to be read (again)

    def disjoint(self, others: Iterable["_Photograph"]) -> list["_Photograph"]:
        return [other for other in others if not self.shares.keys() & other.shares.keys()]


def map_photographs(request: MapRequest, console: Console, stop: threading.Event) -> Bar:
    """Refine the maps of photographs, one after the other; write NAME.png and NAME.npz of each.

    A line is said of each, and a bar shown where there are several. Where something is refused, nothing is written.
    """
    say = functools.partial(console.print, highlight=False, markup=False, soft_wrap=True)
    paths = _photographs(request)
    makers, source = _open(request)
    first, given = makers[0], None
    say(f"{source}; on {first.device}")
    if request.classes is not None:  # a number is an index unless it is a class's name
        named, known = [part.strip() for part in request.classes.split(",") if part.strip()], first.names or ()
        given = first.indices([int(name) if name.isdecimal() and name not in known else name for name in named])
    photographs = _look(paths, first, given, say, request.long_side)
    extras = _extras(request.extras, first, {*paths}, say)
    if any(maker.takes_extras for maker in makers):
        _tell_extras(photographs, extras, say)
    storage.require_writable(storage.absolute(request.out))
    several, name, unit = len(paths) > 1, "map", "photographs"
    shown = show_progress(console, name, len(paths), unit=unit) if several else nullcontext(Bar(name, 1, 0, unit))
    with shown as bar:
        bar.advance(0, len(paths) - len(photographs))
        tallies = _map_all(photographs, extras, request, makers, bar, say, stop)
    for maker, tally in zip(makers, tallies, strict=True):
        if several and (early := stopped_early(tally.counts)) is not None:
            say(stop_hint(tally.counts, maker.config.steps) or f"Stopped early: {early}.")
    return bar


def _map_all(
    photographs: Sequence[_Photograph],
    extras: Sequence[_Photograph],
    request: MapRequest,
    makers: Sequence[MapMaker],
    bar: Bar,
    say: Say,
    stop: threading.Event,
) -> list[StopTally]:
    """Return how the refinements by each method ended."""
    out, taken, tallies = storage.absolute(request.out), set[str](), [StopTally(maker.config) for maker in makers]
    notes: set[str] = set()
    for photograph in photographs:
        if stop.is_set():
            break
        try:
            pixels = photograph.pixels
            if pixels is None:
                pixels = _scaled(read_image(photograph.path), request.long_side)
            others = [(other.path, list(other.shares)) for other in photograph.disjoint((*photographs, *extras))]
            results = [maker(pixels, list(photograph.shares), extras=others) for maker in makers]
        except ImageError as error:
            say(f"failed: {error}")
            bar.advance(0, 1)
            continue
        target, arrays = _target(out, photograph.path, taken), dict[str, np.ndarray]()
        for maker, tally, result in zip(makers, tallies, results, strict=True):
            tally.add(result.stop_reason, result.steps)
            for name, values in result.arrays().items():  # of several methods, each one's own have its name
                is_own = len(results) > 1 and name in ("maps", "mask", "threshold")
                arrays[f"{name}_{short(maker.method)}" if is_own else name] = values
        storage.write_npz(target.with_suffix(".npz"), **arrays, source=np.array(str(photograph.path)))
        draw_side_by_side(results, target)
        told = {note for result in results for note in result.notes}
        for note in sorted(told - notes):
            say(f"Note: {note}")
        notes |= told
        say(_line(photograph, results, makers, target))
        bar.advance(1, 0)
    return tallies


def _open(request: MapRequest) -> tuple[list[MapMaker], str]:
    """Return what refines by each method, and a phrase on the network and its weights."""
    kinds = [map_maker(name) for name in request.methods]
    of_kinds = list(zip(kinds, _settings(request.settings, request.methods), strict=True))
    if "://" in request.network or storage.absolute(request.network).is_dir():
        if request.weights != IMAGENET:
            raise UsageError(
                f"--weights goes with a network by name; the run {request.network} has weights of its own."
            )
        own = [kind.from_run(request.network, **values) for kind, values in of_kinds]
        return own, f"Network: the classifier of {request.network}"
    for kind, values in of_kinds:
        known = settings_class(kind.method).model_fields
        values.update({key: value for key, value in DEFAULTS.items() if key in known and key not in values})
        read_settings(values, kind.method)  # before a network is loaded
    network, source = open_network(request.network, request.weights, "--weights")
    return [kind(network, **values) for kind, values in of_kinds], f"Network: {request.network}, weights {source}"


def _settings(overrides: Iterable[str], methods: Sequence[str]) -> list[dict[str, Any]]:
    """Return the settings of ``--set refine.KEY=VALUE``, or ``refine.METHOD.KEY=VALUE``, of each method."""
    values = change({}, overrides)
    for key, inner in values.items():
        if key != SECTION or not isinstance(inner, dict):
            named = f"{key}.{next(iter(inner))}" if isinstance(inner, dict) and inner else key
            raise UsageError(
                f"--set {named}: map reads keys of the section {SECTION} alone, such as refine.iterations=5."
            )
        for name in set(inner).intersection(NOT_READ):
            raise UsageError(f"--set {SECTION}.{name}: map does not read it, as it belongs to a run.")
    section = values.get(SECTION, {})
    if len(methods) == 1 and not isinstance(section.get(short(methods[0])), dict):
        return [section]
    try:
        parts = by_method({**section, "method": list(methods)})
    except ValueError as error:
        raise UsageError(f"{error}.") from None
    return [{key: value for key, value in part.items() if key != "method"} for part in parts.values()]


def _photographs(request: MapRequest) -> list[Path]:
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
    paths: Iterable[Path], maker: MapMaker, given: Sequence[int] | None, say: Say, long_side: int | None = None
) -> list[_Photograph]:
    """Return the photographs that can be read, with their classes; where they are to be refined, with their pixels."""
    found, left = [], KEPT_BYTES
    for path in paths:
        try:
            pixels = read_image(path)
        except ImageError as error:
            say(f"failed: {error}")
            continue
        kept = None if long_side is None or left <= 0 else _scaled(pixels, long_side)
        left -= 0 if kept is None else kept.nbytes
        shares = maker.confident(pixels) if given is None else dict.fromkeys(given)
        found.append(_Photograph(path, shares, (pixels.shape[0], pixels.shape[1]), kept))
    return found


def _scaled(pixels: np.ndarray, long_side: int) -> np.ndarray:
    scale = long_side / max(pixels.shape[:2]) if long_side else 1.0
    return rescaled(pixels, scale) if scale < 1 else pixels


def _extras(folder: Path | None, maker: MapMaker, without: set[Path], say: Say) -> list[_Photograph]:
    """Return the extra samples of a folder: with its labels, or with the classes that the network sees."""
    if folder is None:
        return []
    folder = storage.absolute(folder)
    if not folder.is_dir():
        raise UsageError(f"--extras {folder} must be a folder of photographs.")
    try:
        found = _with_labels(FolderDataset(folder, WHOLE), maker, say)
    except UsageError:
        if (folder / LABELS).exists():
            raise
        found = []  # nothing labels its photographs
    if not found:
        paths = [folder / name for name in list_files(folder).photographs]
        if not paths:
            raise UsageError(f"--extras {folder} holds no photograph.")
        say(f"Extras: the classes of the photographs in {folder} are those that the network sees.")
        found = _look([path for path in paths if path not in without], maker, None, say)
    return [photograph for photograph in found if photograph.path not in without]


def _with_labels(dataset: Dataset, maker: MapMaker, say: Say) -> list[_Photograph]:
    """Return the photographs of a data set all of whose classes the network knows."""
    indices: dict[int, int] = {}
    for place, name in enumerate(dataset.classes):
        with suppress(UsageError):
            indices[place] = maker.indices([name])[0]
    found = []
    for id, row in zip(dataset.ids, dataset.labels, strict=True):
        places = np.flatnonzero(row).tolist()
        if places and all(place in indices for place in places):
            found.append(_Photograph(dataset.image_path(id), dict.fromkeys(sorted({indices[each] for each in places}))))
    if not found:
        say(f"Extras: the labels of {dataset.name} name no class of the network; its own guesses are used.")
    elif len(found) < len(dataset):
        left = len(dataset) - len(found)
        say(f"Extras: {left} photographs have no label, or one that the network lacks, and are left out.")
    return found


def _tell_extras(photographs: Sequence[_Photograph], extras: Sequence[_Photograph], say: Say) -> None:
    together = [*photographs, *extras]
    if not photographs or len(together) < 2:
        return
    counts = [len(photograph.disjoint(together)) for photograph in photographs]
    least, most = min(counts), max(counts)
    if not most:
        say("Extras: none, since all share a class; each photograph is refined alone.")
        return
    of = f"{least}" if least == most else f"{least} to {most}"
    say(f"Extras: {of} of {len(together) - 1} for each photograph; those that share a class with it are left out.")


def _target(out: Path, path: Path, taken: set[str]) -> Path:
    """Return the PNG to write: NAME.png, or NAME-2.png … where that is of another photograph."""
    names = (path.stem if number == 1 else f"{path.stem}-{number}" for number in itertools.count(1))
    name = next(name for name in names if name.casefold() not in taken and _is_free(out / f"{name}.png", path))
    taken.add(name.casefold())
    return out / f"{name}.png"


def _is_free(target: Path, path: Path) -> bool:
    """Whether a file may be written: it does not exist, or it is this photograph's maps."""
    arrays = target.with_suffix(".npz")
    if not arrays.exists():
        return not target.exists()
    try:
        return str(storage.read_npz(arrays).get("source")) == str(path)
    except RibrayError:
        return False


def _line(photograph: _Photograph, results: Sequence[Result], makers: Sequence[MapMaker], target: Path) -> str:
    named, ended = [], []
    for index, names in zip(results[0].classes, results[0].names, strict=True):
        name, share = names.partition(",")[0], photograph.shares[index]
        guess = "perhaps " if share is not None and share < makers[0].confidence else ""
        named.append(name if share is None else f"{guess}{name} {share:.2f}")
    for maker, result in zip(makers, results, strict=True):
        steps = f"{f'{result.label} ' if len(makers) > 1 else ''}{result.steps} of {maker.config.steps} steps"
        ended.append(f"{steps}: {ENDED[result.stop_reason]}" if result.stop_reason in ENDED else steps)
    (height, width), size = results[0].maps.shape[1:], photograph.size
    scaled = "" if (height, width) == size else f" (scaled down from {size[1]} × {size[0]} to {width} × {height})"
    return f"{photograph.path.name}{scaled}: {', '.join(named)}; {', '.join(ended)}; {target}"
