"""What is wrong with single images costs those images and nothing else."""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ribray.config import DataConfig, RIBConfig
from ribray.data import open_dataset
from ribray.data.dataset import Dataset
from ribray.data.voc import VOC_CLASSES
from ribray.errors import ImageError
from ribray.methods.maps import MapRecord
from ribray.methods.worker import RefineWorker
from ribray.networks import build_classifier
from ribray.networks.weights import save_network
from ribray.pipeline.maps import map_path
from ribray.runs.run import Run
from ribray.stages.seed import SeedWorker
from tests.made import SMALL_STEPS, save_picture

# --- runs --------------------------------------------------------------------------------------------------------


def map_bytes(out: Path) -> dict[str, bytes]:
    return {file.stem: file.read_bytes() for file in (out / "maps").rglob("*.npz")}


def leave_out(root: Path, ids: set[str]) -> None:
    """Take images out of a folder data set, rows and files."""
    rows = (root / "labels.csv").read_text().splitlines()
    (root / "labels.csv").write_text("".join(f"{row}\n" for row in rows if row.split(",")[0] not in ids))
    for id in ids:
        (root / f"{id}.jpg").unlink()


@pytest.mark.usefixtures("ray_session")
def test_three_bad_images_are_three_lines_and_change_no_other_map(photographs, recipe, ribray, tmp_path, capsys):
    bad = {"cat0", "dog1", "sea2"}
    sound = tmp_path / "sound"
    shutil.copytree(photographs, sound)
    without = tmp_path / "without"
    shutil.copytree(photographs, without)
    leave_out(without, bad)
    (photographs / "cat0.jpg").unlink()
    (photographs / "dog1.jpg").write_bytes((photographs / "dog1.jpg").read_bytes()[:-500])
    (photographs / "sea2.jpg").write_text("a text file")
    only = ("--stages", "classifier,refine")
    out = tmp_path / "run"

    assert ribray("run", recipe, "--out", out, *only) == 1
    shown = capsys.readouterr()
    assert "3 failed" in shown.out
    assert "3 unreadable image(s) were passed over as extra samples" in shown.out
    assert "Traceback" not in shown.out + shown.err
    lines = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    assert {line["id"]: line["stage"] for line in lines} == dict.fromkeys(bad, "refine")
    assert len(lines) == 3
    events = [json.loads(line) for file in (out / "events").iterdir() for line in file.read_text().splitlines()]
    passed_over = [event["error"].split(":")[0] for event in events if event["what"] == "extra sample passed over"]
    assert sorted(passed_over) == sorted(bad)

    reference = tmp_path / "reference"
    assert ribray("run", recipe, "--out", reference, *only, "--set", f"data.root={without}") == 0
    assert len(map_bytes(reference)) == 12
    assert map_bytes(out) == map_bytes(reference)

    for id in bad:
        shutil.copy(sound / f"{id}.jpg", photographs / f"{id}.jpg")
    times = {file: file.stat().st_mtime_ns for file in (out / "maps").rglob("*.npz")}
    capsys.readouterr()
    assert ribray("run", recipe, "--out", out, *only) == 0
    assert "15 of 15 images (12 earlier)" in capsys.readouterr().out
    assert map_bytes(out).keys() - map_bytes(reference).keys() == bad
    assert {file: file.stat().st_mtime_ns for file in times} == times
    assert (out / "failures.jsonl").read_text() == ""


@pytest.mark.usefixtures("ray_session")
def test_what_a_person_should_know_is_said_once(photographs, recipe, ribray, tmp_path, capsys):
    (photographs / "splits").mkdir()
    ids = [line.split(",")[0] for line in (photographs / "labels.csv").read_text().splitlines()[1:]]
    (photographs / "splits" / "train.txt").write_text("\n".join([*ids, "cat0", "dog0"]))
    Image.new("L", (9, 5)).save(photographs / "masks" / "cat1.png")
    settings = ("--set", "data.train_split=train", "--set", "refine.batch_size=20", "--set", "refine.limit=4")
    settings += ("--stages", "classifier,refine,seed")
    assert ribray("run", recipe, "--out", tmp_path / "run", *settings) == 1  # the mask of cat1 has another size
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("fewer than 19 others without their classes (at least 10)") == 1
    assert shown.count("lists cat0 on line 1 and again on line 16") == 1
    assert "(1 more of the kind" in shown
    (failure,) = Run.read(tmp_path / "run").failures()
    assert (failure.id, failure.stage) == ("cat1", "seed")
    assert "mask of cat1 is 9 × 5 pixels, but its image is 60 × 44" in failure.error
    assert len(map_bytes(tmp_path / "run")) == 4


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Images this small are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- one worker in this process ----------------------------------------------------------------------------------


