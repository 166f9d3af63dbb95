"""Charts of a run: mIoU over thresholds, over steps and from maps to masks, and losses."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ribray.config import CAM, label
from ribray.config.methods import LABELS
from ribray.errors import RibrayError
from ribray.methods.maps import MapRecord
from ribray.report.comparison import Comparison, look_number, ordered
from ribray.report.plots import LOOKS, Chart, DotChart, Line, Look, write_png
from ribray.runs.metrics import SeedJudgement

MOST_POINTS = 60
"""Series of more than twice as many are drawn as means of so many stretches, the lowest and highest value of each as
a band."""
LOG_RATIO = 20.0  # from this ratio of the highest to the lowest loss on, its axis is logarithmic
MOST_FILES = 200  # of more map files so many are read, evenly spaced
QUANTILES = (0.1, 0.5, 0.9)
LOSSES, TARGET_LOSSES = "losses", "target_losses"
SERIES = {LOSSES: ("Loss of the refinement", "L_{}"), TARGET_LOSSES: ("Logits of the target", "summed logits")}
"""Series of numbers in map files -> title and axis of their chart; of others the name says it."""
Curves = Mapping[str, tuple[ArrayLike, ArrayLike]]
"""What maps are called -> ((T,) rising thresholds, (T,) mIoU in percent)."""


def _looks(names: Iterable[str]) -> Iterator[Look]:
    """Yield how each line looks: maps as in every other chart, others in a way that no line has."""
    names, known = list(names), {label(maps): LOOKS[look_number(maps) or 0] for maps in LABELS}
    free = itertools.cycle([look for look in LOOKS if look not in map(known.get, names)] or LOOKS)
    for name in names:
        yield known.get(name) or next(free)


def curves_of(seed: Mapping[str, SeedJudgement]) -> dict[str, tuple[ArrayLike, ArrayLike]]:
    found = {label(maps): seed[maps].curve for maps in ordered(seed)}
    return {name: (curve.thresholds, np.array(curve.miou, float)) for name, curve in found.items() if curve is not None}


def threshold_chart(curves: Curves, title: str = "") -> Chart:
    """Return mIoU over the seed's threshold, a line per method with its best point marked.

    Raises:
        ValueError: no curves, or one whose thresholds and mIoU differ in length or hold no number.
    """
    if not curves:
        raise ValueError("A curve figure needs at least one curve.")
    lines = []
    for look, (name, curve) in zip(_looks(curves), curves.items(), strict=True):
        thresholds, means = (np.asarray(values, float) for values in curve)
        if thresholds.shape != means.shape or thresholds.ndim != 1 or not np.isfinite(means).any():
            raise ValueError(f"The curve {name} needs as many mIoUs as thresholds and at least one of them a number.")
        best = int(np.nanargmax(means))
        label = f"{name}, best {means[best]:.1f} at {thresholds[best]:.2f}"
        lines.append(Line(label, thresholds, means, look, best=best))
    return Chart(title, "threshold", "mIoU, %", lines, not_negative=True)


def draw_curve(seed: Mapping[str, SeedJudgement], destination: Path) -> Path | None:
    """Draw mIoU over the seed's threshold; None where no curve is known."""
    if curves := curves_of(seed):
        write_png([threshold_chart(curves, "Seed mIoU over the background threshold")], destination)
    return destination if curves else None


def steps_chart(seed: Mapping[str, SeedJudgement], title: str = "") -> Chart | None:
    """Return the seed's mIoU by refinement step, each at its own best threshold; None where steps were not kept."""
    grown = {label(maps): by_step for maps in ordered(seed) if (by_step := seed[maps].by_step)}
    if not grown:
        return None
    lines = []
    for (name, by_step), look in zip(grown.items(), _looks(grown), strict=True):
        steps, means = [point.step for point in by_step], [point.miou for point in by_step]
        lines.append(Line(f"{name}, {means[-1]:.1f} after step {steps[-1]}", steps, means, look, is_dotted=True))
    plain, last = seed[CAM].miou if CAM in seed else None, max(by_step[-1].step for by_step in grown.values())
    if plain is not None and last > 1:
        lines.insert(0, Line(f"{label(CAM)}, {plain:.1f}", [1, last], [plain, plain], LOOKS[0]))
    return Chart(title, "step k", "mIoU, %", lines, counts=True)


