"""Tables of a run: seed, chain of stages, segmentation beside published numbers, cost, failures."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ribray.evaluation import published
from ribray.evaluation.published import IRN, MEAN, RIB_SALIENCY, refinement_times
from ribray.report import cells
from ribray.report.stations import (
    CAM,
    METHOD_NAMES,
    RETRAINED,
    RIB,
    SEED_STATION,
    SEGMENTATION,
    Stages,
    chains,
    judged,
    stations,
)
from ribray.report.table import NOTHING, Cell, Column, Table
from ribray.runs.metrics import Judgement, MaskJudgement, RunMetrics, SeedJudgement, StageMetrics, Timing
from ribray.runs.stage_facts import StageFacts

TRAINING, HELD_OUT = "training", "held out"
OURS = " (Ours)"
"""What the paper adds to the names of its own methods."""


# --- IoU per class -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ious:
    """A column of IoUs: of maps or a network of this run, or published."""

    name: str
    source: str
    numbers: Judgement
    is_published: bool = False


def seed_table(
    seed: Mapping[str, SeedJudgement], *, title: str = "Seed IoU in percent", all_classes: bool = False
) -> Table:
    """Return the seed's IoU per class and on average, each method at its own best threshold, with RIB's gain.

    Of many classes those are shown where RIB gains most and least; without plain CAM, of the highest and lowest IoU.
    """
    columns = [_Ious(METHOD_NAMES.get(method, method), method, seed[method]) for method in ordered(seed)]
    compared = columns[:2] if CAM in seed and RIB in seed else columns[:1]
    return _class_table(title, columns, compared, all_classes, is_seed=True)


def ordered(methods: Mapping[str, Any]) -> list[str]:
    """Return methods by name, plain CAM and RIB first."""
    return sorted(methods, key=lambda method: (method != CAM, method != RIB))


def _class_table(
    title: str,
    columns: Sequence[_Ious],
    compared: Sequence[_Ious],
    all_classes: bool,
    is_seed: bool = False,
) -> Table:
    """Return the IoU per class; of many, those that `compared`, one column or two, ranks highest and lowest."""
    own = [column for column in columns if not column.is_published]
    names = list(dict.fromkeys(name for column in own for name in column.numbers.per_class))
    has_gain = is_seed and len(compared) == 2

    def line(title: str, values: Sequence[Cell], gains: Sequence[float | None] = ()) -> list[Cell]:
        row = [Cell(title), *values, *([cells.gain(*gains)] if has_gain and gains else [])]
        return [*row, *[Cell("")] * (1 + len(columns) + has_gain - len(row))]

    ious = {name: [column.numbers.per_class.get(name) for column in compared] for name in names}
    ranks = {name: cells.difference(*pair) if len(pair) == 2 else pair[0] for name, pair in ious.items()}
    groups = cells.class_groups(ranks, all_classes)
    rows = [
        [
            line(name, [cells.bar(column.numbers.per_class.get(name)) for column in columns], ious[name])
            for name in group
        ]
        for group in groups
    ]
    means = [column.numbers.miou for column in compared]
    foot = [cells.strong(line("mean IoU", [cells.number(column.numbers.miou) for column in columns], means))]
    if any(column.numbers.miou_interval for column in own):
        foot.append(line("95 % interval", [cells.interval(column.numbers.miou_interval) for column in own]))
    if is_seed:
        thresholds = [column.numbers.threshold for column in own if isinstance(column.numbers, SeedJudgement)]
        foot.append(line("best threshold", [*map(cells.threshold, thresholds)]))
    foot.append(line("images", [cells.count(column.numbers.images) for column in columns]))
    foot.append(line("failed", [cells.failed(column.numbers.failed) for column in own]))
    shown = sum(map(len, groups))
    order = "RIB gains most and least" if len(compared) == 2 else "the IoU is highest and lowest"
    notes = [f"{shown} of {len(names)} classes, those where {order}"] if shown < len(names) else []
    headings = [
        Column("class", width=22 if columns == own else 14, wraps=False),
        *(Column(each.name.replace(", ", "\n"), True, width=10, source=each.source) for each in columns),
        *([Column("gain", True, width=8)] if has_gain else []),
    ]
    return Table(title, headings, [*rows, foot], notes, True, is_dense=not is_seed)


# --- from maps to masks ------------------------------------------------------------------------------------------


def chain_table(
    metrics: RunMetrics, stages: Stages, *, own: str = RIB, splits: Sequence[str] = (HELD_OUT,), on_page: bool = False
) -> Table | None:
    """Return the mIoU at every station from the seed to the segmentation; on a page with its intervals.

    None where nothing was judged; on a terminal, where the seed has its own table, also where nothing follows it.
    """
    found = stations(metrics, stages, own)
    has_masks = any(station.label != SEED_STATION for station in found)
    if not (found if on_page else has_masks):
        return None
    sources = [source for source in METHOD_NAMES if any(source in station.numbers for station in found)]
    compared, has_intervals = len(sources) > 1, False
    groups: dict[str, list[list[Cell]]] = {}
    for station in found:
        where = " + ".join(splits) if station.is_held_out else TRAINING
        row, means = [Cell(station.label)], {source: each.miou for source, each in station.numbers.items()}
        for source in sources:
            note = interval_text(station.numbers.get(source)) if on_page else ""
            has_intervals = has_intervals or bool(note)
            look = "strong" if on_page and source == RIB and source in means else ""
            row.append(replace(cells.number(means.get(source)), look=look, note=note))
        row += [cells.gain(means.get(CAM), means.get(RIB))] if compared else []
        counts = dict.fromkeys(cells.count(numbers.images).text for numbers in station.numbers.values())
        images = Cell(" / ".join(counts), note=where) if on_page else Cell(f"{'/'.join(counts)} {where}")
        groups.setdefault(where, []).append([*row, images])
    columns = [
        Column("mIoU, %" if on_page else "", wraps=False),
        *(Column(METHOD_NAMES[source], True, width=5, wraps=False) for source in sources),
        *([Column("gain", True, width=5, wraps=False)] if compared else []),
        Column("images", True),
    ]
    notes = ["small: 95 % interval, bootstrap over images"] if has_intervals else []
    notes += [*_unknown_lines(metrics, own), *_crf_lines(metrics, stages, own)] if has_masks else []
    title = "mIoU at every station" if on_page else "mIoU in percent, from maps to masks"
    return Table(title, columns, list(groups.values()), notes, is_dense=True)


def interval_text(numbers: Judgement | None) -> str:
    """Return the 95 % interval of what was judged, nothing where it has none."""
    return cells.interval(numbers.miou_interval).text if numbers and numbers.miou_interval else ""


def _unknown_lines(metrics: RunMetrics, own: str) -> list[str]:
    """Say how many pixels the masks leave unknown, plain CAM's first."""
    found = chains(metrics, own).values()
    confident = [chain.confident.seed_crf for chain in found if chain.confident and chain.confident.seed_crf]
    pseudo = [chain.pseudo for chain in found if chain.pseudo]
    shares = []
    for name, masks in (("the confident labels", confident), ("the pseudo masks", pseudo)):
        if unknown := [f"{each.unknown:.1f}" for each in masks if each.unknown]:
            shares.append(f"{' / '.join(unknown)} % of {name}")
    return [f"unknown pixels, read as background: {', '.join(shares)}"] if shares else []


