"""A sweep's trials as rows: one per combination of the axes' values, averaged over the repeats.

What a *ledger* is (``sweep.json``): "metric" and "mode" (max or min), "axes" (the keys that make rows), "repeats"
(the keys that are averaged over), "published" (what stands beside), and "trials", each with "id", "directory",
"settings", "status", "value" and "metrics".
"""

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ribray.config import label
from ribray.evaluation import published
from ribray.evaluation.statistics import Summary, summarise
from ribray.sweep_file import metric_of, short_keys

FINISHED, DIVERGED, FAILED, STOPPED = "finished", "diverged", "failed", "stopped"

METRIC_NAMES = {"miou": "mIoU", "miou_known": "mIoU of known pixels", "map": "mAP", "unknown": "unknown pixels"}
"""The last part of a metric's key; these are percentages."""
PER_CLASS = "per_class"
INTERVAL_SUFFIX = "_interval"
SMALL = 1e-3  # settings below are written with an exponent
DECADE, DECADES = 10.0, 100.0
"""From the first ratio of the largest to the smallest value on an axis may be logarithmic, from the second on it is."""
EVENER = 0.5  # in between it is where it halves the distance of the middle value from the axis' middle


@dataclass(frozen=True)
class SweepRow:
    """The trials that share the axes' values. Those count that finished with a number."""

    settings: Mapping[str, Any]  # by axis
    trials: Sequence[Mapping[str, Any]]  # in the ledger's order
    counting: Sequence[Mapping[str, Any]]
    summary: Summary | None  # of the metric over the trials that count
    interval: tuple[float, float] | None  # over images, where a single trial counts and states it
    statuses: Mapping[str, int]  # status -> number of trials
    reason: str  # what there is to say about trials that do not count or lack images
    published: float | None  # what the published table has for these settings
    is_best: bool = False  # no other mean is better; of no row where there is only one mean

    @property
    def mean(self) -> float | None:
        return self.summary.mean if self.summary else None

    @property
    def count(self) -> int:
        return len(self.counting)

    @property
    def spread(self) -> tuple[float, float] | None:
        """What an error bar spans: one standard deviation to both sides, or the interval of a single trial."""
        if self.summary and self.summary.std is not None:
            return self.summary.mean - self.summary.std, self.summary.mean + self.summary.std
        return self.interval


class Sweep:
    """A ledger, its rows, and how its metric is written."""

    def __init__(self, ledger: Mapping[str, Any], folder: Path = Path()) -> None:
        self.ledger, self.folder, self.trials = ledger, folder, ledger["trials"]
        self.metric: str = ledger["metric"]
        self.axes: list[str] = list(ledger["axes"])
        self.keys = list(dict.fromkeys(key for trial in self.trials for key in trial["settings"]))
        """Whatever the trials set, in their order."""
        self.names = short_keys(self.axes)  # how they are called, by axis
        self.stated: Mapping[str, Any] = ledger.get("published") or {}
        """What is published: "value" with its "std", a "table" and a "text"."""
        name = self.stated.get("table")
        self.table = table = published.table(name) if name and self.axes else None
        self.published: Mapping[str, float] = table.row(table.methods()[0]) if table else {}
        """What the published table has, by the values of the first axis."""
        groups: dict[str, list[Mapping[str, Any]]] = {}
        for trial in self.trials:
            groups.setdefault(json.dumps([trial["settings"].get(axis) for axis in self.axes]), []).append(trial)
        self.rows = [self._row(trials) for trials in groups.values()]
        """A row per combination of the axes' values, in the order of the trials."""
        means = [row.mean for row in self.rows if row.mean is not None]
        if len(set(means)) > 1:
            best = min(means) if ledger["mode"] == "min" else max(means)
            self.rows = [replace(row, is_best=row.mean == best) for row in self.rows]
        self.valued = [row for row in self.rows if row.mean is not None]

    def _row(self, trials: Sequence[Mapping[str, Any]]) -> SweepRow:
        settings = {axis: trials[0]["settings"].get(axis) for axis in self.axes}
        counting = [trial for trial in trials if _counts(trial)]
        return SweepRow(
            settings=settings,
            trials=trials,
            counting=counting,
            summary=summarise([trial["value"] for trial in counting]) if counting else None,
            interval=self.interval_of(counting[0]) if len(counting) == 1 else None,
            statuses=Counter(trial["status"] for trial in trials),
            reason=self._reason(trials),
            published=self.published.get(setting_text(settings[self.axes[0]])) if self.published else None,
        )

    def _reason(self, trials: Sequence[Mapping[str, Any]]) -> str:
        """Say what became of the trials that do not count, and how many images the others lack."""
        kinds: dict[str, list[Mapping[str, Any]]] = {}
        for trial in trials:
            if not _counts(trial):
                kinds.setdefault(trial["status"], []).append(trial)
        parts = []
        for status, alike in kinds.items():
            words = "no value" if status == FINISHED else status
            words = words if len(alike) == len(trials) else f"{len(alike)} of {len(trials)} {words}"
            errors = dict.fromkeys(trial["error"] for trial in alike if trial.get("error"))
            if status == FAILED and errors:
                words += ": " + "; ".join(errors)
            elif len(alike) == 1 and is_number(alike[0]["value"]):
                words += f" at {self.number(alike[0]['value'])}"
            parts.append(words)
        if images := sum(trial.get("failed_images") or 0 for trial in trials):
            parts.append(f"{images} failed image{'s' if images > 1 else ''}")
        return ", ".join(parts)

    def interval_of(self, trial: Mapping[str, Any]) -> tuple[float, float] | None:
        interval = trial["metrics"].get(f"{metric_of(self.metric, trial['settings'])}{INTERVAL_SUFFIX}")
        return (interval[0], interval[1]) if interval else None

    def values(self, axis: str) -> list[Any]:
        return [row.settings[axis] for row in self.rows]

    def best_first(self) -> list[SweepRow]:
        """Return the rows that have a mean, the best one first."""
        return sorted(self.valued, key=lambda row: row.mean or 0.0, reverse=self.ledger["mode"] != "min")

    def settings_text(self, row: SweepRow) -> str:
        return ", ".join(f"{name} {setting_text(row.settings[axis])}" for axis, name in self.names.items())

    @property
    def metric_heading(self) -> str:
        return metric_name(self.metric) + (", %" if is_percent(self.metric) else "")

    def number(self, value: float, decimals: int = 1) -> str:
        """Return a value of the metric: a percentage with so many decimals, anything else with four digits."""
        return f"{value:.{decimals}f}" if is_percent(self.metric) else _short(f"{value:.4g}")

    def plus_minus(self, std: float | None) -> str:
        """Return what stands behind a value with a standard deviation."""
        if std is None:
            return ""
        return f" ± {std:.2f}" if is_percent(self.metric) else f" ± {_short(f'{std:.2g}')}"


