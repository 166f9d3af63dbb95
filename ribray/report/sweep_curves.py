"""Curves of a sweep's trials: losses of trainings, and seed mIoU by refinement step and by threshold."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, SymmetricalLogLocator
from numpy.typing import NDArray

from ribray import storage
from ribray.config import CAM, label
from ribray.report import sweep_rows
from ribray.report.comparison import ordered
from ribray.report.plots import FAINT_INK, Line, Look, legend, ruled
from ribray.report.sweep_rows import DIVERGED, FINISHED, Sweep, SweepRow, is_number, setting_text
from ribray.report.sweep_sheet import LOSS, OURS, legend_title, looks_of_rows, row_label, sheet
from ribray.runs.metrics import SeedJudgement
from ribray.runs.run import Run
from ribray.sweep_file import metric_of

SUFFIX, LOG_FILE = ".loss", "metrics.jsonl"
LINES_APART = 10  # so many lines can be told apart; of more the best one stands out
OTHERS = "#c3c3ca"
LINES_ABOVE = 5  # a legend of more lines stands beside the axes
LOSS_TICKS = 8
LINEAR_BELOW = 1.0  # losses are drawn linearly up to here and logarithmically beyond, on both sides of 0
MANY_STEPS = 300  # longer trainings have thin lines
PLAIN_BELOW = 1000.0  # ticks of smaller losses have no exponent


@dataclass(frozen=True)
class LossCurve:
    """The losses of a training, as far as they are finite."""

    steps: NDArray[np.float64]  # from 1 on
    losses: NDArray[np.float64]
    is_diverged: bool


def loss_curves(sweep: Sweep) -> list[list[LossCurve]]:
    """Return the loss curves of each row's trials, none where the metric is not the loss of a training."""
    if not sweep.metric.endswith(SUFFIX):
        return [[] for _ in sweep.rows]
    log, folder = Path(*sweep.metric.removesuffix(SUFFIX).split("."), LOG_FILE), sweep.folder
    read = [[_read_losses(folder / trial["directory"] / log, trial) for trial in row.trials] for row in sweep.rows]
    return [[curve for curve in of_row if curve is not None] for of_row in read]


def _read_losses(location: Path, trial: Mapping[str, Any]) -> LossCurve | None:
    if not location.exists():
        return None
    content = storage.read_bytes(location)
    whole = content[: content.rfind(b"\n") + 1]  # a last line without its end was being written when it was killed
    lines = storage.parse_lines(whole, location, storage.MADE_AGAIN)
    known = [line for line in lines if is_number(line.get("step")) and is_number(line.get("loss"))]
    if not known:
        return None
    steps, losses = np.array([(line["step"] + 1, line["loss"]) for line in known], float).T
    return LossCurve(steps, losses, trial["status"] == DIVERGED)


def draw_losses(sweep: Sweep, curves: Sequence[Sequence[LossCurve]]) -> Figure:
    """Draw the loss of every training (figure S1a of the paper); a cross is where one diverged."""
    every = [curve for of_row in curves for curve in of_row]
    figure = sheet(sweep, "×: diverged; the training ends here." if any(curve.is_diverged for curve in every) else "")
    axes = ruled(figure.add_subplot(), "training step", f"{' '.join(sweep.metric.split('.')[:-1])} loss")
    width = 1.6 if max(curve.steps[-1] for curve in every) <= MANY_STEPS else 0.8
    cross: dict[str, Any] = {"marker": "x", "markersize": 9, "markeredgewidth": 2.2, "clip_on": False}
    handles = []
    for row, of_row, look in zip(sweep.rows, curves, looks_of_rows(sweep, sweep.rows), strict=True):
        for curve in of_row:
            Line("", curve.steps, curve.losses, look, width=width).draw(axes)
            if curve.is_diverged:
                axes.plot(curve.steps[-1], curve.losses[-1], color=look.colour, **cross)
        ends = [str(int(curve.steps[-1])) for curve in of_row if curve.is_diverged]
        if of_row:
            label = row_label(sweep, row) + (f", diverged at step {', '.join(ends)}" if ends else "")
            handles.append(Line2D([], [], color=look.colour, linestyle=look.dashes, linewidth=1.6, label=label))
    axes.set_yscale("symlog", linthresh=LINEAR_BELOW)
    ticks = SymmetricalLogLocator(base=10, linthresh=LINEAR_BELOW)
    ticks.set_params(numticks=LOSS_TICKS)
    axes.yaxis.set_major_locator(ticks)
    axes.yaxis.set_major_formatter(FuncFormatter(_loss_tick))
    if sweep_rows.is_logarithmic([curve.steps[-1] for curve in every]):
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(axes, handles, legend_title(sweep))
    return figure


def _loss_tick(value: float, _: int) -> str:
    if abs(value) < PLAIN_BELOW:
        return f"{value:g}".replace("-", "\N{MINUS SIGN}")
    return f"${'-' if value < 0 else ''}10^{{{np.log10(abs(value)):g}}}$"


@dataclass(frozen=True)
class SeedCurve:
    """The mean of a row's curves; of several, with their sample standard deviation."""

    x: NDArray[np.float64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64] | None

    @property
    def best(self) -> int:
        return int(np.nanargmax(self.mean))


