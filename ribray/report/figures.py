"""Figures of a run: how maps grow over the steps of the refinement, and mIoU over the seed's thresholds."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from ribray import storage
from ribray.evaluation.confusion import BACKGROUND, IGNORED

DOTS_PER_INCH = 150
FIGURE_INCHES = 8.0
"""Width of the growth figure: 1200 pixels."""
CURVE_INCHES = (6.4, 3.7)
LABEL_INCHES = 0.21
LINE_INCHES = 0.15
HEADING_INCHES = 0.25
GAP_INCHES = 0.045
EDGE_INCHES = 0.02
LABEL_LINES = 3

HEAT = "inferno"
HEAT_OPACITY = 0.88
"""Opacity of the strongest score; a score of 0 is transparent."""
HEAT_GAMMA = 0.6
"""Opacity rises as score ** gamma, so that weak scores can be seen."""
MASK_OPACITY = 0.7
IGNORED_SHADE = 235
LUMA = (0.299, 0.587, 0.114)
GREY_RANGE = (40, 225)
"""The greyed image below an overlay keeps clear of black and white."""

INK, FAINT_INK, GRID = "#1b1b1f", "#63636b", "#e6e6ea"
# Okabe and Ito's colours can be told apart with every kind of colour vision; dashes and markers differ too.
LINES = (
    ("#0072B2", (0, (5, 1.6)), "s"),
    ("#D55E00", "-", "o"),
    ("#009E73", (0, (1, 1.2)), "D"),
    ("#CC79A7", "-.", "^"),
)

STYLE: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT_INK,
    "xtick.color": FAINT_INK,
    "ytick.color": FAINT_INK,
}


@dataclass(frozen=True)
class ImageRow:
    """What a figure shows of one image.

    Attributes:
        image: (height, width, 3) uint8 RGB.
        class_names: the present classes' names.
        maps: column heading -> (present classes, height, width) float localization maps, in the order of the
            columns. What is drawn is the largest score over the classes, as a share of the largest of all.
        palette: (256, 3) uint8 colour of every mask value.
        truth: (height, width) uint8 mask, or None where there is none.
    """

    image: NDArray[np.uint8]
    class_names: Sequence[str]
    maps: Mapping[str, NDArray[np.floating]]
    palette: NDArray[np.uint8]
    truth: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class _Box:
    """A rectangle of a figure in inches, from its upper left corner."""

    left: float
    top: float
    width: float
    height: float


def growth_figure(rows: Sequence[ImageRow], path: Path) -> None:
    """Draw a row per image: the image, its true mask, its maps from plain CAM to the last step; write a PNG.

    The column of true masks is left out if no image has one.

    Args:
        rows: the images, all with the same headings of maps.
        path: the PNG file to write.

    Raises:
        ValueError: no rows, differing headings, or a map or mask that does not fit its image.
    """
    if not rows:
        raise ValueError("A growth figure needs at least one image.")
    if any(list(row.maps) != list(rows[0].maps) for row in rows):
        raise ValueError(f"Every row of a growth figure needs the same maps: {', '.join(rows[0].maps)}.")
    with_truth = any(row.truth is not None for row in rows)
    headings = ["image", *(["truth"] if with_truth else []), *rows[0].maps]

    labels = [_label_lines(row.class_names) for row in rows]
    margin = LABEL_INCHES + LINE_INCHES * (max(map(len, labels)) - 1)
    width = (FIGURE_INCHES - margin - EDGE_INCHES - GAP_INCHES * (len(headings) - 1)) / len(headings)
    heights = [width * row.image.shape[0] / row.image.shape[1] for row in rows]
    total = HEADING_INCHES + sum(heights) + GAP_INCHES * (len(rows) - 1) + EDGE_INCHES
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(FIGURE_INCHES, total), dpi=DOTS_PER_INCH, facecolor="white")
        top = HEADING_INCHES
        for row, label, height in zip(rows, labels, heights, strict=True):
            _write_label(figure, label, _Box(0, top, margin - GAP_INCHES, height))
            for column, picture in enumerate(_pictures(row, with_truth)):
                left = margin + column * (width + GAP_INCHES)
                axes = _add_picture(figure, picture, _Box(left, top, width, height))
                if top == HEADING_INCHES:
                    axes.set_title(headings[column], pad=4)
            top += height + GAP_INCHES
        _write(figure, path)


def image_panel(row: ImageRow, path: Path) -> None:
    """Draw one image's row of `growth_figure` as a PNG of its own."""
    growth_figure([row], path)


def curve_figure(curves: Mapping[str, tuple[ArrayLike, ArrayLike]], path: Path, *, title: str | None = None) -> None:
    """Draw mIoU over the seed's threshold, a line per method with its best point marked; write a PNG.

    Args:
        curves: method -> ((T,) rising thresholds, (T,) mIoU in percent).
        path: the PNG file to write.
        title: stands above the curves.

    Raises:
        ValueError: no curves, or one whose thresholds and mIoU differ in length or hold no number.
    """
    if not curves:
        raise ValueError("A curve figure needs at least one curve.")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=CURVE_INCHES, dpi=DOTS_PER_INCH, facecolor="white", layout="constrained")
        axes = figure.add_subplot()
        for number, (name, (thresholds, means)) in enumerate(curves.items()):
            _draw_curve(
                axes,
                name,
                np.asarray(thresholds, float),
                np.asarray(means, float),
                LINES[number % len(LINES)],
            )
        axes.set_xlabel("threshold")
        axes.set_ylabel("mIoU, %")
        axes.margins(x=0.02, y=0.08)
        axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
        axes.grid(color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=3)
        # Above the axes no curve can pass through it.
        legend: dict[str, Any] = {
            "loc": "lower left",
            "bbox_to_anchor": (0, 1),
            "borderaxespad": 0.2,
            "borderpad": 0.2,
        }
        axes.legend(**legend, ncols=2, frameon=False, handlelength=3, columnspacing=2.5)
        if title:
            figure.suptitle(title, x=0.012, ha="left", fontweight="bold", fontsize=10.5)
        _write(figure, path)


