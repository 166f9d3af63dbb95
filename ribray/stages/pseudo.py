"""Stage ``pseudo``: a random walk spreads the maps up to IRN's boundaries; what comes out is cut into pseudo masks."""

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ribray.config import Experiment
from ribray.data.dataset import Dataset
from ribray.data.mask_files import mask_path
from ribray.data.transforms import target_views
from ribray.errors import ImageError
from ribray.evaluation.bootstrap import Bootstrapped
from ribray.evaluation.mask_counts import MaskCounts
from ribray.evaluation.threshold_curve import ThresholdCurve
from ribray.irn.random_walk import random_walk
from ribray.masks.confident import cut
from ribray.masks.crf import crf_on_labels, require_crf
from ribray.masks.pseudo import walk_scores
from ribray.masks.saliency import mark_conflicts, read_saliency, saliency_folder
from ribray.masks.seed import winner
from ribray.networks.irnet import build_irnet
from ribray.networks.weights import load_network
from ribray.pipeline import judging
from ribray.pipeline.artifacts import trained_weights
from ribray.pipeline.maps import REFINE, read_maps, refined_ids, wanted_ids
from ribray.pipeline.masks import MASK, MaskWorker, NewMask, judge_training_masks, mask_work
from ribray.pipeline.stage import Context, Stage
from ribray.runs.metrics import PseudoMetrics, SeedJudgement
from ribray.runs.stage_facts import Judged

NAME = "pseudo"
IRN = "irn"  # the stage whose network it asks for boundaries
WALK = "walk"  # name of the counts of the walk's scores, before the CRF, over thresholds
WALK_THRESHOLDS = [round(0.01 * step, 2) for step in range(1, 100)]


@dataclass(frozen=True)
class _Prepared:
    """An image on its way: maps (P, h, w) that the walk starts from, and boundary probabilities (h, w)."""

    image: np.ndarray
    present: np.ndarray
    maps: Tensor
    boundary: Tensor


class PseudoWorker(MaskWorker):
    """Walks and cuts; several images walk together."""

    def __init__(
        self,
        dataset: Dataset,
        folder: Path,
        judge: Dataset,
        maps: Path,
        weights: Path,
        backbone: tuple[str, int],
        experiment: Experiment,
        saliency: Path | None,
    ):
        super().__init__(dataset, folder, judge)
        self._maps, self._experiment, self._saliency = maps, experiment, saliency
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = build_irnet(*backbone, experiment.irn.displacement_width)
        load_network(self._network, weights)
        self._network.to(self._device).eval()
        self._crf = crf_on_labels(experiment.pseudo.crf, experiment.masks.crf_srgb)

    def make(self, id: str) -> NewMask:
        prepared = self._prepare(id)
        return self._cut(id, prepared, self._walk([prepared])[0])

    def process_batch(self, items: list[str]) -> dict[str, Any]:
        """Return the records of those images that can be done together."""
        prepared: dict[str, _Prepared] = {}
        for id in items:
            if not mask_path(self.folder, id).exists():
                with suppress(ImageError):  # met again, and told, when the image is done alone
                    prepared[id] = self._prepare(id)
        records = {}
        for (id, ready), walked in zip(prepared.items(), self._walk(prepared.values()), strict=True):
            with suppress(ImageError):
                records[id] = self.finish(id, self._cut(id, ready, walked))
        return records

    def _prepare(self, id: str) -> _Prepared:
        image, source, power = self.dataset.image(id), self._experiment.sources[0], self._experiment.pseudo.power
        maps, present = read_maps(self._maps, id, source, "stride4", self.dataset, image)
        (views,) = target_views(image, (1.0,), self._network.backbone.normalisation)
        boundary = self._network.boundary_probability(views.to(self._device))
        return _Prepared(image, present, torch.from_numpy(maps).to(self._device) ** power, boundary)

    def _walk(self, prepared: Collection[_Prepared]) -> list[Tensor]:
        config = self._experiment.pseudo
        maps, boundaries = [each.maps for each in prepared], [each.boundary for each in prepared]
        return random_walk(maps, boundaries, radius=config.radius, beta=config.beta, exp_times=config.exp_times)

    def _cut(self, id: str, prepared: _Prepared, walked: Tensor) -> NewMask:
        config = self._experiment.pseudo
        size = (prepared.image.shape[0], prepared.image.shape[1])
        scores = walk_scores(walked.cpu(), size)
        low, high = config.ignore_band or (config.threshold, config.threshold)
        mask, note = cut(prepared.image, scores, prepared.present, high, low, self._crf), None
        if self._saliency is not None:
            salient, note = read_saliency(self._saliency, id, size, self._experiment.masks.saliency_threshold)
            mask = mark_conflicts(mask, salient)

        def count(truth: np.ndarray) -> dict[str, Any]:
            curve = ThresholdCurve(len(self.dataset.classes) + 1, WALK_THRESHOLDS)
            curve.add(*winner(scores, prepared.present), truth)
            return {WALK: curve.to_sparse()}

        return NewMask(mask, count, note)


def _check(context: Context) -> None:
    judging.require_truth_of_wanted(context)
    if context.experiment.pseudo.crf == "dense":
        require_crf()
    saliency_folder(context.experiment.masks.saliency)


def _execute(context: Context) -> None:
    experiment, names = context.experiment, ["background", *context.training_set.classes]
    counts = Bootstrapped(MaskCounts(len(names)))
    walk = Bootstrapped(ThresholdCurve(len(names), WALK_THRESHOLDS))
    network = {"weights": trained_weights(context, IRN, NAME), "backbone": experiment.irn_backbone}
    arguments = {**network, "experiment": experiment, "saliency": saliency_folder(experiment.masks.saliency)}
    added: dict[str, Bootstrapped[Any]] = {MASK: counts, WALK: walk}
    size = experiment.pseudo.batch_images
    result = judge_training_masks(context, NAME, PseudoWorker, arguments, added, gpu=True, chunk_size=size)
    if result is None:
        return
    values: dict[str, Any] = {"images": result.images, "failed": len(result.failures)}
    if counts.images:
        values |= judging.summarise(context, NAME, counts, names)
        values["walk"] = SeedJudgement(**walk.summary(names), failed=len(result.failures))
    metrics = PseudoMetrics(**values, timing=result.timing)
    context.finish(NAME, metrics, [id for id in result.ids if id not in result.failures])


def _judged(metrics: PseudoMetrics) -> list[Judged]:
    if metrics.walk is None:
        return []
    return [Judged("random walk, best threshold", metrics.walk, ", random walk"), Judged("pseudo masks", metrics)]


STAGE = Stage(
    name=NAME,
    upstream=(REFINE, IRN),
    section="pseudo",
    also_reads=("masks.source", "masks.crf_srgb", "masks.saliency", "masks.saliency_threshold"),
    leaves_out=("pseudo.batch_images",),
    format=2,
    work=lambda context: mask_work(context, NAME, refined_ids(context) or wanted_ids(context)),
    execute=_execute,
    writes=("miou", "miou_known", "unknown", "walk.miou", "walk.threshold"),
    check=_check,
    headline=lambda metrics: judging.mean_ious(metrics) if metrics.walk else None,
    judged=_judged,
    serves_in_part=True,
)
