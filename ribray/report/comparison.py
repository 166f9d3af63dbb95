"""Kinds of maps beside each other: what was judged of each, from the seed to the segmentation.

Maps go by the names that a run's numbers and files have them under; nothing here knows which methods there are.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ribray.config.methods import CAM, LABELS
from ribray.evaluation.bootstrap import gain_interval
from ribray.report.plots import LOOKS
from ribray.runs.metrics import Judgement, RunMetrics
from ribray.runs.stage_facts import StageFacts

SEED, PSEUDO_MASKS, SEGMENTATION, RETRAINED = "seed, best threshold", "pseudo masks", "segmentation", "re-trained"
"""What stages call a few of the things that they judge."""
Stages = Mapping[str, StageFacts]


def look_number(maps: str) -> int | None:
    """Return which of a page's colours, and of the looks of lines, stands for maps everywhere; None of unknown ones."""
    known = list(LABELS)
    number = known.index(maps) if maps in known else None
    return number and 1 + (number - 1) % (len(LOOKS) - 1)  # the first look is plain CAM's alone


def ordered(names: Iterable[str]) -> list[str]:
    return sorted(set(names), key=lambda name: (name != CAM, name))


@dataclass(frozen=True)
class Comparison:
    """One thing that was judged, such as pseudo masks, of every kind of maps that has come to it."""

    label: str
    is_held_out: bool  # whether held-out images were judged, not training images
    numbers: dict[str, Judgement]  # by the name of the maps


def chains(metrics: RunMetrics, own: str) -> dict[str, RunMetrics]:
    """Return the metrics of every chain of stages by the maps it starts from, plain CAM first.

    ``own`` are the maps that a run's own masks are made from: "cam" of a variant.
    """
    found = {**metrics.variants, own: metrics}
    return {maps: found[maps] for maps in ordered(found)}


def comparisons(metrics: RunMetrics, stages: Stages, own: str) -> list[Comparison]:
    """Return whatever has an mIoU in any chain, in the order of the stages."""
    found: dict[str, Comparison] = {}
    for name, stage in stages.items():
        for maps, chain in chains(metrics, own).items():
            numbers = chain.stages().get(name)
            for part in stage.judged(numbers) if numbers is not None else ():
                if part.numbers.miou is not None:
                    compared = found.setdefault(part.label, Comparison(part.label, part.is_held_out, {}))
                    compared.numbers[part.source or maps] = part.numbers
    return list(found.values())


def paired_interval(before: Judgement | None, after: Judgement | None) -> tuple[float, float] | None:
    """Return the 95 % interval of what was gained, over images that weigh alike on both sides; None of older runs."""
    if before is None or after is None or before.miou_replicates is None or after.miou_replicates is None:
        return None
    return gain_interval(before.miou_replicates, after.miou_replicates)