def _crf_lines(metrics: RunMetrics, stages: Stages, own: str) -> list[str]:
    found = [chain for chain in chains(metrics, own).values() if _networks(chain, stages)]
    uses_crf = any(chain.evaluate and chain.evaluate.crf == "dense" for chain in found)
    return ["the segmentation's predictions passed through a dense CRF"] if uses_crf else []


def _networks(chain: RunMetrics, stages: Stages) -> dict[str, Judgement]:
    """Return the numbers of each segmentation network that was judged: with re-training, the first and the last."""
    return {part.label: part.numbers for part in judged(chain, stages) if part.is_held_out}


# --- beside published numbers ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Peers:
    """Published numbers that the segmentation of some classes can stand beside."""

    table: str
    data: str
    split: str
    aliases: tuple[str, ...]  # names that a run may have for that split
    images: int
    beside: tuple[str, ...]  # methods whose classes are shown; of the others the mean
    figures: Mapping[str, str]  # further means, which stand in the text: what to call it -> quantity


FIRST_NETWORK = "segmentation without re-training"
VOC = _Peers(
    "S2",
    "VOC 2012 val",
    "val",
    ("val",),
    1449,
    (published.RIB, RIB_SALIENCY),
    {"RIB, without re-training": FIRST_NETWORK},
)
COCO = _Peers("S3", "COCO 2014 val", "val", ("val", "val2014"), 40504, (IRN, published.RIB), {})


