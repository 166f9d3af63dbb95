"""The report of a run, or of a sweep, as one HTML page that needs nothing besides itself.

What a page shows comes in as plain values (`RunPage`, `SweepPage`). All of it is text from data and is escaped;
charts are drawn here and photographs are put inside as data URIs. A content security policy forbids whatever is not
this page's own: no network, and no script but the one that sorts tables.
"""

import base64
import hashlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from ribray import __version__
from ribray.config import label
from ribray.methods.stop_reasons import FINISHED, stop_hint, stopped_early
from ribray.report import cells, charts, stage_tables, sweep_rows, tables
from ribray.report.charts import RefinementLosses
from ribray.report.comparison import PSEUDO_MASKS, SEED, Stages, comparisons, ordered
from ribray.report.pictures import FIRST_STEP, GalleryBlock
from ribray.report.plots import Chart, DotChart, to_svg
from ribray.report.sweep_results import failed_trials_table, results_table, trials_table
from ribray.runs.metrics import RunMetrics, Timing

JPEG_QUALITY = 86
Failures = Sequence[Mapping[str, Any]]  # lines of ``failures.jsonl``


@dataclass(frozen=True)
class Refinement:
    method: str
    maps: str  # its own
    stage: str
    steps: int  # K
    settings: str  # with what, in a few words
    losses: RefinementLosses | None
    stop_threshold: float | None = None  # m of RIB


@dataclass(frozen=True)
class RunPage:
    name: str
    directory: str
    summary: str  # one line: which recipe, which data
    written: str  # when the page is written
    metrics: RunMetrics
    own: str  # the maps that the run's own masks are made from, "rib" or "cam"
    splits: Sequence[str]  # what the segmentation was judged on
    stages: Stages
    data: str  # what the data is called in a sentence
    batch_size: int | None  # B of RIB
    logs: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]  # network -> training -> lines of its log
    refinements: Sequence[Refinement]
    machine: str | None  # where they were timed
    reused: Mapping[str, str]  # stage -> the run that it was made in, if another one
    failures: Failures
    gallery: Sequence[GalleryBlock]
    facts: Mapping[str, str]  # versions and the like
    configuration: str  # text of ``experiment.yaml``
    remarks: Mapping[str, str] = field(default_factory=dict)  # what to say where a section, or a part of one, is empty


@dataclass(frozen=True)
class SweepPage:
    directory: str
    written: str  # when the page is written
    ledger: Mapping[str, Any]  # the content of ``sweep.json``
    plots: Mapping[str, bytes]  # title -> PNG
    failures: Mapping[str, Failures]  # by trial
    facts: Mapping[str, str]  # what the sweep is
    configuration: str  # text of ``sweep.yaml``

    @property
    def name(self) -> str:
        return str(self.ledger["name"])


class _Card(NamedTuple):
    label: str
    value: str
    unit: str = ""
    notes: Sequence[str] = ()
    kind: str = ""


# --- a run -------------------------------------------------------------------------------------------------------

LOSS_REMARK = "line: mean of a stretch of steps, band: its lowest and highest"


