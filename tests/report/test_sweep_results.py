"""Results of a sweep: rows, the CSV, the table in markdown and on a terminal, and plots."""

import csv
import io
import json
import math
import re

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from ribray.report.sweep_curves import threshold_curves
from ribray.report.sweep_results import results_table, write_results
from ribray.report.sweep_rows import Sweep, metric_label
from ribray.runs.metrics import SeedMetrics
from ribray.runs.run import Run

MIOU = "seed.rib.miou"
B, SEED, LOSS, LR = "refine.batch_size", "refine.seed", "refine.loss", "refine.lr"
S1 = {"table": "S1", "value": None, "std": None, "text": None}


def trial(settings, value=None, status="finished", metric=MIOU, interval=None, **more):
    id = ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in settings.items())
    metrics = {} if value is None else {metric: value}
    if interval is not None:
        metrics[f"{metric}_interval"] = interval
    return {
        "id": id,
        "directory": f"trials/{id}",
        "settings": settings,
        "status": status,
        "value": value,
        "metrics": metrics,
        "failed_images": 0,
        "error": None,
        "seconds": 31.2,
        **more,
    }


def ledger(trials, axes=(B,), repeats=(SEED,), metric=MIOU, mode="max", published=None, title="Seed mIoU by B"):
    return {
        "format": 1,
        "name": "study",
        "title": title,
        "base": {"recipe": "quickstart", "directory": "base"},
        "metric": metric,
        "mode": mode,
        "axes": list(axes),
        "repeats": list(repeats),
        "published": published,
        "stages": ["refine", "seed"],
        "trials": trials,
    }


def repeated(values=((10, (55.0, 57.0)), (1, (50.0, 50.3, 50.6))), **more):
    """Return a ledger of batch sizes with several seeds each."""
    trials = [trial({B: size, SEED: seed}, value) for size, of in values for seed, value in enumerate(of)]
    return ledger(trials, **more)


def rows(study):
    return Sweep(study).rows


def shown(renderable, width=80):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(renderable)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    return text


