"""Figures: their size, what is painted where, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from ribray.report.charts import threshold_chart
from ribray.report.figures import ImageRow, image_figure
from ribray.report.overlays import heat_overlay, mask_colour, mask_overlay
from ribray.report.plots import write_png

PALETTE = np.zeros((256, 3), np.uint8)
PALETTE[1] = (200, 30, 30)


def picture_row(size=(60, 80), classes=("cat",), truth=True, headings=("plain CAM", "step 1", "step 10")):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
    maps = {heading: rng.random((len(classes), *size), np.float32) for heading in headings}
    mask = np.zeros(size, np.uint8)
    mask[10:40, 10:40] = 1
    return ImageRow(image, list(classes), maps, PALETTE, mask if truth else None)


def opened(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def test_the_growth_figure_is_1200_pixels_wide_and_mostly_pictures(tmp_path):
    image_figure({"": [picture_row(), picture_row(classes=("cat", "dog"))]}, tmp_path / "growth.png")
    pixels = opened(tmp_path / "growth.png")
    assert pixels.shape[1] == 1200
    # five pictures of 4:3 beside each other, two rows
    assert 2 * 160 < pixels.shape[0] < 2 * 190 + 60
    assert (pixels.min(axis=2) > 250).mean() < 0.2  # white paper


def test_the_column_of_true_masks_is_left_out_when_there_are_none(tmp_path):
    image_figure({"": [picture_row(truth=False)]}, tmp_path / "without.png")
    image_figure({"": [picture_row(truth=True)]}, tmp_path / "with.png")
    # fewer columns of the same total width are wider, hence higher
    assert opened(tmp_path / "without.png").shape[0] > opened(tmp_path / "with.png").shape[0]


def test_a_missing_truth_beside_a_known_one_and_an_image_without_objects_are_drawn(tmp_path):
    nothing = picture_row(classes=(), truth=False)
    image_figure({"": [picture_row(), nothing]}, tmp_path / "growth.png")
    assert opened(tmp_path / "growth.png").std() > 30


def test_a_tall_image_keeps_its_shape(tmp_path):
    image_figure({"": [picture_row(size=(120, 60))]}, tmp_path / "panel.png")
    height, width, _ = opened(tmp_path / "panel.png").shape
    assert width == 1200
    assert 2 * 0.9 * width / 5 < height < 2 * width / 5 + 60


def test_the_same_figure_has_the_same_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        image_figure({"": [picture_row()]}, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_heat_is_strongest_at_the_highest_score_and_absent_at_zero():
    image = np.full((2, 2, 3), (10, 200, 10), np.uint8)
    painted = heat_overlay(image, np.array([[[0, 0.2], [0.5, 0.0]], [[0, 0.0], [0.0, 0.1]]], np.float32))
    colourful = np.ptp(painted.astype(int), axis=2)
    assert colourful[0, 0] == 0  # the greyed image
    assert colourful[1, 0] > colourful[0, 1] > 0
    np.testing.assert_array_equal(
        heat_overlay(image, np.zeros((0, 2, 2), np.float32)), painted[:1, :1].repeat(2, 0).repeat(2, 1)
    )


def test_heat_does_not_depend_on_the_scale_of_the_scores():
    row = picture_row()
    maps = row.maps["step 1"]
    np.testing.assert_array_equal(heat_overlay(row.image, maps), heat_overlay(row.image, 8 * maps))


def test_a_mask_shows_in_its_colour_and_unknown_pixels_pale():
    painted = mask_overlay(np.full((1, 3, 3), 120, np.uint8), np.array([[0, 1, 255]], np.uint8), PALETTE)
    background, cat, unknown = painted[0].astype(int)
    assert np.ptp(background) == 0
    assert cat[0] > 150 > 100 > cat[1]
    assert unknown.min() > background.max()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "at least one image"),
        ([picture_row(), picture_row(headings=("plain CAM",))], "same maps: plain CAM, step 1, step 10"),
        (
            [ImageRow(np.zeros((4, 4, 3), np.uint8), ["cat"], {"CAM": np.zeros((1, 2, 2))}, PALETTE)],
            "maps 'CAM'",
        ),
        (
            [ImageRow(np.zeros((4, 4, 3), np.uint8), ["cat"], {}, PALETTE, np.zeros((2, 2), np.uint8))],
            "does not fit its image",
        ),
    ],
)
def test_rows_that_make_no_figure_are_refused(rows, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        image_figure({"": rows}, tmp_path / "growth.png")
    assert not list(tmp_path.iterdir())


def test_curves_are_drawn_in_two_colours(tmp_path):
    thresholds = np.linspace(0.02, 0.5, 20)
    curves = {
        "plain CAM": (thresholds, 40 - 60 * thresholds),
        "RIB": (thresholds, 57 - 80 * (thresholds - 0.2) ** 2),
    }
    write_png([threshold_chart(curves)], tmp_path / "curve.png")
    pixels = opened(tmp_path / "curve.png").astype(int)
    assert pixels.shape[1] == 960
    for colour in ((0, 114, 178), (213, 94, 0)):
        assert (np.abs(pixels - colour).max(axis=2) < 8).sum() > 300


def masks_row(size=(60, 80), headings=("prediction",), classes=("cat",)):
    mask = np.zeros(size, np.uint8)
    mask[20:50, 20:60] = 1
    image = np.full((*size, 3), 120, np.uint8)
    return ImageRow(image, list(classes), {}, PALETTE, mask, dict.fromkeys(headings, mask))


def painted(pixels):
    """Return which pixels have the class's colour."""
    return (np.abs(pixels.astype(int) - mask_colour(1, PALETTE)).max(axis=2) < 12).T


