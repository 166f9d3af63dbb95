"""COCO's instance annotations: labels, masks, and what can be wrong with them."""

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as rasteriser

from ribray.config import DataConfig
from ribray.data import Dataset, open_dataset
from ribray.data.coco_index import parse_instances
from ribray.data.coco_masks import draw_mask, run_lengths
from ribray.errors import ImageError, UsageError

# numpy's word to pycocotools, which Python shows to nobody but test runners
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

Write = Callable[[Any], Path]
Content = dict[str, Any]
NOWHERE = Path("/no/such/folder")  # of the pictures: nothing is found there
CAT, DOG = 1, 2  # mask values: category 4 comes before category 90


def open_coco(root: Path, split: str = "train") -> Dataset:
    return open_dataset(DataConfig(kind="coco", root=str(root)), split)


def classes_of(dataset: Dataset, id: str) -> set[str]:
    return {name for name, is_there in zip(dataset.classes, dataset.labels[dataset.index(id)], strict=True) if is_there}


# --- real photographs -------------------------------------------------------------------------------------


def test_real_photographs_have_eighty_contiguous_classes(shared_dir: Path) -> None:
    train = open_coco(shared_dir / "data/coco-mini")
    val = open_coco(shared_dir / "data/coco-mini", "val2014")
    assert (len(train), len(val)) == (26, 12)
    assert train.labels.shape == (26, 80)
    assert train.classes == val.classes
    assert (train.classes[0], train.classes[11], train.classes[79]) == ("person", "stop sign", "toothbrush")
    assert train.ids[0] == "000000000030"
    assert classes_of(train, "000000000030") == {"potted plant", "vase"}
    assert classes_of(train, "000000000071") == {"car", "train", "truck"}
    assert classes_of(val, "000000002149") == {"apple", "bowl"}
    assert train.problems == val.problems == ()


def test_an_image_without_objects_keeps_an_empty_row_and_an_empty_mask(shared_dir: Path) -> None:
    train = open_coco(shared_dir / "data/coco-mini")
    assert classes_of(train, "000000000508") == set()
    mask = train.mask("000000000508")
    assert mask is not None
    assert mask.shape == (480, 640)
    assert not mask.any()


def test_real_masks_hold_the_labelled_classes_and_fit_their_images(shared_dir: Path) -> None:
    dataset = open_coco(shared_dir / "data/coco-mini")
    for id in dataset.ids:
        mask = dataset.mask(id)
        assert mask is not None
        assert mask.shape == dataset.image(id).shape[:2]
        values = set(np.unique(mask).tolist()) - {0, 255}
        assert values == {dataset.classes.index(name) + 1 for name in classes_of(dataset, id)}
    crowd = dataset.mask("000000000257")
    assert crowd is not None
    assert (crowd == 255).any()


# --- labels -----------------------------------------------------------------------------------------------


def test_categories_are_ordered_by_id_and_ids_are_file_names(coco_root: Write, coco_content: Content) -> None:
    dataset = open_coco(coco_root(coco_content))
    assert dataset.classes == ("cat", "dog")
    assert dataset.ids == ("one", "two")
    assert dataset.labels.tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize("flag", [1, True, 1.0, "1", "true"])
def test_crowds_make_a_class_present_and_hide_its_pixels(coco_root: Write, coco_content: Content, flag: Any) -> None:
    coco_content["annotations"][0]["iscrowd"] = flag
    dataset = open_coco(coco_root(coco_content))
    assert classes_of(dataset, "one") == {"cat", "dog"}
    assert dataset.hidden_classes("one")[DOG - 1]
    assert dataset.notes[0].startswith("1 of 2 annotations in ")
    mask = dataset.mask("one")
    assert mask is not None
    assert set(np.unique(mask)) == {0, CAT, 255}


@pytest.mark.parametrize("flag", [0, False, 0.0, "0", "false", "", None])
def test_what_is_no_crowd_is_an_object(coco_root: Write, coco_content: Content, flag: Any) -> None:
    coco_content["annotations"][0]["iscrowd"] = flag
    dataset = open_coco(coco_root(coco_content))
    assert dataset.notes == ()
    mask = dataset.mask("one")
    assert mask is not None
    assert set(np.unique(mask)) == {0, CAT, DOG}