def is_number(value: Any) -> bool:
    """Say whether a value of the ledger is a finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def repeats_of(found: Sequence[SweepRow]) -> str:
    """Return over how many trials the rows with several that count are averaged: 3, or 2 to 3; empty without one."""
    counts = sorted({row.count for row in found if row.count > 1})
    return " to ".join(str(count) for count in dict.fromkeys([counts[0], counts[-1]])) if counts else ""


def _counts(trial: Mapping[str, Any]) -> bool:
    return trial["status"] == FINISHED and is_number(trial["value"])


def is_percent(metric: str) -> bool:
    parts = metric.split(".")
    return parts[-1] in METRIC_NAMES or PER_CLASS in parts


def metric_name(metric: str) -> str:
    last = metric.rpartition(".")[2]
    return METRIC_NAMES.get(last, last.replace("_", " "))


def seed_maps(metric: str) -> str | None:
    """Return the maps that a seed's metric is about, as "seed.NAME.miou" says; None of another metric."""
    stage, _, rest = metric.partition(".")
    return rest.partition(".")[0] if stage == "seed" and "." in rest else None


def metric_label(metric: str) -> str:
    """Return how plots call a metric, with its unit: "seed.rib.miou" is "seed mIoU of RIB, %"."""
    *parts, _ = metric.split(".")
    maps = seed_maps(metric)
    named = f"of {label(maps)}" if maps and "{" not in maps else ""  # else it is a setting, which is said beside it
    where = " ".join(parts[:-1] if maps else parts).replace("_", " ")
    words = [where, metric_name(metric), named]
    return " ".join(word for word in words if word) + (", %" if is_percent(metric) else "")


def as_published(value: float) -> str:
    return f"{value:.{published_decimals(value)}f}"


def published_decimals(value: float | None) -> int:
    """Return the decimals of a published percentage, at least one."""
    text = "" if value is None else repr(float(value))
    return max(1, len(text.partition(".")[2]))


def setting_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return _short(f"{value:.3e}" if 0 < abs(value) < SMALL else f"{value:.4g}")
    return json.dumps(value, ensure_ascii=False)


def shortened(text: str, letters: int) -> str:
    """Return the text in one line of at most so many letters."""
    line = " ".join(text.split())
    return line if len(line) <= letters else f"{line[: letters - 1]}…"


def is_numeric(values: Iterable[Any]) -> bool:
    return all(map(is_number, values))


def is_logarithmic(values: Iterable[float]) -> bool:
    """Say whether numbers span decades and lie more evenly on a logarithmic axis."""
    known = sorted(set(values))
    if len(known) < 2 or known[0] <= 0 or known[-1] / known[0] < DECADE:
        return False
    return known[-1] / known[0] >= DECADES or _skew([math.log(value) for value in known]) < EVENER * _skew(known)


def _skew(known: Sequence[float]) -> float:
    return abs((statistics.median(known) - known[0]) / (known[-1] - known[0]) - 0.5)


def _short(text: str) -> str:
    """Return 8.000e-06 as 8e-6."""
    mantissa, mark, exponent = text.partition("e")
    return f"{float(mantissa):g}e{int(exponent)}" if mark else text
