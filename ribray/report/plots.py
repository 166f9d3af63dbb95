"""How plots of runs and sweeps are drawn: lines and dots over axes, legends; as PNG, and as SVG in a page's colours."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element, register_namespace, tostring

import matplotlib as mpl
import numpy as np
from defusedxml.ElementTree import fromstring
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from ribray import storage

DOTS_PER_INCH = 150
PLOT_INCHES = (6.4, 3.7)
PANEL_INCHES = (4.8, 3.1)  # of one of several charts in a PNG
PANELS_ACROSS = 2
SVG_INCHES = (4.1, 2.65)  # small, so that its letters are large enough on a telephone
LEGEND_LETTERS = 44  # two columns of entries that are longer together become one
BAND_OPACITY = 0.18
TITLE: dict[str, Any] = {"x": 0.012, "ha": "left", "fontweight": "bold", "fontsize": 10.5}
ABOVE: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2, "borderpad": 0.2}
"""Where a legend stands: above the axes no curve can pass through it."""
INK, FAINT_INK, GRID, PAPER = "#1b1b1f", "#63636b", "#e6e6ea", "white"


class Look(NamedTuple):
    colour: Any
    dashes: Any
    marker: str


# Okabe and Ito's colours can be told apart with every kind of colour vision; dashes and markers differ too.
LOOKS = (
    Look("#0072B2", (0, (5, 1.6)), "s"),
    Look("#D55E00", "-", "o"),
    Look("#009E73", (0, (1, 1.2)), "D"),
    Look("#CC79A7", "-.", "^"),
)
STYLE: dict[Any, Any] = {"font.family": ["DejaVu Sans"], "font.size": 9.0, "text.color": INK, "axes.labelcolor": INK}
STYLE |= dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), FAINT_INK)


@dataclass(frozen=True)
class Line:
    """One series over axes; a point whose value is no number is left out."""

    name: str
    x: ArrayLike
    y: ArrayLike
    look: Look = LOOKS[0]
    band: tuple[ArrayLike, ArrayLike] | None = None  # lower and upper edge of a band around it
    bars: NDArray[np.float64] | None = None  # (2, N) lengths of error bars, below and above
    best: int | None = None  # index of the point with a marker, or with a larger one
    is_dotted: bool = False  # a marker at every point
    is_noisy: bool = False  # drawn thin and without dashes
    width: float = 1.9
    size: float = 5  # of the markers, where every point has one
    layer: float = 2

    @property
    def style(self) -> dict[str, Any]:
        colour, dashes, marker = self.look
        style = {"color": colour, "linestyle": dashes, "linewidth": self.width, "markeredgecolor": PAPER}
        style |= {"linestyle": "-", "linewidth": 1.4} if self.is_noisy else {}
        if self.is_dotted:
            style |= {"marker": marker, "markersize": self.size, "markeredgewidth": 0.8}
        elif self.best is not None:
            style |= {"marker": marker, "markersize": 8, "markeredgewidth": 1.3}
        return {**style, "label": self.name, "zorder": self.layer}

    def draw(self, axes: Axes) -> Line2D:
        """Draw it; return what stands for it in a legend."""
        x, y = np.asarray(self.x), np.asarray(self.y, float)
        if self.band is not None:
            axes.fill_between(x, *self.band, color=self.look.colour, alpha=BAND_OPACITY, linewidth=0)
        if self.bars is not None:
            axes.errorbar(x, y, yerr=self.bars, elinewidth=1.2, capsize=3, **self.style)
        else:
            every = [self.best] if self.best is not None and not self.is_dotted else None
            axes.plot(x, y, markevery=every, **self.style)
        if self.best is not None and self.is_dotted:
            axes.plot(x[self.best], y[self.best], **{**self.style, "markersize": 9, "zorder": 5})
        return Line2D([], [], **self.style)


@dataclass(frozen=True)
class Chart:
    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    is_logarithmic: bool = False
    not_negative: bool = False  # the vertical axis stays at 0 and above
    counts: bool = False  # the horizontal axis counts: its ticks are whole numbers

    @property
    def has_bands(self) -> bool:
        return any(line.band is not None for line in self.lines)

    def draw(self, axes: Axes) -> None:
        handles = [line.draw(axes) for line in self.lines]
        if self.is_logarithmic:
            axes.set_yscale("log")
        axes.margins(x=0.02, y=0.08)
        if self.not_negative:
            axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
        if self.counts:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        ruled(axes, self.x_label, self.y_label)
        axes.tick_params(axis="y", length=3.5)
        _legend_by_length(axes, handles, 3.0)


@dataclass(frozen=True)
class DotChart:
    """Values of a few series at named places, from the top down, with their intervals."""

    title: str
    x_label: str
    places: Sequence[str]
    series: Mapping[str, tuple[Look, Sequence[tuple[float, Sequence[float] | None] | None]]]
    """Name -> its look, and a value per place with the bounds of its interval, or None; bounds may be missing."""
    has_bands = False

    def draw(self, axes: Axes) -> None:
        handles = []
        for name, ((colour, _, marker), values) in self.series.items():
            known = [(place, *value) for place, value in enumerate(values) if value is not None]
            for place, _, bounds in known:
                if bounds is not None:
                    axes.plot(bounds, (place, place), color=colour, linewidth=1.6, marker="|", markersize=7)
            dots: dict[str, Any] = {"linestyle": "", "marker": marker, "markersize": 5, "color": colour, "label": name}
            handles += axes.plot([value for _, value, _ in known], [place for place, *_ in known], **dots)
        axes.set_yticks(range(len(self.places)), [place.replace(", ", ",\n") for place in self.places])
        axes.set_ylim(len(self.places) - 0.5, -0.5)
        axes.margins(x=0.06)
        axes.set_xlim(left=max(0.0, axes.get_xlim()[0]))
        ruled(axes, self.x_label)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        _legend_by_length(axes, handles, 1.0)


# --- around the lines --------------------------------------------------------------------------------------------


def ruled(axes: Axes, x: str = "", y: str = "") -> Axes:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=3)
    return axes


def legend(axes: Axes, handles: Sequence[Any], title: str = "", columns: int = 2, beside: bool = False) -> None:
    """Put a legend above the axes, or of many lines beside them."""
    if handles:
        place: dict[str, Any] = {**ABOVE, "ncols": columns, "columnspacing": 2.0}
        if beside:
            place = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.02), "borderaxespad": 0}
        place |= {"frameon": False, "handlelength": 2.6, "alignment": "left"}
        put = axes.legend(handles=handles, title=title or None, **place)
        put.get_title().set_color(FAINT_INK)


def _legend_by_length(axes: Axes, handles: Sequence[Line2D], length: float) -> None:
    """Put a legend above the axes, in two columns where they are short, with handles of so many letters."""
    if handles:
        names = [str(handle.get_label()) for handle in handles]
        half = -(-len(names) // 2)
        letters = sum(max(map(len, column)) + 6 for column in (names[:half], names[half:]) if column)
        columns = 2 if letters <= LEGEND_LETTERS else 1
        axes.legend(handles=handles, **ABOVE, ncols=columns, frameon=False, handlelength=length, columnspacing=2.5)


# --- files -------------------------------------------------------------------------------------------------------


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG; the same figure has the same bytes."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    storage.write_bytes(path, buffer.getvalue())


def write_png(charts: Sequence[Chart], path: Path) -> None:
    """Draw one chart, or several beside and below each other; write a PNG.

    Raises:
        ValueError: no charts.
    """
    if not charts:
        raise ValueError("A figure of charts needs at least one chart.")
    across = min(len(charts), PANELS_ACROSS)
    down = -(-len(charts) // across)
    width, height = PLOT_INCHES if len(charts) == 1 else PANEL_INCHES
    with mpl.rc_context(STYLE):
        size = (across * width, down * height)
        figure = Figure(figsize=size, dpi=DOTS_PER_INCH, facecolor=PAPER, layout="constrained")
        panels = figure.subfigures(down, across, squeeze=False).ravel()
        for panel, chart in zip(panels, charts, strict=False):
            if chart.title:
                panel.suptitle(chart.title, **TITLE)
            chart.draw(panel.add_subplot())
        save(figure, path)


# --- SVG for a page ----------------------------------------------------------------------------------------------

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
REFERENCE, FONT = re.compile(r"url\(#([^)]+)\)"), re.compile(r"font-family: [^;]+")
_NAMED = {"ink": INK, "faint": FAINT_INK, "grid": GRID, "paper": PAPER}
_NAMED |= {f"line-{number}": look.colour for number, look in enumerate(LOOKS)}
VARIABLES = {mpl.colors.to_hex(colour): f"var(--{name})" for name, colour in _NAMED.items()}
"""Which of the page's CSS variables stands for a colour."""
register_namespace("", SVG)