def test_annotations_of_unknown_images_are_reported_once_an_image(coco_root: Write, coco_content: Content) -> None:
    for _ in range(3):
        coco_content["annotations"].append({"image_id": 99, "category_id": 4, "segmentation": []})
    dataset = open_coco(coco_root(coco_content))
    assert dataset.ids == ("one", "two")
    assert [problem.id for problem in dataset.problems] == ["99"]
    assert "annotations[2]" in dataset.problems[0].sentence
    assert "names image 99, which is not among the images" in dataset.problems[0].sentence


def test_an_image_with_an_unknown_category_is_left_out(coco_root: Write, coco_content: Content) -> None:
    coco_content["annotations"].insert(0, {"image_id": 3, "category_id": 5})
    dataset = open_coco(coco_root(coco_content))
    assert dataset.ids == ("one",)
    assert classes_of(dataset, "one") == {"cat", "dog"}
    assert [problem.id for problem in dataset.problems] == ["two"]
    assert "names category 5" in dataset.problems[0].sentence
    mask = dataset.mask("one")
    assert mask is not None
    assert set(np.unique(mask)) == {0, CAT, DOG}


def test_images_listed_twice_are_used_once(coco_root: Write, coco_content: Content) -> None:
    coco_content["images"].append(dict(coco_content["images"][0]))
    coco_content["images"].append({"id": 50, "file_name": "two.png"})
    coco_content["annotations"].append({"image_id": 50, "category_id": 4})
    dataset = open_coco(coco_root(coco_content))
    assert dataset.ids == ("one", "two")
    assert [(problem.id, problem.kind) for problem in dataset.problems] == [
        ("one", "listed twice"),
        ("two", "listed twice"),
    ]
    assert "one.jpg twice, as images[0] and images[2]: the first entry is used" in dataset.problems[0].sentence
    assert "two.png beside two.jpg, both with id two: the first one is used" in dataset.problems[1].sentence
    assert (classes_of(dataset, "one"), classes_of(dataset, "two")) == ({"cat", "dog"}, set())


# --- files ------------------------------------------------------------------------------------------------


def test_full_split_names_are_accepted_and_missing_ones_explained(coco_root: Write, coco_content: Content) -> None:
    root = coco_root(coco_content)
    assert open_coco(root, "train2014").ids == ("one", "two")
    with pytest.raises(UsageError, match=r"instances_val2014\.json does not exist; splits there are: train2014\."):
        open_coco(root, "val")
    (root / "annotations/instances_val2017.json").write_text(json.dumps(coco_content))
    with pytest.raises(
        UsageError, match=r"val2017 does not exist: put the images .* there are: annotations, train2014"
    ):
        open_coco(root, "val2017")
    with pytest.raises(UsageError, match="leaves its folder"):
        open_coco(root, "../train")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c["images"][1].pop("id"), r"images\[1\] of .*json must have 'id'"),
        (lambda c: c["images"][1].update(file_name=7), r"images\[1\] .* must have 'file_name' with a name"),
        (lambda c: c["images"][0].update(height="tall"), "must have 'height' in pixels"),
        (lambda c: c["images"].append("x"), r"images\[2\] .* must have 'id'"),
        (lambda c: c["annotations"][1].pop("category_id"), r"annotations\[1\] .* must have 'category_id'"),
        (lambda c: c["annotations"][1].update(iscrowd="maybe"), r"annotations\[1\] .* must have 'iscrowd' with 0 or 1"),
        (lambda c: c["annotations"][1].update(category_id=True), "must have 'category_id' with a number"),
        (lambda c: c["annotations"][1].update(image_id=1.5), "must have 'image_id' with a number or a name"),
        (lambda c: c["annotations"][1].update(image_id=[1]), "must have 'image_id' with a number or a name"),
        (lambda c: c["categories"].append({"id": 90, "name": "x"}), "two categories of the same id or name"),
        (lambda c: c["categories"].append({"id": 90, "name": "x"}), r"'dog' \(id 90\) and 'x' .* Give one another id"),
        (lambda c: c["categories"].append({"id": 1, "name": " cat"}), r"'cat' \(id 1\) and 'cat' \(id 4\)\. Keep one"),
        (lambda c: c["categories"][0].update(name=" "), "must have 'name' with a name"),
        (
            lambda c: c.pop("annotations"),
            "has no annotations, so that no image has a label: give the file of instances",
        ),
        (lambda c: c.update(annotations=[{"image_id": 7, "caption": "a"}]), r"annotations\[0\] .*has a caption"),
        (lambda c: c.update(categories=[]), "has no images or no categories"),
        (lambda c: c.update(annotations={}), "'annotations' is not a list"),
    ],
)
def test_broken_annotations_are_refused(
    coco_root: Write, coco_content: Content, change: Callable[[Content], object], reason: str
) -> None:
    change(coco_content)
    with pytest.raises(UsageError, match=reason):
        open_coco(coco_root(coco_content))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"x": [1,]}', '{"a": 1} x', "{" * 9, "\xff"])
