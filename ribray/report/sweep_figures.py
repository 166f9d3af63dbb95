"""Plots of a sweep: the metric over its axes, and the curves of its trials."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from ribray.report import sweep_curves, sweep_rows, sweep_sheet
from ribray.report.plots import BAND_OPACITY, FAINT_INK, INK, PAPER, PLOT_INCHES, STYLE, Line, Look, legend, ruled, save
from ribray.report.sweep_rows import Sweep, SweepRow, is_logarithmic, is_numeric, metric_label, setting_text
from ribray.report.sweep_sheet import LOSS, OURS, PUBLISHED, SHADES, legend_title, plain, row_label, scale, sheet
from ribray.report.table import NOTHING
from ribray.sweep_file import short_keys

PLOT_FILE, STEPS_FILE, THRESHOLDS_FILE = "plot.png", "steps.png", "thresholds.png"
TITLES = {
    PLOT_FILE: "The metric over what was varied",
    STEPS_FILE: "Seed mIoU by refinement step",
    THRESHOLDS_FILE: "Seed mIoU by threshold",
}
SERIES = 6  # a second axis of so many values makes lines; one of more a scatter
ROWS_DRAWN = 40
FAR_APART = 1.0  # published values further away than so many spans get a scale of their own
SAME_SCALE = 3.0  # that scale has the other one's units unless the spans differ by more than this factor
DODGE = 0.008  # error bars of several lines stand beside each other, this share of the axis apart
ROW_INCHES, AROUND_ROWS_INCHES, PANEL_INCHES = 0.3, 1.3, 2.6
REASON_LETTERS = 60
CROSSES = ("x", "+", "1", "2", "3", "4")
CROSS: dict[str, Any] = {"linestyle": "", "color": INK, "markersize": 7, "markeredgewidth": 1.6}
DOT: dict[str, Any] = {"color": OURS.colour, "marker": OURS.marker, "markeredgecolor": PAPER}


def draw_plots(sweep: Sweep) -> list[Path]:
    """Draw what the rows of a sweep show and write PNG files into its folder, below which its trials lie.

    The files are returned; there is no plot of a sweep without a value or a curve.

    Raises:
        RibrayError: a trial's file is damaged.
    """
    losses, steps = sweep_curves.loss_curves(sweep), sweep_curves.step_curves(sweep)
    figures: dict[str, Figure] = {}
    with mpl.rc_context(STYLE):
        if any(losses):
            figures[PLOT_FILE] = sweep_curves.draw_losses(sweep, losses)
        elif LOSS in sweep.axes and steps:
            figures[PLOT_FILE] = sweep_curves.draw_steps(sweep, steps)
        elif sweep.valued:
            figures[PLOT_FILE] = _metric_plot(sweep)
        if steps and LOSS not in sweep.axes:
            figures[STEPS_FILE] = sweep_curves.draw_steps(sweep, steps)
        if thresholds := sweep_curves.threshold_curves(sweep):
            figures[THRESHOLDS_FILE] = sweep_curves.draw_thresholds(sweep, thresholds)
        for name, figure in figures.items():
            save(figure, sweep.folder / name)
    return [sweep.folder / name for name in figures]


def _metric_plot(sweep: Sweep) -> Figure:
    if not sweep.axes:
        return _repeats(sweep)
    numeric = [axis for axis in sweep.axes if is_numeric(sweep.values(axis))]
    if len(sweep.axes) == 1:
        return _one_axis(sweep, numeric[0]) if numeric else _dots(sweep)
    if len(sweep.axes) == 2 and numeric:
        x = max(numeric, key=lambda axis: len(set(sweep.values(axis))))
        other = next(axis for axis in sweep.axes if axis != x)
        series = {setting_text(value) for value in sweep.values(other)}
        if len(series) <= min(SERIES, len(sweep.rows) // 2):
            return _series(sweep, x, other)
        return _scatter(sweep, *numeric) if len(numeric) == 2 else _dots(sweep)
    return _panels(sweep, numeric) if len(numeric) > 1 else _dots(sweep)


# --- one numeric axis, or two as lines ---------------------------------------------------------------------------


def _one_axis(sweep: Sweep, axis: str) -> Figure:
    figure = sheet(sweep, _bar_note(sweep.rows))
    axes = ruled(figure.add_subplot(), plain(axis), metric_label(sweep.metric))
    rows = sorted(sweep.rows, key=lambda row: row.settings[axis])
    best = next((row for row in rows if row.is_best), None)
    label = f", best {_mean(sweep, best)} at {setting_text(best.settings[axis])}" if best else ""
    values = [row.settings[axis] for row in rows]
    handles = [_line(f"this sweep{label}", values, rows, OURS).draw(axes)]
    if sweep.table:
        curve = {float(column): value for column, value in sweep.published.items()}
        handles.append(_draw_published(axes, curve, sweep.valued, f"published, table {sweep.table.name}"))
        values = [*values, *curve]
    scale(axes, values)
    legend(axes, [*handles, *_mark_missing(axes, axis, rows)])
    return figure


def _series(sweep: Sweep, x: str, other: str) -> Figure:
    groups: dict[str, list[SweepRow]] = {}
    for row in sorted(sweep.rows, key=lambda row: row.settings[x]):
        groups.setdefault(setting_text(row.settings[other]), []).append(row)
    order = list(dict.fromkeys(map(setting_text, sweep.values(other))))
    if is_numeric(sweep.values(other)):
        order.sort(key=float)
    figure = sheet(sweep, _bar_note(sweep.rows))
    axes = ruled(figure.add_subplot(), plain(x), metric_label(sweep.metric))
    looks = sweep_sheet.looks_of([groups[name][0].settings[other] for name in order])
    handles = []
    for place, (name, look) in enumerate(zip(order, looks, strict=True)):
        rows = groups[name]
        values = _beside([row.settings[x] for row in rows], sweep.values(x), place - (len(order) - 1) / 2)
        handles.append(_line(sweep_sheet.setting_label(other, rows[0].settings[other]), values, rows, look).draw(axes))
    scale(axes, sweep.values(x))
    handles += _mark_missing(axes, x, sweep.rows)
    legend(axes, handles, plain(sweep.names[other]), columns=4)
    return figure


def _beside(values: Sequence[float], every: Sequence[float], places: float) -> list[float]:
    """Return the values moved aside by so many widths of an error bar."""
    if is_logarithmic(every):
        return [value * (max(every) / min(every)) ** (places * DODGE) for value in values]
    return [value + places * DODGE * (max(every) - min(every)) for value in values]


def _line(name: str, x: Sequence[float], rows: Sequence[SweepRow], look: Look) -> Line:
    best = next((place for place, row in enumerate(rows) if row.is_best), None)
    means, bars = np.array([row.mean for row in rows], float), np.hstack([_bar(row) for row in rows])
    return Line(name, x, means, look, bars=bars, best=best, is_dotted=True, size=5.5)


def _bar(row: SweepRow) -> NDArray[np.float64]:
    """Return an error bar's lengths below and above the mean: (2, 1), `nan` where there is none."""
    if row.mean is None or row.spread is None:
        return np.full((2, 1), np.nan)
    return np.array([[row.mean - row.spread[0]], [row.spread[1] - row.mean]]).clip(min=0)


