"""What commands print of their work: stages done and to do, failures, what a check found."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import rich.table
from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.text import Text

from ribray.report import cells
from ribray.report.comparison import Stages
from ribray.report.stage_tables import stage_table, stage_title
from ribray.report.table import NOTHING, Cell, Column, Table
from ribray.runs.metrics import RunMetrics

FAILURES_SHOWN = 5  # kinds of them; all of them stand in ``failures.jsonl``
FINDINGS_SHOWN = 5  # of one kind; all of them stand in the check's file
NAMES_SHOWN = 12


def run_summary(
    metrics: RunMetrics, stages: Stages, out: str | Path, *, failures: Sequence[Mapping[str, Any]] = ()
) -> RenderableType:
    place = rich.table.Table.grid(padding=(0, 2))
    place.add_column(style="dim", no_wrap=True)
    place.add_column(overflow="fold")
    place.add_row("run", Text(str(out)))
    did = stage_table(metrics, stages)
    parts: list[RenderableType] = [] if did is None else [did, ""]
    return Group(*parts, *([failure_lines(failures)] if failures else []), place)


def failure_lines(failures: Sequence[Mapping[str, Any]]) -> Text:
    """Return how many images failed, and one of each kind, the most frequent kinds first; no tracebacks."""
    kinds: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for failure in failures:
        kinds.setdefault((failure["stage"], _kind(failure)), []).append(failure)
    text, plain, faint = Text(f"{len(failures):,} failed", style="bold red"), "not bold default", "not bold dim default"
    for first, *others in sorted(kinds.values(), key=len, reverse=True)[:FAILURES_SHOWN]:
        text.append(f"\n  {_printable(first['id'])} ", plain)
        more = "; --debug shows where" if first.get("traceback") else ""
        text.append(f"({first['stage']}) {_printable(first['error'])}{more}", faint)
        if others:
            ids = _printable(_some([failure["id"] for failure in others], FAILURES_SHOWN))
            text.append(f"\n    and {len(others):,} more of the kind: {ids}", faint)
    if (left := len(kinds) - FAILURES_SHOWN) > 0:
        text.append(f"\n  and {left:,} more kind{'s' if left > 1 else ''}, see failures.jsonl", faint)
    return text.append("\n")


def _printable(text: str) -> str:
    """Return a text as a terminal can show it: a file's name may be no Unicode."""
    return text.encode("utf-8", "backslashreplace").decode()


def _kind(failure: Mapping[str, Any]) -> str:
    """Return the sentence of a failure without what may differ from image to image: its id, files, and numbers."""
    own = re.compile(rf"(?<!\w){re.escape(failure['id'])}(?!\w)")
    words = ("0" if own.search(word) else word for word in failure["error"].split())
    return re.sub(r"\d+", "0", " ".join(words))


def _some(names: Sequence[str], most: int = NAMES_SHOWN) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most:,} more"


def _plain(headings: Sequence[str], rows: Sequence[Sequence[object]], notes: Sequence[str] = ()) -> Table:
    lines = [[each if isinstance(each, Cell) else Cell(str(each)) for each in row] for row in rows]
    return Table("", [Column(heading) for heading in headings], [lines], notes)


def plan_table(plan: Sequence[Any]) -> Table:
    """Return what each stage would do and roughly at what cost (stage, total, done, unit, source, estimate)."""
    rows = []
    for item in plan:
        left, estimate = item.total - item.done, item.estimate
        cost = (cells.duration(estimate.seconds).text, decimal(estimate.bytes)) if estimate else (NOTHING, NOTHING)
        what = f"{left:,} of {item.total:,} {item.unit}" if left else "nothing"
        rows.append([item.stage, what, f"{item.done:,}", item.source, *cost])
    return _plain(["stage", "to do", "done already", "from", "rough time", "rough disk"], rows)


def status_table(statuses: Sequence[Any]) -> Table:
    """Return how far each stage of a run is (stage, total, done, unit, failed, result, variant)."""
    rows = []
    for status in statuses:
        share = f"{100 * status.done / status.total:.0f} %" if status.total else NOTHING
        done = f"{status.done:,} of {status.total:,} {status.unit}"
        failed = cells.failed(status.failed)
        rows.append([stage_title(status.stage, status.variant), done, share, failed, status.result])
    return _plain(["stage", "done", "", "failed", "result"], rows)


def check_table(checks: Sequence[Any]) -> Table:
    """Return a line per compared quantity (case, quantity, error, tolerance, ok, note)."""
    ok, off = Cell("ok", look="good"), Cell("OFF", look="strong bad")
    rows = []
    for check in checks:
        figures = Cell(f"{check.error:.1e}"), Cell(f"{check.tolerance:.0e}")
        rows.append([Cell(check.case), Cell(check.quantity), *figures, ok if check.ok else off, Cell(check.note)])
    columns = [Column(heading) for heading in ("case", "quantity", "largest error", "tolerance")]
    return Table("", [*columns, Column("", width=3, wraps=False), Column("")], [rows])  # the verdict is never cut


def data_report(report: Any) -> RenderableType:
    """Return what a check of the data found: a row per split, class frequencies, and the findings by kind.

    ``report`` has "splits" (images, empty, classes, unused, with_mask, sizes, by name), "notes" and "findings" (kind,
    split, id, sentence).
    """
    rows, unused = [], []
    for name, split in report.splits.items():
        used = f"{len(split.classes) - len(split.unused)}/{len(split.classes)}"
        known = [split.sizes.get(key) for key in ("smallest", "median", "largest")]
        sizes = [NOTHING if size is None else f"{size[0]}×{size[1]}" for size in known]
        rows.append([name, *(f"{count:,}" for count in (split.images, split.empty, split.with_mask)), used, *sizes])
        unused += [f"Never in {name}: {_some(split.unused)}"] if split.unused else []
    splits = _plain(["split", "images", "empty", "masks", "classes", "smallest", "median", "largest"], rows)
    remarks = [*unused, *(f"Note: {note}" for note in report.notes)]
    lines = (Text(remark, style="dim") for remark in remarks)
    return Group(splits, "", _frequencies(report.splits), "", *lines, _finding_lines(report.findings))


def _frequencies(splits: Mapping[str, Any]) -> Table:
    """Return the number of images per class; of many classes the most and the least frequent."""
    totals = Counter[str]()
    for split in splits.values():
        totals.update(split.classes)
    found = {name: images for name, images in totals.most_common() if images}
    shown = [name for group in cells.class_groups(found) for name in group]
    notes = []
    if len(shown) < len(found):
        notes.append(f"{len(shown)} of {len(found)} classes, the most and the least frequent")
    rows = [[name, *(f"{split.classes.get(name, 0):,}" for split in splits.values())] for name in shown]
    return _plain(["class", *(f"images of {name}" for name in splits)], rows, notes)


def _finding_lines(findings: Sequence[Any]) -> Text:
    if not findings:
        return Text("Nothing wrong was found.", style="green")
    text = Text(f"{len(findings)} finding{'s' if len(findings) > 1 else ''}", style="bold red")
    for kind in dict.fromkeys(finding.kind for finding in findings):
        of_kind = [finding for finding in findings if finding.kind == kind]
        text.append(f"\n{kind}: {len(of_kind)}", style="bold default")
        for finding in of_kind[:FINDINGS_SHOWN]:
            text.append(f"\n  {finding.sentence}", style="not bold default")
        if len(of_kind) > FINDINGS_SHOWN:
            text.append(f"\n  … and {len(of_kind) - FINDINGS_SHOWN} more", style="not bold dim default")
    return text
