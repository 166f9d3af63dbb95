"""Several methods in one run: each has its own maps, record and numbers, and what follows takes maps by name."""

import shutil
import sys

import numpy as np
import pytest
from rich.console import Console

from ribray import storage
from ribray.commands.run import Request, plan_chain, read_status
from ribray.errors import StageError, UsageError
from ribray.methods.maps import MapRecord
from ribray.runs.run import Run
from tests.tiny import EVERYTHING, MAPS, chain, experiment, map_bytes

pytestmark = pytest.mark.slow

HERE = "cluster.workers=0"
BOTH = "refine.method=[rib,advcam]"
CLIMB = "refine.advcam.iterations=2"
OF_ONE = """
import numpy as np
import torch

from ribray.config import MethodConfig
from ribray.methods.method import Method, Refined, merge_views, to_maps


class RootConfig(MethodConfig):
    maps = {"root": "Root of CAM"}

    fault: str = ""


class Root(Method):
    Settings = RootConfig
    per_class = True

    def refine(self, views, present, extras):
        self.check(views, present)
        classes = sorted(present)
        with self.exact_float32(), torch.no_grad():
            cams = [self.network.cams(self.network.stem(view.to(self.device)))[:, classes] for view in views]
        cam = to_maps([merge_views(each) for each in cams])
        own = [np.sqrt(each) for each in cam]
        if self.config.fault == "size":
            own = [each[:, 1:] for each in own]
        if self.config.fault == "nan":
            own[0][0, 0, 0] = np.nan
        name = "cam2" if self.config.fault == "name" else "root"
        return Refined(np.array(classes), {"cam": cam, name: own})
"""


@pytest.fixture(scope="module")
def rib(tmp_path_factory):
    """A finished run with RIB alone; not to be changed."""
    out = tmp_path_factory.mktemp("rib") / "run"
    chain(out, [HERE], EVERYTHING)
    return out


@pytest.fixture
def run(rib, tmp_path):
    return shutil.copytree(rib, tmp_path / "run")


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of one's own with one method."""
    (tmp_path / "modules" / "own_methods").mkdir(parents=True)
    (tmp_path / "modules" / "own_methods" / "__init__.py").touch()
    (tmp_path / "modules" / "own_methods" / "root.py").write_text(OF_ONE)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    yield "own_methods.root"
    for name in ("own_methods", "own_methods.root"):
        sys.modules.pop(name, None)


def files(out, folder):
    return {file.name: file.read_bytes() for file in (out / folder).rglob("*.npz")}


def test_a_method_that_is_added_is_made_and_nothing_else(run):
    before, stage = map_bytes(run), storage.read_object(run / "maps" / "stage.json")
    masks = {file.name: file.stat().st_mtime_ns for file in (run / "pseudo").glob("*/*.png")}
    result, text = chain(run, [HERE, BOTH, CLIMB], EVERYTHING)
    assert "refine: 10 of 10 images, done already" in text
    assert "refine_advcam: 10 of 10 images in" in text
    assert "pseudo: 10 of 10 images, done already" in text
    assert map_bytes(run) == before
    assert storage.read_object(run / "maps" / "stage.json") == stage
    assert {file.name: file.stat().st_mtime_ns for file in (run / "pseudo").glob("*/*.png")} == masks
    assert result.metrics["refine_advcam"]["images"] == 10
    assert list(Run.read(run).read_metrics().refinements) == ["rib", "advcam"]
    assert {"cam", "rib", "advcam"} <= result.metrics["seed"].keys()
    _, text = chain(run, [HERE, BOTH, CLIMB], EVERYTHING)
    assert text.count("done already") == 8 + 1
    assert {status.stage for status in read_status(run)[1]} >= {"refine", "refine_advcam", "seed"}


def test_a_method_has_the_same_key_and_maps_alone_or_beside_another(run, tmp_path):
    chain(run, [HERE, BOTH, CLIMB], "refine")
    alone = tmp_path / "alone"
    chain(run, [HERE, "refine.method=advcam", "refine.iterations=2"], fork=alone)
    assert not (alone / "maps_advcam").exists(), "what the run has under the same key is reused"
    fresh = shutil.copytree(run, tmp_path / "fresh")
    shutil.rmtree(fresh / "maps_advcam")
    result, _ = chain(fresh, [HERE, "refine.method=advcam", "refine.iterations=2", "masks.source=advcam"], "refine")
    assert files(fresh, "maps_advcam") == files(run, "maps_advcam")
    keys = [storage.read_object(out / "maps_advcam" / "stage.json")["key"] for out in (run, fresh)]
    assert keys[0] == keys[1]
    assert result.metrics["refine_advcam"]["failed"] == 0


