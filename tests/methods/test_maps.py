"""The maps file: round trip, refusals, size; and the localization maps computed from it."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ribray import storage
from ribray.errors import ImageError, RibrayError
from ribray.methods.maps import MapRecord, empty_arrays, localization_maps, to_arrays
from ribray.methods.method import Refined

SCALES = (1.0, 0.5)
SIZE = (50, 70)


def make_refinement(keep_steps: bool = True, classes: int = 2, own: str = "rib") -> Refined:
    rng = np.random.default_rng(0)
    shapes = [(classes, 4, 5), (classes, 2, 3)]
    steps = [[rng.random(shape, dtype=np.float32) for shape in shapes] for _ in range(3)]
    by_step = [[sum(steps[: k + 1][j][i] for j in range(k + 1)) for i in range(2)] for k in range(3)]
    return Refined(
        classes=np.arange(classes) + 3,
        maps={"cam": by_step[0], own: by_step[-1]},
        by_step={own: by_step} if keep_steps else {},
        losses=[1.0, -2.0],
        numbers={"target_losses" if own == "rib" else "scores": [0.5, 1.5, 2.5]},
        steps=3,
        stop_reason="finished",
    )


def bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear interpolation with half-pixel centres and clamped edges, pixel by pixel."""
    out = np.zeros((height, width))
    for row in range(height):
        for column in range(width):
            y = max((row + 0.5) * image.shape[0] / height - 0.5, 0)
            x = max((column + 0.5) * image.shape[1] / width - 0.5, 0)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, image.shape[0] - 1), min(left + 1, image.shape[1] - 1)
            upper = image[top, left] * (1 - x + left) + image[top, right] * (x - left)
            lower = image[bottom, left] * (1 - x + left) + image[bottom, right] * (x - left)
            out[row, column] = upper * (1 - y + top) + lower * (y - top)
    return out


@pytest.mark.parametrize("own", ["rib", "occlusion"])
@pytest.mark.parametrize("keep_steps", [True, False])
def test_what_is_written_is_read_back_exactly(tmp_path: Path, keep_steps: bool, own: str) -> None:
    refinement = make_refinement(keep_steps, own=own)
    storage.write_npz(tmp_path / "x.npz", **to_arrays(refinement, SIZE, SCALES))
    record = MapRecord.read(tmp_path / "x.npz")
    assert record.classes.tolist() == [3, 4]
    assert (record.size, record.scales) == (SIZE, SCALES)
    assert (record.steps, record.stop_reason) == (3, "finished")
    assert record.losses.tolist() == [1.0, -2.0]
    assert [(name, list(values)) for name, values in record.numbers.items()] == [*refinement.numbers.items()]
    assert (list(record.maps), record.own) == (["cam", own], own)
    for name, sums in refinement.maps.items():
        assert [each.tobytes() for each in record.maps[name]] == [each.tobytes() for each in sums]
    assert list(record.by_step) == ([own] if keep_steps else [])
    for step, sums in enumerate(refinement.by_step.get(own, ())):
        assert [each.tobytes() for each in record.by_step[own][step]] == [each.tobytes() for each in sums]


def test_arrays_of_rib_have_the_names_that_older_files_have() -> None:
    names = list(to_arrays(make_refinement(), SIZE, SCALES))
    maps = ["initial_0", "refined_0", "initial_1", "refined_1"]
    steps = [f"step_{step}_{scale}" for step in range(3) for scale in range(2)]
    series = ["losses", "target_losses", "steps", "stop_reason"]
    assert names == ["size", "scales", "classes", *maps, *steps, *series]


@pytest.mark.parametrize("name", ["size", "steps", "id", "glow_0"])
def test_numbers_do_not_take_the_place_of_a_files_own_arrays(name: str) -> None:
    maps = {each: [np.zeros((1, 2, 2), np.float32)] for each in ("cam", "glow")}
    refined = Refined(np.array([0]), maps, numbers={name: [1.0]})
    with pytest.raises(ImageError, match=f"Numbers named '{name}'"):
        to_arrays(refined, (8, 8), (1.0,))


@pytest.mark.parametrize(("size", "shape", "resized"), [("full", (50, 70), (64, 80)), ("stride4", (13, 18), (13, 18))])
def test_localization_maps_follow_the_method(size: str, shape: tuple[int, int], resized: tuple[int, int]) -> None:
    refinement = make_refinement()
    record = MapRecord.from_arrays(to_arrays(refinement, SIZE, SCALES))
    for which, sums in (
        ("cam", refinement.maps["cam"]),
        ("rib", refinement.maps["rib"]),
        (None, refinement.maps["rib"]),
        (("rib", 1), refinement.by_step["rib"][1]),
    ):
        maps = localization_maps(record, which, size)
        assert maps.shape == (2, *shape)
        assert maps.dtype == np.float32
        for category in range(2):
            total = sum(bilinear(one[category], *resized) for one in sums)[: shape[0], : shape[1]]
            np.testing.assert_allclose(maps[category], total / (total.max() + 1e-5), rtol=1e-5, atol=1e-6)


