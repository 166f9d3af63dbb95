"""The published numbers, spot-checked against the paper's tables and against themselves."""

import statistics

import pytest

from ribray.errors import UsageError
from ribray.evaluation import published
from ribray.evaluation.published import MEAN, RIB, RIB_SALIENCY, figure_in_text, refinement_times, table


def test_seed_miou_by_batch_size():
    assert dict(table("S1").row(RIB)) == {
        "1": 55.3,
        "5": 55.5,
        "10": 55.8,
        "15": 56.2,
        "20": 56.5,
        "25": 56.6,
        "30": 56.7,
    }


@pytest.mark.parametrize(
    ("name", "method", "column", "split", "value"),
    [
        ("S2", RIB, MEAN, "val", 68.3),
        ("S2", RIB, MEAN, "test", 68.6),
        ("S2", RIB_SALIENCY, "aeroplane", "val", 85.2),
        ("S2", "PSA", "chair", "test", 29.6),
        ("S3", RIB, MEAN, None, 43.8),
        ("S3", published.IRN, MEAN, "val", 41.4),
        ("S3", RIB, "surfboard", None, 29.2),
    ],
)
def test_values_by_table_method_and_class(name, method, column, split, value):
    assert table(name).value(method, column, split) == value


def test_tables_have_every_class_of_their_data_set():
    assert len(table("S2").columns) == 21 + 1
    assert len(table("S3").columns) == 81 + 1
    assert table("S2").splits == ("val", "test")
    assert table("S2").methods("test") == ("PSA", "FickleNet", "SSDD", "BBAM", RIB, RIB_SALIENCY)


@pytest.mark.parametrize("name", ["S2", "S3"])
def test_printed_means_are_those_of_the_printed_classes(name):
    # FickleNet's test row is 0.3 off in the paper itself; all others agree up to rounding.
    for (split, method), row in table(name).rows.items():
        mean = statistics.mean(value for column, value in row.items() if column != MEAN)
        assert mean == pytest.approx(row[MEAN], abs=0.31 if (split, method) == ("test", "FickleNet") else 0.1)


def test_figures_of_the_text_carry_their_spread_and_source():
    seed = figure_in_text("seed")
    assert (seed.miou, seed.std, seed.repeats, seed.split) == (56.44, 0.05, 5, "VOC 2012 train")
    assert "appendix" in seed.source
    untrained = figure_in_text("segmentation without re-training")
    assert (untrained.miou, untrained.std, untrained.repeats) == (67.83, None, None)


@pytest.mark.parametrize(
    ("lookup", "message"),
    [
        (lambda: table("S9"), "no published table S9; there are S1, S2, S3"),
        (lambda: table("S2").value("XYZ", split="val"), "no row for XYZ on val; it has PSA on val"),
        (lambda: table("S2").value(RIB), "splits val, test; name one"),
        (lambda: table("S3").value(RIB, "unicorn"), "no column unicorn; it has background"),
        (lambda: figure_in_text("nothing"), "No figure is published for nothing"),
    ],
)
def test_what_was_never_published_is_refused(lookup, message):
    with pytest.raises(UsageError, match=message):
        lookup()


def test_the_csv_files_are_those_of_the_reference_folder(shared_dir):
    for name in ("table_s1_batch_size", "table_s2_voc_per_class_iou", "table_s3_coco_per_class_iou"):
        shipped = published.resources.files("ribray.evaluation").joinpath("published", f"{name}.csv").read_bytes()
        assert shipped == (shared_dir / "reference" / f"{name}.csv").read_bytes()


def test_the_paper_took_32_and_43_minutes_for_voc_train():
    times = [time for time in refinement_times() if time.method == RIB]
    assert [(time.images, time.minutes) for time in times] == [(1464, 32.0), (1464, 43.0)]
    assert [time.devices for time in times] == ["four Quadro RTX 8000", "four V100"]
    assert {time.data for time in times} == {"VOC 2012 train"}
