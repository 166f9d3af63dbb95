"""PASCAL VOC's layout: lists, labels from XML or masks, truth, and what can be wrong with them."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ribray.config import DataConfig
from ribray.data import Dataset, open_dataset
from ribray.data.dataset import colour_map
from ribray.data.voc import VOC_CLASSES, VocDataset
from ribray.data.voc_labels import parse_annotation
from ribray.errors import ImageError, UsageError


def open_voc(root: Path, split: str = "train") -> Dataset:
    return open_dataset(DataConfig(kind="voc", root=str(root)), split)


def classes_of(dataset: Dataset, id: str) -> set[str]:
    return {name for name, is_there in zip(dataset.classes, dataset.labels[dataset.index(id)], strict=True) if is_there}


# --- real photographs -------------------------------------------------------------------------------------


def test_real_photographs_have_the_labels_of_their_annotations(shared_dir: Path) -> None:
    root = shared_dir / "data/voc-mini"
    train, val = open_voc(root), open_voc(root, "val")
    assert (len(train), len(val)) == (19, 10)
    assert train.problems == val.problems == ()
    assert train.ids[:3] == ("2017_000030", "2017_000071", "2017_000073")
    assert classes_of(train, "2017_000030") == {"pottedplant"}
    assert classes_of(train, "2017_000073") == {"motorbike"}
    assert classes_of(train, "2017_000520") == {"bird", "person"}
    for dataset in (train, val):
        for id in dataset.ids:
            xml = (root / "Annotations" / f"{id}.xml").read_text()
            assert classes_of(dataset, id) == set(re.findall(r"<name>(\w+)</name>", xml))


def test_real_masks_hold_the_labelled_classes_and_fit_their_images(shared_dir: Path) -> None:
    dataset = open_voc(shared_dir / "data/voc-mini")
    assert dataset.has_masks
    for id in dataset.ids:
        mask = dataset.mask(id)
        assert mask is not None
        assert mask.shape == dataset.image(id).shape[:2]
        values = set(np.unique(mask).tolist()) - {0, 255}
        assert values == {VOC_CLASSES.index(name) + 1 for name in classes_of(dataset, id)}


def test_the_palette_is_that_of_vocs_own_masks(shared_dir: Path) -> None:
    dataset = open_voc(shared_dir / "data/voc-mini")
    with Image.open(shared_dir / "data/voc-mini/SegmentationClass/2017_000030.png") as mask:
        recorded = np.array(mask.getpalette("RGB")).reshape(-1, 3)
    np.testing.assert_array_equal(dataset.palette[: len(recorded)], recorded)
    assert colour_map()[[0, 1, 15, 20, 255]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [192, 128, 128],
        [0, 64, 128],
        [224, 224, 192],
    ]


# --- labels -----------------------------------------------------------------------------------------------


def test_labels_come_from_the_xml_or_else_from_the_mask(voc_root: Path) -> None:
    dataset = open_voc(voc_root)
    assert [classes_of(dataset, id) for id in "abc"] == [{"dog", "person"}, {"cat"}, {"bird"}]
    assert dataset.problems == ()


def test_the_xml_wins_over_the_mask_image_by_image(voc_root: Path) -> None:
    (voc_root / "Annotations/c.xml").write_text("<annotation><object><name>sofa</name></object></annotation>")
    (voc_root / "Annotations/a.xml").unlink()
    dataset = open_voc(voc_root)
    assert [classes_of(dataset, id) for id in "abc"] == [{"dog"}, {"cat"}, {"sofa"}]


def test_an_annotation_whose_ending_is_in_capitals_hides_difficult_objects_too(voc_root: Path) -> None:
    xml = "<annotation><object><name>dog</name><difficult>1</difficult></object></annotation>"
    (voc_root / "Annotations/a.xml").unlink()
    (voc_root / "Annotations/a.XML").write_text(xml)
    dataset = open_voc(voc_root)
    assert classes_of(dataset, "a") == {"dog"}
    assert dataset.hidden_classes("a").sum() == 1


def test_difficult_objects_count_and_names_of_parts_do_not() -> None:
    xml = b"""<annotation><object><name> cat </name><difficult>1</difficult>
        <part><name>head</name></part></object></annotation>"""
    assert parse_annotation(xml, ("cat", "dog"), "x.xml").tolist() == [True, False]


def test_an_annotation_without_objects_says_that_the_image_is_empty(voc_root: Path) -> None:
    (voc_root / "Annotations/b.xml").write_text("<annotation><filename>b.jpg</filename></annotation>")
    dataset = open_voc(voc_root)
    assert "b" in dataset
    assert classes_of(dataset, "b") == set()
    assert dataset.problems == ()


@pytest.mark.parametrize(
    ("xml", "reason"),
    [
        ("<annotation><object></annotation>", r"b\.xml is not valid XML"),
        ("", r"b\.xml is not valid XML"),
        ("not xml", r"b\.xml is not valid XML"),
        ("<html></html>", r"b\.xml is no VOC annotation: its root is <html>"),
        ("<annotation><object/></annotation>", r"b\.xml has an object without a name"),
        (
            "<annotation><object><name>catt</name></object></annotation>",
            r"b\.xml has an object 'catt', which is no class \(did you mean 'cat'\?\)",
        ),
        (
            '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><annotation><name>&e;</name></annotation>',
            r"b\.xml declares a document type or entities",
        ),
        (
            '<!DOCTYPE a [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]><annotation>&b;</annotation>',
            r"b\.xml declares a document type or entities",
        ),
    ],
)
def test_a_broken_annotation_is_a_problem_of_its_image_alone(voc_root: Path, xml: str, reason: str) -> None:
    (voc_root / "Annotations/b.xml").write_text(xml)
    dataset = open_voc(voc_root)
    assert dataset.ids == ("a", "c")
    assert [problem.id for problem in dataset.problems] == ["b"]
    assert re.search(reason, dataset.problems[0].sentence)


def test_an_image_with_neither_annotation_nor_mask_is_a_problem(voc_root: Path) -> None:
    (voc_root / "SegmentationClass/c.png").unlink()
    dataset = open_voc(voc_root)
    assert dataset.ids == ("a", "b")
    assert dataset.problems[0].id == "c"
    assert dataset.problems[0].sentence.startswith("c has no labels: neither ")


def test_labels_are_not_taken_from_masks_of_unknown_values(voc_root: Path) -> None:
    Image.fromarray(np.full((20, 30), 77, np.uint8)).save(voc_root / "SegmentationClass/c.png")
    dataset = open_voc(voc_root)
    assert dataset.ids == ("a", "b")
    assert dataset.problems[0].sentence == "The mask of c holds the value 77, but the classes end at 20."


def test_a_missing_image_keeps_its_row(voc_root: Path) -> None:
    before = open_voc(voc_root).fingerprint()
    (voc_root / "JPEGImages/a.jpg").unlink()
    dataset = open_voc(voc_root)
    assert dataset.fingerprint() == before  # so that a run goes on once the file is back
    with pytest.raises(ImageError, match=r"a\.jpg does not exist"):
        dataset.image("a")


# --- lists and roots --------------------------------------------------------------------------------------


def test_lists_in_main_are_used_where_there_are_none_for_segmentation(voc_root: Path) -> None:
    (voc_root / "ImageSets/Main").mkdir()
    (voc_root / "ImageSets/Main/mine.txt").write_text("b\r\n\r\n")
    assert open_voc(voc_root, "mine").ids == ("b",)


def test_an_id_listed_twice_is_used_once_and_reported(voc_root: Path) -> None:
    (voc_root / "ImageSets/Segmentation/train.txt").write_text("a\nb\na\n")
    dataset = open_voc(voc_root)
    assert dataset.ids == ("a", "b")
    assert [problem.kind for problem in dataset.problems] == ["listed twice"]


def test_the_augmented_set_reads_its_own_masks_first(voc_root: Path) -> None:
    (voc_root / "ImageSets/Segmentation/train_aug.txt").write_text("b\nd\n")
    (voc_root / "SegmentationClassAug").mkdir()
    mask = np.zeros((20, 30), np.uint8)
    mask[4] = 5
    for id in "bd":
        Image.fromarray(mask).save(voc_root / f"SegmentationClassAug/{id}.png")
    augmented, plain = open_voc(voc_root, "train_aug"), open_voc(voc_root)
    assert classes_of(augmented, "d") == {"bottle"}
    assert set(np.unique(augmented.mask("b"))) == {0, 5}
    assert set(np.unique(plain.mask("b"))) == {0, 8, 255}


def test_a_missing_list_of_the_augmented_set_says_what_to_put_where(voc_root: Path) -> None:
    with pytest.raises(UsageError, match=r"train_aug\.txt does not exist: put the 10,582 ids .*ClassAug/"):
        open_voc(voc_root, "train_aug")


def test_other_missing_lists_name_those_there_are(voc_root: Path) -> None:
    with pytest.raises(UsageError, match=r"valid\.txt does not exist; lists there are: train\."):
        open_voc(voc_root, "valid")
    (voc_root / "ImageSets/Segmentation/train_aug.txt").touch()  # which begins with the name of a class
    with pytest.raises(UsageError, match=r"lists there are: train, train_aug\."):
        open_voc(voc_root, "valid")
    with pytest.raises(UsageError, match="leaves its folder"):
        open_voc(voc_root, "../train")


def test_missing_roots_are_named(voc_root: Path) -> None:
    with pytest.raises(UsageError, match=r"data\.root /nowhere does not exist: set it to the folder"):
        open_voc(Path("/nowhere"))
    with pytest.raises(UsageError, match=r"train\.txt is a file"):
        open_voc(voc_root / "ImageSets/Segmentation/train.txt")
    with pytest.raises(UsageError, match="has no folder JPEGImages"):
        open_voc(voc_root / "Annotations")


def test_the_folder_above_the_data_is_recognised(voc_root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    above = tmp_path_factory.mktemp("download")
    (above / "VOCdevkit").mkdir()
    (above / "VOCdevkit/VOC2012").symlink_to(voc_root)
    with pytest.raises(UsageError, match=r"did you mean data\.root=.*VOCdevkit/VOC2012\?"):
        open_voc(above)


def test_a_split_without_any_label_is_refused(voc_root: Path) -> None:
    for id in "abc":
        (voc_root / f"Annotations/{id}.xml").write_text("<annotation/>")
    with pytest.raises(UsageError, match=r"No image of split 'train' of .* has a label"):
        open_voc(voc_root)
    (voc_root / "ImageSets/Segmentation/train.txt").write_text("\n")
    with pytest.raises(UsageError, match="has no image that can be used"):
        open_voc(voc_root)


def test_a_split_in_which_every_label_is_broken_says_why(voc_root: Path) -> None:
    for id in "abc":
        (voc_root / f"Annotations/{id}.xml").write_text("<annotation>")
    with pytest.raises(UsageError, match=r"no image that can be used, for example: .*a\.xml is not valid XML"):
        open_voc(voc_root)


# --- masks ------------------------------------------------------------------------------------------------


def test_masks_of_another_size_range_or_kind_are_refused(voc_root: Path) -> None:
    dataset = open_voc(voc_root)
    path = voc_root / "SegmentationClass/a.png"
    Image.fromarray(np.zeros((30, 20), np.uint8)).save(path)
    with pytest.raises(ImageError, match="The mask of a is 20 × 30 pixels, but its image is 30 × 20"):
        dataset.mask("a")
    Image.fromarray(np.full((20, 30), 21, np.uint8)).save(path)
    with pytest.raises(ImageError, match="holds the value 21, where 0 to 20 and 255 are known"):
        dataset.mask("a")
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(path)
    with pytest.raises(ImageError, match="its pixels are RGB"):
        dataset.mask("a")
    path.unlink()
    assert dataset.mask("a") is None
    assert dataset.has_masks


# --- the data set as an object ----------------------------------------------------------------------------


def test_data_of_other_classes_in_the_same_layout(voc_root: Path) -> None:
    palette = np.zeros((256, 3), np.uint8)
    for file in (voc_root / "Annotations").glob("*.xml"):
        file.unlink()
    dataset = VocDataset(voc_root, "train", classes=[f"class {n}" for n in range(12)], palette=palette)
    assert dataset.labels.shape == (3, 12)
    assert [np.flatnonzero(row).tolist() for row in dataset.labels] == [[11], [7], [2]]
    assert dataset.palette is palette


def test_a_copy_in_another_process_is_the_same_data_set(voc_root: Path) -> None:
    dataset = open_voc(voc_root)
    dataset.index("a")
    copy = pickle.loads(pickle.dumps(dataset))  # noqa: S301 - made here
    assert copy.fingerprint() == dataset.fingerprint()
    np.testing.assert_array_equal(copy.image("b"), dataset.image("b"))
    np.testing.assert_array_equal(copy.mask("b"), dataset.mask("b"))


def test_unknown_ids_offer_the_nearest_known(shared_dir: Path) -> None:
    dataset = open_voc(shared_dir / "data/voc-mini")
    with pytest.raises(UsageError, match=r"'2017_00030' is not among the 19 images .*did you mean '2017_000"):
        dataset.index("2017_00030")


# --- any XML ----------------------------------------------------------------------------------------------

PARTS = """
<annotation> </annotation> <object> </object> <name> </name> cat dog <part/> < &amp; &e; é <a:b> ]]> <![CDATA[
"""
tags = st.sampled_from(
    [*PARTS.split(), "\0", " ", "<!DOCTYPE a>", "<!-- -->", "<name xmlns='u'>"]
    + [f'<?xml version="1.0" encoding="{name}"?>' for name in ("utf-16", "latin-1", "unknown")]
)
trees = st.lists(st.sampled_from(["cat", "dog", "", "<name/>", "&lt;", "cow"])).map(
    lambda names: "<annotation>" + "".join(f"<object><name>{n}</name></object>" for n in names) + "</annotation>"
)


@settings(settings.get_profile("parsers"))
@given(st.one_of(st.binary(), st.lists(tags).map("".join).map(str.encode), trees.map(str.encode)))
def test_any_bytes_give_labels_or_one_sentence(content: bytes) -> None:
    try:
        labels = parse_annotation(content, ("cat", "dog"), "x.xml")
    except ImageError as error:
        assert "x.xml" in str(error)
        assert "\n" not in str(error)
    else:
        assert labels.shape == (2,)
        assert labels.dtype == bool