def render_run(page: RunPage) -> str:
    metrics, stages, own, splits = page.metrics, page.stages, page.own, page.splits
    found, seed = comparisons(metrics, stages, own), metrics.seeds
    chain = [charts.comparison_chart(found, "From maps to masks")] if len(found) > 1 else []
    curves, by_step = charts.curves_of(seed), charts.steps_chart(seed, "Over the steps")
    seeds = [charts.threshold_chart(curves, "Over the threshold")] if curves else []
    trained = [
        charts.loss_chart(logs, network, validation="held out" if network == "Classifier" else None)
        for network, logs in page.logs.items()
    ]
    refined, paces = list[dict[str, str]](), []
    for each in page.refinements:
        whose = _whose(page, each)
        if each.losses is not None:
            drawn = charts.refinement_charts(each.losses, label(each.maps), each.stop_threshold, whose)
            refined += _drawn(drawn, each.stage, f"{each.losses.images} images, band: the middle 80 %")
        if timing := _timing(metrics, each):
            paces.append((whose, each.maps, timing, each.settings))
    pace = stage_tables.pace_table(paces, page.machine)
    times = stage_tables.stage_table(metrics, stages, page.reused, on_page=True), pace
    judged = tables.evaluation_tables(metrics, stages, own, splits, all_classes=True)
    seed_tables = [tables.seed_table(seed, title="Seed, IoU in percent", all_classes=True)] if seed else []
    strips = [strip for block in page.gallery for image in block.images for strip in image.strips]
    return _render(
        "run.html.j2",
        page=page,
        methods=[label(each.maps) for each in page.refinements],
        begins_plain=not any(next(iter(strip.tiles)) == FIRST_STEP for strip in strips),
        cards=_run_cards(page),
        chain=tables.chain_table(metrics, stages, own, splits=splits, on_page=True),
        chain_charts=_drawn(chain, "chain"),
        beside_paper=[tables.paper_table(metrics, stages, own, page.batch_size, page.data), *judged[:-1]],
        seed_charts=_drawn([*seeds, *([by_step] if by_step else [])], "seed"),
        has_steps=by_step is not None,
        class_tables=[*seed_tables, *judged[-1:]],
        loss_charts=[*_drawn([chart for chart in trained if chart.lines], "loss", LOSS_REMARK), *refined],
        has_refinement=bool(refined),
        stops=_stops(page),
        times=[table for table in times if table],
        has_pace=pace is not None,
        failures=stage_tables.failures_table(page.failures),
    )


def _whose(page: RunPage, refinement: Refinement) -> str:
    """Return what stands behind titles of a refinement where a run has several."""
    return f", {label(refinement.maps)}" if len(page.refinements) > 1 else ""


def _stops(page: RunPage) -> list[str]:
    """Return sentences on how the refinements ended; nothing where that was not counted."""
    sentences: list[str] = []
    for each in page.refinements:
        numbers = page.metrics.refinements.get(each.method)
        counts = (numbers and numbers.stop_reasons) or {}
        early, images = stopped_early(counts), sum(counts.values())
        if images:
            told = f"{counts[FINISHED]} of {images} refinements{_whose(page, each)} took all {each.steps} steps"
            told += f"; stopped early: {early}." if early else "."
            sentences += [told, *filter(None, [stop_hint(counts, each.steps)])]
    return sentences


def _timing(metrics: RunMetrics, refinement: Refinement) -> Timing | None:
    """Return the timing of a refinement; nothing where its maps were imported."""
    numbers = metrics.refinements.get(refinement.method)
    return None if numbers and numbers.imported else metrics.timing.get(refinement.stage)


def _run_cards(page: RunPage) -> list[_Card]:
    cards: list[_Card] = []
    found = {compared.label: compared for compared in comparisons(page.metrics, page.stages, page.own)}
    headlines = {SEED: "Seed mIoU", PSEUDO_MASKS: "Pseudo masks, mIoU"}
    last = [name for name, compared in found.items() if compared.is_held_out][-1:]
    for name, title in {**headlines, **dict.fromkeys(last, "Segmentation, mIoU")}.items():
        if name not in found:
            continue
        numbers = found[name].numbers
        *others, shown = ordered(numbers)
        notes = [label(shown) + (f", {name}" if name in last else "")]
        if bounds := tables.interval_text(numbers[shown]):
            notes.append(f"95 %: {bounds}")
        for other in reversed(others):
            gain = cells.gain(numbers[other].miou, numbers[shown].miou).text
            notes.append(f"{label(other)} {cells.number(numbers[other].miou).text} ({gain})")
        cards.append(_Card(title, cells.number(numbers[shown].miou).text, "%", notes))
    for each in page.refinements:
        timing = _timing(page.metrics, each)
        if timing and timing.images_per_second:
            notes = [f"{cells.count(timing.images).text} images in {cells.duration(timing.seconds).text}"]
            cards.append(_Card(f"Refinement{_whose(page, each)}", f"{timing.images_per_second:.2f}", "images/s", notes))
    failed = len(page.failures)
    note = "see Failures" if failed else "nothing was left out"
    return [*cards, _Card("Failed images", f"{failed:,}", "", [note], "bad" if failed else "")]


