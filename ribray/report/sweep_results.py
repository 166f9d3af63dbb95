"""Results of a sweep: a CSV of its trials, a table of its rows, and plots.

`rows` averages the trials of a ledger (``sweep.json``; see `ribray.report.sweep_rows`) over its repeats,
`results_table` shows the rows on a terminal and `write_results` writes into the sweep's folder::

    results.csv      a line per trial
    table.md         the rows as GitHub markdown
    plot.png         the metric over the axes
    steps.png        seed mIoU by refinement step, where the trials kept their steps
    thresholds.png   seed mIoU by threshold, where the trials judged a seed
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, JustifyMethod, RenderableType
from rich.text import Text

from ribray import storage
from ribray.report import cells
from ribray.report.cells import NOTHING, ROWS_IN_FULL
from ribray.report.sweep_figures import draw_plots
from ribray.report.sweep_rows import (
    DIVERGED,
    STOPPED,
    SweepRow,
    as_published,
    best_first,
    interval_of,
    is_numeric,
    is_percent,
    metric_name,
    number,
    published_decimals,
    published_table,
    rows,
    setting_text,
    short_keys,
    shortened,
    spread,
)

__all__ = ["SweepRow", "results_table", "rows", "write_results"]

RESULTS_FILE, TABLE_FILE = "results.csv", "table.md"
BEST_SHOWN = 10
"""Of more rows than `ROWS_IN_FULL` a terminal shows so many."""
SETTING_LETTERS = 40
REASON_LETTERS = 160
"""Longer texts are shortened in tables; the CSV has all of them."""
MARKDOWN = re.compile(r"([\\`*\[\]|~])|(?<!\w)_|_(?!\w)")
"""What has a meaning in markdown, besides HTML."""
RIGHT = "right"


def write_results(ledger: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the sweep's table, CSV and plots.

    Args:
        ledger: the content of ``sweep.json``.
        folder: the sweep's folder, which the trials' directories are relative to.

    Returns:
        The files that were written.

    Raises:
        RibrayError: a trial's file is damaged.
    """
    found = rows(ledger)
    storage.write_text(folder / RESULTS_FILE, _csv(ledger))
    storage.write_text(folder / TABLE_FILE, _markdown(ledger, found))
    return [folder / RESULTS_FILE, folder / TABLE_FILE, *draw_plots(ledger, found, folder)]


def results_table(ledger: Mapping[str, Any]) -> RenderableType:
    """Return the sweep's rows for a terminal of 80 columns, beside or above what is published.

    Of many rows the best are shown.
    """
    found = rows(ledger)
    notes, shown = _notes(ledger, found), found
    if len(found) > ROWS_IN_FULL:
        shown = best_first(found, ledger["mode"])[:BEST_SHOWN]
        notes = [f"{len(shown)} of {len(found)} rows, the best; {RESULTS_FILE} has all trials", *notes]
    columns = _columns(ledger, found)
    table = cells.plain_table()
    table.collapse_padding = True
    for column in columns:
        side: JustifyMethod = "right" if column.on_right else "left"
        table.add_column(Text(column.heading), justify=side, no_wrap=column.on_right, overflow="fold")
    for row in shown:
        style = "bold" if row.is_best else ""
        table.add_row(*(Text(column.cell(row), style if column.is_value else "") for column in columns))
    if (stated := _stated(ledger)) is not None:
        table.add_row(*(Text(text, "dim") for text in _stated_cells(columns, stated)))
    return Group(Text(_title(ledger), "bold"), table, Text("\n".join(notes), "dim"))


# --- columns -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Column:
    """A column of the table, on a terminal and in markdown."""

    heading: str
    texts: Mapping[int, str]
    """id of a row -> its cell."""
    on_right: bool = True
    is_value: bool = False

    def cell(self, row: SweepRow) -> str:
        """Return what the column says of a row."""
        return self.texts[id(row)]


def _columns(ledger: Mapping[str, Any], found: Sequence[SweepRow]) -> list[_Column]:
    metric = ledger["metric"]
    decimals = published_decimals(_stated_value(ledger))
    unit = ", %" if is_percent(metric) else ""

    def column(heading: str, texts: Sequence[str], **more: bool) -> _Column:
        return _Column(heading, {id(row): text for row, text in zip(found, texts, strict=True)}, **more)

    columns = []
    for axis, key in short_keys(ledger["axes"]).items():
        settings = [row.settings[axis] for row in found]
        texts = [shortened(setting_text(value), SETTING_LETTERS) for value in settings]
        columns.append(column(key, texts, on_right=is_numeric(settings)))
    columns = columns or [column("", ["this sweep"] * len(found), on_right=False)]
    values = [_value(row, metric, decimals) for row in found]
    columns.append(column(f"{metric_name(metric)}{unit}", values, is_value=True))
    columns.append(column("n", [f"{row.count}" for row in found]))
    if any(row.interval for row in found):
        columns.append(column("95 % interval", [_interval(row.interval, metric) for row in found]))
    if any(row.published is not None for row in found):
        texts = [NOTHING if row.published is None else as_published(row.published) for row in found]
        columns.append(column("published", texts))
    if any(row.reason for row in found):
        columns.append(column("", [shortened(row.reason, REASON_LETTERS) for row in found], on_right=False))
    return columns