def _draw_published(axes: Axes, curve: Mapping[float, float], rows: Sequence[SweepRow], name: str) -> Line2D:
    """Draw the published curve; far from the sweep's values it has a scale of its own on the right."""
    ends = [end for row in rows for end in (row.spread or (row.mean,)) if end is not None]
    ours, theirs = (min(ends), max(ends)), (min(curve.values()), max(curve.values()))
    gap = max(theirs[0] - ours[1], ours[0] - theirs[1])
    line = Line(name, list(curve), list(curve.values()), PUBLISHED, is_dotted=True, width=1.6, size=5.5)
    if gap <= FAR_APART * max(ours[1] - ours[0], theirs[1] - theirs[0]):
        return replace(line, layer=1.5).draw(axes)
    right = axes.twinx()
    handle = replace(line, name=f"{name}, right scale").draw(right)
    right.spines[["top", "left"]].set_visible(False)
    right.spines["right"].set_color(PUBLISHED.colour)
    right.tick_params(axis="y", length=3, colors=PUBLISHED.colour)
    right.set_ylabel(f"{name}, %", color=PUBLISHED.colour)
    axes.set_zorder(right.get_zorder() + 1)  # the sweep's own curve is in front
    axes.patch.set_visible(False)
    spans = [float(np.ptp(each.get_ylim())) for each in (axes, right)]
    if max(spans) <= SAME_SCALE * min(spans):  # slopes compare; else one curve would be flat
        for each in (axes, right):
            middle = float(np.mean(each.get_ylim()))
            each.set_ylim(middle - max(spans) / 2, middle + max(spans) / 2)
    return handle


