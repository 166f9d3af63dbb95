"""The report of a run, or of a sweep, as one HTML page that needs nothing besides itself.

What a page shows comes in as plain values (`RunPage`, `SweepPage`). All of it is text from data and is escaped;
charts are drawn here and photographs are put inside as data URIs. A content security policy forbids whatever is not
this page's own: no network, and no script but the one that sorts tables.
"""

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from ribray import __version__
from ribray.methods.stop_reasons import FINISHED, stop_hint, stopped_early
from ribray.report import cells, sweep_rows
from ribray.report.charts import (
    RefinementLosses,
    curves_of,
    loss_chart,
    refinement_charts,
    stations_chart,
    steps_chart,
    threshold_chart,
)
from ribray.report.pictures import GalleryBlock
from ribray.report.plots import Chart, DotChart, to_svg
from ribray.report.stations import CAM, METHOD_NAMES, PSEUDO_STATION, RIB, SEED_STATION, stations
from ribray.report.sweep_results import results_table
from ribray.report.sweep_tables import failed_trials_table, trials_table
from ribray.report.table import Table
from ribray.report.tables import (
    chain_table,
    evaluation_tables,
    failures_table,
    interval_text,
    pace_table,
    paper_table,
    seed_table,
    stage_table,
)

JPEG_QUALITY = 86
HEADLINES = {SEED_STATION: "Seed mIoU", PSEUDO_STATION: "Pseudo masks, mIoU"}
SEGMENTATION_HEADLINE = "Segmentation, mIoU"


@dataclass(frozen=True)
class RunPage:
    """What the page of a run shows.

    Attributes:
        name: stands above it.
        directory: of the run.
        summary: one line: which recipe, which data.
        written: when the page is written.
        metrics: the run's merged metrics, those of its variants included.
        own: the maps that the run's own masks are made from, "rib" or "cam".
        splits: what the segmentation was judged on.
        stages: the stages in the order of the chain.
        data: what the data is called in a sentence.
        batch_size: B of the refinement.
        stop_threshold: m of the refinement.
        iterations: K of the refinement.
        logs: network -> training -> lines of its log.
        refinement: losses of the refinement, where there are any.
        refined: what was refined and how, in a few words.
        machine: where the refinement was timed; None where that is not known.
        reused: stage -> the run that it was made in, if another one.
        failures: lines of ``failures.jsonl``, variants' included.
        gallery: images of every split.
        remarks: what to say in place of one of `REMARKS`.
        facts: versions and the like.
        configuration: text of ``experiment.yaml``.
    """

    name: str
    directory: str
    summary: str
    written: str
    metrics: Mapping[str, Any]
    own: str
    splits: Sequence[str]
    stages: Sequence[str]
    data: str
    batch_size: int
    stop_threshold: float
    iterations: int
    logs: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
    refinement: RefinementLosses | None
    refined: str
    machine: str | None
    reused: Mapping[str, str]
    failures: Sequence[Mapping[str, Any]]
    gallery: Sequence[GalleryBlock]
    facts: Mapping[str, str]
    configuration: str
    remarks: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SweepPage:
    """What the page of a sweep shows.

    Attributes:
        directory: of the sweep.
        written: when the page is written.
        ledger: the content of ``sweep.json``.
        plots: title -> PNG.
        failures: trial -> lines of its ``failures.jsonl``.
        facts: what the sweep is.
        configuration: text of ``sweep.yaml``.
    """

    directory: str
    written: str
    ledger: Mapping[str, Any]
    plots: Mapping[str, bytes]
    failures: Mapping[str, Sequence[Mapping[str, Any]]]
    facts: Mapping[str, str]
    configuration: str

    @property
    def name(self) -> str:
        """What the page is called."""
        return str(self.ledger["name"])

    @property
    def title(self) -> str:
        """What stands above it."""
        return str(self.ledger.get("title") or self.name)

    @property
    def summary(self) -> str:
        """One line on what is measured."""
        wanted = "lower" if self.ledger["mode"] == "min" else "higher"
        return f"{sweep_rows.metric_label(self.ledger['metric'])} ({self.ledger['metric']}); {wanted} is better"


@dataclass(frozen=True)
class _Card:
    """A number that a reader looks for first."""

    label: str
    value: str
    unit: str = ""
    notes: Sequence[str] = ()
    kind: str = ""


@dataclass(frozen=True)
class _Drawn:
    """A chart, drawn."""

    title: str
    svg: Markup
    say: str = ""


@dataclass(frozen=True)
class _Plot:
    """An image with its title."""

    title: str
    uri: str
    width: int
    height: int


# --- a run -------------------------------------------------------------------------------------------------------