def step_curves(sweep: Sweep) -> dict[int, SeedCurve]:
    """Return the seed mIoU by refinement step of each row (by its place) whose finished trials kept their steps."""
    return _curves(sweep, lambda seed: {point.step: point.miou for point in seed.by_step or ()})


def threshold_curves(sweep: Sweep) -> dict[int, SeedCurve]:
    """Return the seed mIoU by threshold of each row (by its place) whose finished trials judged a seed."""
    return _curves(sweep, _thresholds)


def _curves(sweep: Sweep, read: Callable[[SeedJudgement], Mapping[float, float | None]]) -> dict[int, SeedCurve]:
    found = {}
    for place, row in enumerate(sweep.rows):
        if curves := [points for seed in _seeds(sweep, [row]) if (points := read(seed))]:
            shared = sorted(set(curves[0]).intersection(*curves[1:]))
            values = np.array([[curve[x] for x in shared] for curve in curves], float)
            std = values.std(axis=0, ddof=1) if len(curves) > 1 else None
            found[place] = SeedCurve(np.array(shared), values.mean(axis=0), std)
    return found


def _thresholds(seed: SeedJudgement) -> dict[float, float | None]:
    return dict(zip(seed.curve.thresholds, seed.curve.miou, strict=True)) if seed.curve else {}


def _seeds(sweep: Sweep, rows: Sequence[SweepRow], maps: str | None = None) -> list[SeedJudgement]:
    """Return the seeds that the rows' finished trials have judged themselves.

    Without ``maps``, of those that the metric is about; where it is about no seed, of the last ones by name.
    """
    found = []
    for trial in (trial for row in rows for trial in row.trials if trial["status"] == FINISHED):
        seeds = Run(sweep.folder / trial["directory"]).read_metrics().seeds
        wanted = maps or sweep_rows.seed_maps(metric_of(sweep.metric, trial["settings"]))
        if seeds and (name := wanted or ordered(seeds)[-1]) in seeds:
            found.append(seeds[name])
    return found


def draw_steps(sweep: Sweep, curves: Mapping[int, SeedCurve]) -> Figure:
    """Draw seed mIoU over refinement steps (over activations: figure S1b of the paper)."""
    notes = "Step 1 is the plain CAM. Every step at its own best threshold.", _band_note(curves)
    figure = sheet(sweep, *notes, with_published=LOSS in sweep.axes)
    axes = ruled(figure.add_subplot(), "refinement step", "seed mIoU, %")
    _legend(axes, sweep, _draw(axes, sweep, curves, "at step"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def draw_thresholds(sweep: Sweep, curves: Mapping[int, SeedCurve]) -> Figure:
    """Draw seed mIoU over thresholds, with that of plain CAM where all trials share it."""
    figure = sheet(sweep, _band_note(curves), with_published=False)
    axes = ruled(figure.add_subplot(), "threshold", "seed mIoU, %")
    handles = _draw(axes, sweep, curves, "at")
    plain = [points for seed in _seeds(sweep, sweep.rows, CAM) if (points := _thresholds(seed))]
    if plain and all(points == plain[0] for points in plain):
        look = Look(FAINT_INK, (0, (4, 2)), "")
        line = Line(label(CAM), list(plain[0]), np.array([*plain[0].values()], float), look, width=1.3, layer=1.5)
        handles.append(line.draw(axes))
    _legend(axes, sweep, handles)
    return figure


def _band_note(curves: Mapping[int, SeedCurve]) -> str:
    has_bands = any(curve.std is not None for curve in curves.values())
    return "Bands: sample standard deviation over repeats." if has_bands else ""


def _draw(axes: Axes, sweep: Sweep, curves: Mapping[int, SeedCurve], at: str) -> list[Line2D]:
    """Draw a curve per row with its best point marked; return what a legend names: of many only the best one."""
    rows = [sweep.rows[place] for place in curves]
    best = max(curves.values(), key=lambda curve: curve.mean[curve.best])
    is_crowded = len(curves) > LINES_APART
    named: list[Line2D] = []
    for row, curve, look in zip(rows, curves.values(), looks_of_rows(sweep, rows), strict=True):
        label = f"{row_label(sweep, row)}: {curve.mean[curve.best]:.1f} {at} {setting_text(float(curve.x[curve.best]))}"
        if is_crowded and curve is not best:
            Line(label, curve.x, curve.mean, Look(OTHERS, "-", ""), width=0.9).draw(axes)
            continue
        band = None if curve.std is None else (curve.mean - curve.std, curve.mean + curve.std)
        line = Line(label, curve.x, curve.mean, OURS if is_crowded else look, band, best=curve.best, layer=3)
        named.append(line.draw(axes))
    if is_crowded:
        named.append(Line2D([], [], color=OTHERS, linewidth=0.9, label=f"the {len(curves) - 1} others"))
    return named


def _legend(axes: Axes, sweep: Sweep, handles: Sequence[Line2D]) -> None:
    title = f"{legend_title(sweep)}: best" if sweep.axes else ""
    legend(axes, handles, title, beside=len(handles) > LINES_ABOVE)
