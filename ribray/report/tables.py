"""Tables of what a run has come to: seed, chain of stages, segmentation, all of it beside published numbers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ribray.config import CAM, label
from ribray.evaluation import published
from ribray.evaluation.published import IRN, MEAN, RIB_SALIENCY
from ribray.report import cells, comparison
from ribray.report.comparison import PSEUDO_MASKS, RETRAINED, SEED, SEGMENTATION, Comparison, Stages, chains
from ribray.report.table import NOTHING, Cell, Column, Table
from ribray.runs.metrics import Judgement, MaskJudgement, RunMetrics, SeedJudgement

TRAINING, HELD_OUT = "training", "held out"
OURS = " (Ours)"  # what the paper adds to the names of its own methods


# --- IoU per class -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ious:
    name: str
    maps: str
    numbers: Judgement
    is_published: bool = False


def seed_table(
    seed: Mapping[str, SeedJudgement], *, title: str = "Seed IoU in percent", all_classes: bool = False
) -> Table:
    """Return the seed's IoU per class and on average, each kind of maps at its own best threshold, with its gain.

    Of many classes those are shown where the last ones gain most and least over the first; of a single kind of maps,
    those of the highest and lowest IoU.
    """
    columns = [_Ious(label(maps), maps, seed[maps]) for maps in comparison.ordered(seed)]
    return _class_table(title, columns, _first_and_last(columns), all_classes, is_seed=True)


def _first_and_last(columns: Sequence[_Ious]) -> list[_Ious]:
    return [*columns[:1], *columns[1:][-1:]]


def _class_table(
    title: str, columns: Sequence[_Ious], compared: Sequence[_Ious], all_classes: bool, is_seed: bool = False
) -> Table:
    """Return the IoU per class; of many, those that `compared`, one column or two, ranks highest and lowest."""
    own = [column for column in columns if not column.is_published]
    has_gains = is_seed and len(columns) > 1
    names = list(dict.fromkeys(name for column in own for name in column.numbers.per_class))

    def line(
        title: str, cell: Callable[[Judgement], Cell], gain: Callable[..., Cell] | None = None, is_of_own: bool = False
    ) -> list[Cell]:
        row = [Cell(title)]
        for before, column in zip([None, *columns], columns, strict=False):
            row.append(Cell("") if is_of_own and column.is_published else cell(column.numbers))
            if has_gains and before is not None:
                row.append(gain(before.numbers, column.numbers) if gain else Cell(""))
        return row

    def class_line(name: str) -> list[Cell]:
        def iou(numbers: Judgement) -> float | None:
            return numbers.per_class.get(name)

        return line(name, lambda numbers: cells.bar(iou(numbers)), lambda *pair: cells.gain(*map(iou, pair)))

    ious = {name: [column.numbers.per_class.get(name) for column in compared] for name in names}
    ranks = {name: cells.difference(*pair) if len(pair) == 2 else pair[0] for name, pair in ious.items()}
    groups = cells.class_groups(ranks, all_classes)
    foot = [cells.strong(line("mean IoU", lambda numbers: cells.number(numbers.miou), _gain))]
    if any(column.numbers.miou_interval for column in own):
        foot.append(line("95 % interval", lambda numbers: cells.interval(numbers.miou_interval), _gain_interval, True))
    if is_seed:
        foot.append(line("best threshold", lambda numbers: cells.number(getattr(numbers, "threshold", None), ".2f")))
    foot.append(line("images", lambda numbers: cells.count(numbers.images)))
    foot.append(line("failed", lambda numbers: cells.failed(numbers.failed), is_of_own=True))
    shown = sum(map(len, groups))
    order = f"{compared[-1].name} gains most and least" if len(compared) == 2 else "the IoU is highest and lowest"
    notes = [f"{shown} of {len(names)} classes, those where {order}"] if shown < len(names) else []
    is_crowded = len(columns) + len(columns[1:]) * has_gains > (3 if is_seed else 5)
    widths = (None, None) if is_crowded else (10, 8)
    headings = [Column("class", width=22 if columns == own and not is_crowded else 14, wraps=False)]
    for place, each in enumerate(columns):
        look = comparison.look_number(each.maps)
        headings.append(Column(each.name.replace(", ", "\n"), True, width=widths[0], look=look))
        headings += [Column("gain", True, width=widths[1])] if has_gains and place else []
    body = [[class_line(name) for name in group] for group in groups]
    return Table(title, headings, [*body, foot], notes, True, is_dense=not is_seed)


def _gain(before: Judgement | None, after: Judgement | None) -> Cell:
    return cells.gain(before.miou if before else None, after.miou if after else None)


def _gain_interval(before: Judgement | None, after: Judgement | None) -> Cell:
    bounds = comparison.paired_interval(before, after)
    return cells.interval(bounds) if bounds else Cell("")


# --- from maps to masks ------------------------------------------------------------------------------------------


def chain_table(
    metrics: RunMetrics, stages: Stages, own: str, *, splits: Sequence[str] = (HELD_OUT,), on_page: bool = False
) -> Table | None:
    """Return the mIoU of all that was judged from the seed to the segmentation; on a page with its intervals.

    None where nothing was judged; on a terminal, where the seed has its own table, also where nothing follows it.
    """
    found = comparison.comparisons(metrics, stages, own)
    has_masks = any(compared.label != SEED for compared in found)
    if not (found if on_page else has_masks):
        return None
    kinds = comparison.ordered(maps for compared in found for maps in compared.numbers)
    groups: dict[str, list[list[Cell]]] = {}
    for compared in found:
        where = " + ".join(splits) if compared.is_held_out else TRAINING
        counts = dict.fromkeys(cells.count(numbers.images).text for numbers in compared.numbers.values())
        images = Cell(" / ".join(counts), note=where) if on_page else Cell(f"{'/'.join(counts)} {where}")
        groups.setdefault(where, []).append([Cell(compared.label), *_beside(compared, kinds, on_page), images])
    wraps = len(kinds) > 2
    columns = [Column("mIoU, %" if on_page else "", wraps=wraps)]
    for maps in kinds:
        widest = max(map(len, label(maps).split()))
        columns.append(Column(label(maps), True, width=max(5, widest) if wraps else 5, wraps=wraps))
        columns += [Column("gain", True, width=5, wraps=wraps)] if maps != kinds[0] else []
    columns.append(Column("images", True, width=8 if wraps else None))
    noted = [cell.text for rows in groups.values() for row in rows for cell in row[1:-1] if cell.note]
    notes = [f"{'small' if on_page else 'below'}: 95 % interval, bootstrap over images"] if noted else []
    if any(text[0] in "+-" for text in noted):
        notes.append("of gains: paired, every image weighs alike on both sides")
    notes += _unknown_lines(metrics, own) if has_masks else []
    if has_masks and _uses_crf(metrics, found, own):
        notes.append("the segmentation's predictions passed through a dense CRF")
    title = "mIoU from maps to masks" if on_page else "mIoU in percent, from maps to masks"
    return Table(title, columns, list(groups.values()), notes, is_dense=True)


def _beside(compared: Comparison, kinds: Sequence[str], on_page: bool) -> list[Cell]:
    """Return the mean IoU of every kind of maps, and what it gains over the one before that has any."""
    row: list[Cell] = []
    before = None
    for maps in kinds:
        numbers = compared.numbers.get(maps)
        look = "strong" if on_page and numbers and maps != CAM else ""
        mean = cells.number(numbers.miou if numbers else None)
        row.append(replace(mean, look=look, note=interval_text(numbers) if on_page else ""))
        if maps != kinds[0]:
            row.append(replace(_gain(before, numbers), note=_gain_interval(before, numbers).text))
        before = numbers or before
    return row


def interval_text(numbers: Judgement | None) -> str:
    return cells.interval(numbers.miou_interval).text if numbers and numbers.miou_interval else ""


def _unknown_lines(metrics: RunMetrics, own: str) -> list[str]:
    found = chains(metrics, own).values()
    confident = [chain.confident.seed_crf for chain in found if chain.confident and chain.confident.seed_crf]
    pseudo = [chain.pseudo for chain in found if chain.pseudo]
    shares = []
    for name, masks in (("the confident labels", confident), ("the pseudo masks", pseudo)):
        if unknown := [f"{each.unknown:.1f}" for each in masks if each.unknown]:
            shares.append(f"{' / '.join(unknown)} % of {name}")
    return [f"unknown pixels, read as background: {', '.join(shares)}"] if shares else []


def _uses_crf(metrics: RunMetrics, found: Sequence[Comparison], own: str) -> bool:
    """Whether a segmentation that was judged passed through a dense CRF."""
    judged = {maps for compared in found if compared.is_held_out for maps in compared.numbers}
    evaluated = [chain.evaluate for maps, chain in chains(metrics, own).items() if maps in judged]
    return any(each and each.crf == "dense" for each in evaluated)


# --- beside published numbers ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Peers:
    """Published numbers that the segmentation of some classes can stand beside."""

    table: str
    data: str
    splits: tuple[str, ...]  # names that a run may have for the split `VAL`
    images: int
    beside: tuple[str, ...]  # methods whose classes are shown; of the others the mean
    figures: Mapping[str, str]  # further means, which stand in the text: what to call it -> quantity


VAL, FIRST_NETWORK = "val", "segmentation without re-training"
FIRST = {"RIB, without re-training": FIRST_NETWORK}
VOC = _Peers("S2", "VOC 2012 val", (VAL,), 1449, (published.RIB, RIB_SALIENCY), FIRST)
COCO = _Peers("S3", "COCO 2014 val", (VAL, "val2014"), 40504, (IRN, published.RIB), {})


def _peers_of(classes: Iterable[str]) -> _Peers | None:
    """Return the published numbers about exactly these classes, background included."""
    same = (peers for peers in (VOC, COCO) if {*published.table(peers.table).columns} - {MEAN} == set(classes))
    return next(same, None)


def evaluation_tables(
    metrics: RunMetrics, stages: Stages, own: str, splits: Sequence[str], *, all_classes: bool = False
) -> list[Table]:
    """Return the segmentation's IoU per class, after a table of means where published ones are of the same classes.

    There is none where no segmentation was judged, as ``splits`` say where.
    """
    found = [compared for compared in comparison.comparisons(metrics, stages, own) if compared.is_held_out]
    columns = [  # with re-training, of the first and the last network
        _Ious(f"{label(maps)}{f', {RETRAINED}' if network.label == RETRAINED else ''}", maps, network.numbers[maps])
        for maps in chains(metrics, own)
        for network in found
        if maps in network.numbers
    ]
    if not columns:
        return []
    # Of a chain that others follow only the last network, so that the table fits.
    final = {column.maps: column for column in columns}
    shown = [column for column in columns if column.maps == columns[-1].maps or column is final[column.maps]]
    compared, peers = _first_and_last([*final.values()]), _peers_of(columns[0].numbers.per_class)
    title, means = "Segmentation, IoU in percent", []
    if peers is not None:
        means = [_means_table(columns, peers, splits, _uses_crf(metrics, found, own))]
        for method in peers.beside:
            row, name = published.table(peers.table).row(method, VAL), f"{method.removesuffix(OURS)}, published"
            numbers = MaskJudgement(per_class=dict(row), miou=row[MEAN], images=peers.images)
            shown.append(_Ious(name, published.MAPS.get(method, ""), numbers, is_published=True))
    return [*means, _class_table(title, shown, compared, all_classes)]


def _means_table(columns: Sequence[_Ious], peers: _Peers, splits: Sequence[str], has_crf: bool) -> Table:
    reference = published.table(peers.table)
    stated = {method.removesuffix(OURS): reference.value(method, split=VAL) for method in reference.methods(VAL)}
    stated |= {name: published.figure_in_text(quantity).miou for name, quantity in peers.figures.items()}
    images = cells.count(peers.images)
    rows = [[Cell(name), cells.number(mean), images, Cell("published")] for name, mean in stated.items()]
    for name, numbers in ((column.name, column.numbers) for column in columns):
        row = [Cell(name), cells.number(numbers.miou), cells.count(numbers.images), Cell("this run")]
        rows.append(cells.strong(row))
    rows.sort(key=lambda row: row[1].value or 0.0)
    fewest = min(column.numbers.images or 0 for column in columns)
    remarks = [] if [*splits] in [[split] for split in peers.splits] else [f"not {VAL}"]
    remarks += [f"fewer than the published {peers.images:,}"] if fewest < peers.images else []
    this_run = f"this run: {fewest:,} images of {' + '.join(splits)}, {'with' if has_crf else 'without'} dense CRF"
    headings = [Column("method", width=30, wraps=False), Column("mIoU", True, width=7), Column("images", True, width=8)]
    notes = [f"published: {peers.data}, {peers.images:,} images (RIB paper, Table {peers.table})"]
    notes.append("; ".join([this_run, *([", ".join(remarks)] if remarks else [])]))
    title = f"Segmentation, mIoU in percent, beside {peers.data}"
    return Table(title, [*headings, Column("", is_long=True)], [rows], notes)


class _Stated(NamedTuple):
    quantity: str
    judged: str  # what a run calls the same thing
    method: str
    value: str
    about: str  # the data
    source: str


def paper_table(metrics: RunMetrics, stages: Stages, own: str, batch_size: int | None, data: str) -> Table:
    """Return this run's numbers beside the papers'; B of its refinement and what its data is called are said too."""
    found = {compared.label: compared.numbers for compared in comparison.comparisons(metrics, stages, own)}
    classes = [each.per_class for numbers in found.values() for each in numbers.values()]
    kinds = comparison.ordered([CAM, *(maps for numbers in found.values() for maps in numbers)])
    peers = _peers_of(classes[0] if classes else ())
    stated = _stated_on_coco() if peers is COCO else _stated_on_voc(batch_size, kinds)
    stated.sort(key=lambda each: [SEED, PSEUDO_MASKS, SEGMENTATION, RETRAINED].index(each.judged))
    methods, rows = list(dict.fromkeys(each.method for each in stated)), []
    for quantity in dict.fromkeys(each.quantity for each in stated):
        of_quantity = {each.method: each for each in stated if each.quantity == quantity}
        first = next(iter(of_quantity.values()))
        judgements = [found.get(first.judged, {}).get(maps) for maps in kinds]
        row = [Cell(quantity, note=first.source), *(cells.number(each.miou if each else None) for each in judgements)]
        values = [of_quantity.get(method) for method in methods]
        rows.append([*row, *(Cell(each.value, note=each.about) if each else Cell(NOTHING) for each in values)])
    papers = [f"the paper's {method.removesuffix(OURS)}" for method in methods]
    columns = [Column("mIoU, %"), *(Column(name, True) for name in [*map(label, kinds), *papers])]
    notes = [] if peers else [f"This run is about {data}: of the paper's numbers only the direction can be compared."]
    return Table("Beside the paper", columns, [rows], notes)


def _stated_on_coco() -> list[_Stated]:
    found = ((method, published.table(COCO.table).value(method)) for method in COCO.beside)
    source = f"Table {COCO.table}"
    return [_Stated(SEGMENTATION, SEGMENTATION, method, f"{value:.1f}", COCO.data, source) for method, value in found]


def _stated_on_voc(batch_size: int | None, kinds: Sequence[str]) -> list[_Stated]:
    """Return what is published of RIB, and of the run's maps by other papers."""
    seed, first = published.figure_in_text("seed"), published.figure_in_text(FIRST_NETWORK)
    sizes, rib, size = published.table("S1"), published.RIB, str(batch_size)
    spread = f" ± {seed.std:g}" if seed.std is not None else ""
    stated = [_Stated("seed", SEED, rib, f"{seed.miou:g}{spread}", seed.split, seed.source)]
    if size in sizes.columns:
        value = f"{sizes.value(rib, size):g}"
        stated.append(_Stated(f"seed at B = {size}", SEED, rib, value, seed.split, f"Table {sizes.name}"))
    stated.append(_Stated(SEGMENTATION, SEGMENTATION, rib, f"{first.miou:g}", first.split, first.source))
    last = published.table(VOC.table).value(rib, split=VAL)
    stated.append(_Stated(RETRAINED, RETRAINED, rib, f"{last:g}", VOC.data, f"Table {VOC.table}"))
    names = {"seed": ("seed", SEED), "pseudo masks": (PSEUDO_MASKS,) * 2, FIRST_NETWORK: (SEGMENTATION,) * 2}
    for each in published.figures_in_text():
        if each.method != rib and published.MAPS.get(each.method) in kinds:
            about = f"{each.split}; {each.source}"
            stated.append(_Stated(*names[each.quantity], each.method, f"{each.miou:g}", about, each.source))
    return stated
