"""``ribray import-maps``: maps made elsewhere take the place of stage ``refine``.

They lie in the run as refined ones do, under a key that depends on the imported files and the data and on nothing
that the run could have made: no classifier is needed, and no setting of ``refine`` matters. An image that is imported
stays as it is; others can follow, so that mended files are taken by the same command.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ribray import storage
from ribray.config import CAM
from ribray.data.dataset import Dataset
from ribray.data.images import by, image_size
from ribray.errors import DamagedError, ImageError, UsageError
from ribray.methods.imported import ARCHIVE, SCALES, SINGLE, imported_arrays, is_stretched, read_class_maps
from ribray.methods.maps import MapRecord, empty_arrays, write_maps
from ribray.pipeline.maps import finished_ids, left_out, map_path, refine_stage, wanted_ids
from ribray.pipeline.per_image import StagePool
from ribray.pipeline.stage import Context, per_second
from ribray.runs.metrics import RefineMetrics

TITLE = "import-maps"
_STRETCHED = (
    "have other proportions than their image and are stretched to it: right if the image was stretched likewise"
)
_BLANK = "are zero in every pixel, so that they show no class"
CHUNK = 8  # images of one call: to read and compress one takes some ten milliseconds


class ImportWorker:
    def __init__(self, dataset: Dataset, source: Path, folder: Path, names: Sequence[str]):
        self._dataset, self._source, self._folder, self._names = dataset, source, folder, names

    def process(self, item: str) -> dict[str, Any]:
        dataset = self._dataset
        size = image_size(dataset.image_path(item))
        present = np.flatnonzero(dataset.labels[dataset.index(item)]).tolist()
        remarks: dict[str, str] = {}
        if present:
            given = read_class_maps(self._source, item)
            arrays = imported_arrays(given, dataset.classes, present, size, item, self._names)
            shape = given[dataset.classes[present[0]]].shape
            if is_stretched(shape, size):
                remarks[_STRETCHED] = f"{item}: {by(shape)} for {by(size)}"
            if not any(given[dataset.classes[index]].any() for index in present):
                remarks[_BLANK] = item
        else:
            arrays = empty_arrays(size, SCALES, self._names)
        location = map_path(self._folder, item)
        try:
            earlier = MapRecord.read(location, item) if location.exists() else None
        except DamagedError:  # the files it was made of are here
            earlier = None
        if earlier is None:
            write_maps(location, item, arrays)
        elif _content(earlier) != _content(MapRecord.from_arrays(arrays)):
            raise ImageError(
                f"The maps of {item} are not those that were imported before; choose another --out for them."
            )
        return remarks


def _content(record: MapRecord) -> tuple[Any, ...]:
    maps = {name: [of_scale.tolist() for of_scale in scales] for name, scales in record.maps.items()}
    return record.classes.tolist(), record.size, maps


# --- in the driver -----------------------------------------------------------------------------------------------


def import_maps(context: Context, source: Path) -> None:
    run, dataset, methods = context.run, context.training_set, context.experiment.methods
    if len(methods) > 1:
        raise UsageError(f"Maps are imported in place of one method: set refine.method to one of {', '.join(methods)}.")
    ((method, config),) = methods.items()
    name, wanted = refine_stage(method), wanted_ids(context)
    place, folder = context.stages[name].folder, context.own_folder(name)
    _require_some(source, dataset, wanted)
    content = _digest(source)
    record = run.record(place) or {"imported": content}
    if "imported" not in record:
        raise UsageError(f"{run.directory} already holds maps that were refined there; choose another --out.")
    key = context.key_of_import(name, record["imported"])
    run.refuse_other_settings(place, key)
    run.begin(place, key, imported=content, source=str(source))
    # Where the files have changed since, those imported before are looked at again.
    done = finished_ids(folder) if record["imported"] == content else set()
    left = [id for id in wanted if id not in done]
    failures = left_out(context, name)
    pool = StagePool(context, name, failures, TITLE, chunk_size=CHUNK, gpu=False)
    arguments = {"dataset": dataset, "source": source, "folder": folder, "names": (CAM, *config.maps)}
    remarked: dict[str, list[str]] = defaultdict(list)

    def on_done(id: str, remarks: Mapping[str, str]) -> None:
        for remark, example in remarks.items():
            remarked[remark].append(example)

    result = pool.run(ImportWorker, arguments, left, on_done, len(wanted), len(wanted) - len(left))
    for remark, examples in remarked.items():
        context.tell(f"The maps of {len(examples)} of {result.done} images {remark} (such as {min(examples)}).")
    context.replace_failures(name, failures)
    imported = finished_ids(folder)
    images = len(imported.intersection(wanted))
    if not result.stopped:
        context.require_any_done(name, len(wanted), images, failures, is_empty=not imported)
    timing = per_second(result.done, result.seconds, result.start_seconds)
    run.write_metrics(name, RefineMetrics(images=images, failed=len(failures), imported=str(source), timing=timing))


def _require_some(source: Path, dataset: Dataset, wanted: list[str]) -> None:
    if not source.is_dir():
        raise UsageError(f"{source} is no folder; give the folder that holds the maps.")
    if not any((source / f"{id}{ARCHIVE}").is_file() or (source / id).is_dir() for id in wanted):
        id = wanted[0] if wanted else "ID"
        archive, single = source / f"{id}{ARCHIVE}", source / id / f"{dataset.classes[0]}{SINGLE}"
        raise UsageError(
            f"{source} holds maps of none of the {len(wanted)} images of {dataset.name}: there should be files such "
            f"as {archive}, with an array per class, or {single}."
        )


def _digest(source: Path) -> str:
    digest = hashlib.sha256()
    for name in sorted(f"{id}{suffix}" for suffix in (ARCHIVE, SINGLE) for id in storage.list_ids(source, suffix)):
        with (source / name).open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{name}\n{content}\n".encode())
    return digest.hexdigest()
