"""Data that cannot be used is refused in one sentence, with exit code 2, before anything starts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


def spoil_two_files_of_one_id(root: Path) -> None:
    (root / "cat0.png").write_bytes((root / "cat1.jpg").read_bytes())


def spoil_labels(old: str, new: str):
    def spoil(root: Path) -> None:
        text = (root / "labels.csv").read_text()
        assert old in text
        (root / "labels.csv").write_text(text.replace(old, new))

    return spoil


def spoil_every_label(root: Path) -> None:
    lines = (root / "labels.csv").read_text().splitlines()
    (root / "labels.csv").write_text("\n".join([lines[0], *(f"{line.split(',')[0]}," for line in lines[1:])]))
    (root / "classes.txt").write_text("cat\ndog\nsea\n")


def spoil_a_class_name(root: Path) -> None:
    (root / "classes.txt").write_text("cat\ndog\nseal\n")


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (spoil_two_files_of_one_id, ["cat0.jpg", "cat0.png", "have the same id cat0", "rename"]),
        (spoil_labels("cat0,", "../cat0,"), ["line 2 of", "'../cat0'", "leaves its folder"]),
        (spoil_labels("cat0,", "/etc/passwd,"), ["line 2 of", "'/etc/passwd'", "absolute path"]),
        (spoil_labels("id,classes", "name;classes"), ["labels.csv must begin with the line 'id,classes'"]),
        (spoil_labels("cat0,cat", "cat0,cat,dog"), ["line 2 of", "3 columns, not 2"]),
        (spoil_a_class_name, ["the class 'sea'", "did you mean 'seal'?"]),
        (spoil_every_label, ["No image of split 'all'", "has a label"]),
        (lambda root: (root / "labels.csv").unlink(), ["labels.csv does not exist", "write a line 'id,classes'"]),
        (lambda root: (root / "labels.csv").write_bytes(b"\xff\xfe"), ["labels.csv is not UTF-8 text"]),
    ],
    ids=["one id twice", "dots", "absolute", "header", "columns", "class name", "no label", "no file", "encoding"],
)
@pytest.mark.parametrize("command", ["run", "check"])
def test_a_folder_that_cannot_be_used_is_refused(photographs, recipe, ribray, tmp_path, capsys, command, spoil, parts):
    spoil(photographs)
    assert ribray(command, recipe, "--out", tmp_path / "out") == 2
    assert_one_sentence(capsys.readouterr().err, *parts)
    assert not list((tmp_path / "out").glob("**/*.npz"))


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("data.root={tmp}/nowhere", ["data.root", "nowhere does not exist"]),
        ("data.root={tmp}/recipe.yaml", ["recipe.yaml is a file"]),
        ("data.kind=voc", ["has no folder JPEGImages"]),
        ("data.kind=coco", ["instances_all2014.json does not exist"]),
        ("data.train_split=../all", ["'../all'", "leaves its folder"]),
        ("data.image_list={tmp}/missing.txt", ["missing.txt does not exist"]),
        ("data.image_list={tmp}/list.txt", ["data.image_list names 'cat77'"]),
        ("classifier.checkpoint={tmp}/recipe.yaml", ["recipe.yaml are damaged or of an unknown format"]),
    ],
)
def test_settings_that_lead_nowhere_are_refused(recipe, ribray, tmp_path, capsys, setting, parts):
    (tmp_path / "list.txt").write_text("\ufeffcat1\r\n\r\ncat77\r\n")
    stages = "refine" if "image_list" in setting else "classifier"
    if stages == "refine":
        assert ribray("run", recipe, "--out", tmp_path / "run", "--stages", "classifier") == 0
    capsys.readouterr()
    changed = ("--set", setting.format(tmp=tmp_path))
    assert ribray("run", recipe, "--out", tmp_path / "run", "--stages", stages, *changed) == 2
    assert_one_sentence(capsys.readouterr().err, *parts)


def test_fewer_images_than_a_batch_are_refused(recipe, ribray, tmp_path, capsys):
    settings = ("--set", "classifier.checkpoint=null", "--set", "classifier.batch_size=16")
    assert ribray("run", recipe, "--out", tmp_path / "run", "--stages", "classifier", *settings) == 2
    assert_one_sentence(capsys.readouterr().err, "classifier.batch_size=16", "15 images", "smaller")


def test_a_coco_file_that_is_none_is_refused(recipe, ribray, tmp_path, capsys):
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    (tmp_path / "coco" / "all").mkdir()
    file = tmp_path / "coco" / "annotations" / "instances_all.json"
    change = ("--set", "data.kind=coco", "--set", f"data.root={tmp_path / 'coco'}")
    for content, part in (
        ('{"images": [', "is not valid JSON"),
        (json.dumps({"images": [], "categories": []}), "has no images or no categories"),
        (json.dumps({"images": [{"id": 1, "file_name": 7}]}), "must have 'file_name' with a name"),
    ):
        file.write_text(content)
        assert ribray("check", recipe, *change, "--out", tmp_path / "out") == 2
        assert_one_sentence(capsys.readouterr().err, part)


def test_the_installed_command_says_the_same(photographs, recipe, tmp_path):
    (photographs / "labels.csv").unlink()
    command = [sys.executable, "-m", "ribray.cli", "check", str(recipe), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert_one_sentence(done.stderr, "labels.csv does not exist")


def assert_one_sentence(error: str, *parts: str) -> None:
    (line,) = error.strip().splitlines()
    assert line.startswith("error: ")
    assert "Traceback" not in line
    for part in parts:
        assert part in line
