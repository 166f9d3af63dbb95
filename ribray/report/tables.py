"""Tables of a run: seed, chain of stages, segmentation beside published numbers, cost, failures."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ribray.evaluation import published
from ribray.evaluation.published import IRN, MEAN, RIB_SALIENCY, refinement_times
from ribray.report import cells
from ribray.report.stations import (
    BEFORE_RETRAINING,
    CAM,
    INTERVAL,
    METHOD_NAMES,
    RETRAINED,
    RIB,
    SEED_CRF,
    SEED_STATION,
    SEGMENTATION,
    Numbers,
    chains,
    networks,
    part_of,
    stations,
)
from ribray.report.table import NOTHING, Cell, Column, Table

HELD_OUT = "held out"
OURS = " (Ours)"
"""What the paper adds to the names of its own methods."""


# --- IoU per class -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Judged:
    """A column of IoUs: of maps or a network of this run, or published."""

    name: str
    source: str
    numbers: Numbers
    is_published: bool = False


def seed_table(
    seed: Mapping[str, Numbers],
    *,
    title: str = "Seed IoU in percent",
    all_classes: bool = False,
    note: str | None = None,
) -> Table:
    """Return the seed's IoU per class and on average, each method at its own best threshold, with RIB's gain.

    Of many classes those are shown where RIB gains most and least; without plain CAM, of the highest and lowest IoU.
    """
    columns = [_Judged(METHOD_NAMES.get(method, method), method, seed[method]) for method in ordered(seed)]
    compared = columns[:2] if CAM in seed and RIB in seed else columns[:1]
    return _class_table(title, columns, compared, all_classes, is_seed=True, note=note)


def ordered(methods: Mapping[str, Any]) -> list[str]:
    """Return methods by name, plain CAM and RIB first."""
    return sorted(methods, key=lambda method: (method != CAM, method != RIB))


def _class_table(
    title: str,
    columns: Sequence[_Judged],
    compared: Sequence[_Judged],
    all_classes: bool,
    is_seed: bool = False,
    note: str | None = None,
) -> Table:
    """Return the IoU per class; of many, those that `compared`, one column or two, ranks highest and lowest."""
    own = [column for column in columns if not column.is_published]
    names = list(dict.fromkeys(name for column in own for name in column.numbers["per_class"]))
    has_gain = is_seed and len(compared) == 2

    def line(title: str, values: Sequence[Cell], gains: Sequence[float | None] = ()) -> list[Cell]:
        row = [Cell(title), *values, *([cells.gain(*gains)] if has_gain and gains else [])]
        return [*row, *[Cell("")] * (1 + len(columns) + has_gain - len(row))]

    ious = {name: [column.numbers["per_class"].get(name) for column in compared] for name in names}
    ranks = {name: cells.difference(*pair) if len(pair) == 2 else pair[0] for name, pair in ious.items()}
    groups = cells.class_groups(ranks, all_classes)
    rows = [
        [
            line(name, [cells.bar(column.numbers["per_class"].get(name)) for column in columns], ious[name])
            for name in group
        ]
        for group in groups
    ]
    means = [column.numbers["miou"] for column in compared]
    foot = [cells.strong(line("mean IoU", [cells.number(column.numbers["miou"]) for column in columns], means))]
    if any(INTERVAL in column.numbers for column in own):
        foot.append(line("95 % interval", [cells.interval(column.numbers.get(INTERVAL)) for column in own]))
    if is_seed:
        foot.append(line("best threshold", [cells.threshold(column.numbers.get("threshold")) for column in own]))
    foot.append(line("images", [cells.count(column.numbers.get("images")) for column in columns]))
    foot.append(line("failed", [cells.failed(column.numbers.get("failed")) for column in own]))
    shown = sum(map(len, groups))
    order = "RIB gains most and least" if len(compared) == 2 else "the IoU is highest and lowest"
    notes = [f"{shown} of {len(names)} classes, those where {order}"] if shown < len(names) else []
    headings = [
        Column("class", width=22 if columns == own else 14, wraps=False),
        *(Column(each.name.replace(", ", "\n"), True, width=10, source=each.source) for each in columns),
        *([Column("gain", True, width=8)] if has_gain else []),
    ]
    return Table(title, headings, [*rows, foot], [*notes, *([note] if note else [])], True, is_dense=not is_seed)


# --- from maps to masks ------------------------------------------------------------------------------------------


def chain_table(
    metrics: Numbers, *, own: str = RIB, splits: Sequence[str] = (HELD_OUT,), on_page: bool = False
) -> Table | None:
    """Return the mIoU at every station from the seed to the segmentation; on a page with its intervals.

    None where nothing was judged; on a terminal, where the seed has its own table, also where nothing follows it.
    """
    found = stations(metrics, splits, own)
    if all(station.label == SEED_STATION for station in found) and not (on_page and found):
        return None
    sources = [source for source in METHOD_NAMES if any(source in station.numbers for station in found)]
    compared = len(sources) > 1
    groups: dict[str, list[list[Cell]]] = {}
    for station in found:
        means = {source: numbers["miou"] for source, numbers in station.numbers.items()}
        row = [Cell(station.label)]
        for source in sources:
            note = interval_text(station.numbers.get(source, {})) if on_page else ""
            look = "strong" if on_page and source == RIB and source in means else ""
            row.append(Cell(cells.number(means.get(source)).text, means.get(source), look, note))
        if compared:
            row.append(cells.gain(means.get(CAM), means.get(RIB)))
        counts = dict.fromkeys(cells.count(numbers.get("images")).text for numbers in station.numbers.values())
        images = (
            Cell(" / ".join(counts), note=station.where) if on_page else Cell(f"{'/'.join(counts)} {station.where}")
        )
        groups.setdefault(station.where, []).append([*row, images])
    columns = [
        Column("mIoU, %" if on_page else "", wraps=False),
        *(Column(METHOD_NAMES[source], True, width=5, wraps=False) for source in sources),
        *([Column("gain", True, width=5, wraps=False)] if compared else []),
        Column("images", True),
    ]
    judged = [numbers for station in found for numbers in station.numbers.values()]
    notes = ["small: 95 % interval, bootstrap over images"] if on_page and any(map(interval_text, judged)) else []
    if any(station.label != SEED_STATION for station in found):
        notes += [*_unknown_lines(chains(metrics, own)), *_crf_lines(chains(metrics, own))]
    title = "mIoU at every station" if on_page else "mIoU in percent, from maps to masks"
    return Table(title, columns, list(groups.values()), notes, is_dense=True)


def interval_text(numbers: Numbers) -> str:
    """Return the 95 % interval of a part of the metrics, nothing where it has none."""
    return cells.interval(numbers[INTERVAL]).text if numbers.get(INTERVAL) else ""


def _unknown_lines(found: Mapping[str, Numbers]) -> list[str]:
    """Say how many pixels the masks leave unknown, plain CAM's first."""
    shares = []
    for name, path in (("the confident labels", ("confident", SEED_CRF)), ("the pseudo masks", ("pseudo",))):
        unknown = [share for chain in found.values() if (share := part_of(chain, path).get("unknown"))]
        if unknown:
            shares.append(f"{' / '.join(f'{share:.1f}' for share in unknown)} % of {name}")
    return [f"unknown pixels, read as background: {', '.join(shares)}"] if shares else []


