"""The examples of docs/extending.md: their files and lines, taken from the page, run as they stand."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from ribray.commands.report import write_report
from ribray.config import DataConfig, SyntheticConfig
from ribray.data import open_dataset
from ribray.demo.world import make_world
from tests.conftest import ROOT
from tests.tiny import chain

BLOCK = re.compile(r'^```(\w+) title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
BLOCKS = BLOCK.findall((ROOT / "docs/extending.md").read_text(encoding="utf-8"))
METHOD, STUDY = "mine/occlusion.py", "patches.yaml"
LONGEST_METHOD = 60
SMALL_WORLD = SyntheticConfig(image_size=64, train_images=12, eval_images=4)


def write_files(folder: Path, *names: str) -> None:
    for kind, title, text in BLOCKS:
        if kind != "diff" and (title in names or not names):
            (folder / title).parent.mkdir(parents=True, exist_ok=True)
            (folder / title).write_text(text)


def change_lines(folder: Path) -> None:
    """Make the page's changes in a copy of the package; each place must be there once."""
    for title, text in ((title, text) for kind, title, text in BLOCKS if kind == "diff"):
        lines = text.splitlines()
        old, new = ("\n".join(line[1:] for line in lines if not line.startswith(other)) + "\n" for other in ("+", "-"))
        content = (folder / title).read_text(encoding="utf-8")
        assert content.count(old) == 1, f"{title} has no single place for:\n{text}"
        (folder / title).write_text(content.replace(old, new))


def ribray(folder: Path, *arguments: object) -> str:
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "ribray", *map(str, arguments)]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def write_listed_data(root: Path) -> None:
    """Write a drawn world as data of the page's kind."""
    world = DataConfig(kind="synthetic", synthetic=SMALL_WORLD)
    make_world(root / "world", SMALL_WORLD, 0)
    for split in ("train", "val"):
        dataset = open_dataset(world, split, root / "world")
        (root / split).mkdir(parents=True)
        lines = []
        for id, labels in zip(dataset.ids, dataset.labels, strict=True):
            Image.fromarray(dataset.image(id)).save(root / split / f"{id}.jpg", quality=95)
            Image.fromarray(dataset.mask(id)).save(root / split / f"{id}.png")
            lines.append(f"{split}/{id}.jpg: {' '.join(np.array(dataset.classes)[labels])}\n")
        (root / f"{split}.txt").write_text("".join(lines))
    (root / "classes.txt").write_text("\n".join(dataset.classes))


def test_the_page_has_an_example_of_each_thing():
    assert {title for kind, title, _ in BLOCKS if kind != "diff"} == {
        METHOD,
        "ribray/networks/plain.py",
        "ribray/data/lines.py",
        "ribray/stages/spread.py",
        STUDY,
    }


def test_a_method_is_one_file_and_shows_up_everywhere_by_its_name(tmp_path, monkeypatch):
    write_files(tmp_path, METHOD)
    assert len((tmp_path / METHOD).read_text().splitlines()) < LONGEST_METHOD
    monkeypatch.syspath_prepend(tmp_path)
    settings = ["refine.method=[rib, mine.occlusion]", "refine.patches=3", "refine.limit=4", "cluster.workers=0"]
    result, _ = chain(tmp_path / "run", settings)
    assert not result.failures
    found = json.loads((tmp_path / "run/metrics.json").read_text())
    assert list(found["seed"]) == ["cam", "rib", "occlusion"]
    assert found["seed"]["occlusion"]["images"] == 4
    page = write_report(tmp_path / "run").read_text()
    assert page.count("seed, Occlusion</figcaption>") == 4  # in the gallery, one an image
    assert f"{found['seed']['occlusion']['miou']:.1f}" in page


@pytest.mark.slow
def test_a_network_a_kind_of_data_and_a_stage_are_a_file_and_a_line_or_two(tmp_path):
    shutil.copytree(ROOT / "ribray", tmp_path / "ribray", ignore=shutil.ignore_patterns("__pycache__"))
    write_files(tmp_path)
    change_lines(tmp_path)
    write_listed_data(tmp_path / "data")
    recipe = {
        "data": {"kind": "lines", "root": str(tmp_path / "data")},
        "classifier": {"backbone": "plain", "output_stride": 8, "weights": "none", "epochs": 1, "batch_size": 4}
        | {"crop_size": 64, "resize_long": [48, 80]},
        "refine": {"method": "mine.occlusion", "patches": 3, "scales": [1.0]},
        "seed_eval": {"thresholds": [0.2, 0.4]},
        "cluster": {"workers": 0},
        "tracking": {"wandb": "disabled"},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    ribray(tmp_path, "run", "recipe.yaml", "--out", "run", "--stages", "classifier,refine,seed,spread")
    found = json.loads((tmp_path / "run/metrics.json").read_text())
    assert found["seed"]["occlusion"]["images"] == SMALL_WORLD.train_images
    assert 0 < found["spread"]["percent"] < 100
    assert f"{found['spread']['percent']:.1f} % of an image" in ribray(tmp_path, "status", "run")
    again = ribray(tmp_path, "run", "recipe.yaml", "--out", "run", "--stages", "spread")
    assert "done already" in again


@pytest.mark.slow
def test_a_study_is_one_file(tmp_path):
    write_files(tmp_path, METHOD, STUDY)
    settings = ["data.synthetic={image_size: 64, train_images: 12, eval_images: 4}", "refine.limit=4"]
    settings += ["classifier.epochs=1", "classifier.batch_size=4", "classifier.workers=1", "tracking.wandb=disabled"]
    ribray(tmp_path, "sweep", STUDY, "--out", "sweep", *(word for text in settings for word in ("--set", text)))
    trials = json.loads((tmp_path / "sweep/sweep.json").read_text())["trials"]
    assert [trial["settings"]["refine.patches"] for trial in trials] == [3, 6, 12]
    assert all(trial["value"] == trial["metrics"]["seed.occlusion.miou"] for trial in trials)
