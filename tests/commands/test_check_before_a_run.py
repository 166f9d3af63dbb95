"""``ribray check`` tells what can be read in two ways, and what would stop a run."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ribray.data.dataset import colour_map
from tests import drawn


def checked(ribray, tmp_path: Path, kind: str = "folder", split: str = "all", **sections: dict) -> dict:
    file = drawn.recipe(tmp_path / "check.yaml", tmp_path / "data", kind, split, cluster={"workers": 0}, **sections)
    ribray("check", file, "--out", tmp_path / "out")
    return json.loads((tmp_path / "out" / "check.json").read_text())


def told(report: dict) -> dict[str, str]:
    """Return the last sentence of each kind of finding."""
    return {finding["kind"]: finding["sentence"] for finding in report["findings"]}


def turn(file: Path, orientation: int, size: tuple[int, int] | None = None) -> None:
    exif, image = Image.Exif(), Image.open(file)
    exif[0x112] = orientation
    (image if size is None else image.resize(size)).save(file, exif=exif)


@pytest.mark.parametrize(
    ("orientation", "size", "kind"), [(3, None, "EXIF turn"), (6, (48, 48), "EXIF turn"), (6, None, "mask size")]
)
def test_a_turn_that_the_mask_may_not_know_of_is_told(tmp_path, ribray, orientation, size, kind):
    drawn.folder(tmp_path / "data")
    turn(tmp_path / "data" / "img00.jpg", orientation, size)
    mask = tmp_path / "data" / "masks" / "img00.png"
    Image.open(mask).resize(size or (64, 48), Image.Resampling.NEAREST).save(mask)
    report = checked(ribray, tmp_path)
    name = f"split 'all' of {tmp_path / 'data'}"
    assert f"EXIF turns or mirrors 1 image(s) of {name}: they are read as viewers show them." in report["notes"]
    sentences = {
        "EXIF turn": f"EXIF turns or mirrors 1 image(s) of {name} whose masks fit either way (img00). They are read as "
        "viewers show them, and their masks must be of that. Save these pictures without the turn in their EXIF data: "
        "as shown, or as in the file if masks were drawn on it.",
        "mask size": "The mask of img00 is 64 × 48 pixels, but its image is 48 × 64: the size of its file before its "
        "EXIF orientation turns it. Draw the mask on the picture as shown, or save the picture without the turn in its "
        "EXIF data.",
    }
    assert told(report) == {kind: sentences[kind]}


def test_a_mask_that_fits_the_turned_picture_alone_is_sound(tmp_path, ribray):
    drawn.folder(tmp_path / "data")
    turn(tmp_path / "data" / "img00.jpg", 6)
    mask = tmp_path / "data" / "masks" / "img00.png"
    Image.open(mask).transpose(Image.Transpose.ROTATE_270).save(mask)
    assert told(checked(ribray, tmp_path)) == {}


def test_images_that_are_trained_on_and_judged_on_are_counted(tmp_path, ribray):
    drawn.folder(tmp_path / "data")
    (tmp_path / "data" / "splits").mkdir()
    for split, numbers in (("train", range(6)), ("val", range(4, 9)), ("apart", range(6, 9))):
        lines = "".join(f"img{number:02d}\n" for number in numbers)
        (tmp_path / "data" / "splits" / f"{split}.txt").write_text(lines)
    data = {"train_split": "train", "eval_split": "val"}
    report = checked(ribray, tmp_path, data=data)
    assert report["findings"] == []
    assert report["notes"] == [
        f"2 of the 5 images of split 'val' of {tmp_path / 'data'}, which results are judged on, are trained on too: "
        "such results say nothing of new images."
    ]
    assert checked(ribray, tmp_path, data=data | {"eval_split": "apart"})["notes"] == []


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (None, "list.txt does not exist"),
        ("img01\nimg77\n", "data.image_list names 'img77', which is not in split 'all' of"),
        ("img01\n", None),
    ],
)
def test_a_list_of_images_that_a_run_would_refuse_is_found(tmp_path, ribray, names, sentence):
    drawn.folder(tmp_path / "data")
    if names is not None:
        (tmp_path / "list.txt").write_text(names)
    found = told(checked(ribray, tmp_path, data={"image_list": str(tmp_path / "list.txt")}))
    assert (found == {}) if sentence is None else (sentence in found["setting"])


def test_the_splits_that_are_evaluated_are_looked_at(tmp_path, ribray, capsys):
    drawn.folder(tmp_path / "data")
    (tmp_path / "data" / "splits").mkdir()
    (tmp_path / "data" / "splits" / "test.txt").write_text("img03\nnew\n")
    drawn.save(drawn.picture(0, ["cat"])[0], tmp_path / "data" / "new.jpg")
    drawn.save(drawn.picture(0, ["cat"])[1], tmp_path / "data" / "masks" / "new.png")
    file = drawn.recipe(tmp_path / "x.yaml", tmp_path / "data", cluster={"workers": 0}, evaluate={"splits": ["nosuch"]})
    assert ribray("check", file, "--out", tmp_path / "out") == 2
    assert "nosuch" in capsys.readouterr().err
    report = checked(ribray, tmp_path, evaluate={"splits": ["test"]})
    test = report["splits"]["test"]
    assert (test["images"], test["with_mask"], test["empty"], test["unused"]) == (2, 2, 0, [])
    assert "class not labelled" not in told(report)


def test_saliency_maps_are_read_as_the_pseudo_stage_reads_them(tmp_path, ribray):
    maps, masks = tmp_path / "maps", {"saliency": str(tmp_path / "maps")}
    drawn.folder(tmp_path / "data")
    assert "maps is no folder" in told(checked(ribray, tmp_path, masks=masks))["setting"]
    for number, (id, kinds) in enumerate(drawn.nine()):
        drawn.save(((drawn.picture(number, kinds)[1] > 0) * 255).astype(np.uint8), maps / f"{id}.png")
    assert told(checked(ribray, tmp_path, masks=masks)) == {}
    for file in maps.iterdir():
        drawn.save(255 - np.asarray(Image.open(file)), file)
    assert told(checked(ribray, tmp_path, masks=masks)) == {
        "saliency map": f"The saliency maps and the masks of split 'all' of {tmp_path / 'data'} say the same in 0% of "
        "the pixels; inverted, the maps would in 100%: 255 is salient, so write 255 - value."
    }
    for file in maps.iterdir():
        drawn.save(255 - np.asarray(Image.open(file)), file)
    (maps / "img00.png").unlink()
    drawn.save(np.zeros((9, 9), np.uint8), maps / "img01.png")
    sentences = [finding["sentence"] for finding in checked(ribray, tmp_path, masks=masks)["findings"]]
    assert sentences[0].startswith("img00 has no saliency map: none of ")
    assert sentences[1].endswith("img01.png is 9 × 9 pixels, but its image is 64 × 48.")
    assert len(sentences) == 2


def test_a_class_in_every_image_is_found_where_a_run_would_refuse_it(tmp_path, ribray):
    drawn.folder(tmp_path / "data", [(f"has{number}", ["polyp"]) for number in range(4)], classes=("polyp",))
    assert "set refine.batch_size=1, or add images without 'polyp'" in told(checked(ribray, tmp_path))["setting"]
    assert told(checked(ribray, tmp_path, refine={"batch_size": 1})) == {}


def test_a_palette_that_a_program_has_renumbered_is_found(tmp_path, ribray):
    drawn.voc(tmp_path / "data")
    masks = sorted((tmp_path / "data" / "SegmentationClass").iterdir())
    for number, file in enumerate(masks):
        values = np.array(Image.open(file))
        used = np.unique(values) if number == 0 else np.arange(21)
        picture = Image.fromarray(np.searchsorted(used, values).astype(np.uint8)).convert("P")
        picture.putpalette(colour_map()[used].tobytes())
        picture.save(file)
    assert told(checked(ribray, tmp_path, "voc", "train"))["mask palette"] == (
        f"{masks[0]} has VOC's colour of 8 at the value 1, as programs that shrink PNGs may do. In a mask, values "
        "count, not colours: write the class numbers again, with VOC's palette."
    )
    report = checked(ribray, tmp_path, "voc", "train")
    assert [finding["id"] for finding in report["findings"] if finding["kind"] == "mask palette"] == [masks[0].stem]


def test_masks_that_leave_all_background_out_are_found(tmp_path, ribray):
    drawn.folder(tmp_path / "data")
    for file in (tmp_path / "data" / "masks").iterdir():
        mask = np.array(Image.open(file))
        drawn.save(np.where(mask == 0, 255, mask).astype(np.uint8), file)
    assert told(checked(ribray, tmp_path)) == {
        "no background": f"No mask of split 'all' of {tmp_path / 'data'} holds 0, so no pixel of background counts, "
        "and covering too much costs nothing: write 0 where the background is known, and 255 only where it is not."
    }
