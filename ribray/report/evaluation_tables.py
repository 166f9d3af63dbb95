"""Tables of the masks: mIoU from the maps to the segmentation, and the segmentation beside published numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from ribray.evaluation import published
from ribray.evaluation.published import IRN, MEAN, RIB_SALIENCY
from ribray.report import cells
from ribray.report.stations import RETRAINED, SEED_STATION, chains, networks, part_of, stations
from ribray.report.tables import CAM, INTERVAL, METHOD_NAMES, RIB, SEED_CRF

HELD_OUT = "held out"
OURS = " (Ours)"
"""What the paper adds to the names of its own methods."""


@dataclass(frozen=True)
class _Peers:
    """Published numbers that the segmentation of some classes can stand beside."""

    table: str
    data: str
    split: str
    aliases: tuple[str, ...]
    """Names that a run may have for that split."""
    images: int
    beside: tuple[str, ...]
    """Methods whose classes are shown; of the others the mean."""
    figures: tuple[tuple[str, str], ...] = ()
    """Further rows of means that stand in the text: what to call it, quantity."""


PEERS = (
    _Peers(
        table="S2",
        data="VOC 2012 val",
        split="val",
        aliases=("val",),
        images=1449,
        beside=(published.RIB, RIB_SALIENCY),
        figures=(("RIB, without re-training", "segmentation without re-training"),),
    ),
    _Peers(
        table="S3",
        data="COCO 2014 val",
        split="val",
        aliases=("val", "val2014"),
        images=40504,
        beside=(IRN, published.RIB),
    ),
)


@dataclass(frozen=True)
class _Column:
    """The segmentation of one network of this run."""

    source: str
    is_retrained: bool
    numbers: Mapping[str, Any]

    @property
    def name(self) -> str:
        return METHOD_NAMES.get(self.source, self.source) + (f", {RETRAINED}" if self.is_retrained else "")


def chain_table(
    metrics: Mapping[str, Any],
    *,
    own: str = RIB,
    splits: Sequence[str] = (HELD_OUT,),
    title: str = "mIoU in percent, from maps to masks",
) -> Table | None:
    """Return the mIoU at every station from the seed to the segmentation, for plain CAM and for RIB.

    Args:
        metrics: a run's merged metrics, those of its variants included.
        own: the maps that the run's own masks are made from; "cam" where the run is itself a variant.
        splits: what the segmentation was judged on.
        title: stands above the table.

    Returns:
        A table of stations by maps, with the images that were counted; None where nothing follows the seed.
    """
    found = stations(metrics, splits, own)
    if all(station.label == SEED_STATION for station in found):
        return None

    sources = [source for source in METHOD_NAMES if any(source in station.numbers for station in found)]
    compared = any(len(station.numbers) > 1 for station in found)
    table = cells.titled_table(title)
    table.collapse_padding = True
    table.add_column("", no_wrap=True)
    for heading in [*(METHOD_NAMES[source] for source in sources), *(["gain"] if compared else [])]:
        table.add_column(heading, justify="right", no_wrap=True, min_width=5)
    table.add_column("images", justify="right")
    for place, station in enumerate(found):
        if place and found[place - 1].where != station.where:
            table.add_section()
        known = station.numbers
        means = {source: numbers["miou"] for source, numbers in known.items()}
        gain = [cells.gain(cells.difference(means.get(CAM), means.get(RIB)))] if compared else []
        counted = dict.fromkeys(cells.count(known[source].get("images")) for source in sources if source in known)
        values = [cells.number(means.get(source)) for source in sources]
        table.add_row(station.label, *values, *gain, f"{'/'.join(counted)} {escape(station.where)}")
    found_chains = chains(metrics, own)
    table.caption = cells.notes([*_unknown_lines(found_chains), *_crf_lines(found_chains)])
    return table


def evaluation_table(
    metrics: Mapping[str, Any], splits: Sequence[str], *, own: str = RIB, all_classes: bool = False
) -> RenderableType | None:
    """Return the segmentation's IoU per class; where the classes are VOC's or COCO's, beside published numbers.

    Args:
        metrics: a run's merged metrics, those of its variants included.
        splits: what the segmentation was judged on.
        own: as for `chain_table`.
        all_classes: show every class, however many.

    Returns:
        A table of classes by networks, after one of means where there is something to compare with; None where no
        segmentation was judged.
    """
    found = chains(metrics, own)
    columns = [
        _Column(source, label == RETRAINED, numbers)
        for source, chain in found.items()
        for label, numbers in networks(chain).items()
    ]
    if not columns:
        return None
    peers = _peers_of(columns[0].numbers["per_class"])
    per_class = _class_table(columns, peers, all_classes)
    if peers is None:
        return per_class
    crf = "with" if _crf_lines(found) else "without"
    return Group(_means_table(columns, peers, [_this_run(columns, peers, splits, crf)]), "", per_class)


def _unknown_lines(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say how many pixels the masks leave unknown, plain CAM's first."""
    shares = []
    for name, path in (("the confident labels", ("confident", SEED_CRF)), ("the pseudo masks", ("pseudo",))):
        unknown = [share for chain in found.values() if (share := part_of(chain, path).get("unknown"))]
        if unknown:
            shares.append(f"{' / '.join(f'{share:.1f}' for share in unknown)} % of {name}")
    return [f"unknown pixels, read as background: {', '.join(shares)}"] if shares else []


