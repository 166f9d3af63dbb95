"""What the plots of a sweep share: a sheet with title and caption, names, and how lines look."""

import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter, NullLocator

from ribray.report.plots import DOTS_PER_INCH, FAINT_INK, LOOKS, PAPER, PLOT_INCHES, TITLE, Look
from ribray.report.sweep_rows import Sweep, SweepRow, as_published, is_logarithmic, is_numeric, setting_text, shortened

LOSS = "refine.loss"  # the axis of the study of activations
LOSS_NAMES = {"rib": r"$L_\mathrm{RIB}$"}
LOSS_NAMES |= {f"bce_{name}": f"BCE, {name}" for name in ("sigmoid", "tanh", "softsign")}
LOSS_LOOKS = {"rib": LOOKS[1], "bce_sigmoid": LOOKS[0], "bce_softsign": LOOKS[2], "bce_tanh": LOOKS[3]}
OURS, PUBLISHED = LOOKS[1], LOOKS[0]
SHADES, DARKEST, LIGHTEST = "viridis", 0.0, 0.86  # lines of a numeric axis run through these colours
TICKS, TICK_GAP = 9, 0.045  # so many values of an axis are its ticks, where they lie this share of its length apart
LABEL_LETTERS, TITLE_LETTERS, CAPTION_LETTERS = 34, 68, 17.4
"""Of a label; of a line of the title; of a caption per inch."""
CAPTION_LINE_INCHES = 0.16
CAPTION: dict[str, Any] = {"x": 0.012, "ha": "left", "fontsize": 7.5, "color": FAINT_INK, "linespacing": 1.35}


def sheet(sweep: Sweep, *notes: str, size: tuple[float, float] = PLOT_INCHES, with_published: bool = True) -> Figure:
    """Return an empty figure with the sweep's title above, and below it notes, the base and what is published."""
    title = plain(sweep.ledger.get("title") or sweep.ledger["name"], 2 * TITLE_LETTERS)
    texts, stated = [*filter(None, notes)], sweep.stated if with_published else {}
    if recipe := (sweep.ledger.get("base") or {}).get("recipe"):
        texts.append(f"Base: {plain(recipe)}.")
    if stated.get("value") is not None:
        texts.append(f"Published: {as_published(stated['value'])}{sweep.plus_minus(stated.get('std'))}.")
    if stated.get("text"):
        texts.append(f"Published: {plain(stated['text'], 300)}")
    lines = textwrap.wrap(" ".join(texts), int(CAPTION_LETTERS * size[0]))
    inches = (size[0], size[1] + CAPTION_LINE_INCHES * len(lines))
    figure = Figure(figsize=inches, dpi=DOTS_PER_INCH, facecolor=PAPER, layout="constrained")
    figure.suptitle("\n".join(textwrap.wrap(title, TITLE_LETTERS)), **TITLE)
    figure.supxlabel("\n".join(lines), **CAPTION)
    return figure


def legend_title(sweep: Sweep) -> str:
    return ", ".join(map(plain, sweep.names.values()))


def row_label(sweep: Sweep, row: SweepRow) -> str:
    return ", ".join(setting_label(axis, row.settings[axis]) for axis in sweep.axes) or "this sweep"


def setting_label(axis: str, value: Any) -> str:
    if axis == LOSS and isinstance(value, str) and value in LOSS_NAMES:
        return LOSS_NAMES[value]
    return plain(setting_text(value))


def plain(text: str, letters: int = LABEL_LETTERS) -> str:
    """Return text from data so that matplotlib shows its letters: no mathematics, no label hidden by an underscore."""
    label = shortened(text, letters).replace("$", r"\$")
    return f" {label}" if label.startswith("_") else label


def looks_of_rows(sweep: Sweep, rows: Sequence[SweepRow]) -> list[Look]:
    if sweep.axes == [LOSS] and all(row.settings[LOSS] in LOSS_LOOKS for row in rows):
        return [LOSS_LOOKS[row.settings[LOSS]] for row in rows]
    if len(sweep.axes) == 1:
        return looks_of([row.settings[sweep.axes[0]] for row in rows])
    return looks_of([row_label(sweep, row) for row in rows])


def looks_of(values: Sequence[Any]) -> list[Look]:
    """Return how a line per value is drawn: from dark to light for numbers, in colours far apart for anything else."""
    if len(values) == 1:
        return [OURS]
    looks = [LOOKS[place % len(LOOKS)] for place in range(len(values))]
    numeric = is_numeric(values)
    if len(values) <= (2 if numeric else len(LOOKS)):
        return looks
    ranks = np.argsort(np.argsort(values)) if numeric else np.arange(len(values))
    shades = DARKEST + (LIGHTEST - DARKEST) * ranks / (len(values) - 1)
    return [
        Look(mpl.colormaps[SHADES](shade), "-" if numeric else look.dashes, look.marker)
        for shade, look in zip(shades, looks, strict=True)
    ]


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