def _mark_missing(axes: Axes, axis: str, rows: Sequence[SweepRow]) -> list[Line2D]:
    """Mark on the lower edge where rows have no value; return a legend entry per reason."""
    kinds: dict[str, list[float]] = {}
    for row in rows:
        if row.mean is None:
            kinds.setdefault(" and ".join(row.statuses), []).append(row.settings[axis])
    entries = []
    for place, (words, at) in enumerate(kinds.items()):
        style = {**CROSS, "marker": CROSSES[place % len(CROSSES)], "label": f"no value: {words}"}
        axes.plot(at, [0.035] * len(at), transform=axes.get_xaxis_transform(), clip_on=False, **style)
        entries.append(Line2D([], [], **style))
    return entries


def _bar_note(rows: Sequence[SweepRow]) -> str:
    repeats, parts = sweep_rows.repeats_of(rows), []
    if repeats:
        parts.append(f"sample standard deviation over {repeats} repeats")
    if any(row.interval for row in rows):
        parts.append("95 % bootstrap interval over images" + (" where there is one run" if repeats else ""))
    return f"Bars: {'; '.join(parts)}." if parts else ""


def _mean(sweep: Sweep, row: SweepRow) -> str:
    return NOTHING if row.mean is None else sweep.number(row.mean)


# --- other axes --------------------------------------------------------------------------------------------------