def _crf_lines(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    uses_crf = any(networks(chain) and chain["evaluate"].get("crf") == "dense" for chain in found.values())
    return ["the segmentation's predictions passed through a dense CRF"] if uses_crf else []


# --- beside published numbers ------------------------------------------------------------------------------------


def _peers_of(per_class: Mapping[str, Any]) -> _Peers | None:
    """Return the published numbers about exactly these classes, background included."""
    for peers in PEERS:
        if set(published.table(peers.table).columns) - {MEAN} == set(per_class):
            return peers
    return None


def _means_table(columns: Sequence[_Column], peers: _Peers, notes: Sequence[str]) -> Table:
    reference = published.table(peers.table)
    rows: list[tuple[str, float, _Column | None]] = [
        *((_short(name), reference.value(name, split=peers.split), None) for name in reference.methods(peers.split)),
        *((name, published.figure_in_text(quantity).miou, None) for name, quantity in peers.figures),
        *((column.name, column.numbers["miou"], column) for column in columns),
    ]
    table = cells.titled_table(f"Segmentation, mIoU in percent, beside {peers.data}")
    table.add_column("method", no_wrap=True, min_width=30)
    table.add_column("mIoU", justify="right", min_width=7)
    table.add_column("images", justify="right", min_width=8)
    table.add_column("")
    for name, mean, column in sorted(rows, key=lambda row: row[1]):
        images = peers.images if column is None else column.numbers.get("images")
        source, style = ("published", "") if column is None else ("this run", "bold")
        table.add_row(name, cells.number(mean), cells.count(images), source, style=style)
    source = f"published: {peers.data}, {peers.images:,} images (RIB paper, Table {peers.table})"
    table.caption = cells.notes([source, *notes])
    return table


def _this_run(columns: Sequence[_Column], peers: _Peers, splits: Sequence[str], crf: str) -> str:
    """Say what this run was judged on, and where that is not what the published numbers are about."""
    images = min(column.numbers.get("images", 0) for column in columns)
    remarks = []
    if len(splits) != 1 or splits[0] not in peers.aliases:
        remarks.append(f"not {peers.split}")
    if images < peers.images:
        remarks.append(f"fewer than the published {peers.images:,}")
    text = f"this run: {images:,} images of {' + '.join(splits)}, {crf} dense CRF"
    return f"{text}; {', '.join(remarks)}" if remarks else text


def _class_table(columns: Sequence[_Column], peers: _Peers | None, all_classes: bool) -> Table:
    """Return the IoU per class; of a chain that others follow only the last network, so that the table fits."""
    final = {column.source: column for column in columns}
    last = columns[-1].source
    columns = [column for column in columns if column.source == last or column is final[column.source]]
    compared = CAM in final and RIB in final
    names = list(columns[0].numbers["per_class"])
    ious = {column.name: column.numbers["per_class"] for column in columns}
    if compared:
        ranks = {
            name: cells.difference(*(ious[final[source].name].get(name) for source in (CAM, RIB))) for name in names
        }
    else:
        ranks = {name: ious[columns[-1].name].get(name) for name in names}
    groups = cells.class_groups(ranks, all_classes)
    beside = {method: published.table(peers.table).row(method, peers.split) for method in peers.beside} if peers else {}

    table = cells.titled_table("Segmentation, IoU in percent")
    table.collapse_padding = True
    table.add_column("class", no_wrap=True, min_width=14 if peers else 22)
    for column in columns:
        table.add_column(column.name.replace(", ", "\n"), justify="right", min_width=10)
    for method in beside:
        table.add_column(f"{_short(method)}\npublished", justify="right", min_width=10)
    for group in groups:
        for name in group:
            values = [*(iou.get(name) for iou in ious.values()), *(row[name] for row in beside.values())]
            table.add_row(escape(name), *map(cells.number, values))
        table.add_section()
    means = [*(column.numbers["miou"] for column in columns), *(row[MEAN] for row in beside.values())]
    table.add_row("mean IoU", *map(cells.number, means), style="bold")
    if any(INTERVAL in column.numbers for column in columns):
        table.add_row("95 % interval", *(cells.interval(column.numbers.get(INTERVAL)) for column in columns))
    images = [*(column.numbers.get("images") for column in columns), *(peers.images for _ in beside if peers)]
    table.add_row("images", *map(cells.count, images))
    table.add_row("failed", *(cells.failed(column.numbers.get("failed")) for column in columns))
    table.caption = cells.notes(cells.shown_of(groups, len(names), compared))
    return table


def _short(method: str) -> str:
    return method.removesuffix(OURS)
