"""What the tables share: how numbers, gains and times look, the table around them, which of many classes it shows."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

NOTHING = "–"
ROWS_IN_FULL = 30
"""Up to so many classes a table shows all of them."""
EXTREMES = 5
"""Of more classes it shows so many from the top and as many from the bottom."""


def plain_table(*headings: str) -> Table:
    """Return a table without a frame and without rows."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in headings:
        table.add_column(heading)
    return table


def titled_table(title: str) -> Table:
    """Return a table without a frame, columns and rows, below its title."""
    table = plain_table()
    table.title, table.title_justify, table.title_style = title, "left", "bold"
    table.caption_justify = "left"
    return table


def notes(lines: Sequence[str]) -> Text | None:
    """Return the lines below a table, None where there are none."""
    return Text("\n".join(lines), style="dim") if lines else None


def class_groups(ranks: Mapping[str, float | None], all_classes: bool = False) -> list[list[str]]:
    """Return the classes that a table shows, in groups: all of them, or of many those ranked highest and lowest.

    Args:
        ranks: class name -> what it is ranked by, in the order of the classes.
        all_classes: all of them, however many.
    """
    if all_classes or len(ranks) <= ROWS_IN_FULL:
        return [list(ranks)]
    known = {name: rank for name, rank in ranks.items() if rank is not None}
    ordered = sorted(known, key=lambda name: -known[name])
    if len(ordered) <= 2 * EXTREMES:
        return [ordered]
    return [ordered[:EXTREMES], ordered[-EXTREMES:]]


def shown_of(groups: Sequence[Sequence[str]], classes: int, compared: bool) -> list[str]:
    """Return the line that says which classes are shown, none where all of them are.

    Args:
        groups: what `class_groups` returned.
        classes: how many there are.
        compared: whether they were ranked by RIB's gain; otherwise by IoU.
    """
    shown, order = sum(map(len, groups)), "RIB gains most and least" if compared else "the IoU is highest and lowest"
    return [f"{shown} of {classes} classes, those where {order}"] if shown < classes else []


def number(value: float | None) -> str:
    """Return a number, such as percent, with one decimal."""
    return NOTHING if value is None else f"{value:.1f}"


def interval(value: Sequence[float] | None) -> str:
    """Return low and high of an interval with one decimal: 56.0 to 57.1."""
    return NOTHING if value is None else f"{value[0]:.1f} to {value[1]:.1f}"


def threshold(value: float | None) -> str:
    """Return a threshold with two decimals."""
    return NOTHING if value is None else f"{value:.2f}"


def count(value: int | None) -> str:
    """Return a count with its thousands apart."""
    return NOTHING if value is None else f"{value:,}"


def failed(value: int | None) -> Text:
    """Return a count of failures, which catches the eye unless it is 0."""
    return Text(count(value), style="bold red" if value else "")


def difference(before: float | None, after: float | None) -> float | None:
    """Return what was gained, None where one side is unknown."""
    return None if before is None or after is None else after - before


def gain(value: float | None) -> Text:
    """Return a gain in points with its sign."""
    if value is None:
        return Text(NOTHING)
    rounded = round(value, 1) + 0.0  # + 0.0 turns -0.0 into 0.0
    return Text(f"{rounded:+.1f}", style="green" if rounded > 0 else "red" if rounded < 0 else "")


def duration(seconds: float | None) -> str:
    """Return a time span as people say it: 8.4 s, 3 min 05 s, 2 h 07 min."""
    if seconds is None:
        return NOTHING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
