"""Tables of a run's stages: what each came to and took, the pace of refinements, and the images that failed."""

from collections.abc import Mapping, Sequence
from typing import Any

from ribray.evaluation import published
from ribray.report import cells
from ribray.report.comparison import Stages
from ribray.report.table import NOTHING, Cell, Column, Table
from ribray.runs.metrics import RunMetrics, StageMetrics, Timing
from ribray.runs.stage_facts import StageFacts


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
    if not found:
        return None
    spans, rows = [timing.seconds or 0 for *_, timing in found], []
    left_out = 3 if on_page else 6  # a page has no failures here, a terminal no workers
    for variant, numbers, name, timing in found:
        images, failed = (_counted(numbers, key, getattr(timing, key, None)) for key in ("images", "failed"))
        note = f"in {reused[name]}" if reused and variant is None and name in reused else ""
        share = 100 * timing.seconds / max(spans) if timing.seconds and on_page else None
        row = [Cell(stage_title(name, variant), note=note), Cell(headline(numbers, stages.get(name)))]
        row += [cells.count(images), cells.failed(failed), cells.duration(timing.seconds, share)]
        row += [cells.number(timing.images_per_second), cells.count(timing.workers)]
        rows.append(row[:left_out] + row[left_out + 1 :])
    numeric = ("images", "failed", "time", "images/s", "workers")
    columns = [Column("stage", wraps=False), Column("result"), *(Column(text, True, wraps=False) for text in numeric)]
    del columns[left_out]
    if not on_page:
        return Table("", columns, [rows], is_dense=True)
    total = [Cell("all stages"), Cell(""), Cell(""), cells.duration(sum(spans)), Cell(""), Cell("")]
    notes = ["images/s of a training counts every pass over an image"]
    return Table("Time per stage", columns, [rows, [total]], notes)


def _counted(numbers: StageMetrics | None, key: str, otherwise: int | None) -> int | None:
    counted = None if numbers is None else getattr(numbers.counted, key, None)
    return otherwise if counted is None else counted


def stage_title(stage: str, variant: str | None) -> str:
    return f"{variant}: {stage}" if variant else stage


def headline(numbers: StageMetrics | None, stage: StageFacts | None) -> str:
    return (stage.headline(numbers) if stage and numbers else None) or NOTHING


def pace_table(paces: Sequence[tuple[str, str, Timing, str]], machine: str | None) -> Table | None:
    """Return the pace of refinements on a machine, beside that of the papers; None where none was timed.

    Each has what stands behind its name, its maps, its timing, and its settings in words.
    """
    known = [pace for pace in paces if pace[2].images_per_second]
    if not known:
        return None
    stated, groups = published.refinement_times(), list[list[list[Cell]]]()

    def row(name: str, note: str, images: int | None, seconds: float | None, rate: float) -> list[Cell]:
        return [Cell(name, note=note), cells.count(images), cells.duration(seconds), Cell(f"{rate:.2f}", rate)]

    for whose, _, timing, _ in known:
        images, workers, where = stated[0].images, timing.workers, machine or "machine not recorded"
        where += f", {workers} worker{'s' if workers != 1 else ''}" if workers else ""
        rate = timing.images_per_second or 0.0
        own = row(f"this run{whose}, measured", where, timing.images, timing.seconds, rate)
        groups.append([own, row(f"{images:,} images at this rate", "extrapolated", images, images / rate, rate)])
    paper = []
    for each in (each for each in stated if published.MAPS[each.method] in [maps for _, maps, _, _ in known]):
        who = "the paper" if each.method == published.RIB else f"the authors of {each.method}"
        seconds, note = 60 * each.minutes, f"{each.data}; {each.source}"
        line = row(f"{who}, {each.devices}", note, each.images, seconds, each.images / seconds)
        paper.append([*line[:2], Cell(f"{each.minutes:g} min", seconds), line[3]])
    columns = [Column("refinement"), *(Column(text, True) for text in ("images", "time", "images/s"))]
    notes = [f"this run{whose}: {settings}." for whose, _, _, settings in known]
    notes[-1] += " Times compare only where network, image sizes and settings are the same."
    return Table("Refinement beside the paper", columns, [*groups, *([paper] if paper else [])], notes)


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