def _crf_lines(found: Mapping[str, Numbers]) -> list[str]:
    uses_crf = any(networks(chain) and chain["evaluate"].get("crf") == "dense" for chain in found.values())
    return ["the segmentation's predictions passed through a dense CRF"] if uses_crf else []


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
    metrics: Numbers, splits: Sequence[str], *, own: str = RIB, all_classes: bool = False
) -> list[Table]:
    """Return the segmentation's IoU per class, after a table of means where published ones are of the same classes.

    There is none where no segmentation was judged, as ``splits`` say where.
    """
    found = chains(metrics, own)
    columns = [
        _Judged(f"{METHOD_NAMES[source]}{f', {RETRAINED}' if label == RETRAINED else ''}", source, numbers)
        for source, chain in found.items()
        for label, numbers in networks(chain).items()
    ]
    if not columns:
        return []
    # Of a chain that others follow only the last network, so that the table fits.
    final = {column.source: column for column in columns}
    shown = [column for column in columns if column.source == columns[-1].source or column is final[column.source]]
    compared = [final[CAM], final[RIB]] if CAM in final and RIB in final else shown[-1:]
    peers = _peers_of(columns[0].numbers["per_class"])
    beside = [] if peers is None else [_published(peers, method) for method in peers.beside]
    per_class = _class_table("Segmentation, IoU in percent", [*shown, *beside], compared, all_classes)
    return [per_class] if peers is None else [_means_table(columns, peers, splits, _crf_lines(found)), per_class]


def _published(peers: _Peers, method: str) -> _Judged:
    row = published.table(peers.table).row(method, peers.split)
    numbers = {"per_class": row, "miou": row[MEAN], "images": peers.images}
    source = "" if method == IRN else RIB
    return _Judged(f"{method.removesuffix(OURS)}, published", source, numbers, is_published=True)


def _means_table(columns: Sequence[_Judged], peers: _Peers, splits: Sequence[str], crf: Sequence[str]) -> Table:
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
        images = cells.count(column.numbers.get("images"))
        row = [Cell(column.name), cells.number(column.numbers["miou"]), images, Cell("this run")]
        rows.append(cells.strong(row))
    rows.sort(key=lambda row: row[1].value or 0.0)
    judged = min(column.numbers.get("images", 0) for column in columns)
    remarks = [] if [*splits] in [[alias] for alias in peers.aliases] else [f"not {peers.split}"]
    remarks += [f"fewer than the published {peers.images:,}"] if judged < peers.images else []
    this_run = f"this run: {judged:,} images of {' + '.join(splits)}, {'with' if crf else 'without'} dense CRF"
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


