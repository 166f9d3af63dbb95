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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ribray import storage
from ribray.report.cells import ROWS_IN_FULL
from ribray.report.sweep_figures import draw_plots
from ribray.report.sweep_rows import (
    DIVERGED,
    STOPPED,
    SweepRow,
    as_published,
    best_first,
    interval_of,
    is_number,
    is_numeric,
    is_percent,
    metric_name,
    number,
    published_decimals,
    published_table,
    repeats_of,
    rows,
    setting_text,
    short_keys,
    shortened,
    spread,
)
from ribray.report.table import NOTHING, Cell, Column, Table

__all__ = ["SweepRow", "results_table", "rows", "write_results"]

RESULTS_FILE, TABLE_FILE = "results.csv", "table.md"
BEST_SHOWN = 10  # of more rows than `ROWS_IN_FULL` a terminal shows so many
SETTING_LETTERS = 40
REASON_LETTERS = 160  # longer texts are shortened in tables; the CSV has all of them


def write_results(ledger: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write table, CSV and plots into the sweep's folder; return these files."""
    found = rows(ledger)
    storage.write_text(folder / RESULTS_FILE, _csv(ledger))
    storage.write_text(folder / TABLE_FILE, _table(ledger, found).markdown())
    return [folder / RESULTS_FILE, folder / TABLE_FILE, *draw_plots(ledger, found, folder)]


def results_table(ledger: Mapping[str, Any]) -> Table:
    """Return the sweep's rows, beside or above what is published; of many the best.

    On a terminal it fits 80 columns.
    """
    found = rows(ledger)
    if len(found) <= ROWS_IN_FULL:
        return _table(ledger, found)
    best = best_first(found, ledger["mode"])[:BEST_SHOWN]
    return _table(ledger, found, best, [f"{len(best)} of {len(found)} rows, the best; {RESULTS_FILE} has all trials"])


# --- the table of the rows ---------------------------------------------------------------------------------------


def _table(
    ledger: Mapping[str, Any],
    found: Sequence[SweepRow],
    shown: Sequence[SweepRow] | None = None,
    notes: Sequence[str] = (),
) -> Table:
    """Return a table of all rows or of some, with the columns that all of them have."""
    metric, names = ledger["metric"], short_keys(ledger["axes"])
    stated = ledger["published"] or {}
    decimals = published_decimals(stated.get("value"))
    settings = {axis: [row.settings[axis] for row in found] for axis in names}
    columns = [_column(name, is_numeric(settings[axis])) for axis, name in names.items()] or [_column("", False)]
    columns += [_column(f"{metric_name(metric)}{', %' if is_percent(metric) else ''}"), _column("n")]
    has_interval, has_published = any(row.interval for row in found), any(row.published is not None for row in found)
    has_reason = any(row.reason for row in found)
    columns += [_column("95 % interval")] if has_interval else []
    columns += [_column("published")] if has_published else []
    columns += [_column("", False, is_long=True)] if has_reason else []

    lines = []
    for row in found if shown is None else shown:
        line = [_setting(row.settings[axis]) for axis in names] or [Cell("this sweep")]
        line += [_value(row, metric, decimals), Cell(f"{row.count}", row.count)]
        line += [Cell(_interval(row.interval, metric))] if has_interval else []
        line += [Cell(NOTHING if row.published is None else as_published(row.published))] if has_published else []
        lines.append([*line, Cell(shortened(row.reason, REASON_LETTERS))] if has_reason else line)
    if stated.get("value") is not None:  # the published number stands below the values
        std = "" if stated.get("std") is None else f" ± {spread(stated['std'], metric)}"
        texts = ["published", *[""] * (len(names or "-") - 1), as_published(stated["value"]) + std]
        lines.append([Cell(text, look="faint") for text in texts + [""] * (len(columns) - len(texts))])
    title = " ".join((ledger["title"] or ledger["name"]).split())
    return Table(title, columns, [lines], [*notes, *_notes(ledger, found)], is_dense=True, is_wide=True)


def _column(heading: str, is_number: bool = True, is_long: bool = False) -> Column:
    return Column(heading, is_number, is_long, wraps=not is_number)


def _setting(value: Any) -> Cell:
    return Cell(shortened(setting_text(value), SETTING_LETTERS), value if is_number(value) else None)


def _value(row: SweepRow, metric: str, decimals: int) -> Cell:
    if row.summary is None:
        return Cell(NOTHING)
    text = number(row.summary.mean, metric, decimals)
    text += "" if row.summary.std is None else f" ± {spread(row.summary.std, metric)}"
    return Cell(text, row.summary.mean, "strong" if row.is_best else "")


def _interval(interval: tuple[float, float] | None, metric: str) -> str:
    return f"{number(interval[0], metric)}–{number(interval[1], metric)}" if interval else NOTHING


def _notes(ledger: Mapping[str, Any], found: Sequence[SweepRow]) -> list[str]:
    metric, names = ledger["metric"], short_keys(ledger["axes"])
    wanted = "lower is better" if ledger["mode"] == "min" else "higher is better"
    base = f"; base: {ledger['base']['recipe']}" if ledger["base"] else ""
    lines = [f"{metric_name(metric)}: {metric}{', in percent' if is_percent(metric) else ''}; {wanted}{base}"]
    best = (row.settings for row in found if row.is_best)
    if texts := [", ".join(f"{names[axis]} {setting_text(settings[axis])}" for axis in names) for settings in best]:
        lines.append(f"bold: best, {' and '.join(texts)}")
    if repeats := repeats_of(found):
        over = f" ({', '.join(ledger['repeats'])})" if ledger["repeats"] else ""
        lines.append(f"±: sample standard deviation over {repeats} repeats{over}; n: repeats that count")
    elif any(row.count for row in found):
        lines.append("n: trials that count; of a single one there is no standard deviation")
    if any(row.interval for row in found):
        lines.append("interval: 95 % bootstrap over images")
    if any(STOPPED in row.statuses for row in found):
        lines.append("stopped: ended early by the scheduler, on fewer images; not compared")
    if any(DIVERGED in row.statuses for row in found):
        lines.append("diverged: the loss passed its bound or was no longer finite, which ends a training")
    if (table := published_table(ledger)) is not None:
        lines.append(f"published: table {table.name}, {table.title}")
    if text := (ledger["published"] or {}).get("text"):
        lines.append(f"published: {' '.join(text.split())}")
    return lines


# --- files -------------------------------------------------------------------------------------------------------


def _csv(ledger: Mapping[str, Any]) -> str:
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
