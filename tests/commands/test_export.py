"""``ribray export``: what other programs read is what the run's masks say, to the pixel."""

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from ribray.data.coco_index import parse_instances
from ribray.data.dataset import IGNORE
from ribray.data.mask_files import mask_path
from ribray.runs.run import Run
from tests.by_hand import begin, empty_run, put_masks, random_mask

SIZES = {"sub/one": (20, 30), "two": (20, 30)}
ALL_VALUES = [0, 1, 2, IGNORE]


def picture(path: Path, size: tuple[int, int] = (20, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(path)


def assert_masks_come_back(
    file: Path, masks: dict[str, np.ndarray], categories: dict[int, str], names: dict[str, tuple[int, str]]
) -> None:
    """`categories`: id → class in order; `names`: id → image id and file name."""
    coco = COCO(str(file))
    assert {category["id"]: category["name"] for category in coco.loadCats(coco.getCatIds())} == categories
    assert len(coco.imgs) == len(masks)
    for id, mask in masks.items():
        number, file_name = names[id]
        image = coco.imgs[number]
        assert (image["file_name"], image["name"]) == (file_name, id)
        assert (image["height"], image["width"]) == mask.shape
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=number))
        found = {annotation["category_id"]: annotation for annotation in annotations}
        assert len(found) == len(annotations)
        for value, category in enumerate(categories, start=1):
            if not (mask == value).any():
                assert category not in found
                continue
            annotation = found.pop(category)
            assert np.array_equal(coco.annToMask(annotation), mask == value)
            assert annotation["area"] == (mask == value).sum()
            rows, columns = np.nonzero(mask == value)
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert annotation["bbox"] == box
            assert annotation["iscrowd"] == 0
        assert not found  # and nothing stands for the ignored pixels


# --- coco --------------------------------------------------------------------------------------------------------


@pytest.fixture
def coco_root(tmp_path: Path) -> Path:
    """Two images; category ids and image ids have gaps, and names are in another order than ids."""
    root = tmp_path / "coco"
    content = {
        "images": [
            {"id": 9, "file_name": "two.png", "height": 20, "width": 30},
            {"id": 5, "file_name": "sub/one.png", "height": 20, "width": 30},
            {"id": 6, "file_name": "three.png", "height": 20, "width": 30},
        ],
        "categories": [{"id": 90, "name": "ant"}, {"id": 4, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 5, "category_id": 4, "iscrowd": 0}],
    }
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (root / "annotations" / f"instances_{split}2014.json").write_text(json.dumps(content))
        for image in content["images"]:
            picture(root / f"{split}2014" / image["file_name"])
    return root


@pytest.fixture
def coco_run(tmp_path: Path, coco_root: Path) -> Run:
    return empty_run(tmp_path / "run", {"data": {"kind": "coco", "root": str(coco_root)}})


def test_pseudo_masks_of_coco_keep_the_datas_own_numbers(coco_run, ribray, capsys):
    masks = {id: random_mask(seed, SIZES[id], ALL_VALUES) for seed, id in enumerate(SIZES)}
    masks["two"][masks["two"] == 1] = 0  # a class that is not in it
    put_masks(begin(coco_run, "pseudo"), masks)
    assert ribray("export", coco_run.directory, "--format", "coco") == 0
    file = coco_run.directory / "exports" / "pseudo-train.json"
    names = {"sub/one": (5, "sub/one.png"), "two": (9, "two.png")}
    assert_masks_come_back(file, masks, {4: "cat", 90: "ant"}, names)
    shown = capsys.readouterr().out.replace("\n", "")
    assert "2 images, 3 annotations; 1 of the split have no mask" in shown
    content = file.read_bytes()
    assert ribray("export", coco_run.directory, "--format", "coco") == 0
    assert file.read_bytes() == content
    assert [other.name for other in file.parent.iterdir()] == [file.name]


def test_a_folder_of_masks_is_as_other_programs_read_it_and_whole_or_absent(coco_run, ribray, capsys, tmp_path):
    masks = {id: random_mask(seed, SIZES[id], ALL_VALUES) for seed, id in enumerate(SIZES)}
    folder = begin(coco_run, "pseudo")
    put_masks(folder, masks)
    assert ribray("export", coco_run.directory, "--format", "png") == 0
    out = coco_run.directory / "exports" / "pseudo-train"
    assert {file.relative_to(out).as_posix() for file in out.rglob("*.png")} == {"sub/one.png", "two.png"}
    for id, mask in masks.items():
        assert np.array_equal(np.array(Image.open(out / f"{id}.png")), mask)
    assert ribray("export", coco_run.directory, "--format", "png") == 2
    (tmp_path / "mine").write_text("precious")
    assert ribray("export", coco_run.directory, "--format", "png", "--out", tmp_path / "mine") == 2
    assert capsys.readouterr().err.replace("\n", " ").count("--out must name an empty or a new folder") == 2
    assert (tmp_path / "mine").read_text() == "precious"
    mask_path(folder, "two").write_bytes(b"half a file")
    assert ribray("export", coco_run.directory, "--format", "png", "--out", tmp_path / "again") != 0
    assert not (tmp_path / "again").exists()


