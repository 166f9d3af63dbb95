"""Commands do what they say, and nothing else."""

import io
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from ribray import storage
from ribray.cluster.sweep import Searched
from ribray.commands import sweep as sweeps
from ribray.commands import trial as one_trial
from ribray.commands.run import Planned, Request, parse_stages, plan_chain
from ribray.config import SegmentationConfig, load_experiment, to_yaml
from ribray.errors import UsageError
from ribray.methods.method import Method
from ribray.networks import build_classifier
from ribray.networks.deeplab import build_deeplab
from ribray.networks.weights import save_network
from ribray.report.ledger import TrialRecord, read_ledger, read_trial
from ribray.runs.directory import require_outside
from ribray.runs.run import Run
from ribray.sweep_file import Trial, base_experiment, trials_of, validate_sweep
from tests import drawn
from tests.by_hand import begin, put_masks

# --- a plan, and looking at a run, write nothing -----------------------------------------------------------------


def tree(root: Path) -> dict[str, tuple[int, bytes]]:
    """Return a folder and everything below it: when it was changed, and what is in it."""
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in (root, *root.rglob("*"))
    }


@pytest.fixture
def small_world() -> list[str]:
    """Settings of the quickstart for a world of a few pictures."""
    return ["data.synthetic.train_images=20", "data.synthetic.eval_images=4", "tracking.wandb=disabled"]


@pytest.fixture
def with_classifier(tmp_path: Path, ribray) -> tuple[Path, Path]:
    """A recipe, and the directory of its run, which has its classifier and nothing else."""
    drawn.folder(tmp_path / "data")
    torch.manual_seed(0)
    save_network(build_classifier("small", 3, 8), tmp_path / "classifier.safetensors")
    classifier = {"checkpoint": str(tmp_path / "classifier.safetensors")}
    recipe = drawn.recipe(tmp_path / "recipe.yaml", tmp_path / "data", classifier=classifier, evaluate={"crf": "none"})
    assert ribray("run", recipe, "--out", tmp_path / "run", "--stages", "classifier") == 0
    return recipe, tmp_path / "run"


def plan(settings: Sequence[str], out: Path, recipe: str = "quickstart", **options) -> dict[str, Planned]:
    experiment = load_experiment(recipe, settings)
    options.setdefault("stages", parse_stages(None))
    text = io.StringIO()
    return {each.stage: each for each in plan_chain(Request(experiment, recipe, out, **options), Console(file=text))}


def test_the_plan_of_a_run_that_does_not_exist_makes_nothing_and_knows_the_drawn_world(small_world, tmp_path):
    (tmp_path / "runs").mkdir()
    before = tree(tmp_path)
    for sources in ("rib", "cam", "both"):
        planned = plan([*small_world, f"masks.source={sources}"], tmp_path / "runs" / "new")
        assert tree(tmp_path) == before
        refined = planned["refine"]
        assert (refined.total, refined.done, refined.source) == (20, 0, "new")
        assert refined.estimate.seconds > 0
        assert refined.estimate.bytes > 0
        assert (planned["seed"].total, planned["classifier"].unit) == (20, "epochs")
    assert {"evaluate", "cam: evaluate"} <= set(planned)
    assert planned["evaluate"].total == 4


def test_the_plan_beside_a_run_at_work_says_what_is_done_and_changes_nothing(with_classifier, tmp_path, ribray, capsys):
    recipe, directory = with_classifier
    with Run.open(directory):
        (directory / "maps").mkdir()
        before = tree(tmp_path)
        planned = plan([], directory, str(recipe))
        assert (planned["classifier"].done, planned["classifier"].source) == (1, "here")
        assert planned["refine"].total == 9
        forked = plan([], directory, str(recipe), fork=tmp_path / "fork")
        assert (forked["classifier"].done, forked["classifier"].source) == (1, str(directory))
        redone = plan([], directory, str(recipe), redo="classifier")
        assert (redone["classifier"].done, redone["classifier"].source) == (0, "new")
        capsys.readouterr()
        assert ribray("run", recipe, "--out", directory, "--plan", "--set", "masks.source=both") == 0
        assert "9 of 9 images" in capsys.readouterr().out
        assert ribray("status", directory) == 0
        assert "A process is working on it." in capsys.readouterr().out
        assert tree(tmp_path) == before
    assert ribray("status", directory) == 0
    assert tree(tmp_path) == before