def to_svg(chart: Chart | DotChart, name: str) -> str:
    """Return a chart as an ``svg`` element for a page, without its title.

    Text stays text, in the page's font; colours are the page's variables, so that one drawing serves a light and a
    dark page. ``name`` stands before every id of the element: unique in its page, letters and digits.
    """
    with mpl.rc_context({**STYLE, "svg.fonttype": "none", "svg.hashsalt": name}):
        figure = Figure(figsize=SVG_INCHES, facecolor="none", layout="constrained")
        chart.draw(figure.add_subplot(facecolor="none"))
        buffer = io.BytesIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(buffer, metadata=nothing)
    drawing = fromstring(buffer.getvalue())
    for element in drawing.iter():
        _adopt(element, name)
    del drawing.attrib["width"], drawing.attrib["height"]
    drawing.attrib |= {"class": "chart", "role": "img", "aria-label": chart.title}
    return tostring(drawing, encoding="unicode")


def _adopt(element: Element, name: str) -> None:
    """Make an element of an SVG part of a page: ids of its own, the page's colours and font."""
    for child in [child for child in element if child.tag == f"{{{SVG}}}style"]:  # it would hold for the whole page
        element.remove(child)
    values = element.attrib
    for key, value in list(values.items()):
        values[key] = REFERENCE.sub(rf"url(#{name}-\1)", value)
    if "id" in values:
        values["id"] = f"{name}-{values['id']}"
    if (target := values.pop(f"{{{XLINK}}}href", None)) is not None:
        values["href"] = f"#{name}-{target.removeprefix('#')}"
    if "style" in values:
        style = values["style"]
        for colour, variable in VARIABLES.items():
            style = style.replace(colour, variable)
        values["style"] = FONT.sub("font-family: inherit", style)