def table_of(folder):
    """Return the cells of table.md, line by line, without the ruler."""
    lines = [line for line in (folder / "table.md").read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert all(set(cell) <= set(":-") for cell in cells[1])
    assert len({len(line) for line in cells}) == 1
    return [cells[0], *cells[2:]]


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def is_drawn(path):
    """Say whether a figure has something coloured on it: neither paper nor ink."""
    return (np.ptp(pixels(path), axis=2) > 60).sum() > 100


def write_seed(folder, trial, by_step=None, peak=0.3):
    directory = folder / trial["directory"]
    steps = [{"step": place + 1, "miou": miou, "threshold": 0.2} for place, miou in enumerate(by_step or [])]
    rib = {"miou": trial["value"], **({"by_step": steps} if by_step else {})}
    at = [0.1, 0.2, 0.3, 0.4]
    cam = {"miou": 40.0, "curve": {"thresholds": at, "miou": [40 - 50 * t * t for t in at]}}
    rib["curve"] = {"thresholds": at, "miou": [trial["value"] - 90 * (t - peak) ** 2 for t in at]}
    Run(directory).write_metrics("seed", SeedMetrics(cam=cam, rib=rib))


def write_log(folder, trial, losses):
    location = folder / trial["directory"] / "classifier" / "metrics.jsonl"
    location.parent.mkdir(parents=True)
    lines = [{"epoch": 0, "step": step, "loss": loss, "lr": 0.1} for step, loss in enumerate(losses)]
    lines.append({"epoch": 0, "step": len(losses) - 1, "validation": {"loss": 1.0}})
    location.write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"epoch": 1, "st')


# --- rows --------------------------------------------------------------------------------------------------------


def test_rows_average_the_repeats_in_the_order_of_the_trials():
    first, second = rows(repeated())
    assert (first.settings, second.settings) == ({B: 10}, {B: 1})
    assert (first.mean, first.summary.std, first.count) == (56.0, pytest.approx(math.sqrt(2)), 2)
    assert (second.mean, second.summary.std, second.count) == (
        pytest.approx(50.3),
        pytest.approx(0.3),
        3,
    )
    assert first.reason == second.reason == ""


@pytest.mark.parametrize(("mode", "best"), [("max", [True, False]), ("min", [False, True])])
def test_the_best_row_is_that_of_the_mode(mode, best):
    assert [row.is_best for row in rows(repeated(mode=mode))] == best


def test_without_a_difference_no_row_is_the_best():
    for trials in ([trial({B: 1}, 50.0)], [trial({B: 1}, 50.0), trial({B: 5}, 50.0), trial({B: 10}, None, "failed")]):
        assert not any(row.is_best for row in rows(ledger(trials)))


def test_rows_that_are_equally_good_are_all_the_best():
    values = ((1, (50.0,)), (5, (51.0,)), (10, (51.0,)))
    assert [row.is_best for row in rows(repeated(values))] == [False, True, True]


def test_only_finished_trials_count():
    found = rows(
        ledger(
            [
                trial({B: 1, SEED: 0}, 50.0, interval=[49.0, 51.5]),
                trial({B: 1, SEED: 1}, None, "failed", error="no memory"),
                trial({B: 5, SEED: 0}, None, "failed", error="no memory"),
                trial({B: 5, SEED: 1}, None, "failed", error="no disk"),
                trial({B: 10, SEED: 0}, -1e6, "diverged"),
                trial({B: 15, SEED: 0}, 99.0, "stopped"),
                trial({B: 20, SEED: 0}, None, "waiting"),
                trial({B: 20, SEED: 1}, None, "running"),
                trial({B: 25, SEED: 0}, None),
                trial({B: 30, SEED: 0}, 49.0, failed_images=2),
            ]
        )
    )
    assert [row.mean for row in found] == [50.0, None, None, None, None, None, 49.0]
    assert [row.reason for row in found] == [
        "1 of 2 failed: no memory",
        "failed: no memory; no disk",
        "diverged at -1000000.0",
        "stopped at 99.0",
        "1 of 2 waiting, 1 of 2 running",
        "no value",
        "2 failed images",
    ]
    assert found[0].statuses == {"finished": 1, "failed": 1}
    assert found[0].interval == (49.0, 51.5)
    assert [row.is_best for row in found] == [True, *[False] * 6]


def test_repeats_have_a_deviation_and_no_interval():
    trials = [trial({B: 1, SEED: seed}, 50.0 + seed, interval=[49.0, 52.0]) for seed in range(2)]
    (row,) = rows(ledger(trials))
    assert row.interval is None
    assert row.spread == (pytest.approx(50.5 - math.sqrt(0.5)), pytest.approx(50.5 + math.sqrt(0.5)))


def test_the_published_value_stands_where_the_axis_has_its_column():
    values = ((5, (50.0,)), (7, (50.0,)), (30.0, (50.0,)))
    assert [row.published for row in rows(repeated(values, published=S1))] == [55.5, None, 56.7]
    assert [row.published for row in rows(repeated(values))] == [None] * 3


def test_settings_of_any_kind_make_rows():
    values = [[320, 640], None, True, "x" * 300, 1, 1.5]
    trials = [trial({"data.note": value, SEED: seed}, 50.0) for value in values for seed in (0, 1)]
    found = rows(ledger(trials, axes=["data.note"]))
    assert [row.settings["data.note"] for row in found] == values
    assert [row.count for row in found] == [2] * 6


def test_without_trials_there_are_no_rows():
    assert rows(ledger([])) == []


# --- files -------------------------------------------------------------------------------------------------------


def test_the_csv_has_every_trial_and_setting(tmp_path):
    trials = [
        trial({B: 5, "refine.resize_long": [320, 640], LR: 8e-6}, 56.125, interval=[55.0, 57.5]),
        trial({B: 10, "data.note": 'a "b", c\nd'}, None, "failed", error="bad | worse", failed_images=3, seconds=None),
        trial({B: None}, None, "waiting"),
    ]
    write_results(ledger(trials), tmp_path)
    with open(tmp_path / "results.csv", newline="") as file:
        first, second, third = csv.DictReader(file)
    assert list(first) == [
        "id",
        *[B, "refine.resize_long", LR, "data.note"],
        *["status", MIOU, "interval_low", "interval_high", "seconds", "failed_images", "error"],
    ]
    assert (first[B], first["refine.resize_long"], float(first[LR])) == ("5", "[320, 640]", 8e-6)
    assert (float(first[MIOU]), first["interval_low"], first["interval_high"]) == (56.125, "55.0", "57.5")
    assert (second["status"], second["error"], second["failed_images"]) == ("failed", "bad | worse", "3")
    assert (second["data.note"], second[MIOU], second["interval_low"], second["seconds"]) == ('a "b", c\nd', "", "", "")
    assert (third[B], third[LR]) == ("null", "")


def test_the_table_has_deviations_the_best_in_bold_and_the_published_column(tmp_path):
    write_results(repeated(published=S1), tmp_path)
    assert table_of(tmp_path) == [
        ["batch_size", "mIoU, %", "n", "published"],
        ["10", "**56.0 ± 1.41**", "2", "55.8"],
        ["1", "50.3 ± 0.30", "3", "55.3"],
    ]
    text = (tmp_path / "table.md").read_text()
    assert text.startswith("### Seed mIoU by B\n")
    assert "sample standard deviation over 2 to 3 repeats (refine.seed)" in text
    assert "published: table S1, seed mIoU by batch size, VOC 2012 train" in text
    assert "bootstrap" not in text
    assert "higher is better" in text


def test_single_runs_have_the_interval_and_no_deviation(tmp_path):
    trials = [trial({B: 1}, 50.0, interval=[48.76, 51.0]), trial({B: 5}, 52.0, interval=[51.0, 53.0])]
    write_results(ledger(trials, repeats=[]), tmp_path)
    assert table_of(tmp_path)[1] == ["1", "50.0", "1", "48.8–51.0"]
    text = (tmp_path / "table.md").read_text()
    assert "interval: 95 % bootstrap over images" in text
    assert "sample standard deviation" not in text


def test_a_published_number_stands_beneath_with_its_own_decimals(tmp_path):
    trials = [trial({SEED: seed}, value) for seed, value in enumerate((56.31, 56.35))]
    study = ledger(trials, axes=[], published={"table": None, "value": 56.44, "std": 0.05, "text": None})
    write_results(study, tmp_path)
    assert table_of(tmp_path) == [
        ["", "mIoU, %", "n"],
        ["this sweep", "56.33 ± 0.03", "2"],
        ["published", "56.44 ± 0.05", ""],
    ]
    assert [line.split() for line in shown(results_table(study)).splitlines() if "published" in line] == [
        ["published", "56.44", "±", "0.05"]
    ]


def test_text_from_data_is_neither_markdown_nor_markup(tmp_path):
    error = "bad | [red]thing[/red] <img src=x> *bold* _leading\n`code`"
    trials = [trial({LOSS: "a|b", SEED: 0}, None, "failed", error=error), trial({LOSS: "[bold]c", SEED: 0}, 1.0)]
    study = ledger(trials, axes=[LOSS], title="Title | [red]x[/red]")
    write_results(study, tmp_path)
    _, first, second = table_of(tmp_path)
    assert first[0] == r"a\|b"
    assert first[-1] == (r"failed: bad \| \[red\]thing\[/red\] &lt;img src=x&gt; \*bold\* \_leading \`code\`")
    assert second[0] == r"\[bold\]c"
    text = shown(results_table(study))
    assert "[bold]c" in text
    assert "Title | [red]x[/red]" in text
    assert "[red]thing[/red]" in text


def test_other_metrics_have_four_digits_and_keys_that_end_alike_stay_whole(tmp_path):
    keys = ["refine.lr", "classifier.lr"]
    trials = [
        trial({keys[0]: 8e-6, keys[1]: 0.01, SEED: seed}, value, metric="classifier.loss")
        for seed, value in enumerate((0.22742, 0.22751))
    ]
    write_results(ledger(trials, axes=keys, metric="classifier.loss", mode="min"), tmp_path)
    assert table_of(tmp_path) == [["refine.lr", "classifier.lr", "loss", "n"], ["8e-6", "0.01", "0.2275 ± 6.4e-5", "2"]]
    assert "loss: classifier.loss; lower is better" in (tmp_path / "table.md").read_text()


def test_without_a_value_there_are_a_table_and_no_plot(tmp_path):
    trials = [trial({"data.note": value}, None, "waiting") for value in ([1, 2], None, "x" * 300)]
    study = ledger(trials, axes=["data.note"])
    assert [path.name for path in write_results(study, tmp_path)] == ["results.csv", "table.md"]
    assert [line[0] for line in table_of(tmp_path)[1:3]] == [r"\[1, 2\]", "null"]
    assert shown(results_table(study)).count("waiting") == 3
    assert "x" * 300 in (tmp_path / "results.csv").read_text()
    write_results(ledger([]), tmp_path / "none")
    assert len(table_of(tmp_path / "none")) == 1


# --- on a terminal -----------------------------------------------------------------------------------------------


def test_the_terminal_shows_what_the_markdown_shows(tmp_path):
    study = repeated(published=S1)
    text = shown(results_table(study))
    assert [line.split() for line in text.splitlines()[3:5]] == [
        ["10", "56.0", "±", "1.41", "2", "55.8"],
        ["1", "50.3", "±", "0.30", "3", "55.3"],
    ]
    assert "bold: best, batch_size 10" in text


def test_many_axes_and_reasons_fit_80_columns():
    keys = [LR, "refine.pooling_threshold", B]
    trials = [
        trial({LR: 1.23456e-5, keys[1]: 0.123456, B: 5}, 55.0, "stopped"),
        trial({LR: 8e-6, keys[1]: 0.4, B: 20}, 56.0, interval=[54.0, 57.0]),
        trial({LR: 1e-3, keys[1]: 0.4, B: 20}, None, "failed", error="CUDA is out of memory, as so often. " * 9),
    ]
    text = shown(results_table(ledger(trials, axes=keys, repeats=[])))
    best = next(line.split() for line in text.splitlines() if line.strip().startswith("8e-6"))
    assert best == ["8e-6", "0.4", "20", "56.0", "1", "54.0–57.0"]
    assert "1.235e-5" in text
    assert "on fewer images" in text


def test_of_many_rows_the_terminal_shows_the_best(tmp_path):
    trials = [trial({B: size}, 40.0 + size) for size in range(1, 41)]
    text = shown(results_table(ledger(trials, mode="max")))
    assert "10 of 40 rows, the best" in text
    assert [line.split()[0] for line in text.splitlines()[3:13]] == [str(size) for size in range(40, 30, -1)]
    lowest = shown(results_table(ledger(trials, mode="min")))
    assert [line.split()[0] for line in lowest.splitlines()[3:13]] == [str(size) for size in range(1, 11)]


# --- plots -------------------------------------------------------------------------------------------------------


def grid(first, second, **more):
    trials = [
        trial({first[0]: x, second[0]: y}, 50.0 + place + 3 * other, interval=[49.0 + place, 58.0 + place])
        for place, x in enumerate(first[1])
        for other, y in enumerate(second[1])
    ]
    return ledger(trials, axes=[first[0], second[0]], repeats=[], **more)


def drawn_at_random(count, axes):
    rng = np.random.default_rng(0)
    trials = [trial({axis: float(10 ** rng.uniform(-6, -3)) for axis in axes}, 50 + place) for place in range(count)]
    trials[0].update(status="failed", value=None, error="x")
    trials[1].update(status="stopped")
    return ledger(trials, axes=axes, repeats=[])


STUDIES = {
    "one numeric axis": repeated(),
    "published nearby": repeated(published=S1),
    "published far away": repeated(((1, (20.0, 20.2)), (30, (22.0, 22.1))), published=S1),
    "one value": repeated(((1, (50.0,)),), published=S1),
    "decades and a failure": ledger(
        [*(trial({LR: lr}, 50.0) for lr in (1e-6, 1e-5, 1e-4)), trial({LR: 1e-3}, None, "diverged")], axes=[LR]
    ),
    "one axis of words": ledger(
        [
            *(trial({LOSS: loss, SEED: seed}, 50.0 + seed) for loss in ("rib", "$ _", "_hidden") for seed in (0, 1)),
            trial({LOSS: "x" * 99, SEED: 0}, None, "failed", error="$ and $"),
        ],
        axes=[LOSS],
    ),
    "lists": ledger([trial({"refine.scales": value}, 50.0) for value in ([1.0], [1.0, 0.5], None)], ["refine.scales"]),
    "very many words": ledger([trial({LOSS: f"loss {place}"}, 50.0 + place) for place in range(60)], [LOSS]),
    "two numeric axes": grid((LR, [1e-6, 1e-5, 1e-4]), (B, [1, 5, 10])),
    "numbers and words": grid(("refine.pooling", ["gndrp", "gap"]), (B, [1, 5, 10])),
    "words and words": grid(("refine.pooling", ["gndrp", "gap"]), (LOSS, ["rib", "bce_tanh"])),
    "two random axes": drawn_at_random(12, [LR, "refine.pooling_threshold"]),
    "three random axes": drawn_at_random(12, [LR, "refine.pooling_threshold", "refine.stop_threshold"]),
    "repeats": ledger(
        [trial({SEED: seed}, 56.0 + seed / 10) for seed in range(5)],
        axes=[],
        published={"table": None, "value": 56.44, "std": 0.05, "text": "As in the appendix, 50 $ a run."},
    ),
    "a single trial": ledger([trial({}, 56.0, interval=[55.0, 57.0])], axes=[], repeats=[]),
    "a loss without a log": ledger([trial({LR: lr}, lr, metric="classifier.loss") for lr in (1.0, 2.0)], [LR]),
}


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("name", STUDIES)
def test_every_kind_of_study_has_a_plot(name, tmp_path):
    written = write_results(STUDIES[name], tmp_path)
    assert [path.name for path in written] == ["results.csv", "table.md", "plot.png"]
    assert is_drawn(tmp_path / "plot.png")
    assert not list(tmp_path.glob(".writing-*"))


def test_the_published_curve_changes_the_plot(tmp_path):
    write_results(repeated(), tmp_path / "without")
    write_results(repeated(published=S1), tmp_path / "with")
    blue = [
        (np.abs(pixels(tmp_path / name / "plot.png") - (0x00, 0x72, 0xB2)).sum(axis=2) < 30).sum()
        for name in ("without", "with")
    ]
    assert blue[0] == 0
    assert blue[1] > 300


def test_steps_and_thresholds_are_drawn_where_the_trials_have_them(tmp_path):
    study = repeated(((1, (50.0, 51.0)), (5, (52.0, 53.0))))
    for number, one in enumerate(study["trials"]):
        write_seed(tmp_path, one, [40.0, 45.0 + number, one["value"]])
    names = [path.name for path in write_results(study, tmp_path)]
    assert names == ["results.csv", "table.md", "plot.png", "steps.png", "thresholds.png"]
    assert is_drawn(tmp_path / "steps.png")
    assert is_drawn(tmp_path / "thresholds.png")


def test_of_many_curves_the_best_one_stands_out(tmp_path):
    study = ledger([trial({B: size}, 40.0 + size) for size in range(1, 13)], repeats=[])
    for one in study["trials"]:
        write_seed(tmp_path, one)
    assert [path.name for path in write_results(study, tmp_path)][2:] == ["plot.png", "thresholds.png"]
    assert is_drawn(tmp_path / "thresholds.png")


def test_activations_are_drawn_over_the_steps(tmp_path):
    trials = [trial({LOSS: loss}, value) for loss, value in (("rib", 56.0), ("bce_tanh", 45.0), ("bce_sigmoid", 47.0))]
    study = ledger(trials, axes=[LOSS], repeats=[])
    write_results(study, tmp_path / "values")
    for one in trials:
        write_seed(tmp_path, one, [40.0, 44.0, one["value"]])
    assert [path.name for path in write_results(study, tmp_path)][2:] == ["plot.png", "thresholds.png"]
    assert is_drawn(tmp_path / "plot.png")
    assert pixels(tmp_path / "plot.png").shape != pixels(tmp_path / "values" / "plot.png").shape


def test_losses_are_drawn_until_they_diverge(tmp_path):
    metric = "classifier.loss"
    trials = [
        trial({"classifier.lr": 0.1}, None, "diverged", metric=metric),
        trial({"classifier.lr": 0.001}, -3.0, metric=metric),
        trial({"classifier.lr": 1.0}, None, "diverged", metric=metric),
        trial({"classifier.lr": 2.0}, None, "failed", metric=metric, error="x"),
    ]
    study = ledger(trials, axes=["classifier.lr"], repeats=[], metric=metric, mode="min")
    write_log(tmp_path, trials[0], [0.7, -5.0, -4e3, -2e7, None])
    write_log(tmp_path, trials[1], [0.7, 0.5, -0.2, -3.0])
    write_log(tmp_path, trials[2], [None])
    names = [path.name for path in write_results(study, tmp_path)]
    assert names == ["results.csv", "table.md", "plot.png"]
    assert is_drawn(tmp_path / "plot.png")
    assert [line[-1] for line in table_of(tmp_path)[1:]] == ["diverged", "", "diverged", "failed: x"]


# --- methods beside each other -----------------------------------------------------------------------------------


def test_a_metric_may_name_a_setting_of_the_trial():
    metric, values = "seed.{method}.miou", {"advcam": 48.0, "rib": 56.0}
    trials = [
        trial({"refine.method": method}, value, metric=f"seed.{method}.miou", interval=[value - 1, value + 1])
        for method, value in values.items()
    ]
    advcam, rib = rows(ledger(trials, ["refine.method"], [], metric))
    assert (advcam.interval, rib.interval) == ((47.0, 49.0), (55.0, 57.0))
    assert rib.is_best
    assert metric_label(metric) == "seed mIoU, %"


def test_the_maps_of_a_metric_are_called_as_everywhere():
    assert metric_label("seed.rib.miou") == "seed mIoU of RIB, %"
    assert metric_label("seed.cam.miou") == "seed mIoU of plain CAM, %"
    assert metric_label("seed.occlusion.miou") == "seed mIoU of occlusion, %"
    assert metric_label("evaluate.before_retraining.miou") == "evaluate before retraining mIoU, %"


def test_curves_are_those_of_the_maps_that_the_metric_is_about(tmp_path):
    trials = []
    for method, best in (("advcam", 48.0), ("rib", 56.0)):
        found = trial({"refine.method": method}, best, metric=f"seed.{method}.miou")
        judged = {"miou": best, "curve": {"thresholds": [0.1, 0.2], "miou": [best - 1, best]}}
        with Run.open(tmp_path / found["directory"]) as run:
            run.write_metrics("seed", SeedMetrics(**{"cam": {"miou": 30.0}, method: judged}))
        trials.append(found)
    study = ledger(trials, ["refine.method"], [], "seed.{method}.miou")
    curves = threshold_curves(Sweep(study, tmp_path))
    assert [curve.mean.tolist() for curve in curves.values()] == [[47.0, 48.0], [55.0, 56.0]]