def test_a_plan_refuses_what_the_run_would(with_classifier, tmp_path, ribray, capsys):
    recipe, directory = with_classifier
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    before = tree(tmp_path)
    for arguments, said in (
        (("--out", directory, "--set", "classifier.backbone=resnet18", "--set", "classifier.output_stride=16"), "redo"),
        (("--out", tmp_path / "thesis"), "holds other files"),
        (("--out", recipe), "is a file"),
        (("--out", recipe / "run"), "is a file"),
        (("--out", tmp_path / "new", "--stages", "refine"), "needs stage 'classifier'"),
        (("--out", directory, "--fork", directory), "another directory"),
        (("--out", tmp_path / "new", "--fork", tmp_path / "fork"), "is no run directory"),
        (("--out", directory, "--redo", "everything"), "no such stage"),
        (("--out", directory, "--redo", "classifier", "--stages", "refine"), "--redo classifier is not among --stages"),
    ):
        assert ribray("run", recipe, *arguments, "--plan") == 2
        assert said in capsys.readouterr().err
    assert tree(tmp_path) == before


def test_the_state_of_a_run_is_told_without_drawing_its_world_anew(small_world, tmp_path, ribray, capsys):
    settings = [*small_world, f"classifier.checkpoint={tmp_path / 'classifier.safetensors'}"]
    save_network(build_classifier("small", 6, 8), tmp_path / "classifier.safetensors")
    arguments = [part for setting in settings for part in ("--set", setting)]
    assert ribray("run", "quickstart", "--out", tmp_path / "run", "--stages", "classifier", *arguments) == 0
    storage.remove_folder(tmp_path / "run" / "data")
    before = tree(tmp_path)
    planned = plan(settings, tmp_path / "run")
    assert (planned["classifier"].done, planned["classifier"].source) == (1, "here")
    capsys.readouterr()
    assert ribray("status", tmp_path / "run") == 0
    assert "1 of 1 checkpoint" in capsys.readouterr().out
    assert tree(tmp_path) == before


def test_a_plan_on_an_object_store_puts_nothing(small_world, bucket):
    bucket.joinpath("beside.txt").write_text("here")
    assert plan(small_world, bucket / "run", stages=("classifier", "refine"))["refine"].total == 20
    assert storage.list_ids(bucket, "") == {"beside.txt"}


@pytest.fixture
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    yield before + 1
    torch.set_num_threads(before)


def test_a_plan_that_cannot_be_timed_leaves_the_number_of_threads(small_world, tmp_path, monkeypatch, threads):
    def too_large(*_):
        raise MemoryError

    monkeypatch.setattr(Method, "time_passes", too_large)
    with pytest.raises(MemoryError):
        plan(small_world, tmp_path / "run")
    assert torch.get_num_threads() == threads


# --- what is written, and where ----------------------------------------------------------------------------------


def test_a_stage_that_would_be_removed_and_not_made_again_is_refused(with_classifier, tmp_path, ribray, capsys):
    recipe, directory = with_classifier
    assert ribray("run", recipe, "--out", directory, "--stages", "classifier", "--redo", "seed") == 2
    assert "--redo seed is not among --stages classifier" in capsys.readouterr().err
    assert (directory / "classifier" / "stage.json").exists()


def test_nothing_foreign_is_written_into_a_run(with_classifier, tmp_path, ribray, capsys):
    recipe, directory = with_classifier
    before = tree(directory)
    for folder in (directory, directory / "maps"):
        assert ribray("check", recipe, "--out", folder) == 2
        error = capsys.readouterr().err
        assert f"{folder} lies in {directory}, which holds a run" in " ".join(error.split())
    assert tree(directory) == before


def test_an_export_replaces_no_file_of_a_run(with_classifier, tmp_path, ribray, capsys):
    _, directory = with_classifier
    put_masks(begin(Run.read(directory), "pseudo"), {"img00": np.zeros(drawn.SIZE, np.uint8)})
    before = tree(directory)
    for file in ("experiment.yaml", "metrics.json", "maps/masks.json"):
        assert ribray("export", directory, "--format", "coco", "--out", directory / file) == 2
        error = " ".join(capsys.readouterr().err.split())
        assert f"choose another --out, or one in {directory / 'exports'}" in error
    assert tree(directory) == before
    assert ribray("export", directory, "--format", "coco", "--out", directory / "exports" / "mine.json") == 0
    assert ribray("export", directory, "--format", "coco", "--out", tmp_path / "mine.json") == 0


