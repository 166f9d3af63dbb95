"""Tables of a report's page: those of the terminal, and some that only a page has room for."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from ribray.evaluation import published
from ribray.evaluation.published import IRN, refinement_times
from ribray.report import cells, sweep_rows
from ribray.report.cells import NOTHING
from ribray.report.evaluation_tables import PEERS, chain_table
from ribray.report.stations import RETRAINED, SEED_STATION, SEGMENTATION, Station, stations
from ribray.report.tables import CAM, INTERVAL, METHOD_NAMES, RIB, headline, stage_title

NUMBER = re.compile(r"[+-]?\d[\d,]*\.?\d*")
KINDS = {"bold": "strong", "green": "good", "red": "bad", "dim": "faint"}
"""Which class of the page a style of the terminal is."""


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: what it says.
        note: a small line below it.
        value: what sorting goes by; None where there is nothing to go by.
        kinds: classes of the page: strong, good, bad, faint.
        share: percent that a bar behind the text covers; None for no bar.
    """

    text: str
    note: str = ""
    value: float | None = None
    kinds: Sequence[str] = ()
    share: float | None = None


@dataclass(frozen=True)
class Heading:
    """What stands above a column."""

    text: str
    is_number: bool = False
    is_long: bool = False
    """Whether its cells hold sentences."""

    @property
    def source(self) -> str:
        """The maps that the column is about, "cam" or "rib"; nothing where it is about neither."""
        return next((source for source, name in METHOD_NAMES.items() if self.text.startswith(name)), "")


@dataclass(frozen=True)
class WebTable:
    """A table.

    Attributes:
        title: stands above it.
        headings: of the columns.
        groups: rows, in groups that a line keeps apart; only the first is sorted.
        notes: lines below it.
        is_sortable: whether its headings sort it.
    """

    title: str
    headings: Sequence[Heading]
    groups: Sequence[Sequence[Sequence[Cell]]]
    notes: Sequence[str] = ()
    is_sortable: bool = False


# --- tables of the terminal --------------------------------------------------------------------------------------


def from_terminal(renderable: RenderableType | None, is_sortable: bool = False, bars: bool = False) -> list[WebTable]:
    """Return the tables in what the terminal would show.

    Args:
        renderable: a table, None, or a group: a text before a table is its title, one behind it its notes.
        is_sortable: whether the rows of the first group of each can be sorted.
        bars: draw the numbers of that group as bars too; they are percentages.
    """
    if isinstance(renderable, Table):
        return [_converted(renderable, is_sortable, bars)]
    found: list[WebTable] = []
    title = ""
    for each in renderable.renderables if isinstance(renderable, Group) else []:
        if isinstance(each, Table):
            table = _converted(each, is_sortable, bars)
            found.append(replace(table, title=table.title or title))
        elif isinstance(each, Text) and found:
            found[-1] = replace(found[-1], notes=[*found[-1].notes, *each.plain.splitlines()])
        elif isinstance(each, Text):
            title = each.plain
    return found


def _converted(table: Table, is_sortable: bool, bars: bool) -> WebTable:
    headings = [_heading(column, is_first=place == 0) for place, column in enumerate(table.columns)]
    lines = zip(*(column.cells for column in table.columns), strict=True)
    groups: list[list[list[Cell]]] = [[]]
    for row, line in zip(table.rows, lines, strict=True):
        drawn = bars and not groups[1:]
        groups[-1].append([_cell(content, str(row.style or ""), drawn) for content in line])
        if row.end_section:
            groups.append([])
    notes = _plain(table.caption).splitlines() if table.caption is not None else []
    title = _plain(table.title) if table.title is not None else ""
    return WebTable(title, headings, [group for group in groups if group], notes, is_sortable)


def _heading(column: Column, is_first: bool) -> Heading:
    """Return a column's heading; the terminal gives remarks none."""
    text, is_number = _plain(column.header), column.justify == "right"
    return Heading(text, is_number, is_long=not (text or is_number or is_first))


def _cell(content: Any, row_style: str, with_bar: bool) -> Cell:
    text = Text.from_markup(content) if isinstance(content, str) else content
    styles = f"{row_style} {text.style} {' '.join(str(span.style) for span in text.spans)}".split()
    value = number_in(text.plain)
    share = value if with_bar and value is not None and not text.plain.startswith(("+", "-")) else None
    return Cell(text.plain, value=value, kinds=[KINDS[style] for style in styles if style in KINDS], share=share)