def _value(row: SweepRow, metric: str, decimals: int) -> str:
    if row.summary is None:
        return NOTHING
    mean = number(row.summary.mean, metric, decimals)
    return mean if row.summary.std is None else f"{mean} ± {spread(row.summary.std, metric)}"


def _interval(interval: tuple[float, float] | None, metric: str) -> str:
    return f"{number(interval[0], metric)}–{number(interval[1], metric)}" if interval else NOTHING


def _stated_value(ledger: Mapping[str, Any]) -> float | None:
    return (ledger.get("published") or {}).get("value")


def _stated(ledger: Mapping[str, Any]) -> str | None:
    """Return the one published number, with its standard deviation."""
    value = _stated_value(ledger)
    if value is None:
        return None
    std = ledger["published"].get("std")
    return as_published(value) + (f" ± {spread(std, ledger['metric'])}" if std is not None else "")


def _stated_cells(columns: Sequence[_Column], stated: str) -> list[str]:
    """Return the row of the published number, which stands below the values."""
    return ["published", *(stated if column.is_value else "" for column in columns[1:])]


# --- what stands around the rows ---------------------------------------------------------------------------------


def _title(ledger: Mapping[str, Any]) -> str:
    return " ".join((ledger.get("title") or ledger["name"]).split())


def _notes(ledger: Mapping[str, Any], found: Sequence[SweepRow]) -> list[str]:
    """Return the lines below the table: what the metric is and which statistics are shown."""
    metric = ledger["metric"]
    wanted = "lower is better" if ledger["mode"] == "min" else "higher is better"
    lines = [f"{metric_name(metric)}: {metric}{', in percent' if is_percent(metric) else ''}; {wanted}"]
    if base := (ledger.get("base") or {}).get("recipe"):
        lines[0] += f"; base: {base}"
    names = short_keys(ledger["axes"])
    best = [", ".join(f"{names[axis]} {setting_text(row.settings[axis])}" for axis in names) for row in _best(found)]
    if best:
        lines.append(f"bold: best, {' and '.join(best)}")
    lines += _statistics(ledger, found)
    if any(STOPPED in row.statuses for row in found):
        lines.append("stopped: ended early by the scheduler, on fewer images; not compared")
    if any(DIVERGED in row.statuses for row in found):
        lines.append("diverged: the loss passed its bound or was no longer finite, which ends a training")
    lines += _published_lines(ledger)
    return lines


def _best(found: Sequence[SweepRow]) -> list[SweepRow]:
    return [row for row in found if row.is_best]


def _statistics(ledger: Mapping[str, Any], found: Sequence[SweepRow]) -> list[str]:
    counts = sorted({row.count for row in found if row.count > 1})
    over = f" ({', '.join(ledger['repeats'])})" if ledger["repeats"] else ""
    lines = []
    if counts:
        repeats = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        lines.append(f"±: sample standard deviation over {repeats} repeats{over}; n: repeats that count")
    elif any(row.count for row in found):
        lines.append("n: trials that count; of a single one there is no standard deviation")
    if any(row.interval for row in found):
        lines.append("interval: 95 % bootstrap over images")
    return lines


def _published_lines(ledger: Mapping[str, Any]) -> list[str]:
    lines = []
    table = published_table(ledger)
    if table is not None:
        lines.append(f"published: table {table.name}, {table.title}")
    if text := (ledger.get("published") or {}).get("text"):
        lines.append(f"published: {' '.join(text.split())}")
    return lines


# --- files -------------------------------------------------------------------------------------------------------


def _csv(ledger: Mapping[str, Any]) -> str:
    """Return a line per trial, each with every setting."""
    trials = ledger["trials"]
    keys = list(dict.fromkeys(key for trial in trials for key in trial["settings"]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    ending = ["seconds", "failed_images", "error"]
    writer.writerow(["id", *keys, "status", ledger["metric"], "interval_low", "interval_high", *ending])
    for trial in trials:
        settings = [_csv_value(trial["settings"][key]) if key in trial["settings"] else "" for key in keys]
        interval = interval_of(trial, ledger["metric"]) or ("", "")
        last = [trial.get(key) for key in ending]
        writer.writerow([trial["id"], *settings, trial["status"], trial["value"], *interval, *last])
    return text.getvalue()


def _csv_value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _markdown(ledger: Mapping[str, Any], found: Sequence[SweepRow]) -> str:
    columns = _columns(ledger, found)
    lines = [
        f"### {_escape(_title(ledger))}",
        "",
        _line([_escape(column.heading) for column in columns]),
        _line(["---:" if column.on_right else ":---" for column in columns]),
    ]
    for row in found:
        texts = [_escape(column.cell(row)) for column in columns]
        lines.append(
            _line(
                f"**{text}**" if row.is_best and column.is_value else text
                for column, text in zip(columns, texts, strict=True)
            )
        )
    if (stated := _stated(ledger)) is not None:
        lines.append(_line(_stated_cells(columns, stated)))
    notes = [f"{_escape(note)}  " for note in _notes(ledger, found)]
    return "\n".join([*lines, "", *notes]).rstrip() + "\n"


def _line(texts: Iterable[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _escape(text: str) -> str:
    """Return text from data as markdown that shows just that text, in one line."""
    html = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return MARKDOWN.sub(r"\\\g<0>", html)
