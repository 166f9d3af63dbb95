"""Tables for the terminal: the seed of plain CAM and of RIB, and what a run did. Made to fit 80 columns."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table
from rich.text import Text

CAM, RIB = "cam", "rib"
METHOD_NAMES = {CAM: "plain CAM", RIB: "RIB"}

ROWS_IN_FULL = 30
"""Up to so many classes a table shows all of them."""
EXTREMES = 5
"""Of more classes it shows so many from the top and as many from the bottom."""
FAILURES_SHOWN = 5
FINDINGS_SHOWN = 5
"""Of one kind; all of them stand in the check's file."""
NAMES_SHOWN = 12
NOTHING = "–"


class _ClassRow(NamedTuple):
    name: str
    values: tuple[float | None, ...]
    gain: float | None

    def rank(self, compared: bool) -> float | None:
        return self.gain if compared else self.values[0]


def seed_table(
    seed: Mapping[str, Mapping[str, Any]],
    *,
    title: str = "Seed IoU in percent",
    all_classes: bool = False,
    note: str | None = None,
) -> Table:
    """Return the seed's IoU per class and on average, each method at its own best threshold.

    Args:
        seed: the ``seed`` part of a run's metrics: "cam" and "rib", or other methods, each with "miou",
            "threshold", "per_class" (class name -> IoU in percent, or None), "images" and "failed".
        title: stands above the table.
        all_classes: show every class, however many; otherwise of more than `ROWS_IN_FULL` classes only those
            where RIB gains most and least (without that comparison: those of the highest and lowest IoU).
        note: a line below the table, such as the figure a paper gives.

    Returns:
        A table of classes by methods; with plain CAM and RIB also RIB's gain in points.
    """
    methods = sorted(seed, key=lambda method: (method != CAM, method != RIB))
    compared = CAM in seed and RIB in seed
    rows = _class_rows(seed, methods, compared)
    groups = [rows] if all_classes or len(rows) <= ROWS_IN_FULL else _extremes(rows, compared)

    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    table.add_column("class", no_wrap=True, min_width=22)
    for method in methods:
        table.add_column(METHOD_NAMES.get(method, method), justify="right", min_width=10)
    if compared:
        table.add_column("gain", justify="right", min_width=8)
    for group in groups:
        for row in group:
            table.add_row(escape(row.name), *map(_number, row.values), *([_gain(row.gain)] if compared else []))
        table.add_section()
    means = [seed[method]["miou"] for method in methods]
    gain = [_gain(_difference(seed[CAM]["miou"], seed[RIB]["miou"]))] if compared else []
    table.add_row("mean IoU", *map(_number, means), *gain, style="bold")
    table.add_row("best threshold", *(_threshold(seed[method].get("threshold")) for method in methods))
    table.add_row("images", *(_plain(seed[method].get("images")) for method in methods))
    table.add_row("failed", *(_failed(seed[method].get("failed")) for method in methods))

    lines = [note] if note else []
    shown = sum(map(len, groups))
    if shown < len(rows):
        order = "RIB gains most and least" if compared else "the IoU is highest and lowest"
        lines.insert(0, f"{shown} of {len(rows)} classes, those where {order}")
    table.caption = Text("\n".join(lines), style="dim") if lines else None
    return table


def run_summary(
    metrics: Mapping[str, Any],
    out: str | Path,
    *,
    failures: Sequence[Mapping[str, Any]] = (),
    paths: Mapping[str, str | Path] | None = None,
) -> RenderableType:
    """Return what a run did: a row per stage, the images that failed, and where the results lie.

    Args:
        metrics: a run's merged metrics; its "timing" part names the stages in their order.
        out: the run directory.
        failures: lines of ``failures.jsonl`` ("stage", "id", "error"); the last few are shown.
        paths: what lies where, besides the run directory itself (such as "pictures" -> path).
    """
    places = Table.grid(padding=(0, 2))
    places.add_column(style="dim", no_wrap=True)
    places.add_column(overflow="fold")
    for label, place in {"run": out, **(paths or {})}.items():
        places.add_row(escape(label), escape(str(place)))
    parts: list[RenderableType] = [_stage_table(metrics), ""]
    if failures:
        parts.append(_failure_lines(failures))
    return Group(*parts, places)


def _class_rows(seed: Mapping[str, Mapping[str, Any]], methods: Sequence[str], compared: bool) -> list[_ClassRow]:
    rows = []
    for name in dict.fromkeys(name for method in methods for name in seed[method]["per_class"]):
        values = {method: seed[method]["per_class"].get(name) for method in methods}
        gain = _difference(values[CAM], values[RIB]) if compared else None
        rows.append(_ClassRow(name, tuple(values.values()), gain))
    return rows


def _extremes(rows: Sequence[_ClassRow], compared: bool) -> list[list[_ClassRow]]:
    """Return the rows of the highest and of the lowest rank, both from high to low."""
    ranked = [(rank, row) for row in rows if (rank := row.rank(compared)) is not None]
    ordered = [row for _, row in sorted(ranked, key=lambda pair: -pair[0])]
    if len(ordered) <= 2 * EXTREMES:
        return [ordered]
    return [ordered[:EXTREMES], ordered[-EXTREMES:]]


