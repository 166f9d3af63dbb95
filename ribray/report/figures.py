"""Figures of images: maps growing over the steps, and masks side by side."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from ribray import storage
from ribray.evaluation.confusion import BACKGROUND, IGNORED

DOTS_PER_INCH = 150
FIGURE_INCHES = 8.0
"""Width of a figure of images: 1200 pixels."""
CURVE_INCHES = (6.4, 3.7)
LABEL_INCHES = 0.21
LINE_INCHES = 0.15
HEADING_INCHES = 0.25
GAP_INCHES = 0.045
EDGE_INCHES = 0.02
LABEL_LINES = 3
LETTER_SHARE = 0.62
"""Width of a letter over the size of the type, roughly."""
PICTURES_ACROSS = 8
"""Images of few pictures stand beside each other, up to so many pictures in all."""
LEGEND_LINE_INCHES = 0.22
SWATCH_INCHES = 0.36
"""Of a legend, what an entry needs beside its name."""

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
        masks: column heading -> (height, width) uint8 mask, drawn after the maps.
    """

    image: NDArray[np.uint8]
    class_names: Sequence[str]
    maps: Mapping[str, NDArray[np.floating]]
    palette: NDArray[np.uint8]
    truth: NDArray[np.uint8] | None = None
    masks: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Box:
    """A rectangle of a figure in inches, from its upper left corner."""

    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True)
