"""Tables for the terminal: the seed of plain CAM and of RIB, and what a run did. Made to fit 80 columns."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ribray.report import cells
from ribray.report.cells import EXTREMES, NOTHING, ROWS_IN_FULL, plain_table

CAM, RIB = "cam", "rib"
INTERVAL = "miou_interval"
METHOD_NAMES = {CAM: "plain CAM", RIB: "RIB"}
SEED_CRF, BEFORE_RETRAINING = "seed_crf", "before_retraining"
"""Parts of the metrics of stages ``confident`` and ``evaluate``."""

FAILURES_SHOWN = 5
"""Kinds of them; all of them stand in ``failures.jsonl``."""
FINDINGS_SHOWN = 5
"""Of one kind; all of them stand in the check's file."""
NAMES_SHOWN = 12


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
            "threshold", "per_class" (class name -> IoU in percent, or None), "images" and "failed"; where it is
            known "miou_interval" (low, high).
        title: stands above the table.
        all_classes: show every class, however many; otherwise of more than `ROWS_IN_FULL` classes only those
            where RIB gains most and least (without that comparison: those of the highest and lowest IoU).
        note: a line below the table, such as the figure a paper gives.

    Returns:
        A table of classes by methods; with plain CAM and RIB also RIB's gain in points.
    """
    methods = sorted(seed, key=lambda method: (method != CAM, method != RIB))
    compared = CAM in seed and RIB in seed
    names = dict.fromkeys(name for method in methods for name in seed[method]["per_class"])
    rows = {name: [seed[method]["per_class"].get(name) for method in methods] for name in names}
    # In the order of the methods, plain CAM stands before RIB.
    gains = {name: cells.difference(*values[:2]) if compared else None for name, values in rows.items()}
    ranks = gains if compared else {name: values[0] for name, values in rows.items()}
    groups = cells.class_groups(ranks, all_classes)

    table = cells.titled_table(title)
    table.add_column("class", no_wrap=True, min_width=22)
    for method in methods:
        table.add_column(METHOD_NAMES.get(method, method), justify="right", min_width=10)
    if compared:
        table.add_column("gain", justify="right", min_width=8)
    for group in groups:
        for name in group:
            gain = [cells.gain(gains[name])] if compared else []
            table.add_row(escape(name), *map(cells.number, rows[name]), *gain)
        table.add_section()
    means = [seed[method]["miou"] for method in methods]
    gain = [cells.gain(cells.difference(*means[:2]))] if compared else []
    table.add_row("mean IoU", *map(cells.number, means), *gain, style="bold")
    if any(INTERVAL in seed[method] for method in methods):
        table.add_row("95 % interval", *(cells.interval(seed[method].get(INTERVAL)) for method in methods))
    table.add_row("best threshold", *(cells.threshold(seed[method].get("threshold")) for method in methods))
    table.add_row("images", *(cells.count(seed[method].get("images")) for method in methods))
    table.add_row("failed", *(cells.failed(seed[method].get("failed")) for method in methods))

    table.caption = cells.notes([*cells.shown_of(groups, len(rows), compared), *([note] if note else [])])
    return table


def run_summary(
    metrics: Mapping[str, Any],
    out: str | Path,
    *,
    failures: Sequence[Mapping[str, Any]] = (),
    paths: Mapping[str, str | Path] | None = None,
    order: Sequence[str] = (),
) -> RenderableType:
    """Return what a run did: a row per stage, the images that failed, and where the results lie.

    Args:
        metrics: a run's merged metrics; its "timing" part, and that of its variants, names the stages.
        out: the run directory.
        failures: lines of ``failures.jsonl`` ("stage", "id", "error"); one of each kind is shown.
        paths: what lies where, besides the run directory itself (such as "pictures" -> path).
        order: stages in the order of the chain; others come last.
    """
    places = Table.grid(padding=(0, 2))
    places.add_column(style="dim", no_wrap=True)
    places.add_column(overflow="fold")
    for label, place in {"run": out, **(paths or {})}.items():
        places.add_row(escape(label), escape(str(place)))
    parts: list[RenderableType] = []
    if metrics.get("timing") or "variants" in metrics:
        parts += [_stage_table(metrics, order), ""]
    if failures:
        parts.append(failure_lines(failures))
    return Group(*parts, places)


def _stage_table(metrics: Mapping[str, Any], order: Sequence[str]) -> Table:
    table = plain_table()
    table.collapse_padding = True
    table.add_column("stage", no_wrap=True)
    table.add_column("result")
    for heading in ("images", "failed", "time", "images/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for variant, numbers in {None: metrics, **metrics.get("variants", {})}.items():
        timings = numbers.get("timing", {})
        for stage in [*(name for name in order if name in timings), *(name for name in timings if name not in order)]:
            timing, result = timings[stage], numbers.get(stage, {})
            counts = result.get(RIB, result)
            images, failed = (counts.get(key, timing.get(key)) for key in ("images", "failed"))
            cost = (cells.duration(timing.get("seconds")), cells.number(timing.get("images_per_second")))
            name = escape(stage_title(stage, variant))
            table.add_row(name, headline(result), cells.count(images), cells.failed(failed), *cost)
    return table


def stage_title(stage: str, variant: str | None) -> str:
    """Return how a stage of a run, or of one of its variants, is called."""
    return f"{variant}: {stage}" if variant else stage


def headline(result: Mapping[str, Any]) -> str:
    """Return a stage's result in a few words.

    An arrow leads from plain CAM to RIB, or from the first network to the one trained again.
    """
    if CAM in result and RIB in result:
        return f"mIoU {cells.number(result[CAM]['miou'])} → {cells.number(result[RIB]['miou'])}"
    if SEED_CRF in result:
        return headline(result[SEED_CRF])
    if "miou" in result:
        first = result.get(BEFORE_RETRAINING, {}).get("miou")
        return f"mIoU {'' if first is None else f'{first:.1f} → '}{cells.number(result['miou'])}"
    if "map" in result:
        return f"mAP {cells.number(result['map'])}"
    if "loss" in result:
        steps = f", {result['iterations']:,} steps" if "iterations" in result else ""
        return f"loss {result['loss']:.2f}{steps}"
    return NOTHING


def failure_lines(failures: Sequence[Mapping[str, Any]]) -> Text:
    """Return how many images failed, and one of each kind, the most frequent kinds first.

    Args:
        failures: of each "stage", "id" and "error", and "traceback" where there is one, which is not shown.
    """
    kinds: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for failure in failures:
        kinds.setdefault((failure["stage"], _kind(failure)), []).append(failure)
    text = Text(f"{len(failures):,} failed", style="bold red")
    for first, *others in sorted(kinds.values(), key=len, reverse=True)[:FAILURES_SHOWN]:
        text.append(f"\n  {_printable(first['id'])} ", style="not bold default")
        more = "; --debug shows where" if first.get("traceback") else ""
        text.append(f"({first['stage']}) {_printable(first['error'])}{more}", style="not bold dim default")
        if others:
            ids = _some([failure["id"] for failure in others], FAILURES_SHOWN)
            text.append(f"\n    and {len(others):,} more of the kind: {_printable(ids)}", style="not bold dim default")
    if len(kinds) > FAILURES_SHOWN:
        left = len(kinds) - FAILURES_SHOWN
        text.append(
            f"\n  and {left:,} more kind{'s' if left > 1 else ''}, see failures.jsonl", style="not bold dim default"
        )
    return text.append("\n")


def _printable(text: str) -> str:
    """Return a text as a terminal can show it: a file's name may be no Unicode."""
    return text.encode("utf-8", "backslashreplace").decode()