def _peers_of(classes: Iterable[str]) -> _Peers | None:
    """Return the published numbers about exactly these classes, background included."""
    same = (peers for peers in (VOC, COCO) if {*published.table(peers.table).columns} - {MEAN} == set(classes))
    return next(same, None)


def evaluation_tables(
    metrics: RunMetrics, stages: Stages, splits: Sequence[str], *, own: str = RIB, all_classes: bool = False
) -> list[Table]:
    """Return the segmentation's IoU per class, after a table of means where published ones are of the same classes.

    There is none where no segmentation was judged, as ``splits`` say where.
    """
    columns = [
        _Ious(f"{METHOD_NAMES[source]}{f', {RETRAINED}' if label == RETRAINED else ''}", source, numbers)
        for source, chain in chains(metrics, own).items()
        for label, numbers in _networks(chain, stages).items()
    ]
    if not columns:
        return []
    # Of a chain that others follow only the last network, so that the table fits.
    final = {column.source: column for column in columns}
    shown = [column for column in columns if column.source == columns[-1].source or column is final[column.source]]
    compared = [final[CAM], final[RIB]] if CAM in final and RIB in final else shown[-1:]
    peers = _peers_of(columns[0].numbers.per_class)
    beside = [] if peers is None else [_published(peers, method) for method in peers.beside]
    per_class = _class_table("Segmentation, IoU in percent", [*shown, *beside], compared, all_classes)
    if peers is None:
        return [per_class]
    return [_means_table(columns, peers, splits, _crf_lines(metrics, stages, own)), per_class]


def _published(peers: _Peers, method: str) -> _Ious:
    row = published.table(peers.table).row(method, peers.split)
    numbers = MaskJudgement(per_class=dict(row), miou=row[MEAN], images=peers.images)
    source = "" if method == IRN else RIB
    return _Ious(f"{method.removesuffix(OURS)}, published", source, numbers, is_published=True)


def _means_table(columns: Sequence[_Ious], peers: _Peers, splits: Sequence[str], crf: Sequence[str]) -> Table:
    """Return the networks' means among the published ones."""
    reference, rows = published.table(peers.table), []
    stated = {
        method.removesuffix(OURS): reference.value(method, split=peers.split)
        for method in reference.methods(peers.split)
    }
    stated |= {name: published.figure_in_text(quantity).miou for name, quantity in peers.figures.items()}
    for name, mean in stated.items():
        rows.append([Cell(name), cells.number(mean), cells.count(peers.images), Cell("published")])
    for column in columns:
        numbers = column.numbers
        row = [Cell(column.name), cells.number(numbers.miou), cells.count(numbers.images), Cell("this run")]
        rows.append(cells.strong(row))
    rows.sort(key=lambda row: row[1].value or 0.0)
    images = min(column.numbers.images or 0 for column in columns)
    remarks = [] if [*splits] in [[alias] for alias in peers.aliases] else [f"not {peers.split}"]
    remarks += [f"fewer than the published {peers.images:,}"] if images < peers.images else []
    this_run = f"this run: {images:,} images of {' + '.join(splits)}, {'with' if crf else 'without'} dense CRF"
    return Table(
        f"Segmentation, mIoU in percent, beside {peers.data}",
        [
            Column("method", width=30, wraps=False),
            Column("mIoU", True, width=7),
            Column("images", True, width=8),
            Column("", is_long=True),
        ],
        [rows],
        [
            f"published: {peers.data}, {peers.images:,} images (RIB paper, Table {peers.table})",
            f"{this_run}; {', '.join(remarks)}" if remarks else this_run,
        ],
    )


