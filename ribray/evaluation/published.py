"""What papers published, kept beside the code as CSV: what a run can be compared with.

Tables S1 to S3 are by Lee et al., *Reducing Information Bottleneck for Weakly Supervised Semantic Segmentation* (RIB,
NeurIPS 2021), as printed there, rounding included. Figures of a text, and times, are theirs or those of Lee, Kim, Yoon,
*Anti-Adversarially Manipulated Attributions for Weakly and Semi-Supervised Semantic Segmentation* (AdvCAM, CVPR 2021).
Figures are in percent.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from pydantic import TypeAdapter

from ribray.errors import UsageError

MEAN = "miou"
"""The column of a table's mean over all classes, background included."""
RIB = "RIB (Ours)"
RIB_SALIENCY = "RIB-Sal (Ours)"
IRN = "IRN"
MAPS = {RIB: "rib", RIB_SALIENCY: "rib", "AdvCAM": "advcam"}
"""Published method -> the name of the same maps in a run."""


@dataclass(frozen=True)
class PublishedTable:
    """One table of a paper."""

    name: str
    """As the paper numbers it, such as "S2"."""
    title: str
    rows: Mapping[tuple[str, str], Mapping[str, float]]
    """(split, method) -> column -> value; a column is a class name, `MEAN`, or the table's own parameter."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits in the table's order."""
        return tuple(dict.fromkeys(split for split, _ in self.rows))

    def methods(self, split: str | None = None) -> tuple[str, ...]:
        """Return the methods in the table's order, of one split or of all."""
        return tuple(dict.fromkeys(method for at, method in self.rows if split in (None, at)))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns in the table's order."""
        return tuple(next(iter(self.rows.values())))

    def row(self, method: str, split: str | None = None) -> Mapping[str, float]:
        """Return every value of a method; the split may be left out where the table has a single one."""
        if split is None:
            if len(self.splits) > 1:
                raise UsageError(f"Table {self.name} has the splits {', '.join(self.splits)}; name one of them.")
            split = self.splits[0]
        if (split, method) not in self.rows:
            known = ", ".join(f"{method} on {split}" for split, method in self.rows)
            raise UsageError(f"Table {self.name} has no row for {method} on {split}; it has {known}.")
        return self.rows[split, method]

    def value(self, method: str, column: str = MEAN, split: str | None = None) -> float:
        """Return one value: a method's IoU of the class `column`, or its mean."""
        row = self.row(method, split)
        if column not in row:
            raise UsageError(f"Table {self.name} has no column {column}; it has {', '.join(row)}.")
        return row[column]


@dataclass(frozen=True)
class PublishedFigure:
    """A mean IoU stated in a paper's text, with its spread where it was repeated."""

    quantity: str
    method: str
    split: str
    miou: float
    std: float | None
    repeats: int | None
    source: str


@dataclass(frozen=True)
class PublishedTime:
    """The time that a method took for a set of images."""

    method: str
    images: int
    minutes: float
    devices: str
    data: str
    source: str


@cache
def table(name: str) -> PublishedTable:
    """Return a published table.

    Args:
        name: "S1" (seed mIoU by batch size B, VOC 2012 train; columns are the values of B), "S2"
            (segmentation, VOC 2012 val and test, per class) or "S3" (segmentation, COCO 2014 val, per class).

    Raises:
        UsageError: there is no such table.
    """
    if name == "S1":
        values = {line["batch_size"]: float(line["miou"]) for line in _lines("table_s1_batch_size.csv")}
        return PublishedTable(name, "seed mIoU by batch size, VOC 2012 train", {("train", RIB): values})
    if name == "S2":
        voc = {
            (line.pop("split"), line.pop("method")): {column: float(value) for column, value in line.items()}
            for line in _lines("table_s2_voc_per_class_iou.csv")
        }
        return PublishedTable(name, "segmentation IoU per class, VOC 2012", voc)
    if name == "S3":
        lines, columns = _lines("table_s3_coco_per_class_iou.csv"), {IRN: "irn", RIB: "rib"}
        coco = {
            ("val", method): {MEAN if line["class"] == "mean" else line["class"]: float(line[column]) for line in lines}
            for method, column in columns.items()
        }
        return PublishedTable(name, "segmentation IoU per class, COCO 2014 val", coco)
    raise UsageError(f"There is no published table {name}; there are S1, S2, S3.")


def figures_in_text() -> list[PublishedFigure]:
    """Return the figures that stand in a paper's text and in no table."""
    return TypeAdapter(list[PublishedFigure]).validate_python(_lines("figures_in_text.csv"))


def figure_in_text(quantity: str, method: str = RIB) -> PublishedFigure:
    """Return one of `figures_in_text`, such as the quantity "seed"."""
    found = {(figure.quantity, figure.method): figure for figure in figures_in_text()}
    if (quantity, method) not in found:
        known = ", ".join(f"{quantity} ({method})" for quantity, method in found)
        raise UsageError(f"No figure is published for {quantity} ({method}); there are {known}.")
    return found[quantity, method]


def refinement_times() -> list[PublishedTime]:
    """Return the published times, those of the RIB paper first, in its order."""
    return TypeAdapter(list[PublishedTime]).validate_python(_lines("refinement_time.csv"))


def _lines(file: str) -> list[dict[str, Any]]:
    text = resources.files("ribray.evaluation").joinpath("published", file).read_text(encoding="utf-8")
    return [{key: value or None for key, value in line.items()} for line in csv.DictReader(text.splitlines())]
