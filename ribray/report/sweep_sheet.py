"""What the plots of a sweep share: a sheet with title and caption, legends, and how lines look."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter, NullLocator

from ribray.report.figures import CURVE_INCHES, DOTS_PER_INCH, FAINT_INK, GRID, LINES
from ribray.report.sweep_rows import (
    SweepRow,
    as_published,
    is_logarithmic,
    is_numeric,
    setting_text,
    short_keys,
    shortened,
    spread,
)

LOSS = "refine.loss"
"""The axis of the study of activations."""
LOSS_NAMES = {
    "rib": r"$L_\mathrm{RIB}$",
    "bce_sigmoid": "BCE, sigmoid",
    "bce_tanh": "BCE, tanh",
    "bce_softsign": "BCE, softsign",
}
LOSS_LOOKS = {"rib": 1, "bce_sigmoid": 0, "bce_softsign": 2, "bce_tanh": 3}
"""Which of `LINES` a loss is drawn as."""

SHADES, DARKEST, LIGHTEST = "viridis", 0.0, 0.86
"""Lines of a numeric axis run through these colours."""
BAND = 0.16
"""Opacity of a band."""
TICKS, TICK_GAP = 9, 0.045
"""So many values of an axis are its ticks, where they lie this share of its length apart."""
LABEL_LETTERS, TITLE_LETTERS, CAPTION_LETTERS = 34, 68, 17.4
"""Of a label; of a line of the title; of a caption per inch."""
CAPTION_LINE_INCHES = 0.16


@dataclass(frozen=True)
class Look:
    """How a line is drawn."""

    colour: Any
    dashes: Any
    marker: str


OURS, PUBLISHED = Look(*LINES[1]), Look(*LINES[0])


@dataclass(frozen=True)
class Sweep:
    """A ledger, its rows, and how plots call them."""

    ledger: Mapping[str, Any]
    rows: Sequence[SweepRow]
    folder: Path

    @property
    def axes(self) -> list[str]:
        """The keys that make rows."""
        return list(self.ledger["axes"])

    @property
    def metric(self) -> str:
        """The metric's key."""
        return str(self.ledger["metric"])

    @property
    def names(self) -> dict[str, str]:
        """Axis -> how legends call it."""
        return {axis: plain(name) for axis, name in short_keys(self.axes).items()}

    @property
    def legend_title(self) -> str:
        """The axes' names."""
        return ", ".join(self.names.values())

    @property
    def valued(self) -> list[SweepRow]:
        """The rows with a mean."""
        return [row for row in self.rows if row.mean is not None]

    def values(self, axis: str) -> list[Any]:
        """Return the axis' value of every row."""
        return [row.settings[axis] for row in self.rows]

    def label(self, row: SweepRow) -> str:
        """Return the row's values of the axes."""
        return ", ".join(setting_label(axis, row.settings[axis]) for axis in self.axes) or "this sweep"

    def directory(self, trial: Mapping[str, Any]) -> Path:
        """Return a trial's run directory."""
        return self.folder / trial["directory"]

    def looks(self, rows: Sequence[SweepRow]) -> list[Look]:
        """Return how the line of each row is drawn."""
        if self.axes == [LOSS] and all(row.settings[LOSS] in LOSS_LOOKS for row in rows):
            return [Look(*LINES[LOSS_LOOKS[row.settings[LOSS]]]) for row in rows]
        if len(self.axes) == 1:
            return looks_of([row.settings[self.axes[0]] for row in rows])
        return looks_of([self.label(row) for row in rows])

    def sheet(self, *notes: str, size: tuple[float, float] = CURVE_INCHES, with_published: bool = True) -> Figure:
        """Return an empty figure with the sweep's title above, and below it notes, the base and what is published."""
        title = textwrap.wrap(plain(self.ledger.get("title") or self.ledger["name"], 2 * TITLE_LETTERS), TITLE_LETTERS)
        caption = " ".join(note for note in (*notes, *self._notes(with_published)) if note)
        lines = textwrap.wrap(caption, int(CAPTION_LETTERS * size[0]))
        figure = Figure(
            figsize=(size[0], size[1] + CAPTION_LINE_INCHES * len(lines)),
            dpi=DOTS_PER_INCH,
            facecolor="white",
            layout="constrained",
        )
        figure.suptitle("\n".join(title), x=0.012, ha="left", fontweight="bold", fontsize=10.5)
        below: dict[str, Any] = {"x": 0.012, "ha": "left", "fontsize": 7.5, "color": FAINT_INK, "linespacing": 1.35}
        figure.supxlabel("\n".join(lines), **below)
        return figure

    def _notes(self, with_published: bool) -> list[str]:
        recipe = (self.ledger.get("base") or {}).get("recipe")
        notes = [f"Base: {plain(recipe)}."] if recipe else []
        stated = (self.ledger.get("published") or {}) if with_published else {}
        if stated.get("value") is not None:
            std = f" ± {spread(stated['std'], self.metric)}" if stated.get("std") is not None else ""
            notes.append(f"Published: {as_published(stated['value'])}{std}.")
        if stated.get("text"):
            notes.append(f"Published: {plain(stated['text'], 300)}")
        return notes


