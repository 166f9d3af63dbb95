"""The stations from the seed to the segmentation, with the mIoU of every chain of stages that passes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ribray.report.tables import BEFORE_RETRAINING, METHOD_NAMES, RIB, SEED_CRF

TRAINING = "training"
SEED_STATION = "seed, best threshold"
SEGMENTATION, RETRAINED = "segmentation", "re-trained"
WALK = "walk"


@dataclass(frozen=True)
class Station:
    """One place where masks, or maps cut to masks, were judged.

    Attributes:
        label: what it is called.
        where: what it was judged on.
        numbers: source of the maps ("cam", "rib") -> its part of the metrics, which holds "miou".
    """

    label: str
    where: str
    numbers: Mapping[str, Mapping[str, Any]]


def chains(metrics: Mapping[str, Any], own: str = RIB) -> dict[str, Mapping[str, Any]]:
    """Return the metrics of every chain of stages by the maps it starts from, plain CAM first.

    Args:
        metrics: a run's merged metrics, those of its variants included.
        own: the maps that the run's own masks are made from; "cam" where the run is itself a variant.
    """
    found = {**metrics.get("variants", {}), own: metrics}
    return {source: found[source] for source in METHOD_NAMES if source in found}


def networks(chain: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the numbers of each segmentation network that was judged: with re-training, the first and the last."""
    evaluate = chain.get("evaluate", {})
    found = {SEGMENTATION: evaluate}
    if BEFORE_RETRAINING in evaluate:
        found = {SEGMENTATION: evaluate[BEFORE_RETRAINING], RETRAINED: evaluate}
    return {label: numbers for label, numbers in found.items() if numbers.get("miou") is not None}


def stations(metrics: Mapping[str, Any], splits: Sequence[str], own: str = RIB) -> list[Station]:
    """Return the stations at which any chain has an mIoU, in the order of the chain.

    Args:
        metrics: as for `chains`.
        splits: what the segmentation was judged on.
        own: as for `chains`.
    """
    found = chains(metrics, own)
    seeds = {source: metrics.get("seed", {}).get(source, {}) for source in METHOD_NAMES}
    rows: list[tuple[str, str, Mapping[str, Mapping[str, Any]]]] = [(SEED_STATION, TRAINING, seeds)]
    for label, path in (
        ("seed + CRF, confident labels", ("confident", SEED_CRF)),
        ("random walk, best threshold", ("pseudo", WALK)),
        ("pseudo masks", ("pseudo",)),
    ):
        rows.append((label, TRAINING, {source: part_of(chain, path) for source, chain in found.items()}))
    for label in (SEGMENTATION, RETRAINED):
        judged = {source: networks(chain).get(label, {}) for source, chain in found.items()}
        rows.append((label, " + ".join(splits), judged))
    known = [
        Station(
            label, where, {source: each for source, each in numbers.items() if each and each.get("miou") is not None}
        )
        for label, where, numbers in rows
    ]
    return [station for station in known if station.numbers]


def part_of(metrics: Mapping[str, Any], path: Sequence[str]) -> Mapping[str, Any]:
    """Return the part of metrics at a path, empty where there is none."""
    for name in path:
        metrics = metrics.get(name, {})
    return metrics
