"""Charts: what is drawn, how it looks on a page, and what is refused."""

import re

import numpy as np
import pytest
from defusedxml.ElementTree import fromstring
from PIL import Image

from ribray.report.charts import (
    MOST_POINTS,
    RefinementLosses,
    comparison_chart,
    curves_of,
    loss_chart,
    refinement_charts,
    steps_chart,
    threshold_chart,
)
from ribray.report.comparison import comparisons
from ribray.report.plots import LOOKS, Chart, Line, to_svg, write_png
from ribray.runs.metrics import RunMetrics, SeedJudgement
from ribray.stages import STAGES
from tests.pages import log, metrics

STEEP = Chart("steep", "x", "y", [Line("a", [0, 1], [1, 2])])


def test_curves_of_a_run_have_their_best_point_marked_plain_cam_first():
    seed = RunMetrics(**metrics()).seed
    chart = threshold_chart(curves_of({"rib": seed.rib, "cam": seed.cam}))
    assert [line.name.split(",")[0] for line in chart.lines] == ["plain CAM", "RIB"]
    for line in chart.lines:
        assert line.y[line.best] == max(line.y)
        assert f"best {max(line.y):.1f} at {line.x[line.best]:.2f}" in line.name


def test_the_same_maps_look_the_same_in_every_chart():
    both = {"plain CAM": ([0.1], [30.0]), "RIB": ([0.1], [50.0])}
    assert [line.look for line in threshold_chart(both).lines] == [*LOOKS[:2]]
    assert [line.look for line in threshold_chart({"RIB": ([0.1], [50.0])}).lines] == [LOOKS[1]]
    lines = loss_chart({"RIB": log(5, 1.0, 0.5), "other": log(5, 1.0, 0.5)}, "").lines
    assert [line.look for line in lines] == [LOOKS[1], LOOKS[0]]


def test_steps_are_drawn_over_the_plain_cam_where_they_were_kept():
    chart = steps_chart(RunMetrics(**metrics()).seed.maps)
    plain, rib = chart.lines
    assert list(plain.y) == [36.0, 36.0]
    assert list(rib.x) == list(range(1, 11))
    assert steps_chart({"rib": SeedJudgement(miou=50.0)}) is None
    assert steps_chart({}) is None


def test_long_logs_are_drawn_as_stretches_with_their_lowest_and_highest():
    (line,) = loss_chart({"RIB": log(6000, 2.0, 1.0)}, "IRN").lines
    assert len(line.y) == MOST_POINTS
    low, high = line.band
    assert (np.array(low) <= line.y).all()
    assert (line.y <= np.array(high)).all()
    assert high[0] == 2.0
    (short,) = loss_chart({"RIB": log(50, 2.0, 1.0)}, "IRN").lines
    assert len(short.y) == 50
    assert short.band is None


def test_losses_that_fall_far_are_logarithmic_and_negative_ones_never():
    assert loss_chart({"a": log(50, 12.0, 0.5)}, "").is_logarithmic
    assert not loss_chart({"a": log(50, 2.0, 0.5)}, "").is_logarithmic
    falling = [{"step": step, "loss": 10.0 - 30 * step} for step in range(10)]
    assert not loss_chart({"a": falling}, "").is_logarithmic


def test_losses_of_validations_are_points_of_their_own():
    chart = loss_chart({"training": log(10, 1.0, 0.5, validation=True)}, "Classifier", validation="held out")
    assert [line.name for line in chart.lines] == ["training", "held out"]
    assert list(chart.lines[1].y) == [0.5]
    assert len(loss_chart({"training": log(10, 1.0, 0.5, validation=True)}, "Classifier").lines) == 1


def test_a_loss_that_was_not_finite_is_left_out():
    lines = [{"step": 0, "loss": 1.0}, {"step": 1, "loss": None}]
    assert list(loss_chart({"a": lines}, "").lines[0].y) == [1.0]
    assert not loss_chart({"a": lines[1:]}, "").lines


