"""Figures of images: image, truth, maps and masks side by side, with a legend of colours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from ribray.report.overlays import heat_overlay, mask_overlay
from ribray.report.plots import DOTS_PER_INCH, FAINT_INK, PAPER, STYLE, save

FIGURE_INCHES = 8.0  # width of a figure of images: 1200 pixels
LABEL_INCHES, LINE_INCHES, HEADING_INCHES = 0.21, 0.15, 0.25
GAP_INCHES, EDGE_INCHES = 0.045, 0.02
LABEL_LINES = 3
LETTER_INCHES = STYLE["font.size"] * 0.62 / 72  # width of a letter, roughly
PICTURES_ACROSS = 8  # images of few pictures stand beside each other, up to so many pictures in all
LEGEND_LINE_INCHES, SWATCH_INCHES = 0.22, 0.36  # of a legend's line, and what an entry needs beside its name

LEGEND: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 0), "borderaxespad": 0.1, "borderpad": 0.2}
LEGEND |= {"frameon": False, "handlelength": 1.2, "handleheight": 0.9, "handletextpad": 0.5, "columnspacing": 1.4}
LABEL: dict[str, Any] = {"rotation": 90, "ha": "right", "va": "center", "multialignment": "center", "linespacing": 1.1}


@dataclass(frozen=True)
class ImageRow:
    """What a figure shows of one image; maps and masks stand in columns under their headings."""

    image: NDArray[np.uint8]  # (height, width, 3) RGB
    class_names: Sequence[str]
    maps: Mapping[str, NDArray[np.floating]]
    """(present classes, height, width) localization maps, of which the largest score is drawn."""
    palette: NDArray[np.uint8]  # (256, 3), a colour per mask value
    truth: NDArray[np.uint8] | None = None  # (height, width) mask values
    masks: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)

    @property
    def label(self) -> list[str]:
        """Its classes, a line each; what does not fit is counted."""
        if len(self.class_names) > LABEL_LINES:
            left = len(self.class_names) - LABEL_LINES + 1
            return [*self.class_names[: LABEL_LINES - 1], f"+ {left} more"]
        return list(self.class_names) or ["no object"]

    def pictures(self, with_truth: bool) -> list[NDArray[np.uint8] | None]:
        """Return its pictures, each (height, width, 3) uint8; None stands for a missing truth."""
        size = self.image.shape[:2]
        for mask in [self.truth, *self.masks.values()]:
            if mask is not None and mask.shape != size:
                raise ValueError(f"The mask of shape {mask.shape} does not fit its image of {size}.")
        for heading, scores in self.maps.items():
            if scores.ndim != 3 or scores.shape[1:] != size:
                raise ValueError(f"The maps '{heading}' of shape {scores.shape} do not fit their image of {size}.")
        truth = None if self.truth is None else mask_overlay(self.image, self.truth, self.palette)
        maps = [heat_overlay(self.image, scores) for scores in self.maps.values()]
        masks = [mask_overlay(self.image, mask, self.palette) for mask in self.masks.values()]
        return [self.image, *([truth] if with_truth else []), *maps, *masks]


class _Block:
    """Images with the same columns, and where their pictures go: all lengths are inches."""

    def __init__(self, title: str, rows: Sequence[ImageRow], most_across: int) -> None:
        if not rows:
            raise ValueError("A figure of images needs at least one image.")
        first = rows[0]
        if any([*row.maps, "", *row.masks] != [*first.maps, "", *first.masks] for row in rows):
            names = ", ".join([*first.maps, *first.masks])
            raise ValueError(f"Every row of a figure needs the same maps: {names}.")
        self.title = title
        self.with_truth = any(row.truth is not None for row in rows)
        self.headings = ["image", *(["truth"] if self.with_truth else []), *first.maps, *first.masks]
        across = min(len(rows), most_across, max(1, PICTURES_ACROSS // len(self.headings)))
        self.lines = [rows[start : start + across] for start in range(0, len(rows), across)]
        self.margin = LABEL_INCHES + LINE_INCHES * (max(len(row.label) for row in rows) - 1)
        share = (FIGURE_INCHES - EDGE_INCHES - GAP_INCHES * (across - 1)) / across
        self.width = (share - self.margin - GAP_INCHES * (len(self.headings) - 1)) / len(self.headings)
        self.above = HEADING_INCHES * (2.3 if title else 1)
        self.height = self.above + sum(map(self.line_height, self.lines)) + GAP_INCHES * (len(self.lines) - 1)

    def row_height(self, row: ImageRow) -> float:
        return self.width * row.image.shape[0] / row.image.shape[1]

    def line_height(self, line: Sequence[ImageRow]) -> float:
        return max(map(self.row_height, line))

    def draw(self, figure: Figure, top: float) -> None:
        """Draw it below `top`: its title, and per image a label and pictures, below headings in the first line."""
        across, down = figure.get_size_inches()
        if self.title:
            figure.text(0.006, 1 - (top + 0.8 * HEADING_INCHES) / down, self.title, fontweight="bold", va="center")
        heading_size = _letters(self.headings, self.width)
        top += self.above
        for number, line in enumerate(self.lines):
            for place, row in enumerate(line):
                left = place * (self.margin + len(self.headings) * (self.width + GAP_INCHES))
                height = self.row_height(row)
                middle = (left + self.margin - GAP_INCHES) / across, 1.0 - (top + height / 2) / down
                figure.text(*middle, "\n".join(row.label), fontsize=_letters(row.label, height), **LABEL)
                for column, picture in enumerate(row.pictures(self.with_truth)):
                    start = left + self.margin + column * (self.width + GAP_INCHES)
                    corner = start / across, 1.0 - (top + height) / down
                    axes = figure.add_axes((*corner, self.width / across, height / down))
                    axes.set_axis_off()
                    if picture is None:
                        axes.text(0.5, 0.5, "no truth", ha="center", va="center", color=FAINT_INK)
                    else:
                        axes.imshow(picture, aspect="auto", interpolation="lanczos")
                    if number == 0:
                        axes.set_title(self.headings[column], pad=4, fontsize=heading_size)
            top += self.line_height(line) + GAP_INCHES


def image_figure(
    blocks: Mapping[str, Sequence[ImageRow]],
    path: Path,
    legend: Mapping[str, NDArray[np.uint8]] | None = None,
    most_across: int = PICTURES_ACROSS,
) -> None:
    """Draw images with their truth, maps and masks, block below block, and a legend of colours; write a PNG.

    All images of a block have the same headings of maps and masks. The column of truths is left out where no image has
    one; where columns are few, up to ``most_across`` images stand beside each other. The legend has (3,) uint8 colours.

    Raises:
        ValueError: no images, differing headings, or a map or mask that does not fit its image.
    """
    drawn = [_Block(title, rows, most_across) for title, rows in (blocks or {"": []}).items()]
    columns = max(1, int(FIGURE_INCHES / (max(map(len, legend or "-")) * LETTER_INCHES + SWATCH_INCHES)))
    lines = -(-len(legend or ()) // columns)
    # Column headings take the place of a gap between blocks.
    total = sum(block.height for block in drawn) + EDGE_INCHES + lines * LEGEND_LINE_INCHES
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(FIGURE_INCHES, total), dpi=DOTS_PER_INCH, facecolor=PAPER)
        top = 0.0
        for block in drawn:
            block.draw(figure, top)
            top += block.height
        if legend:
            patches = [Patch(facecolor=colour / 255, edgecolor=FAINT_INK, linewidth=0.5) for colour in legend.values()]
            figure.legend(patches, list(legend), ncols=min(columns, len(legend)), **LEGEND)
        save(figure, path)


def _letters(lines: Sequence[str], inches: float) -> float:
    """Return the size of letters that lets the longest line fit, within bounds."""
    return STYLE["font.size"] * min(1.0, max(0.6, inches / (max(map(len, lines)) * LETTER_INCHES)))
