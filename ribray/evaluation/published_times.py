"""How long papers say that their refinement takes, kept beside the code as CSV."""

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True)
class PublishedTime:
    """The time that RIB took for a set of images, as Lee et al. state it (RIB, NeurIPS 2021)."""

    images: int
    minutes: float
    devices: str
    data: str
    source: str


@cache
def refinement_times() -> tuple[PublishedTime, ...]:
    """Return the published times, in the paper's order."""
    file = resources.files("ribray.evaluation").joinpath("published", "refinement_time.csv")
    lines = csv.DictReader(file.read_text(encoding="utf-8").splitlines())
    return tuple(
        PublishedTime(int(line["images"]), float(line["minutes"]), line["devices"], line["data"], line["source"])
        for line in lines
    )
