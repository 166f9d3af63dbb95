"""Tables as they appear on a terminal of 80 columns."""

from types import SimpleNamespace

import pytest
from rich.console import Console

from ribray.report.summaries import run_summary, status_table
from ribray.report.tables import seed_table
from ribray.runs.metrics import RunMetrics, SeedJudgement
from ribray.stages import STAGES


def shown(renderable, width=80):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(renderable)
    return console.export_text()


def summary(metrics, out, **more):
    return run_summary(RunMetrics(**metrics), STAGES, out, **more)


def table_of(seed, **more):
    return seed_table({name: SeedJudgement(**numbers) for name, numbers in seed.items()}, **more)


def line_of(text, start):
    """Return the words of the one line that starts with `start`, after it."""
    (line,) = [line for line in text.splitlines() if line.strip().startswith(start)]
    return line.strip().removeprefix(start).split()


def method(per_class, threshold, images=10, failed=0):
    known = [value for value in per_class.values() if value is not None]
    return {
        "miou": sum(known) / len(known),
        "threshold": threshold,
        "per_class": per_class,
        "images": images,
        "failed": failed,
    }


SMALL = {
    "rib": method({"background": 80.04, "cat": 50.0, "dog": None}, 0.2, images=1463, failed=1),
    "cam": method({"background": 70.0, "cat": 52.26, "dog": 10.0}, 0.05, images=1464),
}


def test_plain_cam_comes_before_rib_with_the_gain_beside_them():
    text = shown(table_of(SMALL))
    assert line_of(text, "class") == ["plain", "CAM", "RIB", "gain"]
    assert line_of(text, "background") == ["70.0", "80.0", "+10.0"]
    assert line_of(text, "cat") == ["52.3", "50.0", "-2.3"]
    assert line_of(text, "dog") == ["10.0", "–", "–"]
    assert line_of(text, "mean IoU") == ["44.1", "65.0", "+20.9"]
    assert line_of(text, "best threshold") == ["0.05", "0.20"]
    assert line_of(text, "images") == ["1,464", "1,463"]
    assert line_of(text, "failed") == ["0", "1"]


def test_the_interval_stands_below_the_mean_where_it_is_known():
    assert "interval" not in shown(table_of(SMALL))
    seed = {**SMALL, "rib": {**SMALL["rib"], "miou_interval": [56.04, 57.1]}}
    assert line_of(shown(table_of(seed)), "95 % interval") == ["–", "56.0", "to", "57.1"]
    seed["cam"] = {**SMALL["cam"], "miou_interval": None}
    assert line_of(shown(table_of(seed)), "95 % interval") == ["–", "56.0", "to", "57.1"]


def test_one_method_alone_has_no_gain():
    text = shown(table_of({"cam": SMALL["cam"]}))
    assert line_of(text, "class") == ["plain", "CAM"]
    assert line_of(text, "background") == ["70.0"]


@pytest.fixture
def many():
    names = [f"class{number:02d}" for number in range(80)]
    cam = method(dict.fromkeys(names, 30.0), 0.2)
    return {"cam": cam, "rib": method({name: 20.0 + number / 4 for number, name in enumerate(names)}, 0.25)}


def test_of_many_classes_those_with_the_largest_and_smallest_gain_are_shown(many):
    text = shown(table_of(many))
    listed = [
        line.split()[0] for line in text.splitlines() if line.strip().startswith("class") and line.split()[0] != "class"
    ]
    expected = [*range(79, 74, -1), *range(4, -1, -1)]
    assert listed == [f"class{number:02d}" for number in expected]
    assert "10 of 80 classes" in text
    assert line_of(text, "mean IoU") == ["30.0", "29.9", "-0.1"]


def test_all_classes_can_be_asked_for(many):
    text = shown(table_of(many, all_classes=True))
    assert all(f"class{number:02d}" in text for number in range(80))
    assert "of 80 classes" not in text