class _Block:
    """Images with the same columns: where their pictures go."""

    title: str
    rows: Sequence[ImageRow]
    most_across: int = PICTURES_ACROSS
    """Images beside each other, where there is room."""

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("A figure of images needs at least one image.")
        for row in self.rows:
            if (list(row.maps), list(row.masks)) != (list(self.rows[0].maps), list(self.rows[0].masks)):
                names = ", ".join([*self.rows[0].maps, *self.rows[0].masks])
                raise ValueError(f"Every row of a figure needs the same maps: {names}.")

    @property
    def with_truth(self) -> bool:
        return any(row.truth is not None for row in self.rows)

    @property
    def headings(self) -> list[str]:
        return ["image", *(["truth"] if self.with_truth else []), *self.rows[0].maps, *self.rows[0].masks]

    @property
    def across(self) -> int:
        """Images beside each other."""
        return min(len(self.rows), self.most_across, max(1, PICTURES_ACROSS // len(self.headings)))

    @property
    def margin(self) -> float:
        """Inches left of an image's pictures, for its label."""
        return LABEL_INCHES + LINE_INCHES * (max(len(_label_lines(row.class_names)) for row in self.rows) - 1)

    @property
    def picture_width(self) -> float:
        """Inches."""
        columns = len(self.headings)
        share = (FIGURE_INCHES - EDGE_INCHES - GAP_INCHES * (self.across - 1)) / self.across
        return (share - self.margin - GAP_INCHES * (columns - 1)) / columns

    @property
    def lines(self) -> list[Sequence[ImageRow]]:
        """The images that stand beside each other."""
        return [self.rows[start : start + self.across] for start in range(0, len(self.rows), self.across)]

    def picture_height(self, row: ImageRow) -> float:
        """Inches."""
        return self.picture_width * row.image.shape[0] / row.image.shape[1]

    def line_height(self, line: Sequence[ImageRow]) -> float:
        """Inches, of the highest image."""
        return max(map(self.picture_height, line))

    @property
    def heading_height(self) -> float:
        """Inches above the first pictures."""
        return HEADING_INCHES * (2.3 if self.title else 1)

    @property
    def height(self) -> float:
        """Inches."""
        return self.heading_height + sum(map(self.line_height, self.lines)) + GAP_INCHES * (len(self.lines) - 1)


def growth_figure(rows: Sequence[ImageRow], path: Path, most_across: int = PICTURES_ACROSS) -> None:
    """Draw a row per image: the image, its true mask, its maps from plain CAM to the last step; write a PNG.

    The column of true masks is left out if no image has one.

    Args:
        rows: the images, all with the same headings of maps and masks.
        path: the PNG file to write.
        most_across: images beside each other, where there is room.

    Raises:
        ValueError: no rows, differing headings, or a map or mask that does not fit its image.
    """
    masks_figure({"": rows}, path, most_across=most_across)


def masks_figure(
    blocks: Mapping[str, Sequence[ImageRow]],
    path: Path,
    legend: Mapping[str, NDArray[np.uint8]] | None = None,
    most_across: int = PICTURES_ACROSS,
) -> None:
    """Draw images with their truth, maps and masks, block below block, and a legend of colours; write a PNG.

    Args:
        blocks: title -> images, all of a block with the same headings of maps and masks. Where these are few,
            several images stand beside each other.
        path: the PNG file to write.
        legend: name -> (3,) uint8 colour, as `mask_colour` returns it.
        most_across: images beside each other, where there is room.

    Raises:
        ValueError: as for `growth_figure`.
    """
    drawn = [_Block(title, rows, most_across) for title, rows in blocks.items()]
    legend_lines, legend_columns = _legend_shape(list(legend or {}))
    # Column headings take the place of a gap between blocks.
    total = sum(block.height for block in drawn) + EDGE_INCHES + legend_lines * LEGEND_LINE_INCHES
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(FIGURE_INCHES, total), dpi=DOTS_PER_INCH, facecolor="white")
        top = 0.0
        for block in drawn:
            _draw_block(figure, block, top)
            top += block.height
        if legend:
            _draw_legend(figure, legend, legend_columns)
        _write(figure, path)


def _draw_block(figure: Figure, block: _Block, top: float) -> None:
    width, height = block.picture_width, figure.get_figheight()
    if block.title:
        figure.text(0.006, 1 - (top + 0.8 * HEADING_INCHES) / height, block.title, fontweight="bold", va="center")
    needed = max(map(len, block.headings)) * mpl.rcParams["font.size"] * LETTER_SHARE / 72
    size = mpl.rcParams["font.size"] * min(1.0, max(0.6, width / needed))
    top += block.heading_height
    for number, line in enumerate(block.lines):
        for place, row in enumerate(line):
            left = place * (block.margin + len(block.headings) * (width + GAP_INCHES))
            label = _Box(left, top, block.margin - GAP_INCHES, block.picture_height(row))
            _write_label(figure, _label_lines(row.class_names), label)
            for column, picture in enumerate(_pictures(row, block.with_truth)):
                box = _Box(left + block.margin + column * (width + GAP_INCHES), top, width, label.height)
                axes = _add_picture(figure, picture, box)
                if number == 0:
                    axes.set_title(block.headings[column], pad=4, fontsize=size)
        top += block.line_height(line) + GAP_INCHES


def mask_colour(value: int, palette: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the colour (3,) that a mask value has over a middling grey of an image."""
    grey = np.full((1, 1, 3), 128, np.uint8)
    return mask_overlay(grey, np.full((1, 1), value, np.uint8), palette)[0, 0]


def _legend_shape(names: Sequence[str]) -> tuple[int, int]:
    """Return a legend's lines and columns."""
    if not names:
        return 0, 0
    letter = STYLE["font.size"] * LETTER_SHARE / 72  # inches
    columns = max(1, int(FIGURE_INCHES / (max(map(len, names)) * letter + SWATCH_INCHES)))
    return -(-len(names) // columns), min(columns, len(names))


def _draw_legend(figure: Figure, legend: Mapping[str, NDArray[np.uint8]], columns: int) -> None:
    swatches = [Patch(facecolor=colour / 255, edgecolor=FAINT_INK, linewidth=0.5) for colour in legend.values()]
    figure.legend(
        swatches,
        list(legend),
        ncols=columns,
        loc="lower center",
        bbox_to_anchor=(0.5, 0),
        borderaxespad=0.1,
        borderpad=0.2,
        frameon=False,
        handlelength=1.2,
        handleheight=0.9,
        handletextpad=0.5,
        columnspacing=1.4,
    )


def image_panel(row: ImageRow, path: Path) -> None:
    """Draw one image's row of `growth_figure` as a PNG of its own."""
    growth_figure([row], path)


def _pictures(row: ImageRow, with_truth: bool) -> list[NDArray[np.uint8] | None]:
    """Return the row's pictures, each (height, width, 3) uint8; None stands for a missing truth."""
    size = row.image.shape[:2]
    for mask in [row.truth, *row.masks.values()]:
        if mask is not None and mask.shape != size:
            raise ValueError(f"The mask of shape {mask.shape} does not fit its image of {size}.")
    for heading, scores in row.maps.items():
        if scores.ndim != 3 or scores.shape[1:] != size:
            raise ValueError(f"The maps '{heading}' of shape {scores.shape} do not fit their image of {size}.")
    truth = [None if row.truth is None else mask_overlay(row.image, row.truth, row.palette)] if with_truth else []
    maps = [heat_overlay(row.image, scores) for scores in row.maps.values()]
    masks = [mask_overlay(row.image, mask, row.palette) for mask in row.masks.values()]
    return [row.image, *truth, *maps, *masks]


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
    needed = max(map(len, lines)) * points * LETTER_SHARE / 72  # inches
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
