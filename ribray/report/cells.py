"""Cells of tables: how numbers, gains and times look, and which of many classes are shown."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ribray.report.table import NOTHING, Cell

ROWS_IN_FULL = 30  # up to so many classes a table shows all of them
EXTREMES = 5  # of more classes it shows so many from the top and as many from the bottom


def number(value: float | None, form: str = ".1f") -> Cell:
    return Cell(NOTHING if value is None else format(value, form), value)


def bar(value: float | None) -> Cell:
    return replace(number(value), share=value)


def count(value: int | None) -> Cell:
    return number(value, ",d")


def failed(value: int | None) -> Cell:
    """A count of failures, which catches the eye unless it is 0."""
    return replace(count(value), look="strong bad" if value else "")


def interval(bounds: Sequence[float] | None) -> Cell:
    return Cell(NOTHING if bounds is None else f"{bounds[0]:.1f} to {bounds[1]:.1f}")


def difference(before: float | None, after: float | None) -> float | None:
    """What was gained, None where one side is unknown."""
    return None if before is None or after is None else after - before


def gain(before: float | None, after: float | None) -> Cell:
    value = difference(before, after)
    if value is None:
        return Cell(NOTHING)
    rounded = round(value, 1) + 0.0  # + 0.0 turns -0.0 into 0.0
    return Cell(f"{rounded:+.1f}", value, "good" if rounded > 0 else "bad" if rounded < 0 else "")


def duration(seconds: float | None, share: float | None = None) -> Cell:
    """A time span as people say it: 8.4 s, 3 min 05 s, 2 h 07 min."""
    if seconds is None:
        return Cell(NOTHING)
    minutes, rest = divmod(round(seconds), 60)
    text = f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
    return Cell(f"{seconds:.1f} s" if seconds < 59.95 else text, seconds, share=share)


def strong(row: Sequence[Cell]) -> list[Cell]:
    return [replace(cell, look=f"strong {cell.look}".strip()) for cell in row]


def class_groups(ranks: Mapping[str, float | None], all_classes: bool = False) -> list[list[str]]:
    """Return the classes that a table shows, in groups: all of them, or of many those ranked highest and lowest."""
    if all_classes or len(ranks) <= ROWS_IN_FULL:
        return [list(ranks)]
    known = {name: rank for name, rank in ranks.items() if rank is not None}
    ordered = sorted(known, key=lambda name: -known[name])
    return [ordered] if len(ordered) <= 2 * EXTREMES else [ordered[:EXTREMES], ordered[-EXTREMES:]]
