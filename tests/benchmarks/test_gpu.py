"""``python -m benchmarks gpu`` in miniature, with everything installed and with next to nothing."""

import json
import os
import subprocess
import sys

import pytest
import torch

from benchmarks.pictures import SMALL
from ribray.config import load_experiment
from tests.conftest import ROOT

NOT_NEEDED = ("ray", "wandb", "torchvision", "timm", "pycocotools", "pandas", "yaml", "upath", "rich", "psutil")
NOT_NEEDED += ("defusedxml", "sklearn", "scipy", "matplotlib", "typer", "pyarrow", "pydensecrf")
PARTS = {"a", "b", "c", "d", "e", "f", "g", "h", "d2"}
GOLDEN = ROOT.parent / "shared" / "golden"


@pytest.fixture
def gpu(tmp_path):
    """Run the command in a process of its own, without some packages; return its status, result and table."""

    def call(*arguments, without=()):
        blocked = "".join(f"sys.modules[{name!r}] = None\n" for name in without)
        (tmp_path / "sitecustomize.py").write_text(f"import sys\n{blocked}")
        environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "benchmarks", "gpu", *arguments, "--json", str(tmp_path / "gpu.json")]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=840)
        file = tmp_path / "gpu.json"
        return done.returncode, json.loads(file.read_text()) if file.exists() else {}, done.stdout + done.stderr

    return call


def figures(result):
    return {part: found["figures"] for part, found in result["parts"].items()}


def required_ones_that_need_no_timing(result):
    for found in figures(result).values():
        for name, each in found.items():
            if each["required"] and each["value"] is not None and each["unit"] == "" and "times the" not in name:
                yield name, each["required"]["met"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_needs_little_more_than_torch(gpu, tmp_path):
    none = tmp_path / "none"
    some = "--device", "cpu", "--small", "--only", "a,b,g,h"  # of the same modules as the others
    code, result, text = gpu(*some, "--golden", str(none), without=NOT_NEEDED)
    assert code == 0, text
    states = {name: part["state"] for name, part in result["parts"].items()}
    assert states == {"a": "left out", "b": "done", "g": "done", "h": "done"}
    assert f"LEFT OUT: There is no folder {none} with recorded cases" in text
    assert figures(result)["h"]["dense CRF of an image"]["value"] is None
    assert all(part["title"] in text and part["seconds"] >= 0 for part in result["parts"].values())
    assert all(name in text for found in figures(result).values() for name in found)
    assert (result["device"], result["small"]) == ("cpu", True)
    assert torch.__version__.startswith(result["versions"]["torch"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_part_runs_where_all_is_installed(gpu):
    code, result, text = gpu("--device", "cpu", "--small")
    assert code == 0, text
    expected = {name: "done" if name != "a" or GOLDEN.is_dir() else "left out" for name in PARTS}
    assert {name: part["state"] for name, part in result["parts"].items()} == expected
    met = dict(required_ones_that_need_no_timing(result))
    assert len(met) >= 5
    assert all(met.values()), met
    times = {name for name in figures(result)["d"] if "times the plain reading" in name}
    assert {"resnet18, folded, bfloat16, times the plain reading"} < times
    assert any("lite0" in name for name in times)
    assert figures(result)["d2"]["resnet18, plain engine, torch.compile"]["value"] > 0


@pytest.mark.lengthy
def test_a_part_that_raises_is_an_error_of_its_own(gpu, tmp_path):
    (tmp_path / "random_walk_broken.npz").write_bytes(b"no archive")
    for kind in ("irn_none", "dense_crf_none"):
        (tmp_path / f"{kind}.npz").write_bytes(b"no archive")
    code, result, text = gpu("--device", "cpu", "--small", "--only", "a,h", "--golden", str(tmp_path))
    assert code == 1
    assert [part["state"] for part in result["parts"].values()] == ["error", "done"]
    assert "irn_none.npz" in result["parts"]["a"]["reason"]
    assert f"ERROR: {result['parts']['a']['reason']}" in text
    code, result, text = gpu("--device", "cpu", "--small", "--only", "h", "--minutes", "0")
    assert (code, result["parts"]["h"]["state"]) == (0, "left out")
    assert "It would take longer than the 0 minutes." in text


@pytest.mark.lengthy
def test_what_cannot_be_measured_is_refused_with_a_sentence(gpu):
    code, _, text = gpu("--device", "cpu")
    assert code == 2
    assert text.endswith("on a CPU it takes hours; add --small\n")
    code, _, text = gpu("--device", "cpu", "--small", "--only", "z")
    assert code == 2
    assert "there is no part z; there are a, b, c" in text
    if not torch.cuda.is_available():
        assert gpu()[0] == 2
        assert gpu()[2].startswith("This machine has no CUDA GPU, so nothing was measured")


def test_a_workload_is_refined_as_the_recipe_says_without_reading_it(companion, tmp_path):
    settings = ["data.kind=folder", f"data.root={tmp_path}", "data.train_split=all", "classifier.weights=none"]
    settings += ["refine.stop_threshold=1e30", *SMALL]
    ours = companion("refinements").Workload(tmp_path, settings, "").experiment
    recipe = load_experiment("voc12", settings)
    assert (ours.classifier, ours.refine, ours.cluster) == (recipe.classifier, recipe.refine, recipe.cluster)
    assert (ours.data.kind, ours.data.root) == ("folder", str(tmp_path))
