"""Line charts of a run: mIoU over thresholds and steps, losses. As PNG, and as SVG in the colours of its page."""

import io
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, register_namespace, tostring

import matplotlib as mpl
import numpy as np
from defusedxml.ElementTree import fromstring
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from ribray import storage
from ribray.report.figures import CURVE_INCHES, DOTS_PER_INCH, FAINT_INK, GRID, INK, LINES, STYLE
from ribray.report.refinement import RefinementLosses
from ribray.report.stations import CAM, INTERVAL, METHOD_NAMES, RIB, Station

PANEL_INCHES = (4.8, 3.1)
"""Of one of several charts in a PNG."""
PANELS_ACROSS = 2
SVG_INCHES = (4.1, 2.65)
"""Small, so that its letters are large enough on a telephone."""
LEGEND_LETTERS = 44
"""Two columns of entries that are longer together become one."""
BAND_OPACITY = 0.18
PAPER = "white"

LOOKS = {METHOD_NAMES[CAM]: 0, METHOD_NAMES[RIB]: 1}
"""The same maps look the same in every chart."""
MOST_POINTS = 60
"""Series of more than twice as many are drawn as means of so many stretches, the lowest and highest value of each as
a band."""
LOG_RATIO = 20.0
"""From this ratio of the highest to the lowest loss on, its axis is logarithmic."""

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
REFERENCE = re.compile(r"url\(#([^)]+)\)")
FONT = re.compile(r"font-family: [^;]+")
VARIABLES = {
    INK: "--ink",
    FAINT_INK: "--faint",
    GRID: "--grid",
    PAPER: "--paper",
    **{colour: f"--line-{number}" for number, (colour, _, _) in enumerate(LINES)},
}
"""Which of the page's CSS variables stands for a colour."""


@dataclass(frozen=True)
class Line:
    """One series of a chart.

    Attributes:
        name: what the legend calls it.
        x: (N,) rising.
        y: (N,); a point that is no number is left out.
        band: (N,) lower and upper edge of a band around it.
        best: index of the point with a marker.
        dotted: a marker at every point.
        noisy: drawn thin and without dashes.
        look: which of `LINES` it is drawn as.
    """

    name: str
    x: ArrayLike
    y: ArrayLike
    band: tuple[ArrayLike, ArrayLike] | None = None
    best: int | None = None
    dotted: bool = False
    noisy: bool = False
    look: int = 0


@dataclass(frozen=True)
class Chart:
    """Lines over one pair of axes."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    is_logarithmic: bool = False
    not_negative: bool = False
    """The vertical axis stays at 0 and above."""
    counts: bool = False
    """The horizontal axis counts: its ticks are whole numbers."""

    @property
    def has_bands(self) -> bool:
        """Whether there is a band around a line."""
        return any(line.band is not None for line in self.lines)

    def draw(self, axes: Axes) -> None:
        """Draw it, without its title."""
        for line in self.lines:
            _draw_line(axes, line)
        axes.set_xlabel(self.x_label)
        axes.set_ylabel(self.y_label)
        if self.is_logarithmic:
            axes.set_yscale("log")
        axes.margins(x=0.02, y=0.08)
        if self.not_negative:
            axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
        if self.counts:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color=GRID, linewidth=0.8)
        _finish(axes, [line.name for line in self.lines])


@dataclass(frozen=True)
class DotChart:
    """Values of a few series at named places, with their intervals.

    Attributes:
        title: stands above it.
        x_label: what the values are.
        places: names, from the top down.
        series: name -> a value per place with the bounds of its interval, or None; bounds may be missing.
    """

    title: str
    x_label: str
    places: Sequence[str]
    series: Mapping[str, Sequence[tuple[float, tuple[float, float] | None] | None]]
    has_bands = False

    def draw(self, axes: Axes) -> None:
        """Draw it, without its title."""
        for look, (name, values) in zip(_looks(self.series), self.series.items(), strict=True):
            colour, _, marker = LINES[look % len(LINES)]
            known = [(place, *value) for place, value in enumerate(values) if value is not None]
            for place, _, bounds in known:
                if bounds is not None:
                    axes.plot(bounds, (place, place), color=colour, linewidth=1.6, marker="|", markersize=7)
            axes.plot(
                [value for _, value, _ in known],
                [place for place, _, _ in known],
                linestyle="",
                marker=marker,
                markersize=5,
                color=colour,
                label=name,
            )
        axes.set_yticks(range(len(self.places)), [place.replace(", ", ",\n") for place in self.places])
        axes.set_ylim(len(self.places) - 0.5, -0.5)
        axes.set_xlabel(self.x_label)
        axes.margins(x=0.06)
        axes.set_xlim(left=max(0.0, axes.get_xlim()[0]))
        axes.grid(color=GRID, linewidth=0.8, axis="x")
        axes.tick_params(axis="y", length=0)
        _finish(axes, list(self.series), handle=1.0)


def _finish(axes: Axes, names: Sequence[str], handle: float = 3.0) -> None:
    """Give axes the house's look, and a legend of these names above, with handles of so many letters."""
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", length=3, which="both")
    if not names:
        return
    half = -(-len(names) // 2)
    letters = sum(max(map(len, column)) + 6 for column in (names[:half], names[half:]) if column)
    columns = 2 if letters <= LEGEND_LETTERS else 1
    # Above the axes no curve can pass through it.
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2, "borderpad": 0.2}
    axes.legend(**place, ncols=columns, frameon=False, handlelength=handle, columnspacing=2.5)