def test_what_is_not_a_json_object_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"^x\.json"):
        parse_instances(text.encode("latin-1"), "x.json", NOWHERE)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b" \n", r"is empty \(2 bytes\)"),
        ('{"images": []}'.encode("utf-16"), "is UTF-16 text: save it as UTF-8"),
        ('{"images": []}'.encode("utf-32-be"), "is UTF-32-BE text: save it as UTF-8"),
    ],
)
def test_an_empty_file_and_text_of_another_encoding_are_named(content: bytes, sentence: str) -> None:
    with pytest.raises(UsageError, match=rf"^x\.json {sentence}"):
        parse_instances(content, "x.json", NOWHERE)


def test_deeply_nested_json_is_refused() -> None:
    with pytest.raises(UsageError, match="nested too deeply"):
        parse_instances(b'{"images": ' + b"[" * 200_000, "x.json", NOWHERE)


def test_spaces_around_a_categorys_name_are_none_of_it(coco_root: Write, coco_content: Content) -> None:
    coco_content["categories"][0]["name"] = " hot  dog "
    assert open_coco(coco_root(coco_content)).classes == ("cat", "hot dog")


def test_names_in_any_script_and_any_order_of_keys(coco_root: Write, coco_content: Content) -> None:
    coco_content["categories"][1]["name"] = "кошка"
    coco_content["images"][1]["file_name"] = "größe/two.jpg"
    shuffled = {key: coco_content[key] for key in ("annotations", "categories", "images")}
    for ensure_ascii in (True, False):
        text = json.dumps({"info": {"übrigens": [1]}, **shuffled}, ensure_ascii=ensure_ascii, indent=1)
        for content in (text.encode(), b"\xef\xbb\xbf" + text.encode()):
            instances = parse_instances(content, "x.json", NOWHERE)
            assert instances.classes == ("кошка", "dog")
            assert instances.paths == ("one.jpg", "größe/two.jpg")
            assert instances.labels.tolist() == [[True, True], [False, False]]
            assert [json.loads(content[start:end])["id"] for start, end in instances.spans] == [1, 2]


def test_the_index_finds_what_a_plain_reader_finds(shared_dir: Path) -> None:
    content = (shared_dir / "data/coco-mini/annotations/instances_train2014.json").read_bytes()
    plain = json.loads(content)
    instances = parse_instances(content, "x.json", NOWHERE)
    assert len(instances.spans) == len(plain["annotations"]) == 181
    for row, image in enumerate(plain["images"]):
        expected = [entry for entry in plain["annotations"] if entry["image_id"] == image["id"]]
        chosen = range(instances.first[row], instances.first[row + 1])
        found = [json.loads(content[slice(*instances.spans[n])]) for n in chosen]
        assert found == expected


# --- masks ------------------------------------------------------------------------------------------------


def test_small_instances_stay_visible_on_large_ones(coco_root: Write, coco_content: Content) -> None:
    dataset = open_coco(coco_root(coco_content))
    expected = np.zeros((20, 30), np.uint8)
    expected[2:18, 2:22] = CAT
    expected[5:9, 5:7] = DOG
    mask = dataset.mask("one")
    np.testing.assert_array_equal(mask, expected)
    coco_content["annotations"].reverse()
    np.testing.assert_array_equal(open_coco(coco_root(coco_content)).mask("one"), expected)


