"""``ribray predict``: masks of any photographs by a run's segmentation network.

It needs the run directory alone, not the data that the run was made of. It writes

    OUT/masks/ID.png       palette PNG
    OUT/overlays/ID.png    the mask over the image, with a legend
    OUT/predict.json       which network and which images these are
    OUT/failures.jsonl     images without a mask, if any

where an id is an image's path below the given folder without its ending. The same command goes on where it was
stopped, and tries failed images again.
"""

import functools
import hashlib
import io
import threading
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from ribray import storage
from ribray.cluster.pool import Pool, PoolPlan
from ribray.commands import export
from ribray.config import SegmentationConfig, to_values, validate_experiment
from ribray.data.dataset import colour_map
from ribray.data.files import list_files
from ribray.data.ids import masks_beside
from ribray.data.images import IMAGE_SUFFIXES, read_picture, tell_readings
from ribray.data.lists import check_id
from ribray.data.mask_files import SUFFIX, write_mask
from ribray.data.names import composed
from ribray.demo import world as synthetic
from ribray.errors import UsageError
from ribray.masks.crf import PREDICTION_CRF, crf_from_probabilities, require_crf
from ribray.networks.deeplab import Predictor
from ribray.pipeline.artifacts import WEIGHTS_FILE, require_recorded
from ribray.pipeline.finished_run import FinishedRun
from ribray.pipeline.stage import open_session
from ribray.progress import show_progress
from ribray.report.overlays import legend_overlay
from ribray.runs.directory import require_outside
from ribray.runs.records import FAILURES_FILE, Failure
from ribray.runs.records import RECORD_FILE as STAGE_RECORD
from ribray.stages import segmentation, stages_of

NAME = "predict"
MASKS, OVERLAYS = "masks", "overlays"
RECORD_FILE = "predict.json"


@dataclass(frozen=True)
class Predicted:
    folder: Path
    images: int
    done: int  # images that have a mask now
    failures: list[Failure]  # images without one, by the names of their files
    stopped: bool


@dataclass(frozen=True)
class Network:
    config: SegmentationConfig
    weights: Path
    uses_crf: bool
    classes: tuple[str, ...]
    palette: np.ndarray  # (256, 3) uint8


# --- in a worker -------------------------------------------------------------------------------------------------


class PredictWorker:
    def __init__(self, network: Network, source: Path, out: Path):
        self._network, self._source, self._out = network, source, out
        self._predict = Predictor(network.config, len(network.classes), network.weights)

    def process(self, item: str) -> dict[str, Any]:
        network, id = self._network, id_of(item)
        picture = read_picture(self._source / item)
        image = picture.pixels
        probabilities = self._predict(image)
        if network.uses_crf:
            probabilities = crf_from_probabilities(image, probabilities, PREDICTION_CRF)
        mask = probabilities.argmax(0).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(legend_overlay(image, mask, network.classes, network.palette)).save(stream, "PNG")
        storage.write_bytes(self._out / OVERLAYS / f"{id}{SUFFIX}", stream.getvalue())
        write_mask(self._out / MASKS / f"{id}{SUFFIX}", mask, network.palette)
        return {"remarks": picture.remarks}


# --- in the driver -----------------------------------------------------------------------------------------------


def predict_images(
    directory: Path, source: Path, out: Path, console: Console, stop: threading.Event, workers: int = 0
) -> Predicted:
    """Predict each image of ``source`` without mask and overlay in ``out``, by workers on Ray or (0) this process."""
    say = functools.partial(console.print, highlight=False, markup=False, soft_wrap=True)
    finished, source, out = FinishedRun.read(directory, stages_of), storage.absolute(source), storage.absolute(out)
    network = _network(finished)
    if network.uses_crf:
        require_crf()
    root, names, gaps = find_images(source, out)
    _claim(out, network, root)
    for sentence in gaps:
        say(f"Note: {sentence}")
    failures: dict[str, Failure] = {}
    for name in names:
        try:
            check_id(id_of(name), "the name of the image")
        except UsageError as error:
            failures[name] = Failure(name, NAME, str(error))
    done = storage.list_ids(out / MASKS, SUFFIX) & storage.list_ids(out / OVERLAYS, SUFFIX)
    left = [name for name in names if name not in failures and id_of(name) not in done]
    earlier = len(names) - len(failures) - len(left)
    made, stopped = 0, False
    remarks: Counter[Any] = Counter()

    def on_failed(name: str, error: str, tries: int, traceback: str | None) -> None:
        failures[name] = Failure(name, NAME, error, tries, traceback)

    if left:
        cluster = finished.experiment.cluster.model_copy(update={"workers": min(workers, len(left))})
        with ExitStack() as resources:
            session = open_session(resources, console, cluster, out, stop)
            gpus = cluster.gpus_per_worker if session.gpus else 0.0  # the run's machine may have had some
            plan = PoolPlan.of(NAME, cluster.model_copy(update={"gpus_per_worker": gpus}), session)
            pool = Pool(plan, PredictWorker, {"network": network, "source": root, "out": out})
            with show_progress(console, NAME, len(names), earlier) as bar:
                result = pool.run(left, lambda name, seen: remarks.update(seen["remarks"]), on_failed, bar, stop.is_set)
        made, stopped = result.done, result.stopped
    for sentence in tell_readings(remarks):
        say(f"Note: {sentence}")
    failed = sorted(failures.values(), key=lambda one: one.id)
    if failed or (out / FAILURES_FILE).exists():
        text = "".join(f"{failure.to_json()}\n" for failure in failed)
        storage.write_bytes(out / FAILURES_FILE, text.encode("utf-8", "backslashreplace"))  # names may be no Unicode
    return Predicted(out, len(names), earlier + made, failed, stopped)