def setting_label(axis: str, value: Any) -> str:
    """Return how plots call an axis' value."""
    if axis == LOSS and isinstance(value, str) and value in LOSS_NAMES:
        return LOSS_NAMES[value]
    return plain(setting_text(value))


def plain(text: str, letters: int = LABEL_LETTERS) -> str:
    """Return text from data so that matplotlib shows its letters: no mathematics, no label hidden by an underscore."""
    label = shortened(text, letters).replace("$", r"\$")
    return f" {label}" if label.startswith("_") else label


def looks_of(values: Sequence[Any]) -> list[Look]:
    """Return how a line per value is drawn: from dark to light for numbers, in colours far apart for anything else."""
    if len(values) == 1:
        return [OURS]
    looks = [Look(*LINES[place % len(LINES)]) for place in range(len(values))]
    numeric = is_numeric(values)
    if len(values) <= (2 if numeric else len(LINES)):
        return looks
    ranks = np.argsort(np.argsort(values)) if numeric else np.arange(len(values))
    shades = DARKEST + (LIGHTEST - DARKEST) * ranks / (len(values) - 1)
    return [
        Look(mpl.colormaps[SHADES](shade), "-" if numeric else look.dashes, look.marker)
        for shade, look in zip(shades, looks, strict=True)
    ]


def ruled(axes: Axes, x: str = "", y: str = "") -> Axes:
    """Name the axes and give them a grid."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=3)
    return axes


def scale(axes: Axes, values: Sequence[float]) -> None:
    """Make the horizontal axis logarithmic where the values are, with a tick at each of a few values."""
    known = sorted(set(values))
    if logarithmic := is_logarithmic(known):
        axes.set_xscale("log")
    at = np.log(known) if logarithmic else np.array(known)
    if len(known) > TICKS or (len(known) > 1 and np.diff(at).min() < TICK_GAP * np.ptp(at)):
        return
    axes.xaxis.set_major_locator(FixedLocator(known))
    axes.xaxis.set_major_formatter(FixedFormatter([setting_text(value) for value in known]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())


def legend_above(axes: Axes, handles: Sequence[Any], title: str = "", columns: int = 2) -> None:
    """Put a legend above the axes, where no curve can pass through it."""
    if handles:
        place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2, "borderpad": 0.2}
        _legend(axes, handles, title, ncols=columns, columnspacing=2.0, **place)


def legend_beside(axes: Axes, handles: Sequence[Any], title: str = "") -> None:
    """Put a legend of many lines right of the axes."""
    _legend(axes, handles, title, loc="upper left", bbox_to_anchor=(1.01, 1.02), borderaxespad=0)


def _legend(axes: Axes, handles: Sequence[Any], title: str, **place: Any) -> None:
    labels = [handle.get_label() for handle in handles]
    legend = axes.legend(
        handles, labels, title=title or None, frameon=False, handlelength=2.6, alignment="left", **place
    )
    legend.get_title().set_color(FAINT_INK)