def test_the_stop_threshold_is_drawn_where_it_is_in_sight():
    steps = np.arange(1, 10)[:, None] * np.array([[-12.0, -10.0, -8.0]])
    losses = RefinementLosses({"losses": steps, "target_losses": -steps}, 200)
    loss, targets = refinement_charts(losses, "RIB", 100.0)
    assert [line.name for line in targets.lines] == ["median over images", "stop threshold 100"]
    assert [loss.y_label, targets.y_label] == ["L_RIB", "summed logits"]
    assert list(loss.lines[0].y) == steps[:, 1].tolist()
    assert len(refinement_charts(losses, "RIB", 600.0)[1].lines) == 1


def test_further_numbers_of_a_method_are_charts_by_their_own_name():
    distances = np.ones((4, 3))
    (chart,) = refinement_charts(RefinementLosses({"moved_pixels": distances}, 3), "mine", whose=", mine")
    assert (chart.title, chart.y_label) == ("Moved pixels, mine", "moved pixels")


def test_all_methods_grow_in_one_chart():
    found = metrics()["seed"]
    growth = [{"step": step, "miou": 30.0 + step, "threshold": 0.2} for step in range(1, 28)]
    seed = RunMetrics(seed={**found, "advcam": {**found["cam"], "by_step": growth}}).seed.maps
    plain, advcam, rib = steps_chart(seed).lines
    assert [plain.x[-1], len(advcam.x), len(rib.x)] == [27, 27, 10]
    assert [line.name.split(",")[0] for line in (plain, advcam, rib)] == ["plain CAM", "AdvCAM", "RIB"]
    assert len({line.look for line in (plain, advcam, rib)}) == 3


def test_whatever_was_judged_has_a_dot_and_an_interval_each():
    found = comparisons(RunMetrics(**metrics()), STAGES, "rib")
    chart = comparison_chart(found)
    assert [place.split(",")[0] for place in chart.places][-2:] == ["segmentation", "re-trained"]
    assert chart.series["RIB"][1][0] == (56.0, [54.75, 57.5])
    without = metrics()
    del without["variants"], without["seed"]["cam"]["miou_interval"]
    series = comparison_chart(comparisons(RunMetrics(**without), STAGES, "rib")).series
    assert series["plain CAM"][1][0] == (36.0, None)
    assert series["plain CAM"][1][1:] == [None] * 5


def test_charts_stand_beside_and_below_each_other(tmp_path):
    heights = []
    for count in (1, 2, 3):
        write_png([STEEP] * count, tmp_path / "charts.png")
        with Image.open(tmp_path / "charts.png") as image:
            heights.append(image.size)
    assert heights == [(960, 555), (1440, 465), (1440, 930)]
    with pytest.raises(ValueError, match="at least one chart"):
        write_png([], tmp_path / "none.png")


def test_an_svg_takes_colours_and_font_from_its_page():
    svg = to_svg(threshold_chart({"plain CAM": ([0.1, 0.2], [30, 31]), "RIB": ([0.1, 0.2], [50, 51])}), "seed0")
    for variable in ("--ink", "--faint", "--grid", "--paper", "--line-0", "--line-1"):
        assert f"var({variable})" in svg
    assert not re.search(r"#[0-9a-f]{6}\b", svg)
    assert "DejaVu" not in svg
    assert "<style" not in svg
    assert "RIB, best 51.0 at 0.20" in svg  # text stays text


def test_ids_of_an_svg_carry_its_name_and_lead_somewhere():
    svg = to_svg(STEEP, "steep1")
    ids = re.findall(r'\bid="([^"]+)"', svg)
    assert ids
    assert all(id.startswith("steep1-") for id in ids)
    assert set(re.findall(r'href="#([^"]+)"', svg)) | set(re.findall(r"url\(#([^)]+)\)", svg)) <= set(ids)


def test_names_from_data_are_escaped_in_an_svg():
    name = '</svg><script>alert("1")</script> id="x" url(#y)'
    svg = to_svg(Chart(name, "x", "y", [Line(name, [0, 1], [1, 2])]), "chart")
    assert "<script" not in svg
    root = fromstring(svg)
    assert name in ["".join(each.itertext()) for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert root.attrib["aria-label"] == name


def test_the_same_chart_has_the_same_bytes(tmp_path):
    assert to_svg(STEEP, "a") == to_svg(STEEP, "a")
    write_png([STEEP], tmp_path / "a.png")
    write_png([STEEP], tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