def _stage_table(metrics: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("stage", no_wrap=True)
    table.add_column("result")
    for heading in ("images", "failed", "time", "images/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for stage, timing in metrics.get("timing", {}).items():
        result = metrics.get(stage, {})
        counts = result.get(RIB, result)
        images, failed = (counts.get(key, timing.get(key)) for key in ("images", "failed"))
        speed = timing.get("images_per_second")
        cost = (_duration(timing.get("seconds")), _number(speed))
        table.add_row(escape(stage), _headline(result), _plain(images), _failed(failed), *cost)
    return table


def _headline(result: Mapping[str, Any]) -> str:
    """Return a stage's result in a few words; an arrow leads from plain CAM to RIB."""
    if CAM in result and RIB in result:
        return f"mIoU {_number(result[CAM]['miou'])} → {_number(result[RIB]['miou'])}"
    for key, name in (("miou", "mIoU"), ("map", "mAP")):
        if key in result:
            return f"{name} {_number(result[key])}"
    return NOTHING


def _failure_lines(failures: Sequence[Mapping[str, Any]]) -> Text:
    text = Text(f"{len(failures)} failed", style="bold red")
    if len(failures) > FAILURES_SHOWN:
        text.append(f", the last {FAILURES_SHOWN}")
    for failure in failures[-FAILURES_SHOWN:]:
        text.append(f"\n  {failure['id']} ", style="not bold default")
        text.append(f"({failure['stage']}) {failure['error']}", style="not bold dim default")
    return text.append("\n")


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1f}"


def _threshold(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"


def _plain(value: int | None) -> str:
    return NOTHING if value is None else f"{value:,}"


def _failed(value: int | None) -> Text:
    return Text(_plain(value), style="bold red" if value else "")


def _gain(value: float | None) -> Text:
    if value is None:
        return Text(NOTHING)
    rounded = round(value, 1) + 0.0  # + 0.0 turns -0.0 into 0.0
    return Text(f"{rounded:+.1f}", style="green" if rounded > 0 else "red" if rounded < 0 else "")


def _duration(seconds: float | None) -> str:
    """Return a time span as people say it: 8.4 s, 3 min 05 s, 2 h 07 min."""
    if seconds is None:
        return NOTHING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def plan_table(plan: Sequence[Any]) -> Table:
    """Return what each stage would do and roughly at what cost (stage, total, done, unit, source, estimate)."""
    table = _plain_table("stage", "to do", "done already", "from", "rough time", "rough disk")
    for item in plan:
        left, estimate = item.total - item.done, item.estimate
        cost = (_duration(estimate.seconds), decimal(estimate.bytes)) if estimate else (NOTHING, NOTHING)
        what = f"{left:,} of {item.total:,} {item.unit}" if left else "nothing"
        table.add_row(item.stage, what, f"{item.done:,}", escape(item.source), *cost)
    return table


def status_table(statuses: Sequence[Any]) -> Table:
    """Return how far each stage of a run is (stage, total, done, unit, failed, metrics)."""
    table = _plain_table("stage", "done", "", "failed", "result")
    for status in statuses:
        share = f"{100 * status.done / status.total:.0f} %" if status.total else NOTHING
        done = f"{status.done:,} of {status.total:,} {status.unit}"
        table.add_row(status.stage, done, share, _failed(status.failed), _headline(status.metrics))
    return table


def data_report(report: Any) -> RenderableType:
    """Return what a check of the data found: a row per split, class frequencies, and the findings by kind.

    Args:
        report: "splits" (images, empty, classes, unused, with_mask, sizes, by name), "findings" (kind, split, id,
            sentence).
    """
    splits = _plain_table("split", "images", "empty", "masks", "classes", "smallest", "median", "largest")
    for name, split in report.splits.items():
        used = f"{len(split.classes) - len(split.unused)}/{len(split.classes)}"
        sizes = [_size(split.sizes.get(key)) for key in ("smallest", "median", "largest")]
        counts = [f"{count:,}" for count in (split.images, split.empty, split.with_mask)]
        splits.add_row(escape(name), *counts, used, *sizes)
    parts: list[RenderableType] = [splits, "", _frequencies(report.splits), ""]
    parts += [
        Text(f"Never in {name}: {_some(split.unused)}", style="dim")
        for name, split in report.splits.items()
        if split.unused
    ]
    return Group(*parts, _finding_lines(report.findings))


def _frequencies(splits: Mapping[str, Any]) -> Table:
    """Return the number of images per class; of many classes the most and the least frequent."""
    table = _plain_table("class", *(f"images of {name}" for name in splits))
    totals: dict[str, int] = {}
    for split in splits.values():
        for name, images in split.classes.items():
            totals[name] = totals.get(name, 0) + images
    ordered = sorted((name for name in totals if totals[name]), key=lambda name: -totals[name])
    in_full = len(ordered) <= ROWS_IN_FULL
    for name in ordered if in_full else [*ordered[:EXTREMES], *ordered[-EXTREMES:]]:
        table.add_row(escape(name), *(f"{split.classes.get(name, 0):,}" for split in splits.values()))
    if not in_full:
        note = f"{2 * EXTREMES} of {len(ordered)} classes, the most and the least frequent"
        table.caption, table.caption_justify = Text(note, style="dim"), "left"
    return table


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


def _size(size: tuple[int, int] | None) -> str:
    return NOTHING if size is None else f"{size[0]}×{size[1]}"


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMES_SHOWN])
    return shown if len(names) <= NAMES_SHOWN else f"{shown} and {len(names) - NAMES_SHOWN} more"


def check_table(checks: Sequence[Any]) -> Table:
    """Return a line per compared quantity (case, quantity, error, tolerance, ok, note)."""
    table = _plain_table("case", "quantity", "largest error", "tolerance", "", "")
    for check in checks:
        verdict = Text("ok", style="green") if check.ok else Text("OFF", style="bold red")
        table.add_row(
            check.case,
            check.quantity,
            f"{check.error:.1e}",
            f"{check.tolerance:.0e}",
            verdict,
            escape(check.note),
        )
    return table


def _plain_table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in headings:
        table.add_column(heading)
    return table