def test_plain_and_compressed_run_lengths_and_polygons_agree() -> None:
    pixels = np.zeros((20, 30), np.uint8, order="F")
    pixels[3:12, 4:25] = 1
    pixels[6, 10] = 0
    compressed = rasteriser.encode(pixels)["counts"].decode()
    column_by_column = pixels.flatten(order="F")
    changes = np.flatnonzero(np.diff(column_by_column, prepend=0))
    plain = np.diff(changes, prepend=0, append=pixels.size).tolist()
    assert run_lengths(compressed) == plain
    for counts in (compressed, plain):
        segmentation = {"size": [20, 30], "counts": counts}
        np.testing.assert_array_equal(draw_mask([(1, segmentation)], 20, 30, "x"), pixels)
    hole = {"size": [20, 30], "counts": [10 * 20 + 6, 1, 20 * 30 - 10 * 20 - 7]}
    square = [[4, 3, 25, 3, 25, 12, 4, 12]]
    np.testing.assert_array_equal(draw_mask([(0, hole), (1, square)], 20, 30, "x"), pixels)


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([], "an object of x has an empty segmentation"),
        ({}, "an object of x has an empty segmentation"),
        (None, "an object of x has no segmentation"),
        ([[1, 2, 3, 4]], "without a polygon of three corners"),
        ([[10, 10], [20, 10], [20, 20]], "without a polygon of three corners"),  # pairs of one polygon
        ([[1, 2, 3, 4, 5, float("nan")]], "neither polygons .* nor run lengths"),
        ([[1, 2, 3, 4, 5, 1e9]], "corners far outside its 30 × 20 pixels"),
        ([[1, 2, 3, 4, 5, 10**400]], "corners far outside its 30 × 20 pixels"),
        ([[1, 2, 3, 4, 5]], "neither polygons .* nor run lengths"),
        ([1, 2, 3, 4, 5, 6], "neither polygons .* nor run lengths"),
        ("polygon", "neither polygons"),
        ({"size": [20, 30], "counts": [600, 1]}, "do not fill its 30 × 20 pixels"),
        ({"size": [20, 30], "counts": [-1, 601]}, "do not fill"),
        ({"size": [30, 20], "counts": [600]}, "are of 20 × 30 pixels: they do not fill its 30 × 20"),
        ({"size": [20, 30], "counts": "~~~~"}, "do not fill"),
        ({"size": [20, 30], "counts": "ooooooooo"}, "do not fill"),
        ({"size": [20, 30]}, "do not fill"),
    ],
)
def test_broken_segmentations_are_refused_before_they_are_drawn(segmentation: Any, reason: str) -> None:
    with pytest.raises(ImageError, match=f"(?i){reason}"):
        draw_mask([(1, segmentation)], 20, 30, "an object of x")


def test_an_empty_segmentation_is_a_fault_of_its_image_alone(coco_root: Write, coco_content: Content) -> None:
    coco_content["annotations"][0]["segmentation"] = []
    dataset = open_coco(coco_root(coco_content))
    assert classes_of(dataset, "one") == {"cat", "dog"}
    with pytest.raises(ImageError, match=r"[Aa]n object of image one in .* has an empty segmentation"):
        dataset.mask("one")
    assert dataset.mask("two") is not None


def test_annotations_without_any_outline_give_labels_only(coco_root: Write, coco_content: Content) -> None:
    for entry in coco_content["annotations"]:
        del entry["segmentation"]
    dataset = open_coco(coco_root(coco_content))
    assert not dataset.has_masks
    assert dataset.mask("one") is None
    assert classes_of(dataset, "one") == {"cat", "dog"}


def test_masks_take_the_size_of_the_image_where_the_file_has_none(coco_root: Write, coco_content: Content) -> None:
    for image in coco_content["images"]:
        del image["height"], image["width"]
    mask = open_coco(coco_root(coco_content)).mask("one")
    assert mask is not None
    assert mask.shape == (20, 30)