RUN_SECTIONS = {
    "results": "Results",
    "seed": "Seed",
    "classes": "Classes",
    "gallery": "Gallery",
    "losses": "Losses",
    "throughput": "Throughput",
    "failures": "Failures",
    "configuration": "Configuration",
}


REMARKS = {
    "seed": "Stage 'seed' has judged nothing yet: it needs maps, and images with a true mask.",
    "steps": "The maps of every step were not kept (refine.keep_steps), so there is no curve over the steps.",
    "classes": "Nothing was judged yet, so there is no IoU per class.",
    "gallery": "There is nothing to show yet: the first pictures are those of stage 'refine'.",
    "losses": "Nothing was trained in this run.",
    "damaged": "",
    "refinement": "There are no maps yet that were refined here, so there are no losses of the refinement.",
    "pace": "The refinement was not timed: this run has not refined, or every map was there already.",
}
"""What is said where a section, or a part of one, would be empty."""


def render_run(page: RunPage) -> str:
    """Return the page of a run."""
    found = stations(page.metrics, page.splits, page.own)
    chain = [stations_chart(found, "From maps to masks")] if len(found) > 1 else []
    seed = page.metrics.get("seed", {})
    by_threshold = threshold_chart(curves_of(seed), "Over the threshold") if curves_of(seed) else None
    by_step = steps_chart(seed, "Over the steps")
    seeds = [chart for chart in (by_threshold, by_step) if chart is not None]
    losses = [
        loss_chart(logs, network, validation="held out" if network == "Classifier" else None)
        for network, logs in page.logs.items()
    ]
    refinement = [] if page.refinement is None else refinement_charts(page.refinement, page.stop_threshold)
    pace = pace_table(_refinement_timing(page.metrics), page.machine, page.refined)
    return _render(
        "run.html.j2",
        page=page,
        sections=RUN_SECTIONS,
        remarks=REMARKS | dict(page.remarks),
        cards=_run_cards(page),
        chain=chain_table(page.metrics, own=page.own, splits=page.splits, on_page=True),
        station_charts=_drawn(chain, "chain"),
        beside_paper=[
            paper_table(page.metrics, page.own, page.batch_size, page.data),
            *evaluation_tables(page.metrics, page.splits, own=page.own)[:-1],
        ],
        seed_charts=_drawn(seeds, "seed"),
        has_steps=by_step is not None,
        class_tables=_class_tables(page),
        loss_charts=[
            *_drawn([chart for chart in losses if chart.lines], "loss", LOSS_REMARK),
            *_drawn(refinement, "refinement", _refinement_remark(page.refinement)),
        ],
        has_refinement=bool(refinement),
        stops=_stops(page),
        times=_known(stage_table(page.metrics, page.stages, page.reused, on_page=True), pace),
        has_pace=pace is not None,
        failures=failures_table(page.failures),
    )


LOSS_REMARK = "line: mean of a stretch of steps, band: its lowest and highest"


def _refinement_remark(losses: RefinementLosses | None) -> str:
    return "" if losses is None else f"{losses.images} images, band: the middle 80 %"


def _stops(page: RunPage) -> list[str]:
    """Return sentences on how the refinements ended; nothing where that was not counted."""
    counts = page.metrics.get("refine", {}).get("stop_reasons", {})
    early, images = stopped_early(counts), sum(counts.values())
    if not images:
        return []
    told = f"{counts[FINISHED]} of {images} refinements took all {page.iterations} steps"
    return [
        f"{told}; stopped early: {early}." if early else f"{told}.",
        *filter(None, [stop_hint(counts, page.iterations)]),
    ]


def _class_tables(page: RunPage) -> list[Table]:
    """Return the tables with a row per class, the whole of each."""
    seed = page.metrics.get("seed", {})
    judged = evaluation_tables(page.metrics, page.splits, own=page.own, all_classes=True)
    seeds = [seed_table(seed, title="Seed, IoU in percent", all_classes=True)] if seed else []
    return [*seeds, *judged[-1:]]