def paper_table(metrics: RunMetrics, stages: Stages, own: str, batch_size: int, data: str) -> Table:
    """Return this run's numbers beside the paper's; B of its refinement and what its data is called are said too."""
    found = {station.label: station.numbers for station in stations(metrics, stages, own)}
    classes = [each.per_class for numbers in found.values() for each in numbers.values()]
    peers = _peers_of(classes[0] if classes else ())
    stated = _stated_on_coco() if peers is COCO else _stated_on_voc(batch_size)
    with_irn = peers is COCO
    rows = []
    for quantity, station, about, source, *values in stated:
        judgements = [found.get(station, {}).get(maps) for maps in METHOD_NAMES]
        row = [Cell(quantity, note=source), *(cells.number(each.miou if each else None) for each in judgements)]
        rows.append([*row, *(Cell(value, note=about) for value in values)])
    papers = ["the paper's IRN", "the paper's RIB"] if with_irn else ["the paper's RIB"]
    columns = [Column("mIoU, %"), *(Column(name, True) for name in [*METHOD_NAMES.values(), *papers])]
    notes = [] if peers else [f"This run is about {data}: of the paper's numbers only the direction can be compared."]
    return Table("Beside the paper", columns, [rows], notes)


def _stated_on_coco() -> list[tuple[str, ...]]:
    """Return what the paper states: quantity, station, data, source, and the values of IRN and RIB."""
    values = [f"{published.table(COCO.table).value(method):.1f}" for method in (IRN, published.RIB)]
    return [(SEGMENTATION, SEGMENTATION, COCO.data, f"Table {COCO.table}", *values)]


def _stated_on_voc(batch_size: int) -> list[tuple[str, ...]]:
    """Return the same of VOC, with the value of RIB alone."""
    seed, first, sizes = (
        published.figure_in_text("seed"),
        published.figure_in_text(FIRST_NETWORK),
        published.table("S1"),
    )
    spread = f" ± {seed.std:g}" if seed.std is not None else ""
    rows = [("seed", SEED_STATION, seed.split, seed.source, f"{seed.miou:g}{spread}")]
    if (size := str(batch_size)) in sizes.columns:
        value = f"{sizes.value(published.RIB, size):g}"
        rows.append((f"seed at B = {size}", SEED_STATION, seed.split, f"Table {sizes.name}", value))
    rows.append((SEGMENTATION, SEGMENTATION, first.split, first.source, f"{first.miou:g}"))
    last = published.table(VOC.table).value(published.RIB, split=VOC.split)
    return [*rows, (RETRAINED, RETRAINED, VOC.data, f"Table {VOC.table}", f"{last:g}")]


# --- cost and failures -------------------------------------------------------------------------------------------


