"""Tables of a sweep's trials, for its page."""

from collections.abc import Mapping
from typing import Any

from ribray.report import cells, sweep_rows
from ribray.report.sweep_rows import FAILED, FINISHED, is_number, is_numeric, is_percent, number, setting_text
from ribray.report.table import NOTHING, Cell, Column, Table


def trials_table(ledger: Mapping[str, Any]) -> Table | None:
    """Return a sweep's trials, a row each; None where there are none."""
    trials, metric = ledger["trials"], ledger["metric"]
    if not trials:
        return None
    names = sweep_rows.short_keys(list(dict.fromkeys(key for trial in trials for key in trial["settings"])))
    numeric = {key: is_numeric(trial["settings"][key] for trial in trials if key in trial["settings"]) for key in names}
    with_errors = any(trial.get("error") for trial in trials)
    value = sweep_rows.metric_name(metric) + (", %" if is_percent(metric) else "")
    columns = [Column("trial"), *(Column(name, numeric[key]) for key, name in names.items()), Column("status")]
    columns += [Column(heading, True) for heading in (value, "failed images", "time")]
    columns += [Column("error", is_long=True)] if with_errors else []
    rows = []
    for trial in trials:
        failed, place = trial.get("failed_images") or 0, trial["directory"]
        row = [Cell(trial["id"], note="" if place == f"trials/{trial['id']}" else place)]
        row += [_setting(trial["settings"], key) for key in names]
        row.append(Cell(trial["status"], look={FAILED: "bad", FINISHED: "good"}.get(trial["status"], "")))
        row += [_value(trial, metric), Cell(f"{failed:,}", failed, "bad" if failed else "")]
        row.append(cells.duration(trial.get("seconds")))
        rows.append([*row, Cell(trial.get("error") or "")] if with_errors else row)
    return Table("All trials", columns, [rows], is_sortable=True)


def _setting(settings: Mapping[str, Any], key: str) -> Cell:
    if key not in settings:
        return Cell(NOTHING)
    return Cell(setting_text(settings[key]), settings[key] if is_number(settings[key]) else None)


def _value(trial: Mapping[str, Any], metric: str) -> Cell:
    value, bounds = trial["value"], sweep_rows.interval_of(trial, metric)
    note = " to ".join(number(bound, metric) for bound in bounds) if bounds else ""
    return Cell(number(value, metric), value, note=note) if is_number(value) else Cell(NOTHING, note=note)


def failed_trials_table(ledger: Mapping[str, Any]) -> Table | None:
    """Return the trials that failed and why; None where none did."""
    failed = [trial for trial in ledger["trials"] if trial["status"] == FAILED]
    rows = [[Cell(trial["id"]), Cell(trial.get("error") or NOTHING)] for trial in failed]
    return Table("Trials that failed", [Column("trial"), Column("error", is_long=True)], [rows]) if rows else None