def _plain(content: Any) -> str:
    """Return the text of a heading, title or caption."""
    text = Text.from_markup(content) if isinstance(content, str) else content
    return text.plain.replace("\n", ", ") if isinstance(content, str) else text.plain


def number_in(text: str) -> float | None:
    """Return the number that a text begins with, None where it begins with something else."""
    found = NUMBER.match(text)
    return float(found.group().replace(",", "")) if found else None


# --- tables of a run's page --------------------------------------------------------------------------------------


def stations_table(metrics: Mapping[str, Any], splits: Sequence[str], own: str) -> WebTable | None:
    """Return the mIoU at every station with its 95 % interval; None where there is none.

    Args:
        metrics: a run's merged metrics, those of its variants included.
        splits: what the segmentation was judged on.
        own: the maps that the run's own masks are made from.
    """
    found = stations(metrics, splits, own)
    if not found:
        return None
    sources = [source for source in METHOD_NAMES if any(source in station.numbers for station in found)]
    compared = len(sources) > 1
    groups: dict[str, list[list[Cell]]] = {}
    for station in found:
        means = {source: numbers["miou"] for source, numbers in station.numbers.items()}
        row = [Cell(station.label), *(_mean_cell(station, source) for source in sources)]
        if compared:
            row.append(_gain_cell(cells.difference(means.get(CAM), means.get(RIB))))
        counts = dict.fromkeys(cells.count(numbers.get("images")) for numbers in station.numbers.values())
        row.append(Cell(" / ".join(counts), note=station.where))
        groups.setdefault(station.where, []).append(row)
    headings = [Heading("mIoU, %"), *(Heading(METHOD_NAMES[source], True) for source in sources)]
    headings += [*([Heading("gain", True)] if compared else []), Heading("images", True)]
    notes = ["small: 95 % interval, bootstrap over images"] if _has_intervals(found) else []
    terminal = chain_table(metrics, own=own, splits=splits)
    if terminal is not None and terminal.caption is not None:
        notes += _plain(terminal.caption).splitlines()
    return WebTable("mIoU at every station", headings, list(groups.values()), notes)


def _has_intervals(found: Iterable[Station]) -> bool:
    return any(numbers.get(INTERVAL) for station in found for numbers in station.numbers.values())


def _mean_cell(station: Station, source: str) -> Cell:
    numbers = station.numbers.get(source)
    if numbers is None:
        return Cell(NOTHING)
    return Cell(cells.number(numbers["miou"]), note=interval(numbers), kinds=["strong"] if source == RIB else [])


def interval(numbers: Mapping[str, Any]) -> str:
    """Return the 95 % interval of a part of the metrics, nothing where it has none."""
    return cells.interval(numbers[INTERVAL]) if numbers.get(INTERVAL) else ""


def _gain_cell(gain: float | None) -> Cell:
    return _cell(cells.gain(gain), "", False)


# --- beside the paper --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Comparison:
    """A quantity that the paper states.

    Attributes:
        quantity: what it is called.
        station: where this run has it.
        rib: the paper's value.
        data: what that is about.
        source: where it stands in the paper.
        irn: its value of IRN, which starts from plain CAMs.
    """

    quantity: str
    station: str
    rib: str
    data: str
    source: str
    irn: str | None = None


def paper_table(metrics: Mapping[str, Any], own: str, batch_size: int, data: str) -> WebTable:
    """Return this run's numbers beside the paper's.

    Args:
        metrics: a run's merged metrics, those of its variants included.
        own: the maps that the run's own masks are made from.
        batch_size: B of the refinement.
        data: what the run's data is called.
    """
    found = {station.label: station.numbers for station in stations(metrics, (), own)}
    classes = next((set(each["per_class"]) for numbers in found.values() for each in numbers.values()), set())
    same = next((peers.data for peers in PEERS if _classes_of(peers.table) == classes), None)
    compared = _comparisons(same, batch_size)
    with_irn = any(row.irn is not None for row in compared)
    rows = []
    for row in compared:
        means = [found.get(row.station, {}).get(source, {}).get("miou") for source in METHOD_NAMES]
        stated = [Cell(row.irn or NOTHING, note=row.data)] if with_irn else []
        stated.append(Cell(row.rib, note=row.data))
        rows.append([Cell(row.quantity, note=row.source), *(Cell(cells.number(mean)) for mean in means), *stated])
    headings = [Heading("mIoU, %"), *(Heading(name, True) for name in METHOD_NAMES.values())]
    headings += [*([Heading("the paper's IRN", True)] if with_irn else []), Heading("the paper's RIB", True)]
    notes = [] if same else [f"This run is about {data}: of the paper's numbers only the direction can be compared."]
    return WebTable("Beside the paper", headings, [rows], notes)