def paper_table(metrics: Numbers, own: str, batch_size: int, data: str) -> Table:
    """Return this run's numbers beside the paper's; B of its refinement and what its data is called are said too."""
    found = {station.label: station.numbers for station in stations(metrics, (), own)}
    judged = [each["per_class"] for numbers in found.values() for each in numbers.values()]
    peers = _peers_of(judged[0] if judged else ())
    stated = _stated_on_coco() if peers is COCO else _stated_on_voc(batch_size)
    with_irn = peers is COCO
    rows = []
    for quantity, station, about, source, *values in stated:
        means = [found.get(station, {}).get(maps, {}).get("miou") for maps in METHOD_NAMES]
        row = [Cell(quantity, note=source), *map(cells.number, means)]
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
    metrics: Numbers, order: Sequence[str], reused: Mapping[str, str] | None = None, on_page: bool = False
) -> Table | None:
    """Return what each stage, in this order, came to, and the time it took; None where none was timed.

    A page has bars, workers, a sum, and says in which other run a ``reused`` stage was made; a terminal has failures.
    """
    found = [
        (variant, numbers.get(stage, {}), stage, numbers["timing"][stage])
        for variant, numbers in {None: metrics, **metrics.get("variants", {})}.items()
        for stage in sorted(numbers.get("timing", {}), key=[*order, *numbers.get("timing", {})].index)
    ]
    spans = [timing.get("seconds") or 0 for *_, timing in found]
    rows = []
    for variant, result, stage, timing in found:
        counts, seconds = result.get(RIB, result), timing.get("seconds")
        images, failed = (counts.get(key, timing.get(key)) for key in ("images", "failed"))
        note = f"in {reused[stage]}" if reused and variant is None and stage in reused else ""
        share = 100 * seconds / max(spans) if seconds and on_page else None
        row = [Cell(stage_title(stage, variant), note=note), Cell(headline(result)), cells.count(images)]
        row += [] if on_page else [cells.failed(failed)]
        row += [cells.duration(seconds, share), cells.number(timing.get("images_per_second"))]
        rows.append([*row, cells.count(timing.get("workers"))] if on_page else row)
    if not rows:
        return None
    middle = ["images", *([] if on_page else ["failed"]), "time", "images/s", *(["workers"] if on_page else [])]
    columns = [Column("stage", wraps=False), Column("result"), *(Column(text, True, wraps=False) for text in middle)]
    total = [Cell("all stages"), Cell(""), Cell(""), cells.duration(sum(spans)), Cell(""), Cell("")]
    notes = ["images/s of a training counts every pass over an image"]
    return (
        Table("Time per stage", columns, [rows, [total]], notes)
        if on_page
        else Table("", columns, [rows], is_dense=True)
    )


def stage_title(stage: str, variant: str | None) -> str:
    """Return how a stage of a run, or of one of its variants, is called."""
    return f"{variant}: {stage}" if variant else stage


def headline(result: Numbers) -> str:
    """Return a stage's result in a few words.

    An arrow leads from plain CAM to RIB, or from the first network to the one trained again.
    """
    if CAM in result and RIB in result:
        return f"mIoU {cells.number(result[CAM]['miou']).text} → {cells.number(result[RIB]['miou']).text}"
    if SEED_CRF in result:
        return headline(result[SEED_CRF])
    if "miou" in result:
        first = result.get(BEFORE_RETRAINING, {}).get("miou")
        return f"mIoU {'' if first is None else f'{first:.1f} → '}{cells.number(result['miou']).text}"
    if "map" in result:
        return f"mAP {cells.number(result['map']).text}"
    if "loss" in result:
        return f"loss {result['loss']:.2f}" + (f", {result['iterations']:,} steps" if "iterations" in result else "")
    return NOTHING


def pace_table(timing: Numbers, machine: str | None, settings: str) -> Table | None:
    """Return the refinement's pace, on a machine and with settings, beside the paper's; None where it was not timed."""
    rate, stated = timing.get("images_per_second"), refinement_times()
    if not rate:
        return None

    def row(name: str, note: str, images: int | None, time: Cell, rate: float) -> list[Cell]:
        return [Cell(name, note=note), cells.count(images), time, Cell(f"{rate:.2f}", rate)]

    images, workers, where = stated[0].images, timing.get("workers"), machine or "machine not recorded"
    where += f", {workers} worker{'s' if workers != 1 else ''}" if workers else ""
    own = [
        row("this run, measured", where, timing.get("images"), cells.duration(timing["seconds"]), rate),
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