def _draw_curve(
    axes: Axes, name: str, thresholds: NDArray[np.float64], means: NDArray[np.float64], line: tuple
) -> None:
    if thresholds.shape != means.shape or thresholds.ndim != 1 or not np.isfinite(means).any():
        raise ValueError(f"The curve {name} needs as many mIoUs as thresholds and at least one of them a number.")
    colour, dashes, marker = line
    best = int(np.nanargmax(means))
    axes.plot(
        thresholds,
        means,
        color=colour,
        linestyle=dashes,
        linewidth=1.9,
        marker=marker,
        markevery=[best],
        markersize=8,
        markeredgecolor="white",
        markeredgewidth=1.3,
        label=f"{name}, best {means[best]:.1f} at {thresholds[best]:.2f}",
    )


def _pictures(row: ImageRow, with_truth: bool) -> list[NDArray[np.uint8] | None]:
    """Return the row's pictures, each (height, width, 3) uint8; None stands for a missing truth."""
    size = row.image.shape[:2]
    if row.truth is not None and row.truth.shape != size:
        raise ValueError(f"The mask of shape {row.truth.shape} does not fit its image of {size}.")
    for heading, maps in row.maps.items():
        if maps.ndim != 3 or maps.shape[1:] != size:
            raise ValueError(f"The maps '{heading}' of shape {maps.shape} do not fit their image of {size}.")
    truth = [None if row.truth is None else mask_overlay(row.image, row.truth, row.palette)] if with_truth else []
    return [row.image, *truth, *(heat_overlay(row.image, maps) for maps in row.maps.values())]


def heat_overlay(image: NDArray[np.uint8], maps: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Lay localization maps over the greyed image.

    Args:
        image: (height, width, 3) uint8.
        maps: (present classes, height, width) float; no class at all leaves the greyed image.

    Returns:
        (height, width, 3) uint8.
    """
    heat = maps.max(axis=0, initial=0.0)  # (height, width)
    heat = heat / max(float(heat.max()), float(np.finfo(np.float32).eps))
    colours = 255.0 * mpl.colormaps[HEAT](heat)[..., :3]
    return _blend(_greyed(image), colours, HEAT_OPACITY * heat**HEAT_GAMMA)


def mask_overlay(image: NDArray[np.uint8], mask: NDArray[np.uint8], palette: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lay a mask in its colours over the greyed image; unknown pixels are pale.

    Args:
        image: (height, width, 3) uint8.
        mask: (height, width) uint8.
        palette: (256, 3) uint8.

    Returns:
        (height, width, 3) uint8.
    """
    colours = palette[mask].astype(float)
    colours[mask == IGNORED] = IGNORED_SHADE
    return _blend(_greyed(image), colours, np.where(mask == BACKGROUND, 0.0, MASK_OPACITY))


def _greyed(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    low, high = GREY_RANGE
    grey = low + (image @ np.array(LUMA)) * (high - low) / 255.0
    return np.repeat(grey[..., None], 3, axis=2)


def _blend(below: NDArray, above: NDArray, opacity: NDArray) -> NDArray[np.uint8]:
    share = opacity[..., None]
    return np.rint(below * (1.0 - share) + above * share).astype(np.uint8)


def _add_picture(figure: Figure, picture: NDArray[np.uint8] | None, box: _Box) -> Axes:
    width, height = figure.get_size_inches()
    axes = figure.add_axes(
        (box.left / width, 1.0 - (box.top + box.height) / height, box.width / width, box.height / height)
    )
    axes.set_axis_off()
    if picture is None:
        axes.text(0.5, 0.5, "no truth", ha="center", va="center", color=FAINT_INK, transform=axes.transAxes)
    else:
        axes.imshow(picture, aspect="auto", interpolation="lanczos")
    return axes


def _label_lines(names: Sequence[str]) -> list[str]:
    """Return a row's label, a line per class; what does not fit is counted."""
    if len(names) > LABEL_LINES:
        return [*names[: LABEL_LINES - 1], f"+ {len(names) - LABEL_LINES + 1} more"]
    return list(names) or ["no object"]


def _write_label(figure: Figure, lines: Sequence[str], box: _Box) -> None:
    """Write the lines upwards beside a row, against its pictures, smaller where the row is short."""
    width, height = figure.get_size_inches()
    points = mpl.rcParams["font.size"]
    needed = max(map(len, lines)) * points * 0.62 / 72  # inches: a letter is about 0.62 of the size wide
    figure.text(
        (box.left + box.width) / width,
        1.0 - (box.top + box.height / 2) / height,
        "\n".join(lines),
        rotation=90,
        ha="right",
        va="center",
        multialignment="center",
        fontsize=points * min(1.0, max(0.6, box.height / needed)),
        linespacing=1.1,
    )


def _write(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    storage.write_bytes(path, buffer.getvalue())