# --- of a run ----------------------------------------------------------------------------------------------------


def threshold_chart(curves: Mapping[str, tuple[ArrayLike, ArrayLike]], title: str = "") -> Chart:
    """Return mIoU over the seed's threshold, a line per method with its best point marked.

    Args:
        curves: method -> ((T,) rising thresholds, (T,) mIoU in percent).
        title: stands above the curves.

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
        lines.append(Line(label, thresholds, means, best=best, look=look))
    return Chart(title, "threshold", "mIoU, %", lines, not_negative=True)


def curves_of(seed_metrics: Mapping[str, Any]) -> dict[str, tuple[ArrayLike, ArrayLike]]:
    """Return the curves in the ``seed`` part of a run's metrics, plain CAM first."""
    methods = sorted(seed_metrics, key=lambda method: (method != CAM, method != RIB))
    return {
        METHOD_NAMES.get(method, method): (
            seed_metrics[method]["curve"]["thresholds"],
            seed_metrics[method]["curve"]["miou"],
        )
        for method in methods
        if "curve" in seed_metrics[method]
    }


def steps_chart(seed_metrics: Mapping[str, Any], title: str = "") -> Chart | None:
    """Return the seed's mIoU by refinement step, each at its own best threshold; None where steps were not kept."""
    by_step = seed_metrics.get(RIB, {}).get("by_step")
    if not by_step:
        return None
    steps, means = ([point[key] for point in by_step] for key in ("step", "miou"))
    lines = [Line(f"RIB, {means[-1]:.1f} after step {steps[-1]}", steps, means, dotted=True, look=1)]
    plain = seed_metrics.get(CAM, {}).get("miou")
    if plain is not None and len(steps) > 1:
        ends = [steps[0], steps[-1]]
        lines.insert(0, Line(f"plain CAM, {plain:.1f}", ends, [plain, plain], look=0))
    return Chart(title, "step k", "mIoU, %", lines, counts=True)