def comparison_chart(found: Sequence[Comparison], title: str = "") -> DotChart:
    kinds = ordered(maps for compared in found for maps in compared.numbers)
    series = {}
    for maps, look in zip(kinds, _looks(map(label, kinds)), strict=True):
        numbers = [compared.numbers.get(maps) for compared in found]
        values = [(each.miou, each.miou_interval) if each and each.miou is not None else None for each in numbers]
        series[label(maps)] = (look, values)
    return DotChart(title, "mIoU, %", [compared.label for compared in found], series)


def loss_chart(logs: Mapping[str, Sequence[Mapping[str, Any]]], title: str, validation: str | None = None) -> Chart:
    """Return the loss of trainings, by name, over their steps; a loss that was not finite is left out.

    The lines of a log are of steps ("step", "loss") and of validations ("step", "validation": with "loss", or not);
    losses of validations are left out unless `validation` says what to call them.
    """
    lines, losses = list[Line](), list[float]()
    looks = _looks([*logs, *([] if validation is None else [validation])])
    for (name, log), look in zip(logs.items(), looks, strict=False):
        known = [(line["step"], line["loss"]) for line in log if line.get("loss") is not None]
        lines += [_thinned(name, np.array(known, float), look)] if known else []
        losses += [loss for _, loss in known]
    held_out = [line for log in logs.values() for line in log if "loss" in line.get("validation", {})]
    if validation is not None and held_out:
        steps, means = [line["step"] for line in held_out], [line["validation"]["loss"] for line in held_out]
        lines.append(Line(validation, steps, means, next(looks), is_dotted=True))
    is_logarithmic = bool(losses and min(losses) > 0 and max(losses) / min(losses) >= LOG_RATIO)
    return Chart(title, "training step", "loss", lines, is_logarithmic, counts=True)


def _thinned(name: str, points: NDArray[np.float64], look: Look) -> Line:
    """Return a series (N, 2) of steps and losses, drawn by stretches where it is long."""
    if len(points) <= 2 * MOST_POINTS:
        return Line(name, points[:, 0], points[:, 1], look, is_noisy=True)
    stretches = np.array_split(points, MOST_POINTS)
    steps, means = np.array([stretch.mean(axis=0) for stretch in stretches]).T
    low, high = ([float(edge(stretch[:, 1])) for stretch in stretches] for edge in (np.min, np.max))
    return Line(name, steps, means, look, band=(low, high), is_noisy=True)


@dataclass(frozen=True)
class RefinementLosses:
    """Quantiles over images, step by step; a step counts the images that came to it."""

    series: Mapping[str, NDArray[np.float64]]
    """(steps, quantiles) by name: `LOSSES`, and the further numbers of a method."""
    images: int  # that were looked at


def read_losses(files: Sequence[Path]) -> RefinementLosses | None:
    """Read losses from map files; None where no file that can be read holds any, as with imported maps."""
    found: dict[str, list[NDArray[np.float64]]] = {}
    images = 0
    for file in files[:: max(1, -(-len(files) // MOST_FILES))]:
        try:
            record = MapRecord.read(file)
        except RibrayError:
            continue
        known = {name: values for name, values in {LOSSES: record.losses, **record.numbers}.items() if len(values)}
        for name, values in known.items():
            found.setdefault(name, []).append(np.asarray(values, float))
        images += bool(known)
    quantiles = {}
    for name, series in found.items():
        by_step = [[one[step] for one in series if len(one) > step] for step in range(max(map(len, series)))]
        quantiles[name] = np.array([np.quantile(values, QUANTILES) for values in by_step])
    return RefinementLosses(quantiles, images) if images else None


def refinement_charts(
    losses: RefinementLosses, name: str, stop_threshold: float | None = None, whose: str = ""
) -> list[Chart]:
    """Return the loss and further numbers over the steps of a method's refinement, medians over images.

    ``whose`` stands behind the titles.
    """
    charts = []
    for (series, quantiles), look in zip(losses.series.items(), itertools.cycle(LOOKS[1:])):
        title, what = SERIES.get(series, (series.replace("_", " ").capitalize(), series.replace("_", " ")))
        low, middle, high = quantiles.T
        steps = np.arange(1, len(quantiles) + 1)
        lines = [Line("median over images", steps, middle, look, band=(low, high), is_dotted=True)]
        if series == TARGET_LOSSES and stop_threshold is not None and stop_threshold <= 2 * float(high.max()):
            ends = [1, len(quantiles)]
            lines.append(Line(f"stop threshold {stop_threshold:g}", ends, [stop_threshold] * 2, LOOKS[3]))
        charts.append(Chart(f"{title}{whose}", "step k", what.format(name), lines, counts=True))
    return charts