def test_a_step_beyond_the_last_one_is_the_refined_map() -> None:
    record = MapRecord.from_arrays(to_arrays(make_refinement(), SIZE, SCALES))
    assert np.array_equal(localization_maps(record, ("rib", 2)), localization_maps(record, "rib"))
    assert np.array_equal(localization_maps(record, ("rib", 9)), localization_maps(record, "rib"))
    assert np.array_equal(localization_maps(record, ("rib", 0)), localization_maps(record, "cam"))


def test_steps_that_were_not_kept_cannot_be_asked_for() -> None:
    record = MapRecord.from_arrays(to_arrays(make_refinement(keep_steps=False), SIZE, SCALES))
    with pytest.raises(RibrayError, match="keep_steps"):
        localization_maps(record, ("rib", 0))
    with pytest.raises(RibrayError, match="maps cam, rib, and none named 'advcam'"):
        localization_maps(record, "advcam")


def test_a_class_that_never_lit_up_gives_zeros() -> None:
    refinement = make_refinement()
    for maps in refinement.maps["rib"]:
        maps[1] = 0
    maps = localization_maps(MapRecord.from_arrays(to_arrays(refinement, SIZE, SCALES)))
    assert maps[0].max() == pytest.approx(1, abs=1e-4)
    assert not maps[1].any()


def test_an_image_without_object_has_a_file_without_classes(tmp_path: Path) -> None:
    storage.write_npz(tmp_path / "x.npz", **empty_arrays(SIZE, SCALES))
    record = MapRecord.read(tmp_path / "x.npz")
    assert (len(record.classes), record.steps, record.stop_reason) == (0, 0, "finished")
    assert localization_maps(record, "rib", "full").shape == (0, 50, 70)
    assert localization_maps(record, "cam", "stride4").shape == (0, 13, 18)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("classes", None, "has no 'classes'"),
        ("initial_1", None, "has no 'initial_1'"),
        ("size", np.array([50]), "damaged maps file"),
        ("refined_0", np.zeros((2, 4, 5)), "refined_0 is float64"),
        ("refined_0", np.zeros((3, 4, 5), np.float32), "for 2 present classes"),
        ("refined_0", np.zeros((2, 5, 5), np.float32), "scale 0 has maps of shapes"),
    ],
)
def test_a_damaged_file_is_refused_in_a_sentence(name: str, value: np.ndarray | None, reason: str) -> None:
    arrays = to_arrays(make_refinement(keep_steps=False), SIZE, SCALES)
    if value is None:
        del arrays[name]
    else:
        arrays[name] = value
    with pytest.raises(RibrayError, match=reason) as error:
        MapRecord.from_arrays(arrays, "maps/ab/x.npz")
    assert str(error.value).startswith("maps/ab/x.npz is ")


def test_a_truncated_or_missing_file_is_refused(tmp_path: Path) -> None:
    storage.write_npz(tmp_path / "x.npz", **to_arrays(make_refinement(), SIZE, SCALES))
    (tmp_path / "x.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:200])
    for name in ("x.npz", "y.npz"):
        with pytest.raises(RibrayError, match=name):
            MapRecord.read(tmp_path / name)


def test_a_file_takes_an_eighteenth_of_the_reference_format(tmp_path: Path) -> None:
    """Even where no cell is zero and nothing repeats: one class of a 500×375 image, smooth positive noise."""
    rng = np.random.default_rng(0)
    cells = [(24, 32), (12, 16), (36, 47), (47, 63)]
    initial, refined = [], []
    for height, width in cells:
        small = Image.fromarray(rng.random((5, 6), dtype=np.float32))
        smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).clip(0) + 0.01
        initial.append(smooth[None] * rng.normal(1, 0.02, (1, height, width)).astype(np.float32))
        refined.append(initial[-1] * 7.3 + smooth[None])
    refinement = Refined(np.array([4]), {"cam": initial, "rib": refined}, 10, "finished", {}, [0.0] * 9)
    storage.write_npz(tmp_path / "x.npz", **to_arrays(refinement, (375, 500), (1.0, 0.5, 1.5, 2.0)))
    reference = 4 * (94 * 125 + 375 * 500)  # stride-4 and full-size map, float32
    assert (tmp_path / "x.npz").stat().st_size * 18 <= reference


def test_bytes_of_a_file_depend_on_its_content_alone() -> None:
    def content() -> bytes:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **to_arrays(make_refinement(), SIZE, SCALES))
        return buffer.getvalue()

    assert content() == content()