def test_an_export_can_be_learnt_from_again(coco_run, ribray, tmp_path):
    masks = {"sub/one": random_mask(1, (20, 30), ALL_VALUES), "two": np.zeros((20, 30), np.uint8)}
    put_masks(begin(coco_run, "pseudo"), masks)
    assert ribray("export", coco_run.directory, "--format", "coco", "--out", tmp_path / "deep" / "x.json") == 0
    instances = parse_instances((tmp_path / "deep" / "x.json").read_bytes(), "x.json", tmp_path)
    assert instances.classes == ("cat", "ant")
    assert instances.labels[instances.ids.index("sub/one")].all()
    assert not instances.labels[instances.ids.index("two")].any()
    assert not instances.problems


def test_predictions_of_a_chosen_split(coco_run, ribray, tmp_path):
    masks = {"three": random_mask(3, (20, 30), [0, 2])}
    put_masks(begin(coco_run, "evaluate"), masks)
    arguments = (
        "export",
        coco_run.directory,
        "--format",
        "coco",
        "--what",
        "predictions",
        "--out",
        tmp_path / "x.json",
    )
    assert ribray(*arguments) == 0  # of data.eval_split
    assert ribray(*arguments, "--split", "train") == 0
    assert_masks_come_back(tmp_path / "x.json", masks, {4: "cat", 90: "ant"}, {"three": (6, "three.png")})


def test_other_data_is_numbered_from_one(photographs, tmp_path, ribray):
    values = {"data": {"kind": "folder", "root": str(photographs), "train_split": "all", "eval_split": "all"}}
    run = empty_run(tmp_path / "run", values)
    masks = {id: random_mask(seed, (44, 60), [0, 1, 3]) for seed, id in enumerate(("dog4", "cat0"))}
    put_masks(begin(run, "pseudo"), masks)
    assert ribray("export", run.directory, "--format", "coco", "--out", tmp_path / "x.json") == 0
    rows = (photographs / "labels.csv").read_text().split()[1:]
    names = {id: (rows.index(f"{id},{id[:-1]}") + 1, f"{id}.jpg") for id in masks}
    assert_masks_come_back(tmp_path / "x.json", masks, {1: "cat", 2: "dog", 3: "sea"}, names)


def test_a_damaged_mask_leaves_the_former_export_alone(coco_run, ribray, capsys):
    folder = begin(coco_run, "pseudo")
    put_masks(folder, {id: random_mask(0, size, ALL_VALUES) for id, size in SIZES.items()})
    assert ribray("export", coco_run.directory, "--format", "coco") == 0
    file = coco_run.directory / "exports" / "pseudo-train.json"
    content = file.read_bytes()
    put_masks(folder, {"two": random_mask(0, (20, 30), [0, 3])})
    assert ribray("export", coco_run.directory, "--format", "coco") == 1
    assert "two.png holds the value 3, where 0 to 2" in capsys.readouterr().err.replace("\n", " ")
    mask_path(folder, "sub/one").write_bytes(b"x")
    assert ribray("export", coco_run.directory, "--format", "coco") == 1
    assert file.read_bytes() == content
    assert [other.name for other in file.parent.iterdir()] == [file.name]


def test_a_run_on_plain_cams_and_a_fork_give_the_masks_they_stand_for(tmp_path, coco_root, ribray):
    data = {"kind": "coco", "root": str(coco_root)}
    run = empty_run(tmp_path / "run", {"data": data, "masks": {"source": "cam"}})
    variant = empty_run(run.variant_directory("cam"), {"data": data, "masks": {"source": "cam"}}, run)
    masks = {"sub/one": random_mask(1, (20, 30), ALL_VALUES)}
    put_masks(begin(variant, "pseudo"), masks)
    assert ribray("export", run.directory, "--format", "coco", "--out", tmp_path / "cam.json") == 0
    names = {"sub/one": (5, "sub/one.png")}
    assert_masks_come_back(tmp_path / "cam.json", masks, {4: "cat", 90: "ant"}, names)

    older = empty_run(tmp_path / "older", {"data": data})
    put_masks(begin(older, "pseudo"), masks)
    same = empty_run(tmp_path / "same", {"data": data, "segmentation": {"lr": 0.1}}, older)
    assert ribray("export", same.directory, "--format", "coco", "--out", tmp_path / "same.json") == 0
    other = empty_run(tmp_path / "other", {"data": data, "pseudo": {"threshold": 0.9}}, older)
    assert ribray("export", other.directory, "--format", "coco") == 2


