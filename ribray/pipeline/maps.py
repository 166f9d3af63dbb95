"""The maps of a run: where an image's file lies, which images are wanted, and which have maps."""

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ribray import storage
from ribray.config import RIB, Experiment
from ribray.data.dataset import Dataset
from ribray.data.lists import id_finder, read_list
from ribray.data.near import Near
from ribray.errors import UsageError
from ribray.methods.maps import SUFFIX, Size, localization_maps, map_path
from ribray.pipeline.artifacts import read_map
from ribray.pipeline.stage import Context
from ribray.runs.records import RECORD_FILE, Failure

REFINE = "refine"  # makes them by RIB; the names of the stages that make them by other methods begin with it
LISTINGS = 16  # subfolders listed, or files read, at a time: an object store answers late, but many at once


def refine_stage(method: str) -> str:
    return REFINE if method == RIB else f"{REFINE}_{method}"


def source_stage(experiment: Experiment) -> str:
    return refine_stage(experiment.maps[experiment.sources[0]])


def are_finished(folder: Path, ids: Sequence[str]) -> np.ndarray:
    """Return which images have a map file, (ids,) bool, by a listing of the folder; none without the stage's record.

    One subfolder's names are held at a time, so this takes little memory for any number of images.
    """
    finished = np.zeros(len(ids), dtype=bool)
    if not (folder / RECORD_FILE).exists():
        return finished
    subfolders = np.fromiter(map(storage.subfolder, ids), np.uint8, len(ids))
    order = np.argsort(subfolders, kind="stable")
    parts = np.split(order, np.searchsorted(subfolders[order], np.arange(1, storage.SUBFOLDERS)))

    def look(number: int) -> None:
        if parts[number].size:
            names = storage.list_ids(folder / f"{number:02x}", SUFFIX)
            finished[parts[number]] = [ids[place] in names for place in parts[number]]

    with ThreadPoolExecutor(LISTINGS) as threads:
        list(threads.map(look, range(storage.SUBFOLDERS)))
    return finished


def map_files(folders: Sequence[Path], ids: Sequence[str]) -> dict[str, list[Path]]:
    """Return the map files of those images that have any, one from each folder that has one."""
    there = [are_finished(folder, ids) for folder in folders]
    found = {
        id: [map_path(folder, id) for folder, has in zip(folders, there, strict=True) if has[place]]
        for place, id in enumerate(ids)
    }
    return {id: files for id, files in found.items() if files}


def finished_ids(folder: Path) -> set[str]:
    """Return the ids of all images with a map file, by one listing of the folder; none without the stage's record."""
    if not (folder / RECORD_FILE).exists():
        return set()
    return {id for name in storage.list_ids(folder, SUFFIX) if (id := storage.spread_id(name))}


def wanted_ids(context: Context) -> list[str]:
    """Return the images to refine, in the order of the split."""
    return chosen_ids(context.training_set, context.experiment, context.tell)


def chosen_ids(dataset: Dataset, config: Experiment, tell: Callable[[str], object]) -> list[str]:
    """Return those images of the training split that are in ``data.image_list``, up to ``refine.limit``.

    An image of the list that the split had to leave out is none of them, and is a failure.
    """
    ids = list(dataset.ids)
    if config.data.image_list is not None:
        left_out = [problem.id for problem in dataset.problems]
        listed = read_list(storage.absolute(config.data.image_list), id_finder([*left_out, *ids]))
        chosen = set(listed.ids)
        if strays := chosen.difference(left_out, ids):
            id = next(id for id in listed.ids if id in strays)
            near = Near([*ids, *left_out]).hint(id)
            raise UsageError(f"data.image_list names '{id}', which is not in {dataset.name}{near}.")
        if listed.signs:
            tell(
                f"{listed.source} has a sign on its lines, as VOC's lists of a class have: all its images are refined, "
                "whatever the sign."
            )
        ids = [id for id in ids if id in chosen]
    return ids[: config.refine.limit]


def left_out(context: Context, stage: str = REFINE) -> dict[str, Failure]:
    """Return the images that cannot be refined, as what is wrong with them keeps them out of the split."""
    dataset = context.training_set
    return {one.id: Failure(one.id, stage, one.sentence) for one in dataset.problems if one.id not in dataset}


def refined_ids(context: Context, *stages: str) -> list[str]:
    """Return the wanted images that have a map file of every stage, by default of that which masks are made from."""
    wanted = wanted_ids(context)
    finished = [are_finished(context.artifact(stage), wanted) for stage in stages or [source_stage(context.experiment)]]
    return list(itertools.compress(wanted, np.logical_and.reduce(finished)))


def read_maps(
    folder: Path, id: str, source: str, size: Size, dataset: Dataset, image: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the localization maps (P, h, w) that masks are made from, and their classes (P,)."""
    record = read_map(map_path(folder, id), id, dataset, (image.shape[0], image.shape[1]))
    return localization_maps(record, source, size), record.classes
