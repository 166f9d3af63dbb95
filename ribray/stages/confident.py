"""Stage ``confident``: confident labels for IRN, cut from the maps at two thresholds and passed through a dense CRF."""

from pathlib import Path
from typing import Any

from ribray.config import Experiment
from ribray.data.dataset import IGNORE, Dataset
from ribray.evaluation.bootstrap import Bootstrapped
from ribray.evaluation.mask_counts import MaskCounts
from ribray.masks.confident import cut
from ribray.masks.crf import crf_on_labels, require_crf
from ribray.pipeline import judging
from ribray.pipeline.maps import REFINE, read_maps, refined_ids, wanted_ids
from ribray.pipeline.masks import MASK, MaskWorker, NewMask, judge_training_masks, mask_work
from ribray.pipeline.stage import Context, Stage
from ribray.runs.metrics import ConfidentMetrics, MaskJudgement
from ribray.runs.stage_facts import Judged

NAME = "confident"


class ConfidentWorker(MaskWorker):
    """Cuts the maps of an image into 0, a class, or 255 where neither is sure."""

    def __init__(self, dataset: Dataset, folder: Path, judge: Dataset, maps: Path, experiment: Experiment):
        super().__init__(dataset, folder, judge)
        self._maps, self._config, self._source = maps, experiment.masks, experiment.sources[0]
        self._crf = crf_on_labels(experiment.masks.crf, experiment.masks.crf_srgb)

    def make(self, id: str) -> NewMask:
        image, config = self.dataset.image(id), self._config
        maps, present = read_maps(self._maps, id, self._source, "full", self.dataset, image)
        return NewMask(cut(image, maps, present, config.fg_threshold, config.bg_threshold, self._crf))

    def finish(self, id: str, made: NewMask) -> dict[str, Any]:
        """Also note where nothing is sure: IRN learns nothing from such an image."""
        is_unsure = bool((made.mask == IGNORE).all())
        return super().finish(id, made) | {"note": "no confident pixel" if is_unsure else None}


def _check(context: Context) -> None:
    judging.require_truth_of_wanted(context)
    if context.experiment.masks.crf == "dense":
        require_crf()


def _execute(context: Context) -> None:
    names = ["background", *context.training_set.classes]
    counts = Bootstrapped(MaskCounts(len(names)))
    own = {"experiment": context.experiment}
    if (result := judge_training_masks(context, NAME, ConfidentWorker, own, {MASK: counts}, gpu=False)) is None:
        return
    failed, judged = len(result.failures), {}
    if counts.images:
        judged["seed_crf"] = MaskJudgement(**judging.summarise(context, NAME, counts, names), failed=failed)
    crf = context.experiment.masks.crf
    metrics = ConfidentMetrics(crf=crf, images=result.images, failed=failed, **judged, timing=result.timing)
    context.finish(NAME, metrics, [id for id in result.ids if id not in result.failures])


def _judged(metrics: ConfidentMetrics) -> list[Judged]:
    start = "seed" if metrics.crf == "none" else "seed + CRF"
    return [Judged(f"{start}, confident labels", metrics.seed_crf)] if metrics.seed_crf else []


STAGE = Stage(
    name=NAME,
    upstream=(REFINE,),
    also_reads=("masks.source", "masks.crf", "masks.crf_srgb", "masks.fg_threshold", "masks.bg_threshold"),
    format=2,
    work=lambda context: mask_work(context, NAME, refined_ids(context) or wanted_ids(context)),
    execute=_execute,
    writes=("seed_crf.miou", "seed_crf.miou_known", "seed_crf.unknown"),
    check=_check,
    headline=lambda metrics: judging.mean_ious(metrics.seed_crf),
    judged=_judged,
    serves_in_part=True,
)
