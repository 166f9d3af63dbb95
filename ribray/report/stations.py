"""The stations from the seed to the segmentation, with the mIoU of every chain of stages that passes them."""

from collections.abc import Mapping
from dataclasses import dataclass

from ribray.runs.metrics import Judgement, RunMetrics
from ribray.runs.stage_facts import Judged, StageFacts

CAM, RIB = "cam", "rib"
METHOD_NAMES = {CAM: "plain CAM", RIB: "RIB"}
SEED_STATION, PSEUDO_STATION = "seed, best threshold", "pseudo masks"
SEGMENTATION, RETRAINED = "segmentation", "re-trained"
Stages = Mapping[str, StageFacts]


@dataclass(frozen=True)
class Station:
    """One place where masks, or maps cut to masks, were judged."""

    label: str
    is_held_out: bool
    """Whether held-out images were judged, not training images."""
    numbers: dict[str, Judgement]
    """By the source of the maps, "cam" and "rib"."""


def chains(metrics: RunMetrics, own: str = RIB) -> dict[str, RunMetrics]:
    """Return the metrics of every chain of stages by the maps it starts from, plain CAM first.

    ``own`` are the maps that a run's own masks are made from: "cam" of a variant.
    """
    found = {**metrics.variants, own: metrics}
    return {source: found[source] for source in METHOD_NAMES if source in found}


def judged(metrics: RunMetrics, stages: Stages) -> list[Judged]:
    """Return what of a chain has an mIoU, in the order of the stages."""
    numbers = metrics.stages()
    parts = [part for name, stage in stages.items() if name in numbers for part in stage.judged(numbers[name])]
    return [part for part in parts if part.numbers.miou is not None]


def stations(metrics: RunMetrics, stages: Stages, own: str = RIB) -> list[Station]:
    """Return the stations at which any chain has an mIoU, in the order of the stages."""
    found: dict[str, Station] = {}
    for stage in stages:
        for source, chain in chains(metrics, own).items():
            for part in judged(chain, {stage: stages[stage]}):
                station = found.setdefault(part.label, Station(part.label, part.is_held_out, {}))
                station.numbers[part.source or source] = part.numbers
    return list(found.values())
