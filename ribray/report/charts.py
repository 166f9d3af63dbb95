"""Charts of a run: mIoU over thresholds, steps and stations, and losses."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ribray.errors import RibrayError
from ribray.methods.maps import MapRecord
from ribray.report.plots import LOOKS, Chart, DotChart, Line, Look, write_png
from ribray.report.stations import CAM, METHOD_NAMES, RIB, Station
from ribray.report.tables import ordered
from ribray.runs.metrics import SeedJudgement

LOOK_OF = {METHOD_NAMES[CAM]: LOOKS[0], METHOD_NAMES[RIB]: LOOKS[1]}
"""The same maps look the same in every chart."""
MOST_POINTS = 60
"""Series of more than twice as many are drawn as means of so many stretches, the lowest and highest value of each as
a band."""
LOG_RATIO = 20.0
"""From this ratio of the highest to the lowest loss on, its axis is logarithmic."""
MOST_FILES = 200
"""Of more map files so many are read, evenly spaced."""
QUANTILES = (0.1, 0.5, 0.9)
Curves = Mapping[str, tuple[ArrayLike, ArrayLike]]
"""Method -> ((T,) rising thresholds, (T,) mIoU in percent)."""


def _looks(names: Iterable[str]) -> Iterator[Look]:
    """Yield how each line looks: as everywhere, or in a way that no other of them has."""
    names = list(names)
    taken = {LOOK_OF[name] for name in names if name in LOOK_OF}
    free = itertools.cycle([look for look in LOOKS if look not in taken] or LOOKS)
    for name in names:
        yield LOOK_OF[name] if name in LOOK_OF else next(free)


# --- mIoU --------------------------------------------------------------------------------------------------------


def curves_of(seed: Mapping[str, SeedJudgement]) -> dict[str, tuple[ArrayLike, ArrayLike]]:
    """Return the curves of seeds by method, plain CAM first."""
    return {
        METHOD_NAMES.get(name, name): (np.array(curve.thresholds, float), np.array(curve.miou, float))
        for name in ordered(seed)
        if (curve := seed[name].curve) is not None
    }


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


def draw_curve(seed: Mapping[str, SeedJudgement], destination: Path) -> Path:
    """Draw the seed's mIoU over the threshold for every method."""
    write_png([threshold_chart(curves_of(seed), "Seed mIoU over the background threshold")], destination)
    return destination


def steps_chart(seed: Mapping[str, SeedJudgement], title: str = "") -> Chart | None:
    """Return the seed's mIoU by refinement step, each at its own best threshold; None where steps were not kept."""
    by_step = seed[RIB].by_step if RIB in seed else None
    if not by_step:
        return None
    steps, means = [point.step for point in by_step], [point.miou for point in by_step]
    lines = [Line(f"RIB, {means[-1]:.1f} after step {steps[-1]}", steps, means, LOOKS[1], is_dotted=True)]
    plain = seed[CAM].miou if CAM in seed else None
    if plain is not None and len(steps) > 1:
        lines.insert(0, Line(f"plain CAM, {plain:.1f}", [steps[0], steps[-1]], [plain, plain], LOOKS[0]))
    return Chart(title, "step k", "mIoU, %", lines, counts=True)


def stations_chart(found: Sequence[Station], title: str = "") -> DotChart:
    """Return the mIoU at every station of the chain, for every source of maps."""
    series = {}
    for source, name in METHOD_NAMES.items():
        numbers = [station.numbers.get(source) for station in found]
        values = [(each.miou, each.miou_interval) if each and each.miou is not None else None for each in numbers]
        if any(values):
            series[name] = (LOOK_OF[name], values)
    return DotChart(title, "mIoU, %", [station.label for station in found], series)


# --- losses of trainings -----------------------------------------------------------------------------------------


def loss_chart(logs: Mapping[str, Sequence[Mapping[str, Any]]], title: str, validation: str | None = None) -> Chart:
    """Return the loss of trainings, by name, over their steps; a loss that was not finite is left out.

    The lines of a log are of steps ("step", "loss") and of validations ("step", "validation": with "loss", or not);
    losses of validations are left out unless `validation` says what to call them.
    """
    lines: list[Line] = []
    looks = _looks([*logs, *([] if validation is None else [validation])])
    losses: list[float] = []
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


# --- losses of the refinement ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RefinementLosses:
    """Quantiles over images, step by step; a step counts the images that came to it."""

    losses: NDArray[np.float64]
    """(steps, quantiles) L_RIB of the steps that updated the network."""
    targets: NDArray[np.float64]
    """(steps, quantiles) the target's summed logits."""
    images: int
    """That were looked at."""


def read_losses(files: Sequence[Path]) -> RefinementLosses | None:
    """Read losses from map files; None where no file that can be read holds any, as with imported maps."""
    found = []
    for file in files[:: max(1, -(-len(files) // MOST_FILES))]:
        try:
            record = MapRecord.read(file)
        except RibrayError:
            continue
        if len(pooled := record.numbers.get("target_losses", ())):
            found.append((np.asarray(record.losses), np.asarray(pooled)))
    if not found:
        return None
    losses, targets = ([record[place] for record in found] for place in (0, 1))
    return RefinementLosses(_quantiles(losses), _quantiles(targets), len(found))


def _quantiles(series: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the quantiles of each step, (steps, quantiles), of series of different lengths."""
    values = [[one[step] for one in series if len(one) > step] for step in range(max(map(len, series)))]
    return np.array([np.quantile(of_step, QUANTILES) for of_step in values]).reshape(len(values), len(QUANTILES))


def refinement_charts(losses: RefinementLosses, stop_threshold: float) -> list[Chart]:
    """Return L_RIB and the target's logits over the steps of the refinement, medians over images."""
    charts = []
    for quantiles, title, label, look in (
        (losses.losses, "Loss of the refinement", "L_RIB", LOOKS[1]),
        (losses.targets, "Logits of the target", "summed logits", LOOKS[2]),
    ):
        if len(quantiles):
            low, middle, high = quantiles.T
            steps = np.arange(1, len(quantiles) + 1)
            lines = [Line("median over images", steps, middle, look, band=(low, high), is_dotted=True)]
            if quantiles is losses.targets and stop_threshold <= 2 * float(high.max()):
                ends = [1, len(quantiles)]
                lines.append(Line(f"stop threshold {stop_threshold:g}", ends, [stop_threshold] * 2, LOOKS[3]))
            charts.append(Chart(title, "step k", label, lines, counts=True))
    return charts