def test_what_cannot_be_exported_is_said_in_a_sentence(coco_run, ribray, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")

    def refused(*arguments: object) -> str:
        assert ribray("export", coco_run.directory, *arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert len(error.strip().splitlines()) == 1
        return error

    assert "formats are coco, voc-server" in refused("--format", "yolo")
    assert "one of pseudo, predictions" in refused("--format", "coco", "--what", "seeds")
    assert "--stages classifier,refine,confident,irn,pseudo`" in refused("--format", "coco")
    assert "evaluate.splits=[val,train]" in refused("--format", "coco", "--what", "predictions", "--split", "train")
    assert "PASCAL VOC" in refused("--format", "voc-server")
    assert "is a folder" in refused("--format", "coco", "--out", coco_run.directory)


# --- voc-server --------------------------------------------------------------------------------------------------


@pytest.fixture
def voc_run(tmp_path: Path) -> Run:
    """Five test images, of which nobody knows labels or masks."""
    root = tmp_path / "VOC2012"
    ids = [f"2008_00000{number}" for number in range(5)]
    for id in ids:
        picture(root / "JPEGImages" / f"{id}.jpg")
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "test.txt").write_text("\n".join(ids))
    return empty_run(tmp_path / "my run", {"data": {"kind": "voc", "root": str(root)}})


@pytest.fixture
def predict_all(voc_run: Run) -> Callable[[list[int]], dict[str, np.ndarray]]:
    def put(values: list[int]) -> dict[str, np.ndarray]:
        masks = {f"2008_00000{number}": random_mask(number, (20, 30), values) for number in range(5)}
        put_masks(begin(voc_run, "evaluate"), masks)
        return masks

    return put


def test_the_servers_archive_holds_every_test_image(voc_run, predict_all, ribray, tmp_path):
    masks = predict_all([0, 1, 20])
    assert ribray("export", voc_run.directory, "--format", "voc-server") == 0
    file = voc_run.directory / "exports" / "predictions-test.tar.gz"
    with tarfile.open(file) as archive:
        members = archive.getmembers()
        folder = "results/VOC2012/Segmentation/comp6_test_cls"
        assert [member.name for member in members] == [f"{folder}/{id}.png" for id in masks]
        for member, mask in zip(members, masks.values(), strict=True):
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
            stream = archive.extractfile(member)
            assert stream is not None
            png = Image.open(io.BytesIO(stream.read()))
            assert png.mode == "P"
            assert np.array_equal(np.array(png), mask)
            assert png.getpalette()[3:6] == [128, 0, 0]
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    for mask_file in (voc_run.directory / "predictions").glob("*/*.png"):
        mask_file.touch()
    other = tmp_path / "other.tgz"
    assert ribray("export", voc_run.directory, "--format", "voc-server", "--out", other) == 0
    assert hashlib.sha256(other.read_bytes()).hexdigest() == digest
    listed = subprocess.run(["tar", "tzf", other], capture_output=True, text=True, check=True).stdout.split()
    assert len(listed) == 5


def test_missing_predictions_are_named_with_the_command_that_makes_them(voc_run, predict_all, ribray, capsys):
    directory = voc_run.directory
    command = f"ribray run '{directory}/experiment.yaml' --out '{directory}' "
    command += (
        '--set "evaluate.splits=[val,test]" --stages classifier,refine,confident,irn,pseudo,segmentation,evaluate`'
    )
    assert ribray("export", directory, "--format", "voc-server") == 2
    error = capsys.readouterr().err
    assert "5 of the 5 images" in error
    assert command in error
    predict_all([0, 1])
    mask_path(directory / "predictions", "2008_000003").unlink()
    assert ribray("export", directory, "--format", "voc-server") == 2
    assert "1 of the 5 images of split 'test' (2008_000003)" in capsys.readouterr().err
    assert not (directory / "exports").exists()


def test_the_server_gets_no_ignored_pixels_and_no_pseudo_masks(voc_run, predict_all, ribray, capsys):
    predict_all([0, 20, IGNORE])
    assert ribray("export", voc_run.directory, "--format", "voc-server") == 1
    assert "holds the value 255, where 0 to 20" in capsys.readouterr().err
    assert not list((voc_run.directory / "exports").iterdir())
    assert ribray("export", voc_run.directory, "--format", "voc-server", "--what", "pseudo") == 2
