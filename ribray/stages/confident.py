"""Stage ``confident``: confident labels for IRN, cut from the maps at two thresholds and passed through a dense CRF."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ribray.config import Experiment
from ribray.data.dataset import IGNORE, Dataset
from ribray.evaluation.bootstrap import Bootstrapped
from ribray.evaluation.mask_counts import MaskCounts
from ribray.masks.confident import cut
from ribray.masks.crf import LABEL_CRF, CrfParameters, require_crf
from ribray.methods.maps import Size, localization_maps
from ribray.pipeline import judging
from ribray.pipeline.artifacts import read_map
from ribray.pipeline.masks import (
    MASK,
    Made,
    MaskWorker,
    finished_masks,
    mask_work,
    require_any_mask,
    run_masks,
    write_covers,
)
from ribray.pipeline.stage import Context, Stage
from ribray.stages import refine, seed

NAME = "confident"
FOLDER = "confident"
FORMAT = 2


def crf_on_labels(kind: str, experiment: Experiment) -> CrfParameters | None:
    """Return the CRF's parameters on labels, None for ``none``."""
    return replace(LABEL_CRF, bilateral_srgb=experiment.masks.crf_srgb) if kind == "dense" else None


def read_maps(
    folder: Path, id: str, source: str, size: Size, dataset: Dataset, image: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the localization maps (P, h, w) that masks are made from, and their classes (P,).

    Raises:
        ImageError: the map file is missing, or is damaged or not this image's and was set aside.
    """
    record = read_map(refine.map_path(folder, id), id, dataset, (image.shape[0], image.shape[1]))
    return localization_maps(record, "refined" if source == "rib" else "initial", size), record.classes


class ConfidentWorker(MaskWorker):
    """Cuts the maps of an image."""

    def __init__(self, dataset: Dataset, folder: Path, judge: Dataset, maps: Path, experiment: Experiment):
        super().__init__(dataset, folder, judge)
        self._maps, self._config = maps, experiment.masks
        self._crf = crf_on_labels(experiment.masks.crf, experiment)

    def make(self, id: str) -> Made:
        """Return 0, a class, or 255 where neither is sure."""
        image = self.dataset.image(id)
        maps, present = read_maps(self._maps, id, self._config.source, "full", self.dataset, image)
        return Made(cut(image, maps, present, self._config.fg_threshold, self._config.bg_threshold, self._crf))

    def finish(self, id: str, made: Made) -> dict[str, Any]:
        """Also note where nothing is sure: IRN learns nothing from such an image."""
        is_unsure = bool((made.mask == IGNORE).all())
        return super().finish(id, made) | {"note": "no confident pixel" if is_unsure else None}


def labelled_ids(context: Context) -> list[str]:
    """Return the wanted images that have confident labels, in the order of the split."""
    done = finished_masks(context.artifact(NAME))
    return [id for id in refine.wanted_ids(context) if id in done]


def _ids(context: Context) -> list[str]:
    return refine.refined_ids(context) or refine.wanted_ids(context)


def _check(context: Context) -> None:
    seed.require_truth(context)
    if context.experiment.masks.crf == "dense":
        require_crf()


def _execute(context: Context) -> None:
    run, dataset = context.run, context.training_set
    maps = context.require(refine.NAME, NAME)
    ids = refine.refined_ids(context)
    run.begin(FOLDER, context.key(NAME))
    counts = Bootstrapped(MaskCounts(len(dataset.classes) + 1))
    arguments = {
        "dataset": dataset,
        "folder": context.own_folder(NAME),
        "judge": seed.evaluated_split(context),
        "maps": maps,
        "experiment": context.experiment,
    }
    result = run_masks(context, NAME, ConfidentWorker, arguments, ids, {MASK: counts}, gpu=False)
    if result.stopped:
        return
    context.replace_failures(NAME, result.failures)
    require_any_mask(context, NAME, len(ids), result.without)
    failed = len(result.failures)
    metrics: dict[str, Any] = {"images": len(ids) - len(result.without), "failed": failed}
    if counts.images:
        names = ["background", *dataset.classes]
        metrics["seed_crf"] = {**judging.summarise(context, NAME, counts, names), "failed": failed}
    run.write_metrics(NAME, {**metrics, "timing": result.timing})
    write_covers(context, NAME, [id for id in ids if id not in result.failures])


STAGE = Stage(
    name=NAME,
    folder=FOLDER,
    upstream=(refine.NAME,),
    reads=("masks.source", "masks.crf", "masks.crf_srgb", "masks.fg_threshold", "masks.bg_threshold"),
    leaves_out=(),
    format=FORMAT,
    fingerprints=lambda context: {},
    work=lambda context: mask_work(context, NAME, _ids(context)),
    execute=_execute,
    writes=("seed_crf.miou", "seed_crf.miou_known", "seed_crf.unknown"),
    check=_check,
    serves_in_part=True,
)