def loss_chart(logs: Mapping[str, Sequence[Mapping[str, Any]]], title: str, validation: str | None = None) -> Chart:
    """Return the loss of trainings over their steps.

    Args:
        logs: name of a training -> the lines of its log: of steps ("step", "loss"; None where it was not finite) and
            of validations ("step", "validation": with "loss", or not).
        title: stands above the curves.
        validation: what to call the losses of validations; None leaves them out.
    """
    lines: list[Line] = []
    looks = _looks([*logs, *([] if validation is None else [validation])])
    for name, log in logs.items():
        known = [(line["step"], line["loss"]) for line in log if line.get("loss") is not None]
        look = next(looks)
        if known:
            lines.append(_thinned(name, np.array(known, float), look))
    held_out = [
        (line["step"], line["validation"]["loss"])
        for log in logs.values()
        for line in log
        if "loss" in line.get("validation", {})
    ]
    if validation is not None and held_out:
        steps, means = np.array(held_out, float).T
        lines.append(Line(validation, steps, means, dotted=True, look=next(looks)))
    losses = [line["loss"] for log in logs.values() for line in log if line.get("loss") is not None]
    is_logarithmic = bool(losses and min(losses) > 0 and max(losses) / min(losses) >= LOG_RATIO)
    return Chart(title, "training step", "loss", lines, is_logarithmic, counts=True)


def _looks(names: Iterable[str]) -> Iterator[int]:
    """Yield how each line looks: as everywhere, or in a way that no other of them has."""
    names = list(names)
    free = (look for look in itertools.count() if look not in {LOOKS.get(name) for name in names})
    for name in names:
        yield LOOKS[name] if name in LOOKS else next(free)


def stations_chart(found: Sequence[Station], title: str = "") -> DotChart:
    """Return the mIoU at every station of the chain, for every source of maps."""
    series = {
        METHOD_NAMES[source]: [_with_interval(station.numbers.get(source)) for station in found]
        for source in METHOD_NAMES
        if any(source in station.numbers for station in found)
    }
    return DotChart(title, "mIoU, %", [station.label for station in found], series)


def _with_interval(numbers: Mapping[str, Any] | None) -> tuple[float, tuple[float, float] | None] | None:
    if numbers is None:
        return None
    bounds = numbers.get(INTERVAL)
    return numbers["miou"], (bounds[0], bounds[1]) if bounds else None


def refinement_charts(losses: RefinementLosses, stop_threshold: float) -> list[Chart]:
    """Return L_RIB and the target's logits over the steps of the refinement, medians over images."""
    charts = []
    for quantiles, title, label, look in (
        (losses.losses, "Loss of the refinement", "L_RIB", 1),
        (losses.targets, "Logits of the target", "summed logits", 2),
    ):
        if len(quantiles):
            low, middle, high = quantiles.T
            steps = np.arange(1, len(quantiles) + 1)
            lines = [Line("median over images", steps, middle, band=(low, high), dotted=True, look=look)]
            if quantiles is losses.targets and stop_threshold <= 2 * float(high.max()):
                ends = [1, len(quantiles)]
                lines.append(Line(f"stop threshold {stop_threshold:g}", ends, [stop_threshold] * 2, look=3))
            charts.append(Chart(title, "step k", label, lines, counts=True))
    return charts


def _thinned(name: str, points: NDArray[np.float64], look: int) -> Line:
    """Return a series (N, 2) of steps and losses, drawn by stretches where it is long."""
    if len(points) <= 2 * MOST_POINTS:
        return Line(name, points[:, 0], points[:, 1], noisy=True, look=look)
    stretches = np.array_split(points, MOST_POINTS)
    steps, means = np.array([stretch.mean(axis=0) for stretch in stretches]).T
    low, high = ([float(edge(stretch[:, 1])) for stretch in stretches] for edge in (np.min, np.max))
    return Line(name, steps, means, band=(low, high), noisy=True, look=look)


# --- drawing -----------------------------------------------------------------------------------------------------


def curve_figure(curves: Mapping[str, tuple[ArrayLike, ArrayLike]], path: Path, *, title: str | None = None) -> None:
    """Draw mIoU over the seed's threshold, a line per method with its best point marked; write a PNG.

    Args:
        curves: method -> ((T,) rising thresholds, (T,) mIoU in percent).
        path: the PNG file to write.
        title: stands above the curves.

    Raises:
        ValueError: as for `threshold_chart`.
    """
    write_png([threshold_chart(curves, title or "")], path)


