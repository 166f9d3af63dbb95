"""Results of a sweep: a CSV of its trials, tables of its rows and of its trials, and plots.

`results_table` shows the rows of a ledger (``sweep.json``; see `ribray.report.sweep_rows`) on a terminal and
`write_results` writes into the sweep's folder::

    results.csv      a line per trial
    table.md         the rows as GitHub markdown
    plot.png         the metric over the axes
    steps.png        seed mIoU by refinement step, where the trials kept their steps
    thresholds.png   seed mIoU by threshold, where the trials judged a seed
"""

import csv
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ribray import storage
from ribray.report import cells, sweep_rows
from ribray.report.cells import ROWS_IN_FULL
from ribray.report.sweep_figures import draw_plots
from ribray.report.sweep_rows import FAILED, FINISHED, Sweep, SweepRow, is_number, is_numeric, setting_text, shortened
from ribray.report.table import NOTHING, Cell, Column, Table
from ribray.sweep_file import short_keys

RESULTS_FILE, TABLE_FILE = "results.csv", "table.md"
BEST_SHOWN = 10  # of more rows than `ROWS_IN_FULL` a terminal shows so many
SETTING_LETTERS = 40
REASON_LETTERS = 160  # longer texts are shortened in tables; the CSV has all of them


def write_results(ledger: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write table, CSV and plots into the sweep's folder; return these files."""
    sweep = Sweep(ledger, folder)
    storage.write_text(folder / RESULTS_FILE, _csv(sweep))
    storage.write_text(folder / TABLE_FILE, _rows_table(sweep, sweep.rows).markdown())
    return [folder / RESULTS_FILE, folder / TABLE_FILE, *draw_plots(sweep)]


def _csv(sweep: Sweep) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    ending = ["seconds", "failed_images", "error"]
    writer.writerow(["id", *sweep.keys, "status", sweep.metric, "interval_low", "interval_high", *ending])
    for trial in sweep.trials:
        values = (trial["settings"].get(key, "") for key in sweep.keys)
        settings = [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values]
        interval, last = sweep.interval_of(trial) or ("", ""), [trial.get(key) for key in ending]
        writer.writerow([trial["id"], *settings, trial["status"], trial["value"], *interval, *last])
    return text.getvalue()


def results_table(ledger: Mapping[str, Any]) -> Table:
    """Return the sweep's rows, beside or above what is published; of many the best.

    On a terminal it fits 80 columns.
    """
    sweep = Sweep(ledger)
    if len(sweep.rows) <= ROWS_IN_FULL:
        return _rows_table(sweep, sweep.rows)
    best = sweep.best_first()[:BEST_SHOWN]
    return _rows_table(sweep, best, f"{len(best)} of {len(sweep.rows)} rows, the best; {RESULTS_FILE} has all trials")


def _rows_table(sweep: Sweep, shown: Sequence[SweepRow], *notes: str) -> Table:
    stated = sweep.stated.get("value")
    decimals = sweep_rows.published_decimals(stated)
    settings = [_column(name, is_numeric(sweep.values(axis))) for axis, name in sweep.names.items()]
    columns = [*(settings or [_column("", False)]), _column(sweep.metric_heading), _column("n")]
    kept = [True] * len(columns)
    columns += [_column("95 % interval"), _column("published"), _column("", False, is_long=True)]
    kept += [any(row.interval for row in sweep.rows), any(row.published is not None for row in sweep.rows)]
    kept.append(any(row.reason for row in sweep.rows))

    lines = []
    for row in shown:
        line = [_setting(row.settings[axis], SETTING_LETTERS) for axis in sweep.axes] or [Cell("this sweep")]
        mean = Cell(NOTHING)
        if row.summary is not None:
            text = sweep.number(row.summary.mean, decimals) + sweep.plus_minus(row.summary.std)
            mean = Cell(text, row.summary.mean, "strong" if row.is_best else "")
        line += [mean, Cell(f"{row.count}", row.count)]
        line.append(Cell("–".join(map(sweep.number, row.interval)) if row.interval else NOTHING))
        line.append(Cell(NOTHING if row.published is None else sweep_rows.as_published(row.published)))
        lines.append([*line, Cell(shortened(row.reason, REASON_LETTERS))])
    if stated is not None:  # the published number stands below the values
        value = sweep_rows.as_published(stated) + sweep.plus_minus(sweep.stated.get("std"))
        texts = ["published", *[""] * (len(sweep.axes or "-") - 1), value]
        lines.append([Cell(text, look="faint") for text in texts + [""] * (len(columns) - len(texts))])
    rows = [list(itertools.compress(line, kept)) for line in lines]
    title = " ".join((sweep.ledger["title"] or sweep.ledger["name"]).split())
    columns, notes = list(itertools.compress(columns, kept)), (*notes, *_notes(sweep))
    return Table(title, columns, [rows], notes, is_dense=True, is_wide=True)


def _column(heading: str, is_number: bool = True, is_long: bool = False) -> Column:
    return Column(heading, is_number, is_long, wraps=not is_number)


def _setting(value: Any, letters: int | None = None) -> Cell:
    text = setting_text(value)
    return Cell(text if letters is None else shortened(text, letters), value if is_number(value) else None)


def _notes(sweep: Sweep) -> list[str]:
    ledger, metric = sweep.ledger, sweep.metric
    wanted = "lower is better" if ledger["mode"] == "min" else "higher is better"
    base = f"; base: {ledger['base']['recipe']}" if ledger["base"] else ""
    percent = ", in percent" if sweep_rows.is_percent(metric) else ""
    lines = [f"{sweep_rows.metric_name(metric)}: {metric}{percent}; {wanted}{base}"]
    if best := [sweep.settings_text(row) for row in sweep.rows if row.is_best]:
        lines.append(f"bold: best, {' and '.join(best)}")
    if repeats := sweep_rows.repeats_of(sweep.rows):
        over = f" ({', '.join(ledger['repeats'])})" if ledger["repeats"] else ""
        lines.append(f"±: sample standard deviation over {repeats} repeats{over}; n: repeats that count")
    elif any(row.count for row in sweep.rows):
        lines.append("n: trials that count; of a single one there is no standard deviation")
    if any(row.interval for row in sweep.rows):
        lines.append("interval: 95 % bootstrap over images")
    if any(sweep_rows.STOPPED in row.statuses for row in sweep.rows):
        lines.append("stopped: ended early by the scheduler, on fewer images; not compared")
    if any(sweep_rows.DIVERGED in row.statuses for row in sweep.rows):
        lines.append("diverged: the loss passed its bound or was no longer finite, which ends a training")
    if sweep.table is not None:
        lines.append(f"published: table {sweep.table.name}, {sweep.table.title}")
    if text := sweep.stated.get("text"):
        lines.append(f"published: {' '.join(text.split())}")
    return lines


def trials_table(sweep: Sweep) -> Table:
    trials, names = sweep.trials, short_keys(sweep.keys)
    numeric = {key: is_numeric(trial["settings"][key] for trial in trials if key in trial["settings"]) for key in names}
    with_errors = any(trial.get("error") for trial in trials)
    columns = [Column("trial"), *(Column(name, numeric[key]) for key, name in names.items()), Column("status")]
    columns += [Column(heading, True) for heading in (sweep.metric_heading, "failed images", "time")]
    columns += [Column("error", is_long=True)] if with_errors else []
    rows = []
    for trial in trials:
        place, settings, value = trial["directory"], trial["settings"], trial["value"]
        row = [Cell(trial["id"], note="" if place == f"trials/{trial['id']}" else place)]
        row += [_setting(settings[key]) if key in settings else Cell(NOTHING) for key in names]
        row.append(Cell(trial["status"], look={FAILED: "bad", FINISHED: "good"}.get(trial["status"], "")))
        note = " to ".join(map(sweep.number, sweep.interval_of(trial) or ()))
        row.append(Cell(sweep.number(value), value, note=note) if is_number(value) else Cell(NOTHING, note=note))
        failed = trial.get("failed_images") or 0
        row += [Cell(f"{failed:,}", failed, "bad" if failed else ""), cells.duration(trial.get("seconds"))]
        rows.append([*row, Cell(trial.get("error") or "")] if with_errors else row)
    return Table("All trials", columns, [rows], is_sortable=True)


def failed_trials_table(sweep: Sweep) -> Table | None:
    """Return the trials that failed and why; None where none did."""
    failed = [trial for trial in sweep.trials if trial["status"] == FAILED]
    rows = [[Cell(trial["id"]), Cell(trial.get("error") or NOTHING)] for trial in failed]
    return Table("Trials that failed", [Column("trial"), Column("error", is_long=True)], [rows]) if rows else None