def test_predictions_are_not_put_where_a_stage_of_the_run_would_remove_them(with_classifier, tmp_path, ribray, capsys):
    _, directory = with_classifier
    folder = begin(Run.read(directory), "segmentation")
    config = SegmentationConfig(backbone="small", weights="none")
    save_network(build_deeplab(config, 3), folder / "weights.safetensors")
    assert ribray("predict", directory, tmp_path / "data", "--out", directory / "predictions") == 2
    assert f"lies in {directory}, which holds a run" in " ".join(capsys.readouterr().err.split())
    assert not (directory / "predictions").exists()


@pytest.mark.parametrize("mark", ["experiment.yaml", "sweep.json"])
def test_a_place_in_a_run_is_refused_but_where_exports_lie(mark, tmp_path):
    (tmp_path / "run" / "exports").mkdir(parents=True)
    (tmp_path / "run" / mark).write_text("")
    require_outside(tmp_path / "elsewhere" / "x.json")
    require_outside(tmp_path / "run" / "exports" / "x.json", allowed="exports")
    for place in (tmp_path / "run" / mark, tmp_path / "run" / "predictions", tmp_path / "run"):
        with pytest.raises(UsageError, match="exports"):
            require_outside(place, allowed="exports")


# --- how much of a search is left --------------------------------------------------------------------------------

SEARCH = {
    "base": "quickstart",
    "stages": ["refine", "seed"],
    "space": {"refine.loss": {"choice": ["rib", "bce_tanh", "bce_sigmoid"]}},
    "metric": "seed.rib.miou",
    "search": {"kind": "optuna", "samples": 4},
}


class Search:
    """A search in a folder, whose trials are not run: what became of them is told."""

    def __init__(self, out: Path, monkeypatch: pytest.MonkeyPatch):
        self._out, self._monkeypatch = out, monkeypatch

    def go_on(self, *ends: tuple[str, str | float | None]) -> tuple[Searched | None, str]:
        """Start the search; tell it of a loss and the metric or what else came of it, None of a draw drawn before.

        Returns what Tune was asked for, if it was, and what was printed.
        """
        asked: list[Searched] = []

        def run_sweep(name, definition, left, runner, folder, watcher, stop, searched):
            asked.append(searched)
            for loss, end in ends:
                trial = Trial.of({"refine.loss": loss})
                if end is None:
                    watcher.drawn_again(trial)
                elif end == "failed":
                    watcher.died(trial, "no memory")
                else:
                    is_value = isinstance(end, float)
                    record = TrialRecord.of(trial, "finished" if is_value else end, value=end if is_value else None)
                    record.write(self._out, runner.key)
                    watcher.ended(trial)

        self._monkeypatch.setattr(sweeps, "run_sweep", run_sweep)
        definition, text = validate_sweep(SEARCH, "study.yaml"), io.StringIO()
        request = sweeps.SweepRequest(definition, Path("study.yaml"), "A study.", self._out)
        base = base_experiment(definition)
        ledger = sweeps.Ledger(self._out, request, base, [])
        runner = one_trial.TrialRunner(definition, base, self._out / "base", ("refine", "seed"), self._out, ledger.key)
        sweeps.run_trials(request, ledger, runner, Console(file=text, width=300), threading.Event())
        return (asked[0] if asked else None), text.getvalue()


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Search:
    return Search(tmp_path, monkeypatch)


def test_a_trials_time_is_that_of_all_its_rungs(tmp_path, monkeypatch):
    def run(self, trial, request, console):
        time.sleep(0.05)
        return TrialRecord.of(trial, "finished", value=1.0)

    monkeypatch.setattr(one_trial.TrialRunner, "_run", run)
    definition, trial = validate_sweep(SEARCH, "study.yaml"), Trial.of({"refine.loss": "rib"})
    base = base_experiment(definition)
    runner = one_trial.TrialRunner(definition, base, tmp_path / "base", ("refine",), tmp_path, "key")
    seconds = []
    for images, is_last in ((4, False), (8, True)):
        runner(trial, images, is_last)
        seconds.append(read_trial(trial, tmp_path, "key").seconds)
    assert seconds[1] >= seconds[0] + 0.05 >= 0.1