def stage_table(
    metrics: RunMetrics, stages: Stages, reused: Mapping[str, str] | None = None, on_page: bool = False
) -> Table | None:
    """Return what each stage came to, and the time it took; None where none was timed.

    A page has bars, workers, a sum, and says in which other run a ``reused`` stage was made; a terminal has failures.
    """
    runs: list[tuple[str | None, RunMetrics]] = [(None, metrics), *metrics.variants.items()]
    found = [
        (variant, run.stages().get(name), name, run.timing[name])
        for variant, run in runs
        for name in [*filter(run.timing.__contains__, stages), *(name for name in run.timing if name not in stages)]
    ]
    spans = [timing.seconds or 0 for *_, timing in found]
    rows = []
    for variant, numbers, name, timing in found:
        images, failed = (_counted(numbers, key, getattr(timing, key, None)) for key in ("images", "failed"))
        note = f"in {reused[name]}" if reused and variant is None and name in reused else ""
        share = 100 * timing.seconds / max(spans) if timing.seconds and on_page else None
        row = [Cell(stage_title(name, variant), note=note), Cell(headline(numbers, stages.get(name)))]
        row += [cells.count(images), *([] if on_page else [cells.failed(failed)])]
        row += [cells.duration(timing.seconds, share), cells.number(timing.images_per_second)]
        rows.append([*row, cells.count(timing.workers)] if on_page else row)
    if not rows:
        return None
    middle = ["images", *([] if on_page else ["failed"]), "time", "images/s", *(["workers"] if on_page else [])]
    columns = [Column("stage", wraps=False), Column("result"), *(Column(text, True, wraps=False) for text in middle)]
    if not on_page:
        return Table("", columns, [rows], is_dense=True)
    total = [Cell("all stages"), Cell(""), Cell(""), cells.duration(sum(spans)), Cell(""), Cell("")]
    notes = ["images/s of a training counts every pass over an image"]
    return Table("Time per stage", columns, [rows, [total]], notes)


def _counted(numbers: StageMetrics | None, key: str, otherwise: int | None) -> int | None:
    counted = None if numbers is None else getattr(numbers.counted, key, None)
    return otherwise if counted is None else counted


def stage_title(stage: str, variant: str | None) -> str:
    """Return how a stage of a run, or of one of its variants, is called."""
    return f"{variant}: {stage}" if variant else stage


def headline(numbers: StageMetrics | None, stage: StageFacts | None) -> str:
    """Return a stage's numbers in a few words."""
    return (stage.headline(numbers) if stage and numbers else None) or NOTHING


def pace_table(timing: Timing | None, machine: str | None, settings: str) -> Table | None:
    """Return the refinement's pace, on a machine and with settings, beside the paper's; None where it was not timed."""
    if timing is None or timing.seconds is None or not timing.images_per_second:
        return None
    rate, stated = timing.images_per_second, refinement_times()

    def row(name: str, note: str, images: int | None, time: Cell, rate: float) -> list[Cell]:
        return [Cell(name, note=note), cells.count(images), time, Cell(f"{rate:.2f}", rate)]

    images, workers, where = stated[0].images, timing.workers, machine or "machine not recorded"
    where += f", {workers} worker{'s' if workers != 1 else ''}" if workers else ""
    own = [
        row("this run, measured", where, timing.images, cells.duration(timing.seconds), rate),
        row(f"{images:,} images at this rate", "extrapolated", images, cells.duration(images / rate), rate),
    ]
    paper = []
    for each in stated:
        time, pace = Cell(f"{each.minutes:g} min", 60 * each.minutes), each.images / (60 * each.minutes)
        paper.append(row(f"the paper, {each.devices}", f"{each.data}; {each.source}", each.images, time, pace))
    columns = [Column("refinement"), *(Column(text, True) for text in ("images", "time", "images/s"))]
    notes = [f"this run: {settings}. Times compare only where network, image sizes and settings are the same."]
    return Table("Refinement beside the paper", columns, [own, paper], notes)


def failures_table(failures: Sequence[Mapping[str, Any]]) -> Table | None:
    """Return the images that failed ("id", "stage", "error", "tries", of a sweep also "trial"); None without any."""
    if not failures:
        return None
    with_trials = any("trial" in each for each in failures)
    rows = []
    for each in failures:
        trial = [Cell(each.get("trial", NOTHING))] if with_trials else []
        tries = Cell(f"{each['tries']}", each["tries"])
        rows.append([Cell(each["id"]), *trial, Cell(each["stage"]), Cell(each["error"]), tries])
    columns = [Column(text) for text in ("image", *(["trial"] if with_trials else []), "stage")]
    columns += [Column("error", is_long=True), Column("tries", True)]
    return Table("Images that failed", columns, [rows], is_sortable=True)