def test_images_of_few_pictures_stand_beside_each_other(tmp_path):
    image_figure({"held-out images": [masks_row()] * 4}, tmp_path / "figure.png")
    pixels = opened(tmp_path / "figure.png")
    columns = painted(pixels).any(axis=1)
    # image, truth, prediction twice: four coloured pictures across, the image itself has none
    assert np.count_nonzero(columns[1:] & ~columns[:-1]) == 4
    rows = painted(pixels).any(axis=0)
    assert np.count_nonzero(rows[1:] & ~rows[:-1]) == 2


def test_every_mask_has_a_column_after_the_truth_and_blocks_follow_each_other(tmp_path):
    wide = [masks_row(headings=("confident labels", "pseudo mask", "on plain CAM"))] * 2
    image_figure({"training images": wide, "held-out images": [masks_row()]}, tmp_path / "figure.png")
    rows = painted(opened(tmp_path / "figure.png")).any(axis=0)
    assert np.count_nonzero(rows[1:] & ~rows[:-1]) == 3
    image_figure({"": wide}, tmp_path / "one.png")
    columns = painted(opened(tmp_path / "one.png")).any(axis=1)
    assert np.count_nonzero(columns[1:] & ~columns[:-1]) == 4


def test_a_legend_shows_every_colour_below_the_pictures(tmp_path):
    names = {f"class {number}": np.array([255, 4 * number, 0], np.uint8) for number in range(30)}
    image_figure({"": [masks_row()]}, tmp_path / "without.png")
    image_figure({"": [masks_row()]}, tmp_path / "with.png", names)
    without, pixels = opened(tmp_path / "without.png"), opened(tmp_path / "with.png")
    legend = pixels[len(without) :]
    assert 80 < len(legend) < 200  # several lines
    for colour in names.values():
        assert (legend == colour).all(axis=2).sum() > 20


def test_a_mask_of_another_size_is_refused(tmp_path):
    row = ImageRow(np.zeros((4, 4, 3), np.uint8), ["cat"], {}, PALETTE, None, {"mask": np.zeros((2, 2), np.uint8)})
    with pytest.raises(ValueError, match="does not fit its image"):
        image_figure({"": [row]}, tmp_path / "figure.png")


def test_a_curve_of_one_threshold_is_a_point(tmp_path):
    write_png([threshold_chart({"RIB": ([0.3], [50.0])})], tmp_path / "curve.png")
    assert opened(tmp_path / "curve.png").std() > 5


@pytest.mark.parametrize("curves", [{}, {"RIB": ([0.1, 0.2], [50.0])}, {"RIB": ([0.1], [np.nan])}])
def test_curves_without_points_are_refused(curves, tmp_path):
    with pytest.raises(ValueError, match="curve"):
        write_png([threshold_chart(curves)], tmp_path / "curve.png")


def test_real_photographs_make_a_figure(shared_dir, tmp_path):
    root = shared_dir / "data" / "voc-mini"
    rows = []
    for path in sorted((root / "SegmentationClass").glob("*.png"))[:2]:
        with Image.open(path) as mask, Image.open(root / "JPEGImages" / f"{path.stem}.jpg") as photograph:
            palette = np.zeros((256, 3), np.uint8)
            colours = np.array(mask.getpalette(), np.uint8).reshape(-1, 3)
            palette[: len(colours)] = colours
            truth, image = np.asarray(mask), np.asarray(photograph.convert("RGB"))
        maps = (truth == 1 + 14).astype(np.float32)[None]
        rows.append(ImageRow(image, ["person"], {"plain CAM": maps, "step 10": maps}, palette, truth))
    image_figure({"": rows}, tmp_path / "growth.png")
    assert opened(tmp_path / "growth.png").std() > 30