def _dots(sweep: Sweep) -> Figure:
    rows, note = list(sweep.rows), ""
    if len(rows) > ROWS_DRAWN:
        rows = sweep.best_first()[:ROWS_DRAWN]
        note = f"{len(rows)} of {len(sweep.rows)} rows, the best."
    figure = sheet(sweep, _bar_note(rows), note, size=(PLOT_INCHES[0], AROUND_ROWS_INCHES + ROW_INCHES * len(rows)))
    axes = ruled(figure.add_subplot(), metric_label(sweep.metric), legend_title(sweep))
    for place, row in enumerate(rows):
        if row.mean is None:
            reason = plain(row.reason, REASON_LETTERS)
            axes.text(0.01, place, reason, transform=axes.get_yaxis_transform(), va="center", color=FAINT_INK)
            continue
        dot = {**DOT, "markersize": 9 if row.is_best else 6.5}
        axes.errorbar(row.mean, place, xerr=_bar(row), elinewidth=1.3, capsize=3, **dot)
        above: dict[str, Any] = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center", "fontsize": 7.5}
        weight = "bold" if row.is_best else "normal"
        axes.annotate(_mean(sweep, row), (row.mean, place), fontweight=weight, **above)
    axes.set_yticks(range(len(rows)), [row_label(sweep, row) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.75)
    axes.margins(x=0.08)
    axes.grid(visible=False, axis="y")
    return figure


def _scatter(sweep: Sweep, x: str, y: str) -> Figure:
    figure = sheet(sweep)
    axes = ruled(figure.add_subplot(), plain(x), plain(y))

    def places(rows: Sequence[SweepRow]) -> list[list[float]]:
        return [[row.settings[axis] for row in rows] for axis in (x, y)]

    shades = SHADES if sweep.ledger["mode"] == "max" else f"{SHADES}_r"
    means: list[Any] = [row.mean for row in sweep.valued]
    across, up = places(sweep.valued)
    points = axes.scatter(across, up, c=means, cmap=shades, s=52, zorder=3, edgecolors=PAPER, linewidths=0.8)
    bar = figure.colorbar(points, ax=axes, pad=0.02)
    bar.set_label(metric_label(sweep.metric))
    bar.outline.set_visible(False)
    handles = []
    if best := [row for row in sweep.valued if row.is_best]:
        ring: dict[str, Any] = {"marker": "o", "markersize": 12, "markerfacecolor": "none", "markeredgecolor": INK}
        handles += axes.plot(*places(best), linestyle="", label=f"best, {_mean(sweep, best[0])}", **ring)
    if missing := [row for row in sweep.rows if row.mean is None]:
        words = f"no value: {', '.join(dict.fromkeys(status for row in missing for status in row.statuses))}"
        handles += axes.plot(*places(missing), marker="x", color=FAINT_INK, linestyle="", label=words)
    scale(axes, sweep.values(x))
    if is_logarithmic(sweep.values(y)):
        axes.set_yscale("log")
    legend(axes, handles)
    return figure


def _panels(sweep: Sweep, numeric: Sequence[str]) -> Figure:
    partial = [
        (row, trial["value"])
        for row in sweep.rows
        for trial in row.trials
        if trial["status"] != sweep_rows.FINISHED and sweep_rows.is_number(trial["value"])
    ]
    best = [row for row in sweep.valued if row.is_best]
    notes = [f"Outlined: best, {_mean(sweep, best[0])}." if best else "", "Hollow: ended early." if partial else ""]
    figure = sheet(sweep, *notes, size=(max(PLOT_INCHES[0], PANEL_INCHES * len(numeric)), PLOT_INCHES[1]))
    panels = figure.subplots(1, len(numeric), sharey=True, squeeze=False)[0]
    looks: list[dict[str, Any]] = [
        {"markersize": 5, "markerfacecolor": "none", "markeredgecolor": FAINT_INK},
        {"markersize": 6},
        {"markersize": 10, "markeredgecolor": INK},
    ]
    layers = [partial, *([(row, row.mean) for row in rows] for rows in (sweep.valued, best))]
    for axis, axes in zip(numeric, panels, strict=True):
        ruled(axes, plain(axis), metric_label(sweep.metric) if axes is panels[0] else "")
        for points, look in zip(layers, looks, strict=True):
            at = [row.settings[axis] for row, _ in points]
            axes.plot(at, [value for _, value in points], linestyle="", **{**DOT, **look})
        scale(axes, sweep.values(axis))
    return figure


def _repeats(sweep: Sweep) -> Figure:
    row, repeats = sweep.valued[0], list(sweep.ledger["repeats"])
    summary = row.summary
    assert summary is not None
    decimals = sweep_rows.published_decimals(sweep.stated.get("value"))
    label = f"mean {sweep.number(summary.mean, decimals)}{sweep.plus_minus(summary.std)}"
    band = "" if summary.std is None else f"Band: sample standard deviation over {summary.count} repeats."
    reason = f"Not counted: {plain(row.reason, REASON_LETTERS)}." if row.reason else ""
    figure = sheet(sweep, band or _bar_note([row]), reason)
    names = list(short_keys(repeats).values()) if len(repeats) > 1 else repeats
    axes = ruled(figure.add_subplot(), plain(", ".join(names)), metric_label(sweep.metric))
    if summary.std is not None:
        low, high = summary.mean - summary.std, summary.mean + summary.std
        axes.axhspan(low, high, color=OURS.colour, alpha=BAND_OPACITY, linewidth=0)
    line = axes.axhline(summary.mean, color=OURS.colour, linewidth=1.5, label=label)
    places, values = range(row.count), [trial["value"] for trial in row.counting]
    bars = _bar(row) if summary.std is None else None
    axes.errorbar(places, values, yerr=bars, linestyle="", capsize=3, elinewidth=1.2, markersize=8, **DOT)
    texts = [", ".join(setting_text(trial["settings"].get(key)) for key in repeats) for trial in row.counting]
    axes.set_xticks(places, [plain(text) for text in texts])
    axes.set_xlim(-0.6, row.count - 0.4)
    axes.margins(y=0.25)
    axes.grid(visible=False, axis="x")
    legend(axes, [line])
    return figure