def open_folder(root: Path) -> Dataset:
    return open_dataset(DataConfig(kind="folder", root=str(root)), "all")


def worker(dataset: Dataset, checkpoint: Path, folder: Path, **changes) -> RefineWorker:
    config = RIBConfig(**(SMALL_STEPS | changes))
    network = {"backbone": "small", "output_stride": 8}
    return RefineWorker(dataset, network, checkpoint, config, "float32", folder, loader_threads=2)


@pytest.mark.parametrize("batch_size", [8, 11, 20])
def test_few_extras_of_which_some_are_unreadable_give_the_maps_of_those_that_are(
    photographs, checkpoint, tmp_path, batch_size
):
    bad = {"dog0", "sea4", "sea1"}  # of the ten that may accompany a cat
    without = tmp_path / "without"
    shutil.copytree(photographs, without)
    leave_out(without, bad)
    for id in bad:
        (photographs / f"{id}.jpg").write_bytes(b"")
    for root, out in ((photographs, tmp_path / "a"), (without, tmp_path / "b")):
        record = worker(open_folder(root), checkpoint, out, batch_size=batch_size).process("cat0")
        assert record["extras"] == min(7, batch_size - 1)
    assert record["steps"] == 3
    assert map_path(tmp_path / "a", "cat0").read_bytes() == map_path(tmp_path / "b", "cat0").read_bytes()


def test_an_image_without_any_disjoint_one_fails_with_the_reason(photographs, checkpoint, tmp_path):
    rows = (photographs / "labels.csv").read_text().splitlines()
    (photographs / "labels.csv").write_text("\n".join([rows[0], *(f"{row};cat" for row in rows[1:])]))
    dataset = open_folder(photographs)
    with pytest.raises(ImageError, match=r"cat0 has no image to draw extra samples from: every other one shares"):
        worker(dataset, checkpoint, tmp_path / "maps").process("cat0")
    assert worker(dataset, checkpoint, tmp_path / "maps", batch_size=1).process("cat0")["steps"] == 3


def test_an_image_whose_extras_are_all_unreadable_fails_with_the_reason(photographs, checkpoint, tmp_path):
    for file in photographs.glob("*.jpg"):
        if not file.name.startswith("cat"):
            file.write_text("no image")
    with pytest.raises(ImageError, match="None of the 10 images that could serve as extras is readable"):
        worker(open_folder(photographs), checkpoint, tmp_path / "maps").process("cat0")


def test_a_loss_that_is_not_finite_is_the_images_failure_and_not_the_next_ones(photographs, checkpoint, tmp_path):
    dataset = open_folder(photographs)
    with pytest.raises(ImageError, match=r"not finite in refinement step 2 of 3; a smaller refine.lr may help"):
        worker(dataset, checkpoint, tmp_path / "maps", lr=1e30).process("cat0")
    assert not map_path(tmp_path / "maps", "cat0").exists()
    refiner = worker(dataset, checkpoint, tmp_path / "maps")
    refiner.process("dog0")
    expected = map_path(tmp_path / "maps", "dog0").read_bytes()
    rates = refiner._method.groups
    refiner._method.groups = [(parameters, 1e30) for parameters, _ in rates]
    with pytest.raises(ImageError):
        refiner.process("cat0")
    refiner._method.groups = rates
    refiner.process("dog0")
    assert map_path(tmp_path / "maps", "dog0").read_bytes() == expected


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 7)])
def test_images_smaller_than_a_stride_are_refined_and_serve_as_extras(photographs, checkpoint, tmp_path, size):
    height, width = size
    for id in ("cat0", "dog0", "dog1", "dog2", "dog3", "dog4"):
        Image.new("RGB", (width, height), (200, 90, 30)).save(photographs / f"{id}.jpg")
    leave_out(photographs, {f"sea{number}" for number in range(5)})
    (photographs / "classes.txt").write_text("cat\ndog\nsea\n")
    dataset = open_folder(photographs)
    refiner = worker(dataset, checkpoint, tmp_path / "maps")
    for id in ("cat0", "cat1"):  # cat1's extras are all of that size
        assert refiner.process(id)["extras"] == 3
        record = MapRecord.read(map_path(tmp_path / "maps", id))
        assert record.size == (size if id == "cat0" else (44, 60))
        assert np.isfinite(record.maps["rib"][0]).all()
    Image.fromarray(np.zeros(size, np.uint8)).save(photographs / "masks" / "cat0.png")
    judged = SeedWorker(dataset, {"rib": tmp_path / "maps"}, (0.2, 0.4)).process("cat0")
    assert judged["ended"]["rib"][1] > 0


