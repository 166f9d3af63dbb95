"""The stations from the seed to the segmentation, with the mIoU of every chain of stages that passes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CAM, RIB = "cam", "rib"
METHOD_NAMES = {CAM: "plain CAM", RIB: "RIB"}
INTERVAL = "miou_interval"
SEED_CRF, BEFORE_RETRAINING = "seed_crf", "before_retraining"
"""Parts of the metrics of stages ``confident`` and ``evaluate``."""
TRAINING = "training"
SEED_STATION, PSEUDO_STATION = "seed, best threshold", "pseudo masks"
SEGMENTATION, RETRAINED = "segmentation", "re-trained"
WALK = "walk"
Numbers = Mapping[str, Any]


@dataclass(frozen=True)
class Station:
    """One place where masks, or maps cut to masks, were judged."""

    label: str
    where: str
    """What it was judged on."""
    numbers: Mapping[str, Numbers]
    """Source of the maps ("cam", "rib") -> its part of the metrics, which holds "miou"."""


def chains(metrics: Numbers, own: str = RIB) -> dict[str, Numbers]:
    """Return the metrics of every chain of stages by the maps it starts from, plain CAM first.

    ``metrics`` are a run's merged ones, ``own`` the maps that its own masks are made from: "cam" of a variant.
    """
    found = {**metrics.get("variants", {}), own: metrics}
    return {source: found[source] for source in METHOD_NAMES if source in found}


def networks(chain: Numbers) -> dict[str, Numbers]:
    """Return the numbers of each segmentation network that was judged: with re-training, the first and the last."""
    evaluate = chain.get("evaluate", {})
    found = {SEGMENTATION: evaluate}
    if BEFORE_RETRAINING in evaluate:
        found = {SEGMENTATION: evaluate[BEFORE_RETRAINING], RETRAINED: evaluate}
    return {label: numbers for label, numbers in found.items() if numbers.get("miou") is not None}


def stations(metrics: Numbers, splits: Sequence[str], own: str = RIB) -> list[Station]:
    """Return the stations at which any chain has an mIoU, in the order of the chain; ``splits`` judged networks."""
    found, held_out = chains(metrics, own), " + ".join(splits)
    rows = [(SEED_STATION, TRAINING, {source: part_of(metrics, ("seed", source)) for source in METHOD_NAMES})]
    for label, path in (
        ("seed + CRF, confident labels", ("confident", SEED_CRF)),
        ("random walk, best threshold", ("pseudo", WALK)),
        (PSEUDO_STATION, ("pseudo",)),
    ):
        rows.append((label, TRAINING, {source: part_of(chain, path) for source, chain in found.items()}))
    for label in (SEGMENTATION, RETRAINED):
        rows.append((label, held_out, {source: networks(chain).get(label, {}) for source, chain in found.items()}))
    judged = [
        Station(label, where, {source: each for source, each in numbers.items() if each.get("miou") is not None})
        for label, where, numbers in rows
    ]
    return [station for station in judged if station.numbers]


def part_of(metrics: Numbers, path: Sequence[str]) -> Numbers:
    """Return the part of metrics at a path, empty where there is none."""
    for name in path:
        metrics = metrics.get(name, {})
    return metrics