def _classes_of(table: str) -> set[str]:
    return set(published.table(table).columns) - {published.MEAN}


def _comparisons(data: str | None, batch_size: int) -> list[_Comparison]:
    """Return what the paper states about the run's data; about VOC where that is neither VOC nor COCO."""
    voc, coco = PEERS
    if data == coco.data:
        reference = published.table(coco.table)
        rib, irn = (f"{reference.value(method):.1f}" for method in (published.RIB, IRN))
        return [_Comparison(SEGMENTATION, SEGMENTATION, rib, coco.data, f"Table {coco.table}", irn)]
    seed, first = (published.figure_in_text(name) for name in ("seed", "segmentation without re-training"))
    spread = f" ± {seed.std:g}" if seed.std is not None else ""
    rows = [_Comparison("seed", SEED_STATION, f"{seed.miou:g}{spread}", seed.split, seed.source)]
    sizes = published.table("S1")
    if str(batch_size) in sizes.columns:
        value = f"{sizes.value(published.RIB, str(batch_size)):g}"
        rows.append(_Comparison(f"seed at B = {batch_size}", SEED_STATION, value, seed.split, f"Table {sizes.name}"))
    rows.append(_Comparison(SEGMENTATION, SEGMENTATION, f"{first.miou:g}", first.split, first.source))
    last = published.table(voc.table).value(published.RIB, split=voc.split)
    rows.append(_Comparison(RETRAINED, RETRAINED, f"{last:g}", voc.data, f"Table {voc.table}"))
    return rows


# --- cost and failures -------------------------------------------------------------------------------------------


def stage_table(metrics: Mapping[str, Any], order: Sequence[str], reused: Mapping[str, str]) -> WebTable | None:
    """Return what each stage did and the time it took; None where none was timed.

    Args:
        metrics: a run's merged metrics, those of its variants included.
        order: the stages in the order of the chain.
        reused: stage -> the run that it was made in, if another one.
    """
    rows: list[list[Cell]] = []
    found = [
        (variant, numbers, stage, timing)
        for variant, numbers in {None: metrics, **metrics.get("variants", {})}.items()
        for stage, timing in sorted(
            numbers.get("timing", {}).items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)
        )
    ]
    longest = max((timing.get("seconds") or 0 for *_, timing in found), default=0)
    for variant, numbers, stage, timing in found:
        result, seconds = numbers.get(stage, {}), timing.get("seconds")
        images = result.get(RIB, result).get("images", timing.get("images"))
        note = f"in {reused[stage]}" if variant is None and stage in reused else ""
        rows.append(
            [
                Cell(stage_title(stage, variant), note=note),
                Cell(headline(result)),
                Cell(cells.count(images)),
                Cell(cells.duration(seconds), share=100 * seconds / longest if seconds and longest else None),
                Cell(cells.number(timing.get("images_per_second"))),
                Cell(cells.count(timing.get("workers"))),
            ]
        )
    if not rows:
        return None
    total = sum(timing.get("seconds") or 0 for *_, timing in found)
    everything = [Cell("all stages"), Cell(""), Cell(""), Cell(cells.duration(total)), Cell(""), Cell("")]
    headings = [Heading("stage"), Heading("result")]
    headings += [Heading(text, True) for text in ("images", "time", "images/s", "workers")]
    notes = ["images/s of a training counts every pass over an image"]
    return WebTable("Time per stage", headings, [rows, [everything]], notes)


def pace_table(timing: Mapping[str, Any], machine: str | None, settings: str) -> WebTable | None:
    """Return the refinement's pace beside the paper's; None where it was not timed.

    Args:
        timing: of stage ``refine``: "images", "seconds", "images_per_second" and "workers".
        machine: where it was measured; None where that is not known.
        settings: what was refined and how, in a few words.
    """
    rate, stated = timing.get("images_per_second"), refinement_times()
    if not rate:
        return None
    images, workers = stated[0].images, timing.get("workers")
    where = [machine or "machine not recorded"]
    where += [f"{workers} worker{'s' if workers != 1 else ''}"] if workers else []
    own = [
        _pace_row(
            "this run, measured", ", ".join(where), timing.get("images"), cells.duration(timing["seconds"]), rate
        ),
        _pace_row(f"{images:,} images at this rate", "extrapolated", images, cells.duration(images / rate), rate),
    ]
    paper = [
        _pace_row(
            f"the paper, {each.devices}",
            f"{each.data}; {each.source}",
            each.images,
            f"{each.minutes:g} min",
            each.images / (60 * each.minutes),
        )
        for each in stated
    ]
    headings = [Heading("refinement"), *(Heading(text, True) for text in ("images", "time", "images/s"))]
    notes = [f"this run: {settings}. Times compare only where network, image sizes and settings are the same."]
    return WebTable("Refinement beside the paper", headings, [own, paper], notes)


