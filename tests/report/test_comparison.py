"""Several kinds of maps beside each other: in what order, with which gains, and how far these may be chance."""

import numpy as np
import pytest
from rich.console import Console

from ribray.report.comparison import comparisons, ordered, paired_interval
from ribray.report.tables import chain_table, evaluation_tables, paper_table, seed_table
from ribray.runs.metrics import RunMetrics, SeedJudgement
from ribray.stages import STAGES

HARD = np.random.default_rng(0).normal(0, 5, 400)
"""How hard the images of each replicate are, for all maps alike."""


def numbers(miou, **more):
    per_class = {"background": miou + 20, "cat": miou - 20}
    interval, replicates = [miou - 9, miou + 9], (miou + HARD).tolist()
    return {
        "miou": miou,
        "miou_interval": interval,
        "miou_replicates": replicates,
        "per_class": per_class,
        "images": 40,
        "failed": 0,
        **more,
    }


def of_three(**more):
    seeds = {"rib": numbers(50.0), "occlusion": numbers(44.0), "cam": numbers(40.0)}
    chain = {"confident": {"seed_crf": numbers(60.0)}, "pseudo": numbers(66.0, walk=numbers(64.0))}
    other = {"pseudo": numbers(61.0, walk=numbers(60.0))}
    return RunMetrics(**{"seed": seeds, **chain, "variants": {"occlusion": other}, **more})


def shown(renderable, width=80):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(renderable)
    return console.export_text()


def row(table, start):
    """Return the cells of a row, and the notes below them."""
    (found,) = [line for group in table.groups for line in group if line[0].text == start]
    return [cell.text for cell in found[1:]], [cell.note for cell in found[1:]]


def test_plain_cam_comes_first_and_the_others_by_name():
    assert ordered({"rib": 1, "occlusion": 2, "cam": 3}) == ["cam", "occlusion", "rib"]
    assert ordered(["b", "a", "b"]) == ["a", "b"]


def test_whatever_was_judged_stands_beside_what_other_maps_came_to():
    found = {each.label: each.numbers for each in comparisons(of_three(), STAGES, "rib")}
    assert {maps: each.miou for maps, each in found["seed, best threshold"].items()} == {
        "cam": 40,
        "occlusion": 44,
        "rib": 50,
    }
    assert {maps: each.miou for maps, each in found["pseudo masks"].items()} == {"occlusion": 61, "rib": 66}
    assert list(found["seed + CRF, confident labels"]) == ["rib"]


def test_what_makes_images_hard_for_both_does_not_widen_the_interval_of_a_gain():
    first, second = (SeedJudgement(**numbers(miou)) for miou in (40.0, 44.0))
    assert paired_interval(first, second) == pytest.approx((4.0, 4.0))
    shifted = SeedJudgement(**numbers(44.0, miou_replicates=(44 + HARD + np.linspace(-2, 2, 400)).tolist()))
    assert paired_interval(first, shifted) == pytest.approx((2.1, 5.9), abs=0.01)


def test_without_replicates_there_is_no_interval_of_a_gain():
    old = SeedJudgement(**numbers(40.0, miou_replicates=None))
    assert paired_interval(old, SeedJudgement(**numbers(44.0))) is None
    assert paired_interval(None, old) is None


def test_the_seed_has_a_gain_between_neighbours():
    table = seed_table(of_three().seed.maps)
    assert [column.heading for column in table.columns] == ["class", "plain CAM", "occlusion", "gain", "RIB", "gain"]
    assert row(table, "mean IoU")[0] == ["40.0", "44.0", "+4.0", "50.0", "+6.0"]
    assert row(table, "cat")[0] == ["20.0", "24.0", "+4.0", "30.0", "+6.0"]
    assert row(table, "95 % interval")[0] == [
        "31.0 to 49.0",
        "35.0 to 53.0",
        "4.0 to 4.0",
        "41.0 to 59.0",
        "6.0 to 6.0",
    ]


def test_the_chain_has_gains_with_their_intervals_below():
    table = chain_table(of_three(), STAGES, "rib")
    assert [column.heading for column in table.columns][1:] == [
        "plain CAM",
        "occlusion",
        "gain",
        "RIB",
        "gain",
        "images",
    ]
    texts, notes = row(table, "seed, best threshold")
    assert texts[:-1] == ["40.0", "44.0", "+4.0", "50.0", "+6.0"]
    assert notes[:-1] == ["", "", "4.0 to 4.0", "", "6.0 to 6.0"]
    assert row(table, "pseudo masks")[0][:-1] == ["–", "61.0", "–", "66.0", "+5.0"]
    assert row(table, "seed + CRF, confident labels")[0][:-1] == ["–", "–", "–", "60.0", "–"]


@pytest.mark.parametrize("width", [80, 100])
def test_three_kinds_of_maps_fit_on_a_terminal(width):
    for table in (seed_table(of_three().seed.maps), chain_table(of_three(), STAGES, "rib")):
        text = shown(table, width)
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text
        assert all(each in text for each in ("+4.0", "+6.0", "50.0", "40"))  # nothing is cut off at the right


def test_a_gap_does_not_hide_what_is_gained_over_the_maps_before_it():
    metrics = RunMetrics(pseudo=numbers(66.0, walk=numbers(64.0)), variants={"cam": {"pseudo": numbers(50.0, walk={})}})
    seeds = {"cam": numbers(40.0), "occlusion": numbers(44.0)}
    table = chain_table(metrics.model_copy(update={"seed": of_three(seed=seeds).seed}), STAGES, "rib")
    assert row(table, "pseudo masks")[0][:-1] == ["50.0", "–", "–", "66.0", "+16.0"]


def test_networks_of_every_chain_are_columns():
    evaluate = {"evaluate": numbers(70.0)}
    metrics = RunMetrics(
        **evaluate, variants={"cam": {"evaluate": numbers(60.0)}, "occlusion": {"evaluate": numbers(65.0)}}
    )
    (table,) = evaluation_tables(metrics, STAGES, "rib", ["val"])
    assert [column.heading for column in table.columns] == ["class", "plain CAM", "occlusion", "RIB"]
    assert row(table, "mean IoU")[0] == ["60.0", "65.0", "70.0"]


def test_a_paper_stands_beside_its_own_maps_only():
    def headings(seeds):
        table = paper_table(RunMetrics(seed=seeds), STAGES, "rib", 20, "the drawn world")
        return [column.heading for column in table.columns][1:], table

    seeds = {"cam": numbers(40.0), "rib": numbers(50.0)}
    assert headings(seeds)[0] == ["plain CAM", "RIB", "the paper's RIB"]
    found, table = headings({**seeds, "advcam": numbers(45.0)})
    assert [found[0], *found[-2:]] == ["plain CAM", "the paper's RIB", "the paper's AdvCAM"]
    texts, notes = row(table, "seed")
    assert texts == ["40.0", "45.0", "50.0", "56.44 ± 0.05", "55.6"]
    assert notes[-1] == "VOC 2012 train; AdvCAM paper"
    assert row(table, "pseudo masks")[0][-2:] == ["–", "69.9"]