# --- a sweep -----------------------------------------------------------------------------------------------------


def render_sweep(page: SweepPage) -> str:
    sweep = sweep_rows.Sweep(page.ledger)
    failed = [{**failure, "trial": trial} for trial, found in page.failures.items() for failure in found]
    return _render(
        "sweep.html.j2",
        page=page,
        metric_label=sweep_rows.metric_label(sweep.metric),
        cards=_sweep_cards(sweep),
        results=[results_table(page.ledger)] if sweep.trials else [],
        plots=[_plot(title, content) for title, content in page.plots.items()],
        trials=[trials_table(sweep)] if sweep.trials else [],
        failures=[table for table in (failed_trials_table(sweep), stage_tables.failures_table(failed)) if table],
    )


def _sweep_cards(sweep: sweep_rows.Sweep) -> list[_Card]:
    cards: list[_Card] = []
    best = next((row for row in sweep.valued if row.is_best or len(sweep.rows) == 1), None)
    if best is not None and best.summary is not None:
        notes = [sweep.settings_text(best)] if sweep.axes else []
        if best.summary.std is not None:
            notes.append(f"{sweep.plus_minus(best.summary.std).lstrip()} over {best.count} repeats")
        label = f"{'Best ' if best.is_best else ''}{sweep_rows.metric_name(sweep.metric)}"
        unit = "%" if sweep_rows.is_percent(sweep.metric) else ""
        cards.append(_Card(label, sweep.number(best.summary.mean), unit, notes))
    statuses = Counter(trial["status"] for trial in sweep.trials)
    told = ", ".join(f"{count} {status}" for status, count in statuses.items())
    failed = statuses[sweep_rows.FAILED]
    seconds = sum(trial.get("seconds") or 0 for trial in sweep.trials)
    return [
        *cards,
        _Card("Trials", f"{len(sweep.trials):,}", "", [told] if told else []),
        _Card("Time of all trials", cells.duration(seconds).text, "", ["one after the other"]),
        _Card("Failed trials", f"{failed:,}", "", [], "bad" if failed else ""),
    ]


# --- parts -------------------------------------------------------------------------------------------------------


def _drawn(found: Sequence[Chart | DotChart], name: str, about_bands: str = "") -> list[dict[str, str]]:
    """Return charts as SVG; what bands are is said of those that have some."""
    drawn = []
    for number, chart in enumerate(found):
        say = about_bands if chart.has_bands else ""
        drawn.append({"title": chart.title, "svg": Markup(to_svg(chart, f"{name}{number}")), "say": say})
    return drawn


def _plot(title: str, content: bytes) -> dict[str, Any]:
    with Image.open(io.BytesIO(content)) as image:
        return {"title": title, "uri": _uri(content, "png"), "width": image.width, "height": image.height}


def jpeg_uri(picture: NDArray[np.uint8]) -> str:
    """Return a picture (height, width, 3) as a data URI; masks' colours keep their edges."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0, optimize=True)
    return _uri(stream.getvalue(), "jpeg")


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _render(template: str, **values: Any) -> str:
    layout: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True}
    pages = Environment(loader=PackageLoader("ribray.report"), autoescape=True, undefined=StrictUndefined, **layout)
    pages.filters["uri"] = jpeg_uri
    script = pages.get_template("page.js").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    values |= {
        "version": __version__,
        "script": Markup(script),
        "policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
        f"script-src 'sha256-{digest}'",
    }
    return pages.get_template(template).render(values)