def _pace_row(name: str, note: str, images: int | None, time: str, rate: float) -> list[Cell]:
    return [Cell(name, note=note), Cell(cells.count(images)), Cell(time), Cell(f"{rate:.2f}")]


def failures_table(failures: Sequence[Mapping[str, Any]], title: str = "Images that failed") -> WebTable | None:
    """Return the images that failed ("id", "stage", "error", "tries", of a sweep also "trial"); None without any."""
    if not failures:
        return None
    with_trials = any("trial" in each for each in failures)
    rows = [
        [
            Cell(each["id"]),
            *([Cell(each.get("trial", NOTHING))] if with_trials else []),
            Cell(each["stage"]),
            Cell(each["error"]),
            Cell(f"{each['tries']}", value=each["tries"]),
        ]
        for each in failures
    ]
    headings = [Heading("image"), *([Heading("trial")] if with_trials else []), Heading("stage")]
    headings += [Heading("error", is_long=True), Heading("tries", True)]
    return WebTable(title, headings, [rows], is_sortable=True)


# --- of a sweep --------------------------------------------------------------------------------------------------


def trials_table(ledger: Mapping[str, Any]) -> WebTable | None:
    """Return a sweep's trials, a row each; None where there are none."""
    trials, metric = ledger["trials"], ledger["metric"]
    if not trials:
        return None
    names = sweep_rows.short_keys(list(dict.fromkeys(key for trial in trials for key in trial["settings"])))
    with_errors = any(trial.get("error") for trial in trials)
    rows = [_trial_row(trial, names, metric, with_errors) for trial in trials]
    are_numbers = {
        key: sweep_rows.is_numeric(trial["settings"][key] for trial in trials if key in trial["settings"])
        for key in names
    }
    value = sweep_rows.metric_name(metric) + (", %" if sweep_rows.is_percent(metric) else "")
    headings = [Heading("trial"), *(Heading(name, are_numbers[key]) for key, name in names.items())]
    headings += [Heading("status"), Heading(value, True), Heading("failed images", True), Heading("time", True)]
    headings += [Heading("error", is_long=True)] if with_errors else []
    return WebTable("All trials", headings, [rows], is_sortable=True)


def failed_trials_table(ledger: Mapping[str, Any]) -> WebTable | None:
    """Return the trials that failed and why; None where none did."""
    rows = [
        [Cell(trial["id"]), Cell(trial.get("error") or NOTHING)]
        for trial in ledger["trials"]
        if trial["status"] == sweep_rows.FAILED
    ]
    headings = [Heading("trial"), Heading("error", is_long=True)]
    return WebTable("Trials that failed", headings, [rows]) if rows else None


def _trial_row(trial: Mapping[str, Any], names: Mapping[str, str], metric: str, with_error: bool) -> list[Cell]:
    settings, value, status = trial["settings"], trial["value"], trial["status"]
    bounds = sweep_rows.interval_of(trial, metric)
    kinds = {sweep_rows.FAILED: ["bad"], sweep_rows.FINISHED: ["good"]}.get(status, [])
    cells_of_settings = [
        Cell(
            sweep_rows.setting_text(settings[key]), value=settings[key] if sweep_rows.is_number(settings[key]) else None
        )
        if key in settings
        else Cell(NOTHING)
        for key in names
    ]
    is_known = sweep_rows.is_number(value)
    failed, seconds = trial.get("failed_images") or 0, trial.get("seconds")
    row = [
        Cell(trial["id"], note=trial["directory"] if trial["directory"] != f"trials/{trial['id']}" else ""),
        *cells_of_settings,
        Cell(status, kinds=kinds),
        Cell(
            sweep_rows.number(value, metric) if is_known else NOTHING,
            note=" to ".join(sweep_rows.number(bound, metric) for bound in bounds) if bounds else "",
            value=value if is_known else None,
        ),
        Cell(cells.count(failed), value=failed, kinds=["bad"] if failed else []),
        Cell(cells.duration(seconds), value=seconds),
    ]
    return [*row, Cell(trial.get("error") or "")] if with_error else row