def test_a_mask_of_another_size_or_range_is_the_images_failure_in_the_seed(photographs, checkpoint, tmp_path):
    dataset = open_folder(photographs)
    worker(dataset, checkpoint, tmp_path / "maps").process("cat0")
    seed = SeedWorker(dataset, {"rib": tmp_path / "maps"}, (0.2, 0.4))
    seed.process("cat0")
    stray = np.zeros((44, 60), np.uint8)
    stray[3, 3] = 9
    for pixels, sentence in ((stray, "holds the value 9"), (stray[:, :50], "50 × 44 pixels, but its image is 60 × 44")):
        Image.fromarray(pixels).save(photographs / "masks" / "cat0.png")
        with pytest.raises(ImageError, match=sentence):
            seed.process("cat0")
    (photographs / "masks" / "cat0.png").unlink()
    with pytest.raises(ImageError, match=r"cat0\.png does not exist"):
        seed.process("cat0")
    seed = SeedWorker(open_folder(photographs), {"rib": tmp_path / "maps"}, (0.2, 0.4))
    with pytest.raises(ImageError, match="cat0 has no mask"):
        seed.process("cat0")


# --- the same photographs in every layout ------------------------------------------------------------------------


def test_the_same_photographs_give_the_same_maps_in_every_layout(tmp_path):
    labels = {"a1": ("cat",), "a2": ("dog", "person"), "a3": ("cat", "dog"), "a4": ("bus",), "a5": (), "a6": ("train",)}
    datasets = {kind: write_layout(tmp_path / kind, kind, labels) for kind in ("voc", "coco", "folder")}
    assert len({dataset.fingerprint() for dataset in datasets.values()}) == 1
    model = build_classifier("small", len(VOC_CLASSES), 8)
    save_network(model, tmp_path / "classifier.safetensors")
    maps = {}
    for kind, dataset in datasets.items():
        refiner = worker(dataset, tmp_path / "classifier.safetensors", tmp_path / "maps" / kind, iterations=2)
        for id in labels:
            refiner.process(id)
        maps[kind] = [map_path(tmp_path / "maps" / kind, id).read_bytes() for id in labels]
    assert len(set(maps["voc"])) == len(labels)
    assert maps["voc"] == maps["coco"] == maps["folder"]


def write_layout(root: Path, kind: str, labels: dict[str, tuple[str, ...]]) -> Dataset:
    """Write the same photographs and labels as a data set of a kind, with the 20 classes of VOC, and open it."""
    folder = {"voc": "JPEGImages", "coco": "train2014", "folder": "."}[kind]
    for number, id in enumerate(labels):
        save_picture(root / folder / f"{id}.jpg", number, ("cat", "dog", "sea")[number % 3], (40 + number, 52))
    if kind == "voc":
        for id, names in labels.items():
            objects = "".join(f"<object><name>{name}</name></object>" for name in names)
            write_text(root / "Annotations" / f"{id}.xml", f"<annotation>{objects}</annotation>")
        write_text(root / "ImageSets" / "Segmentation" / "train.txt", "\n".join(labels))
    elif kind == "coco":
        number = {name: 10 + place for place, name in enumerate(VOC_CLASSES)}
        images = [{"id": place, "file_name": f"{id}.jpg"} for place, id in enumerate(labels)]
        objects = [(place, number[name]) for place, names in enumerate(labels.values()) for name in names]
        content = {
            "images": images,
            "categories": [{"id": id, "name": name} for name, id in number.items()],
            "annotations": [{"id": i, "image_id": o[0], "category_id": o[1]} for i, o in enumerate(objects)],
        }
        write_text(root / "annotations" / "instances_train2014.json", json.dumps(content))
    else:
        text = io.StringIO("id,classes\n" + "".join(f"{id},{';'.join(names)}\n" for id, names in labels.items()))
        write_text(root / "labels.csv", text.read())
        write_text(root / "classes.txt", "\n".join(VOC_CLASSES))
        write_text(root / "splits" / "train.txt", "\n".join(labels))
    return open_dataset(DataConfig(kind=kind, root=str(root)), "train")


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