def _refinement_timing(metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the timing of the refinement; nothing where its maps were imported."""
    return {} if metrics.get("refine", {}).get("imported") else metrics.get("timing", {}).get("refine", {})


def _run_cards(page: RunPage) -> list[_Card]:
    cards = []
    found = {station.label: station for station in stations(page.metrics, page.splits, page.own)}
    last = next((label for label in reversed(found) if label not in HEADLINES), None)
    headlines = {label: title for label, title in HEADLINES.items() if label in found}
    if last is not None and found[last].where == " + ".join(page.splits):
        headlines[last] = SEGMENTATION_HEADLINE
    for label, title in headlines.items():
        numbers = found[label].numbers
        shown = RIB if RIB in numbers else CAM
        notes = [METHOD_NAMES[shown] + (f", {label}" if title == SEGMENTATION_HEADLINE else "")]
        if bounds := interval_text(numbers[shown]):
            notes.append(f"95 %: {bounds}")
        if shown == RIB and CAM in numbers:
            gain = cells.gain(numbers[CAM]["miou"], numbers[RIB]["miou"]).text
            notes.append(f"{METHOD_NAMES[CAM]} {cells.number(numbers[CAM]['miou']).text} ({gain})")
        cards.append(_Card(title, cells.number(numbers[shown]["miou"]).text, "%", notes))
    timing = _refinement_timing(page.metrics)
    if timing.get("images_per_second"):
        notes = [f"{cells.count(timing.get('images')).text} images in {cells.duration(timing['seconds']).text}"]
        cards.append(_Card("Refinement", f"{timing['images_per_second']:.2f}", "images/s", notes))
    failed = len(page.failures)
    notes = ["see Failures"] if failed else ["nothing was left out"]
    cards.append(_Card("Failed images", cells.count(failed).text, "", notes, "bad" if failed else ""))
    return cards


# --- a sweep -----------------------------------------------------------------------------------------------------

SWEEP_SECTIONS = {
    "study": "Study",
    "results": "Results",
    "trials": "Trials",
    "failures": "Failures",
    "configuration": "Configuration",
}


def render_sweep(page: SweepPage) -> str:
    """Return the page of a sweep."""
    images = [{**failure, "trial": trial} for trial, found in page.failures.items() for failure in found]
    return _render(
        "sweep.html.j2",
        page=page,
        sections=SWEEP_SECTIONS,
        cards=_sweep_cards(page.ledger),
        results=[results_table(page.ledger)] if page.ledger["trials"] else [],
        plots=[_plot(title, content) for title, content in page.plots.items()],
        trials=_known(trials_table(page.ledger)),
        failures=_known(failed_trials_table(page.ledger), failures_table(images)),
    )


def _sweep_cards(ledger: Mapping[str, Any]) -> list[_Card]:
    trials, metric = ledger["trials"], ledger["metric"]
    found = sweep_rows.rows(ledger)
    names = sweep_rows.short_keys(ledger["axes"])
    cards = []
    best = next((row for row in found if row.summary and (row.is_best or len(found) == 1)), None)
    if best is not None and best.summary is not None:
        notes = [", ".join(f"{names[axis]} {sweep_rows.setting_text(best.settings[axis])}" for axis in names)]
        if best.summary.std is not None:
            notes.append(f"± {sweep_rows.spread(best.summary.std, metric)} over {best.count} repeats")
        label = f"{'Best ' if best.is_best else ''}{sweep_rows.metric_name(metric)}"
        unit = "%" if sweep_rows.is_percent(metric) else ""
        value = sweep_rows.number(best.summary.mean, metric)
        cards.append(_Card(label, value, unit, [note for note in notes if note]))
    statuses: dict[str, int] = {}
    for trial in trials:
        statuses[trial["status"]] = statuses.get(trial["status"], 0) + 1
    told = [f"{count} {status}" for status, count in statuses.items()]
    cards.append(_Card("Trials", cells.count(len(trials)).text, "", [", ".join(told)] if told else []))
    seconds = sum(trial.get("seconds") or 0 for trial in trials)
    cards.append(_Card("Time of all trials", cells.duration(seconds).text, "", ["one after the other"]))
    failed = statuses.get(sweep_rows.FAILED, 0)
    cards.append(_Card("Failed trials", cells.count(failed).text, "", [], "bad" if failed else ""))
    return cards


# --- parts -------------------------------------------------------------------------------------------------------


def _known(*tables: Table | None) -> list[Table]:
    return [table for table in tables if table is not None]


def _drawn(charts: Sequence[Chart | DotChart], name: str, about_bands: str = "") -> list[_Drawn]:
    """Return charts as SVG; what bands are is said of those that have some."""
    return [
        _Drawn(chart.title, Markup(to_svg(chart, f"{name}{number}")), about_bands if chart.has_bands else "")
        for number, chart in enumerate(charts)
    ]


def _plot(title: str, content: bytes) -> _Plot:
    with Image.open(io.BytesIO(content)) as image:
        width, height = image.size
    return _Plot(title, _uri(content, "png"), width, height)


def jpeg_uri(picture: NDArray[np.uint8]) -> str:
    """Return a picture (height, width, 3) as a data URI; masks' colours keep their edges."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0, optimize=True)
    return _uri(stream.getvalue(), "jpeg")


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("ribray.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["uri"] = jpeg_uri
    script = environment.get_template("page.js").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
        f"script-src 'sha256-{digest}'"
    )
    return environment.get_template(template).render(
        version=__version__,
        policy=policy,
        script=Markup(script),
        **values,
    )