def test_a_size_other_than_the_images_is_refused(coco_root: Write, coco_content: Content) -> None:
    coco_content["images"][1]["width"] = 31
    with pytest.raises(ImageError, match="The mask of two is 31 × 20 pixels, but its image is 30 × 20"):
        open_coco(coco_root(coco_content)).mask("two")


def test_a_copy_in_another_process_is_small_and_the_same(shared_dir: Path) -> None:
    dataset = open_coco(shared_dir / "data/coco-mini")
    packed = pickle.dumps(dataset)
    file = shared_dir / "data/coco-mini/annotations/instances_train2014.json"
    assert len(packed) < file.stat().st_size / 4
    twin = pickle.loads(packed)  # noqa: S301 - made here
    assert twin.fingerprint() == dataset.fingerprint()
    np.testing.assert_array_equal(twin.mask("000000000071"), dataset.mask("000000000071"))


def test_annotations_changed_after_opening_are_noticed(coco_root: Write, coco_content: Content) -> None:
    dataset = open_coco(coco_root(coco_content))
    coco_root({"images": []})
    with pytest.raises(ImageError, match="was changed or cannot be read any more"):
        dataset.mask("one")


def test_nothing_is_printed(coco_root: Write, coco_content: Content, capfd: pytest.CaptureFixture[str]) -> None:
    open_coco(coco_root(coco_content)).mask("one")
    assert capfd.readouterr() == ("", "")


# --- any JSON ---------------------------------------------------------------------------------------------

CONTENT: Content = {
    "images": [{"id": 7, "file_name": "one.jpg", "height": 4, "width": 5}, {"id": 3, "file_name": "two.jpg"}],
    "categories": [{"id": 90, "name": "dog"}, {"id": 4, "name": "cat"}],
    "annotations": [
        {"image_id": 7, "category_id": 90, "iscrowd": 0, "segmentation": [[0, 0, 3, 0, 3, 3]]},
        {"image_id": 3, "category_id": 4, "iscrowd": 1, "segmentation": {"size": [4, 5], "counts": [5, 15]}},
        {"image_id": 7, "category_id": 4, "iscrowd": 0, "segmentation": {"size": [4, 5], "counts": "5?"}},
    ],
}
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(["../x", 7, 4]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    """COCO JSON with up to three values replaced or removed, and sometimes a few bytes cut or changed."""
    content = copy.deepcopy(CONTENT)
    for _ in range(draw(st.integers(0, 3))):
        place: Any = content
        while isinstance(place, (dict, list)) and place:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = draw(st.sampled_from(keys))
            if not isinstance(place[key], (dict, list)) or draw(st.integers(0, 3)) == 0:
                if draw(st.booleans()):
                    place[key] = draw(values)
                else:
                    del place[key]
                break
            place = place[key]
    text = json.dumps(content, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 3)) == 0:
        start = draw(st.integers(0, len(text)))
        text = text[:start] + draw(st.binary(max_size=3)) + text[start + draw(st.integers(0, 3)) :]
    return text


@settings(settings.get_profile("parsers"))
@given(st.one_of(st.binary(), values.map(json.dumps).map(str.encode), spoilt(), spoilt(), spoilt()))
def test_any_bytes_give_an_index_or_one_sentence(content: bytes) -> None:
    try:
        instances = parse_instances(content, "x.json", NOWHERE)
    except UsageError as error:
        assert "x.json" in str(error)
        assert "\n" not in str(error)
        return
    assert instances.labels.shape == (len(instances.ids), len(instances.classes))
    assert len(set(instances.ids)) == len(instances.ids)
    assert not any(".." in Path(name).parts or name.startswith("/") for name in instances.paths)
    for (start, end), value in zip(instances.spans, instances.columns, strict=True):
        segmentation = json.loads(content[start:end]).get("segmentation")
        try:
            mask = draw_mask([(int(value) + 1, segmentation)], 4, 5, "x")
        except ImageError:
            continue
        assert mask.shape == (4, 5)


@settings(settings.get_profile("parsers"))
@given(st.one_of(st.text(), st.text(st.characters(min_codepoint=48, max_codepoint=111)), values))
def test_any_run_lengths_are_numbers_or_refused(counts: Any) -> None:
    lengths = run_lengths(counts)
    assert lengths is None or all(length >= 0 for length in lengths)