def _kind(failure: Mapping[str, Any]) -> str:
    """Return the sentence of a failure without what may differ from image to image: its id, files, and numbers."""
    own = re.compile(rf"(?<!\w){re.escape(failure['id'])}(?!\w)")
    words = ("0" if own.search(word) else word for word in failure["error"].split())
    return re.sub(r"\d+", "0", " ".join(words))


def plan_table(plan: Sequence[Any]) -> Table:
    """Return what each stage would do and roughly at what cost (stage, total, done, unit, source, estimate)."""
    table = plain_table("stage", "to do", "done already", "from", "rough time", "rough disk")
    for item in plan:
        left, estimate = item.total - item.done, item.estimate
        cost = (cells.duration(estimate.seconds), decimal(estimate.bytes)) if estimate else (NOTHING, NOTHING)
        what = f"{left:,} of {item.total:,} {item.unit}" if left else "nothing"
        table.add_row(item.stage, what, f"{item.done:,}", escape(item.source), *cost)
    return table


def status_table(statuses: Sequence[Any]) -> Table:
    """Return how far each stage of a run is (stage, total, done, unit, failed, metrics, variant)."""
    table = plain_table("stage", "done", "", "failed", "result")
    for status in statuses:
        share = f"{100 * status.done / status.total:.0f} %" if status.total else NOTHING
        done = f"{status.done:,} of {status.total:,} {status.unit}"
        stage = stage_title(status.stage, status.variant)
        table.add_row(stage, done, share, cells.failed(status.failed), headline(status.metrics))
    return table


def data_report(report: Any) -> RenderableType:
    """Return what a check of the data found: a row per split, class frequencies, and the findings by kind.

    Args:
        report: "splits" (images, empty, classes, unused, with_mask, sizes, by name), "findings" (kind, split, id,
            sentence).
    """
    splits = plain_table("split", "images", "empty", "masks", "classes", "smallest", "median", "largest")
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
    parts += [Text(f"Note: {note}", style="dim") for note in report.notes]
    return Group(*parts, _finding_lines(report.findings))


def _frequencies(splits: Mapping[str, Any]) -> Table:
    """Return the number of images per class; of many classes the most and the least frequent."""
    table = plain_table("class", *(f"images of {name}" for name in splits))
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


def _some(names: Sequence[str], most: int = NAMES_SHOWN) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most:,} more"


def check_table(checks: Sequence[Any]) -> Table:
    """Return a line per compared quantity (case, quantity, error, tolerance, ok, note)."""
    table = plain_table("case", "quantity", "largest error", "tolerance", "", "")
    table.columns[4].no_wrap, table.columns[4].min_width = True, 3  # the verdict is never cut
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
