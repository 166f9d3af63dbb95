"""``ribray check``: finds what is wrong with a data set, and nothing else."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.usefixtures("ray_session")


def report_of(folder: Path) -> dict:
    return json.loads((folder / "check.json").read_text())


@pytest.mark.parametrize(("recipe_name", "data", "images"), [("voc12", "voc-mini", 29), ("coco14", "coco-mini", 38)])
def test_sound_photographs_have_no_findings(shared_dir, tmp_path, ribray, capsys, recipe_name, data, images):
    root = f"data.root={shared_dir / 'data' / data}"
    code = ribray("check", recipe_name, "--set", root, "--set", "data.train_split=train", "--out", tmp_path)
    assert code == 0, capsys.readouterr().out
    report = report_of(tmp_path)
    assert report["findings"] == []
    assert report["complete"]
    assert sum(split["images"] for split in report["splits"].values()) == images
    train = report["splits"]["train"]
    assert train["classes"]["person"] == 14
    assert "aeroplane" in train["unused"] or "airplane" in train["unused"]
    assert train["sizes"]["largest"] == [500, 500] if data == "voc-mini" else [565, 640]


def test_twelve_planted_faults_are_found_and_nothing_else(shared_dir, tmp_path, ribray, capsys):
    root = tmp_path / "voc"
    shutil.copytree(shared_dir / "data" / "voc-mini", root)
    planted = plant_faults(root)
    code = ribray(
        "check", "voc12", "--set", f"data.root={root}", "--set", "data.train_split=train", "--out", tmp_path / "out"
    )
    found = {(finding["kind"], finding["split"], finding["id"]) for finding in report_of(tmp_path / "out")["findings"]}
    assert found == planted
    assert len(report_of(tmp_path / "out")["findings"]) == len(planted) == 12
    assert code == 1
    shown = capsys.readouterr().out
    assert "12 findings" in shown
    for kind, count in Counter(kind for kind, _, _ in planted).items():
        assert f"{kind}: {count}" in shown


def plant_faults(root: Path) -> set[tuple[str, str, str]]:
    """Spoil twelve images of the data set, and return what a check should say: (kind, split, id)."""
    train = (root / "ImageSets/Segmentation/train.txt").read_text().split()
    val = (root / "ImageSets/Segmentation/val.txt").read_text().split()

    def picture(id: str) -> Path:
        return root / "JPEGImages" / f"{id}.jpg"

    def mask(id: str) -> Path:
        return root / "SegmentationClass" / f"{id}.png"

    picture(train[0]).unlink()
    picture(train[1]).write_bytes(picture(train[1]).read_bytes()[:-4000])
    picture(train[2]).write_bytes(b"")
    picture(train[3]).write_text("<html>404: not found</html>")
    Image.open(mask(train[4])).resize((100, 80), Image.Resampling.NEAREST).save(mask(train[4]))
    stray = np.array(Image.open(mask(train[5])))
    stray[0, 0] = 77
    Image.fromarray(stray).save(mask(train[5]))
    Image.fromarray(np.stack([stray] * 3, axis=-1)).save(mask(train[6]))
    mask(train[7]).write_bytes(mask(train[7]).read_bytes()[:200])
    (root / "Annotations" / f"{train[8]}.xml").unlink()
    mask(train[8]).unlink()
    xml = root / "Annotations" / f"{train[9]}.xml"
    xml.write_text(xml.read_text().replace("<name>person</name>", "<name>persn</name>"))
    if "persn" not in xml.read_text():
        xml.write_text("<annotation><object><name>persn</name></object></annotation>")
    lines = [*train, train[10]]
    (root / "ImageSets/Segmentation/train.txt").write_text("\n".join(lines) + "\n")
    (root / "Annotations" / f"{val[0]}.xml").write_text("<annotation><object>")
    return {
        ("missing", "train", train[0]),
        ("truncated", "train", train[1]),
        ("unreadable", "train", train[2]),
        ("unreadable", "train", train[3]),
        ("mask size", "train", train[4]),
        ("mask values", "train", train[5]),
        ("mask unreadable", "train", train[6]),
        ("mask unreadable", "train", train[7]),
        ("labels", "train", train[8]),
        ("labels", "train", train[9]),
        ("listed twice", "train", train[10]),
        ("labels", "val", val[0]),
    }


def test_each_finding_is_a_sentence_that_names_its_file(photographs, recipe, ribray, tmp_path):
    (photographs / "cat0.jpg").unlink()
    (photographs / "sky.jpg").write_bytes((photographs / "dog0.jpg").read_bytes())
    assert ribray("check", recipe, "--out", tmp_path / "out") == 1
    findings = {finding["id"]: finding for finding in report_of(tmp_path / "out")["findings"]}
    assert {id: finding["kind"] for id, finding in findings.items()} == {"cat0": "missing", "sky": "not listed"}
    assert f"no image cat0 below {photographs}" in findings["cat0"]["sentence"]
    assert "labels.csv" in findings["sky"]["sentence"]


def test_classes_and_sizes_are_told(photographs, recipe, ribray, tmp_path, capsys, monkeypatch):
    (photographs / "classes.txt").write_text("cat\ndog\nsea\nzebra\n")
    (photographs / "labels.csv").write_text((photographs / "labels.csv").read_text() + "empty,\n")
    Image.linear_gradient("L").resize((7, 3)).save(photographs / "empty.png")
    monkeypatch.chdir(tmp_path)
    assert ribray("check", recipe) == 0
    (split,) = report_of(tmp_path)["splits"].values()
    assert split["classes"] == {"cat": 5, "dog": 5, "sea": 5, "zebra": 0}
    assert (split["images"], split["empty"], split["with_mask"]) == (16, 1, 15)
    assert split["unused"] == ["zebra"]
    assert split["sizes"] == {"smallest": [7, 3], "median": [60, 44], "largest": [60, 44]}
    shown = capsys.readouterr().out
    assert "Never in all: zebra" in shown
    assert "Nothing wrong was found." in shown


def test_a_data_set_that_cannot_be_opened_is_unusable(recipe, ribray, tmp_path, capsys):
    assert ribray("check", recipe, "--set", "data.eval_split=val", "--out", tmp_path / "out") == 2
    assert "splits there are: all" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_world_that_a_run_draws_itself_cannot_be_checked(ribray, tmp_path, capsys):
    for root in ("null", tmp_path / "new"):
        assert ribray("check", "quickstart", "--out", tmp_path, "--set", f"data.root={root}") == 2
        assert "draws its own data" in capsys.readouterr().err


def test_one_picture_by_two_names_is_a_finding_or_no_new_image(photographs, recipe, ribray, tmp_path):
    for copied, name in (("cat0", "copy"), ("dog0", "same"), ("sea0", "new")):
        shutil.copy(photographs / f"{copied}.jpg", photographs / f"{name}.jpg")
    rows = (photographs / "labels.csv").read_text() + "copy,dog\nsame,dog\nnew,sea\n"
    (photographs / "labels.csv").write_text(rows)
    (photographs / "splits").mkdir()
    ids = [row.partition(",")[0] for row in rows.splitlines()[1:]]
    (photographs / "splits" / "train.txt").write_text("\n".join(id for id in ids if id != "new"))
    (photographs / "splits" / "val.txt").write_text("new\nsea1\n")
    splits = ("--set", "data.train_split=train", "--set", "data.eval_split=val")
    assert ribray("check", recipe, *splits, "--out", tmp_path / "out") == 1
    report = report_of(tmp_path / "out")
    (finding,) = report["findings"]
    assert (finding["kind"], finding["id"]) == ("same picture", "cat0")
    assert "one picture with different labels (cat0: cat; copy: dog)" in finding["sentence"]
    (note,) = (note for note in report["notes"] if "by another name" in note)
    assert note.startswith("1 of the 2 images of split 'val'")
    assert "such as new and sea0" in note