@pytest.mark.parametrize("width", [60, 80])
def test_no_line_is_wider_than_the_terminal_and_no_cell_is_cut(many, width):
    for numbers in many.values():
        numbers["miou_interval"] = [99.96, 100.0]
    text = shown(table_of(many), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text


def test_class_names_are_never_read_as_markup():
    assert "[bold]cat" in shown(table_of({"rib": method({"[bold]cat": 1.0}, 0.2)}))


METRICS = {
    "classifier": {"map": 94.1, "loss": 0.1},
    "seed": SMALL,
    "timing": {
        "classifier": {"seconds": 31.2},
        "refine": {"seconds": 3905.0, "images_per_second": 0.41, "images": 1464, "failed": 1},
        "seed": {"seconds": 185.4, "images_per_second": 300.2},
    },
}


def test_the_summary_has_a_line_per_stage_and_the_place():
    text = shown(summary(METRICS, "runs/first"))
    assert line_of(text, "classifier") == ["mAP", "94.1", "–", "–", "31.2", "s", "–"]
    assert line_of(text, "refine") == ["–", "1,464", "1", "1", "h", "05", "min", "0.4"]
    assert line_of(text, "seed") == [
        "mIoU",
        "44.1",
        "→",
        "65.0",
        "1,463",
        "1",
        "3",
        "min",
        "05",
        "s",
        "300.2",
    ]
    assert line_of(text, "run") == ["runs/first"]
    assert "failed," not in text


def failure(id: str, error: str, stage: str = "refine") -> dict[str, str]:
    return {"id": id, "stage": stage, "error": error}


def test_the_summary_ends_with_one_failure_of_each_kind_and_how_many_there_are():
    """What differs between images of a kind are ids, paths that hold them, and numbers."""
    failures = [
        failure("b", "The image [x] is truncated (12 bytes)."),
        failure("c", "The image [x] is truncated (7 bytes)."),
        *(failure(f"a{n}", f"/data/x/a{n}.jpg does not exist.") for n in range(9)),
        failure("b", "The image [x] is truncated (12 bytes).", "classifier"),
    ]
    lines = [" ".join(line.split()) for line in shown(summary(METRICS, "runs/first", failures=failures)).splitlines()]
    start = lines.index("12 failed")
    assert lines[start + 1 : start + 6] == [
        "a0 (refine) /data/x/a0.jpg does not exist.",
        "and 8 more of the kind: a1, a2, a3, a4, a5 and 3 more",
        "b (refine) The image [x] is truncated (12 bytes).",
        "and 1 more of the kind: c",
        "b (classifier) The image [x] is truncated (12 bytes).",
    ]


def test_of_many_kinds_of_failures_some_are_shown():
    failures = [failure("a", f"It is {'very ' * n}bad.") for n in range(7)]
    assert "and 2 more kinds, see failures.jsonl" in shown(summary(METRICS, "runs/first", failures=failures))


def test_a_run_without_any_finished_stage_shows_no_empty_table():
    text = shown(summary({"timing": {}}, "runs/first", failures=[failure("a", "It is bad.")]))
    assert "images/s" not in text
    assert "a (refine) It is bad." in text


def test_names_that_are_no_unicode_can_be_shown():
    text = shown(summary({"timing": {}}, "runs/first", failures=[failure("a\udcff", "a\udcff.jpg is bad.")]))
    assert "a\\udcff (refine) a\\udcff.jpg is bad." in text


@pytest.mark.parametrize(("seconds", "said"), [(8.44, "8.4 s"), (59.97, "1 min 00 s"), (3599.6, "1 h 00 min")])
def test_times_are_said_as_people_say_them(seconds, said):
    assert said in shown(summary({"timing": {"seed": {"seconds": seconds}}}, "runs/first"))


CHAIN = tuple(STAGES)
MASKS = {
    "confident": {"images": 400, "failed": 0, "seed_crf": {"miou": 59.13}},
    "irn": {"loss": 0.523, "iterations": 250, "images": 400, "failed": 0},
    "pseudo": {"miou": 68.0, "images": 398, "failed": 2, "walk": {"miou": 66.0}},
    "segmentation": {"loss": 1.2345, "iterations": 30_000, "images": 398, "failed": 0},
    "evaluate": {
        "miou": 71.04,
        "per_class": {"cat": 71.04},
        "images": 200,
        "failed": 0,
        "before_retraining": {"miou": 70.0, "per_class": {"cat": 70.0}},
    },
    "timing": {stage: {"seconds": 9.0, "images": 1, "images_per_second": 5.0} for stage in sorted(CHAIN[3:])},
}


def test_every_stage_of_the_masks_has_its_own_result():
    text = shown(summary(MASKS, "runs/first"))
    assert line_of(text, "confident") == ["mIoU", "59.1", "400", "0", "9.0", "s", "5.0"]
    assert line_of(text, "irn") == ["loss", "0.52,", "250", "steps", "400", "0", "9.0", "s", "5.0"]
    assert line_of(text, "pseudo") == ["mIoU", "68.0", "398", "2", "9.0", "s", "5.0"]
    assert line_of(text, "segmentation")[:4] == ["loss", "1.23,", "30,000", "steps"]
    assert line_of(text, "evaluate") == ["mIoU", "70.0", "→", "71.0", "200", "0", "9.0", "s", "5.0"]


def test_stages_stand_in_the_order_of_the_chain_and_variants_below():
    unordered = {**METRICS, "timing": dict(sorted(METRICS["timing"].items())), "variants": {"cam": MASKS}}
    text = shown(summary(unordered, "runs/first"))
    first_words = [line.split("  ")[0] for line in text.splitlines()]
    stages = [*CHAIN[:3], *(f"cam: {stage}" for stage in CHAIN[3:])]
    assert [words for words in first_words if words.removeprefix("cam: ") in CHAIN] == stages


def test_a_stage_outside_the_chain_comes_last():
    text = shown(summary({"timing": {"extra": {}, "seed": {}}}, "runs/first"))
    assert text.index("seed") < text.index("extra")


def test_the_status_names_the_unit_and_the_variant_of_a_stage():
    status = {"stage": "irn", "total": 250, "done": 100, "unit": "steps", "failed": 0, "result": "–"}
    done = {**status, "done": 250, "result": "loss 0.52"}
    text = shown(status_table([SimpleNamespace(**done, variant=None), SimpleNamespace(**status, variant="cam")]))
    assert line_of(text, "irn")[:6] == ["250", "of", "250", "steps", "100", "%"]
    assert line_of(text, "cam: irn") == ["100", "of", "250", "steps", "40", "%", "0", "–"]