def test_a_fork_adds_a_method_and_reuses_the_other(rib, tmp_path):
    fork = tmp_path / "fork"
    result, text = chain(rib, [HERE, BOTH, CLIMB], fork=fork)
    assert "refine: 10 of 10 images, done already in" in text
    assert not (fork / "maps").exists()
    assert len(files(fork, "maps_advcam")) == 10
    assert result.metrics["seed"]["rib"]["miou"] == storage.read_object(rib / "metrics.json")["seed"]["rib"]["miou"]


def test_plain_maps_are_the_same_in_the_files_of_every_method(run):
    chain(run, [HERE, BOTH, CLIMB, "refine.rib.precision=float32"], "refine", redo="refine")
    for file in (run / "maps_advcam").rglob("*.npz"):
        other, record = MapRecord.read(run / "maps" / file.relative_to(run / "maps_advcam")), MapRecord.read(file)
        assert list(record.maps) == ["cam", "advcam"]
        for scale, cells in zip(other.scales, other.maps["cam"], strict=True):
            if scale in record.scales:
                same = record.maps["cam"][record.scales.index(scale)]
                np.testing.assert_allclose(same, cells, atol=1e-4 * max(1, cells.max(initial=0)))


def test_masks_are_made_from_the_maps_that_are_named(run):
    stages = "confident,irn,pseudo"
    settings = [HERE, BOTH, CLIMB, "masks.source=[rib,advcam,cam]"]
    chain(run, settings)
    result, text = chain(run, settings, stages)
    assert "advcam: pseudo:" in text
    assert set(result.metrics["variants"]) == {"advcam", "cam"}
    keys = storage.read_object(run / "variants" / "advcam" / "confident" / "stage.json")["inputs"]
    assert list(keys["upstream"]) == ["refine_advcam"]
    assert keys["configuration"]["masks.source"] == "advcam"


def test_a_plan_has_a_line_for_each_method(rib):
    request = Request(experiment([HERE, BOTH, CLIMB]), "quickstart", rib, ("classifier", "refine", "seed"))
    planned = {each.stage: each for each in plan_chain(request, Console(quiet=True))}
    assert list(planned) == ["classifier", "refine", "refine_advcam", "seed"]
    assert (planned["refine"].done, planned["refine_advcam"].done) == (10, 0)
    assert planned["refine_advcam"].estimate.seconds > 0
    assert planned["refine_advcam"].estimate.bytes > 0


def test_a_module_of_ones_own_is_a_method(run, module):
    result, text = chain(run, [HERE, f"refine.method=[rib,{module}]"], f"{MAPS},confident")
    assert "refine_root: 10 of 10 images in" in text
    assert "Root of CAM" in text
    assert result.metrics["seed"]["root"]["images"] == 10
    assert len(files(run, "maps_root")) == 10


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [("size", "maps 'root' of shapes"), ("nan", "that are not finite"), ("name", "maps cam, cam2, not cam, root")],
)
def test_maps_that_do_not_fit_are_failures_of_their_images(run, module, fault, sentence):
    with pytest.raises(StageError, match="none of its 10 images"):
        chain(run, [HERE, f"refine.method=[rib,{module}]", f"refine.root.fault={fault}"])
    failures = [failure for failure in Run.read(run).failures() if failure.stage == "refine_root"]
    assert len(failures) == 10
    assert all(sentence in failure.error for failure in failures)
    assert len(map_bytes(run)) == 10


def test_maps_of_a_name_that_is_taken_are_refused(module):
    path = next(each for each in sys.path if each.endswith("modules"))
    with open(f"{path}/own_methods/root.py", "a") as file:
        file.write('\nRootConfig.maps = {"rib": "another"}\n')
    with pytest.raises(UsageError, match="root leaves a map named 'rib', which is taken"):
        experiment([f"refine.method=[rib,{module}]"])


def test_redoing_one_method_leaves_the_other(run):
    chain(run, [HERE, BOTH, CLIMB])
    times = {file: file.stat().st_mtime_ns for file in (run / "maps").rglob("*.npz")}
    _, text = chain(run, [HERE, BOTH, "refine.advcam.iterations=3"], redo="refine_advcam")
    assert "refine_advcam: 10 of 10 images in" in text
    assert {file: file.stat().st_mtime_ns for file in (run / "maps").rglob("*.npz")} == times
    with pytest.raises(UsageError, match=r"stage .refine_advcam. made with other settings: refine\.iterations"):
        chain(run, [HERE, BOTH, CLIMB], MAPS)