def write_png(charts: Sequence[Chart], path: Path) -> None:
    """Draw one chart, or several beside and below each other; write a PNG.

    Raises:
        ValueError: no charts.
    """
    if not charts:
        raise ValueError("A figure of charts needs at least one chart.")
    across = min(len(charts), PANELS_ACROSS)
    down = -(-len(charts) // across)
    width, height = CURVE_INCHES if len(charts) == 1 else PANEL_INCHES
    with mpl.rc_context(STYLE):
        figure = Figure(
            figsize=(across * width, down * height), dpi=DOTS_PER_INCH, facecolor=PAPER, layout="constrained"
        )
        panels = figure.subfigures(down, across, squeeze=False).ravel()
        for panel, chart in zip(panels, charts, strict=False):
            if chart.title:
                panel.suptitle(chart.title, x=0.012, ha="left", fontweight="bold", fontsize=10.5)
            chart.draw(panel.add_subplot())
        buffer = io.BytesIO()
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    storage.write_bytes(path, buffer.getvalue())


def to_svg(chart: Chart | DotChart, name: str) -> str:
    """Return a chart as an ``svg`` element for a page, without its title.

    Text stays text, in the page's font; colours are the page's variables (`VARIABLES`), so that one drawing serves a
    light and a dark page.

    Args:
        chart: what to draw.
        name: stands before every id of the element: unique in its page, letters and digits.
    """
    settings = {**STYLE, "svg.fonttype": "none", "svg.hashsalt": name}
    with mpl.rc_context(settings):
        figure = Figure(figsize=SVG_INCHES, facecolor="none", layout="constrained")
        chart.draw(figure.add_subplot(facecolor="none"))
        buffer = io.BytesIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(buffer, metadata=nothing)
    drawing = fromstring(buffer.getvalue())
    _prepare(drawing, name)
    drawing.attrib |= {"class": "chart", "role": "img", "aria-label": chart.title}
    return tostring(drawing, encoding="unicode")


def _draw_line(axes: Axes, line: Line) -> None:
    colour, dashes, marker = LINES[line.look % len(LINES)]
    if line.band is not None:
        axes.fill_between(np.asarray(line.x), *line.band, color=colour, alpha=BAND_OPACITY, linewidth=0)
    marks: dict[str, Any] = {}
    if line.dotted:
        marks = {"marker": marker, "markersize": 5, "markeredgewidth": 0.8}
    elif line.best is not None:
        marks = {"marker": marker, "markersize": 8, "markeredgewidth": 1.3, "markevery": [line.best]}
    axes.plot(
        np.asarray(line.x),
        np.asarray(line.y),
        color=colour,
        linestyle="-" if line.noisy else dashes,
        linewidth=1.4 if line.noisy else 1.9,
        markeredgecolor=PAPER,
        label=line.name,
        **marks,
    )


# --- SVG for a page ----------------------------------------------------------------------------------------------


register_namespace("", SVG)


def _prepare(drawing: Element, name: str) -> None:
    """Make an SVG part of a page: ids of its own, the page's colours and font, as wide as its place."""
    for element in drawing.iter():
        for key, value in list(element.attrib.items()):
            element.attrib[key] = REFERENCE.sub(rf"url(#{name}-\1)", value)
        if "id" in element.attrib:
            element.attrib["id"] = f"{name}-{element.attrib['id']}"
        if (target := element.attrib.pop(f"{{{XLINK}}}href", None)) is not None:
            element.attrib["href"] = f"#{name}-{target.removeprefix('#')}"
        if "style" in element.attrib:
            element.attrib["style"] = _page_style(element.attrib["style"])
    for parent in list(drawing.iter()):
        for child in list(parent):
            if child.tag == f"{{{SVG}}}style":  # it would hold for the whole page
                parent.remove(child)
    for key in ("width", "height"):
        drawing.attrib.pop(key)


def _page_style(style: str) -> str:
    for colour, variable in VARIABLES.items():
        named = mpl.colors.to_hex(colour)
        style = style.replace(named, f"var({variable})")
    return FONT.sub("font-family: inherit", style)
