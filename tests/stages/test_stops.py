"""How the refinements of a run ended, over all its starts. No Ray."""

import io

import numpy as np
import pytest
from rich.console import Console

from ribray.methods.maps import empty_arrays, to_arrays, write_maps
from ribray.methods.method import Refined
from ribray.methods.stop_reasons import EXPLOSION, FINISHED
from ribray.pipeline.maps import map_path
from ribray.pipeline.stage import Context
from ribray.runs.run import Run
from ribray.stages import STAGES, refine
from ribray.tracking import Tracker
from tests.tiny import experiment


@pytest.fixture
def context(tmp_path):
    config = experiment(["refine.iterations=10"])
    with Run.open(tmp_path / "run") as run:
        console = Console(file=io.StringIO(), width=300)
        yield Context(config, run, STAGES, console, Tracker(config, run))


def record(reason, steps):
    return {"stop_reason": reason, "steps": steps} if steps else {"steps": 0}


def write(folder, id, reason, steps):
    maps = [np.ones((1, 2, 2), np.float32)]
    arrays = to_arrays(Refined(np.array([0]), {"cam": maps, "rib": maps}, steps, reason), (16, 16), (1.0,))
    map_path(folder, id).parent.mkdir(parents=True, exist_ok=True)
    write_maps(map_path(folder, id), id, arrays if steps else empty_arrays((16, 16), (1.0,)))


def told(context, earlier, now, folder):
    for id, (reason, steps) in earlier.items():
        write(folder, id, reason, steps)
    notes = refine._Notes(context, "refine", context.experiment.refine)
    for id, (reason, steps) in now.items():
        notes.take(id, record(reason, steps))
    notes.count_stops(folder, list(earlier))
    notes.tell()
    return notes.stops, context.console.file.getvalue()


ALL = {"a": (FINISHED, 10), "b": (EXPLOSION, 2), "c": (EXPLOSION, 3), "empty": (FINISHED, 0)}


@pytest.mark.parametrize("before", [0, 2, 4])
def test_a_run_that_goes_on_counts_what_was_made_before(context, tmp_path, before):
    names = list(ALL)
    earlier, now = ({name: ALL[name] for name in part} for part in (names[:before], names[before:]))
    stops, text = told(context, earlier, now, tmp_path)
    assert stops == {"stop_reasons": {"finished": 1, "target_loss": 0, "explosion": 2}, "mean_steps": 5.0}
    first, second = text.splitlines()
    assert first == "refine: stopped early: explosion test 2 of 3"
    assert second.startswith("Note: 2 of 3 images did not get through their 10 steps")


def test_nothing_is_told_where_all_steps_were_taken(context, tmp_path):
    stops, text = told(context, {}, {"a": (FINISHED, 10)}, tmp_path)
    assert stops["stop_reasons"]["finished"] == 1
    assert text == ""


def test_what_is_not_counted_whole_is_left_out_with_a_word(context, tmp_path, monkeypatch):
    monkeypatch.setattr(refine, "MOST_EARLIER", 1)
    stops, text = told(context, {name: ALL[name] for name in "ab"}, {"c": ALL["c"]}, tmp_path)
    assert stops == {}
    assert text == "refine: how the 2 refinements made earlier ended is not looked up, nor told.\n"


@pytest.mark.parametrize(
    ("backbone", "wanted", "found"),
    [
        ("resnet50", "auto", "bfloat16"),
        ("timm/tf_efficientnet_lite0", "auto", "float32"),
        ("timm/tf_efficientnet_lite0", "bfloat16", "bfloat16"),
    ],
)
def test_bfloat16_is_chosen_only_where_its_effect_was_measured(context, monkeypatch, backbone, wanted, found):
    settings = [f"classifier.backbone={backbone}", "classifier.output_stride=16", "classifier.weights=imagenet"]
    other = [f"refine.precision={wanted}", "irn.backbone=small"]

    class Fast:
        """A session on hardware with fast units for bfloat16."""

        def resolve_precision(self, precision, cluster):
            return "bfloat16" if precision == "auto" else precision

    monkeypatch.setattr(Context, "session", Fast())
    changed = Context(experiment([*settings, *other]), context.run, STAGES, context.console, context.tracker)
    assert refine._Refinement("rib")._precision(changed) == found