def find_images(source: Path, out: Path) -> tuple[Path, list[str], list[str]]:
    """Return a folder, the sorted names of the images below it that do not lie in ``out``, and what is left out."""
    if not source.is_dir():
        if not source.exists():
            raise UsageError(f"{source} does not exist; give an image, or a folder of images.")
        return source.parent, [source.name], []
    listing = list_files(source, without=out)
    if reason := listing.closed.get(""):
        raise UsageError(f"{source} cannot be listed: {reason}.")
    names = listing.photographs
    unread = [*listing.unread(source, {composed(id_of(name)) for name in names}).values()]
    if not names:
        raise UsageError(" ".join([f"{source} holds no image (with ending {', '.join(IMAGE_SUFFIXES)}).", *unread]))
    owners: dict[str, str] = {}
    for name in names:
        if (other := owners.setdefault(composed(id_of(name)), name)) != name:
            raise UsageError(f"{source / other} and {source / name} would have the same mask: rename one of the two.")
    notes = [*listing.gaps(source).values(), *unread]
    if beside := masks_beside(owners):
        first, files = owners[min(beside)], f"{len(beside)} files are" if len(beside) > 1 else "1 file is"
        notes.append(f"{files} not predicted: {source / first} seems to be a mask; if it is a photograph, rename it.")
    return source, [name for id, name in owners.items() if id not in beside], notes


def id_of(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _network(finished: FinishedRun) -> Network:
    artifact = finished.artifact(segmentation.NAME)
    if artifact is None or not (artifact.folder / WEIGHTS_FILE).exists():
        raise UsageError(
            f"{finished.run.directory} has no trained segmentation network: train it, stage '{segmentation.NAME}', by "
            f"`{finished.command_for(segmentation.NAME)}`."
        )
    require_recorded(artifact.folder, segmentation.NAME)
    recorded, prefix = artifact.record["inputs"]["configuration"], f"{segmentation.NAME}."
    trained = {key.removeprefix(prefix): value for key, value in recorded.items() if key.startswith(prefix)}
    values = {**to_values(finished.experiment), segmentation.NAME: trained}
    experiment = validate_experiment(values, str(artifact.folder / STAGE_RECORD))
    written = artifact.run.read_metrics().segmentation
    earlier = (run.read_metrics().classifier for run in finished.run.lineage)
    names = next((metrics.classes for metrics in (written, *earlier) if metrics is not None and metrics.classes), None)
    classes = finished.context().training_set.classes if names is None else tuple(names)
    palette = synthetic.palette(len(classes)) if experiment.data.kind == "synthetic" else colour_map()
    if written is not None and written.colours:
        palette = colour_map()
        palette[: len(written.colours)] = [list(bytes.fromhex(colour.removeprefix("#"))) for colour in written.colours]
    uses_crf = experiment.evaluate.crf == "dense"
    return Network(experiment.segmentation, artifact.folder / WEIGHTS_FILE, uses_crf, classes, palette)


def _claim(out: Path, network: Network, root: Path) -> None:
    with network.weights.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    record = {"weights": digest, "crf": network.uses_crf, "source": str(root), "classes": list(network.classes)}
    if (out / RECORD_FILE).exists():
        if storage.read_json(out / RECORD_FILE) != record:
            raise UsageError(f"{out} holds predictions by another network or of other images; choose another --out.")
    elif out.is_dir() and any(out.iterdir()):
        raise UsageError(f"{out} holds other files; choose another --out.")
    else:
        require_outside(out, allowed=export.FOLDER)
    storage.require_writable(out)
    storage.write_json(out / RECORD_FILE, record)
    storage.remove_leftovers(out)