def test_a_search_whose_draws_were_partly_equal_is_done_once_all_samples_are_drawn(search, tmp_path):
    asked, _ = search.go_on(("rib", 50.0), ("bce_tanh", 40.0), ("rib", None), ("rib", None))
    assert asked.drawn == 0
    assert [trial["draws"] for trial in read_ledger(tmp_path / "sweep.json")["trials"]] == [3, 1]
    asked, text = search.go_on()
    assert asked is None
    assert "4 of 4 trials, done already" in text


def test_a_diverged_trial_counts_as_a_sample_and_a_failed_one_is_run_again(search):
    search.go_on(("rib", 50.0), ("bce_tanh", "diverged"), ("bce_sigmoid", "failed"))
    asked, text = search.go_on()
    assert asked.search.samples - asked.drawn == 2
    assert asked.evaluated == [({"refine.loss": "rib"}, 50.0), ({"refine.loss": "bce_tanh"}, None)]
    assert asked.unfinished == [{"refine.loss": "bce_sigmoid"}]
    assert "told of the 2 finished trials" in text


def test_draws_that_equal_a_failed_trial_are_drawn_again(search):
    search.go_on(("rib", "failed"), ("rib", None), ("bce_tanh", 40.0))
    asked, _ = search.go_on()
    assert asked.search.samples - asked.drawn == 3


def test_a_ledger_without_counts_of_draws_is_read(search, tmp_path):
    search.go_on(("rib", 50.0), ("bce_tanh", 40.0))
    ledger = tmp_path / "sweep.json"
    ledger.write_text(ledger.read_text().replace('"draws": 1,', ""))
    asked, _ = search.go_on()
    assert asked.drawn == 2


def touched(space: dict, base: str | dict = "quickstart") -> set[str]:
    """Return the stages that the trials of a sweep do for themselves."""
    values = {"base": base, "stages": ["refine", "seed"], "metric": "seed.rib.miou", "space": space}
    definition = validate_sweep(values, "study.yaml")
    request = sweeps.SweepRequest(definition, Path("study.yaml"), "A study.", Path("out"))
    base = base_experiment(definition)
    return sweeps.check(request, base, trials_of(definition, base))


def test_a_sweep_over_the_seed_of_a_runs_recipe_shares_nothing_that_has_a_seed(tmp_path):
    (tmp_path / "experiment.yaml").write_text(to_yaml(load_experiment("quickstart", ["seed=4"])))
    assert {"classifier", "refine", "seed", "irn"} <= touched({"seed": {"seeds": [4, 5]}}, str(tmp_path))
    assert "classifier" not in touched({"refine.seed": {"seeds": [4, 5]}}, str(tmp_path))


def test_other_data_is_other_work_for_every_stage(tmp_path):
    for space in ({"data.seed": [0, 1]}, {"data.synthetic.classes": [3, 6]}, {"data.train_split": ["train", "val"]}):
        assert "classifier" in touched(space)
    with pytest.raises(UsageError, match=r"depends on data\.seed"):  # there is no drawn world
        touched({"data.seed": [0, 1]}, {"recipe": "voc12", "set": {"data.root": "/data"}})


def test_trials_have_the_recipe_as_it_was_when_the_sweep_began(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("data: {kind: synthetic}\nrefine: {iterations: 3}\n")
    definition = validate_sweep({**SEARCH, "base": str(file)}, "study.yaml")
    base = base_experiment(definition)
    file.write_text("data: {kind: synthetic}\nrefine: {iterations: 9}\n")
    experiment = base.with_values({"refine.loss": "bce_tanh"})
    assert (experiment.refine.iterations, experiment.refine.loss) == (3, "bce_tanh")


def test_only_the_end_of_a_trials_log_is_read(tmp_path):
    log = tmp_path / "trial.log"
    assert one_trial.last_line(log) == ""
    log.write_bytes(b"x" * 10_000_000 + "\nläuft\nrefine: 3 of 9 images\n\n".encode())
    assert one_trial.last_line(log) == "refine: 3 of 9 images"
    log.write_text("")
    assert one_trial.last_line(log) == ""


def test_a_log_on_an_object_store_is_not_asked_for():
    place = storage.path("memory://sweep/trials/one.log")
    place.write_text("refine: 3 of 9 images\n")
    assert one_trial.last_line(place) == ""
