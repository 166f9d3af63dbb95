"""A sweep on a real Ray cluster: what is reused, what fails, what is refused, and what a killed driver leaves."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from ribray.pipeline.stage import Stage
from ribray.runs.run import Run
from tests.tiny import TINY
from tests.wandb_files import folders, read_back

pytestmark = pytest.mark.usefixtures("ray_session")

THRESHOLDS = {
    "stages": ["seed"],
    "space": {"seed_eval.thresholds": [[0.1], [0.2, 0.3], [0.05]]},
    "metric": "seed.rib.miou",
}


def written(folder: Path, base: Path | str | dict, **values) -> Path:
    """A sweep file."""
    location = folder / "study.yaml"
    location.write_text(
        "# A study.\n" + yaml.safe_dump({"base": str(base) if isinstance(base, Path) else base, **values})
    )
    return location


def ledger(out: Path) -> dict:
    return json.loads((out / "sweep.json").read_text())


def statuses(out: Path) -> list[str]:
    return [trial["status"] for trial in ledger(out)["trials"]]


def test_trials_reuse_the_base_and_are_not_run_again(ribray, undisturbed, tmp_path, capsys):
    study, out = written(tmp_path, undisturbed, **THRESHOLDS, max_concurrent=2), tmp_path / "out"
    tracked = ["--set", "tracking.wandb=offline"]
    assert ribray("sweep", study, "--out", out, *tracked) == 0
    assert statuses(out) == ["finished"] * 3
    trials = ledger(out)["trials"]
    assert "wandb sync" in capsys.readouterr().out
    for trial in trials:
        run = Run.read(out / trial["directory"])
        assert trial["value"] == run.metrics()["seed"]["rib"]["miou"]
        assert not (run.directory / "maps").exists()
        assert run.parent.directory == undisturbed
        (folder,) = folders(run.directory)
        logged = read_back(folder)
        assert logged.summary["seed/rib/miou"] == trial["value"]
        assert logged.summary["seed/cam/miou"] == run.metrics()["seed"]["cam"]["miou"]
        assert (logged.run["run_group"], logged.run["job_type"]) == ("study", "trial")
    with open(out / "results.csv", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["seed.rib.miou"]) for row in rows] == pytest.approx([trial["value"] for trial in trials])
    for name in ("table.md", "plot.png", "report.html", "sweep.yaml"):
        assert (out / name).stat().st_size > 0
    files = {file: file.stat().st_mtime_ns for file in out.glob("trials/**/metrics/*.json")}
    assert len(files) == 3
    capsys.readouterr()
    assert ribray("sweep", study, "--out", out, *tracked) == 0
    assert "3 of 3 trials, done already" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in out.glob("trials/**/metrics/*.json")} == files


@pytest.mark.slow
def test_a_failed_trial_is_a_row_and_the_others_go_on(ribray, undisturbed, tmp_path, capsys):
    space = {"seed_eval.split": ["nowhere", "train"]}
    study, out = written(tmp_path, undisturbed, **{**THRESHOLDS, "space": space}), tmp_path / "out"
    assert ribray("sweep", study, "--out", out) == 1
    failed, finished = ledger(out)["trials"]
    assert (failed["status"], finished["status"]) == ("failed", "finished")
    assert "nowhere" in failed["error"]
    shown = capsys.readouterr().out
    assert "split=nowhere failed:" in shown
    assert "failed" in (out / "table.md").read_text()
    began = (out / finished["directory"] / "metrics" / "seed.json").stat().st_mtime_ns
    assert ribray("sweep", study, "--out", out) == 1  # tried again, the other one is not
    assert (out / finished["directory"] / "metrics" / "seed.json").stat().st_mtime_ns == began


@pytest.mark.parametrize(
    ("changes", "arguments", "said"),
    [
        ({"space": {"refine.batchsize": [1]}}, [], "no configuration key 'refine.batchsize' to vary (did you mean"),
        ({"space": {}}, [], "the space is empty"),
        ({"metric": "seed.rib.iou"}, [], "write no metric 'seed.rib.iou' (did you mean seed.rib.miou"),
        ({"metric": "pseudo.miou"}, [], "the stages seed write no metric 'pseudo.miou'"),
        ({"stages": ["sed"]}, [], "There is no stage 'sed'"),
        ({"space": {"irn.lr": [0.1, 0.2]}}, [], "none of the stages seed depends on irn.lr"),
        ({"space": {"seed_eval.thresholds": [[2.0]]}}, [], "seed_eval.thresholds"),
        ({"workers_per_trial": 64}, [], "workers_per_trial=64 needs 64 CPUs, and the cluster has 2"),
        ({}, ["--set", "classifier.epochs=7"], "has stage 'classifier' with other settings than the sweep expects"),
        ({}, ["--base", "quickstrat"], "There is no recipe 'quickstrat'"),
    ],
)
def test_what_cannot_work_is_refused_before_any_trial(changes, arguments, said, ribray, undisturbed, tmp_path, capsys):
    study, out = written(tmp_path, undisturbed, **{**THRESHOLDS, **changes}), tmp_path / "out"
    assert ribray("sweep", study, "--out", out, *arguments) == 2
    error = capsys.readouterr().err
    assert said in " ".join(error.split())
    assert "Traceback" not in error
    assert not (out / "trials").exists()


def test_another_sweep_in_the_same_directory_is_refused(ribray, undisturbed, tmp_path, capsys):
    out = tmp_path / "out"
    (out / "trials").mkdir(parents=True)
    assert ribray("sweep", written(tmp_path, undisturbed, **THRESHOLDS), "--out", out) == 2
    assert "holds other files" in capsys.readouterr().err
    assert ribray("sweep", written(tmp_path, undisturbed, **THRESHOLDS), "--out", undisturbed) == 2
    assert "holds a run, not a sweep" in capsys.readouterr().err


@pytest.mark.slow
def test_equal_draws_of_a_search_are_run_once_and_a_search_that_drew_its_samples_is_done(
    ribray, undisturbed, tmp_path, capsys
):
    pytest.importorskip("optuna")
    space, search = {"seed_eval.thresholds": {"choice": [[0.1], [0.2]]}}, {"kind": "optuna", "samples": 6}
    study = written(tmp_path, undisturbed, **{**THRESHOLDS, "space": space}, search=search, max_concurrent=2)
    out = tmp_path / "out"
    assert ribray("sweep", study, "--out", out) == 0
    trials = ledger(out)["trials"]
    assert {trial["status"] for trial in trials} == {"finished"}
    assert sum(trial["draws"] for trial in trials) == 6
    assert len({trial["id"] for trial in trials}) == len(trials) <= 2
    capsys.readouterr()
    assert ribray("sweep", study, "--out", out) == 0
    assert "6 of 6 trials, done already" in capsys.readouterr().out
    assert ledger(out)["trials"] == trials


@pytest.mark.on_demand
def test_every_number_that_a_stage_promises_to_a_sweep_is_written(whole):
    from ribray.stages import STAGES

    metrics = Run.read(whole).metrics()

    def look_up(stage: Stage, name: str):
        value = metrics[stage.name]
        for part in name.split("."):
            value = value[part]
        return value

    for stage in STAGES.values():
        for name in stage.writes:
            assert isinstance(look_up(stage, name), float), (stage.name, name)


def environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}


@pytest.mark.slow
def test_a_killed_driver_loses_no_finished_trial(undisturbed, tmp_path):
    """Killed after the first trial; a cluster of its own, which dies with it."""
    study, out = written(tmp_path, undisturbed, **THRESHOLDS), tmp_path / "out"
    command = [sys.executable, "-m", "ribray.cli", "sweep", str(study), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment())
    deadline = time.monotonic() + 240
    while not (out / "sweep.json").exists() or statuses(out)[0] != "finished":
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "waiting" in statuses(out)
    first = ledger(out)["trials"][0]
    seen = {file: file.stat().st_mtime_ns for file in (out / first["directory"]).rglob("*.json")}
    assert len(seen) >= 3
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, env=environment())
    assert done.returncode == 0, done.stderr
    assert "(1 earlier)" in done.stdout
    assert statuses(out) == ["finished"] * 3
    assert ledger(out)["trials"][0] == first
    assert {file: file.stat().st_mtime_ns for file in seen} == seen
    assert len((out / "results.csv").read_text().splitlines()) == 4


@pytest.mark.on_demand
def test_from_scratch_l_rib_diverges_and_that_is_a_good_end(ribray, tmp_path):
    base = {"recipe": "quickstart", "set": overrides([*TINY, "classifier.loss=rib", "classifier.weights=none"])}
    study, out = (
        written(
            tmp_path,
            base,
            stages=["classifier"],
            space={"classifier.lr": [1.0, 1e-9]},
            metric="classifier.loss",
            mode="min",
        ),
        tmp_path / "out",
    )
    assert ribray("sweep", study, "--out", out, "--set", "classifier.divergence_bound=1000") == 0
    diverged, finished = ledger(out)["trials"]
    assert (diverged["status"], finished["status"]) == ("diverged", "finished")
    assert diverged["value"] is None
    assert "beyond 1000" in diverged["error"] or "loss is" in diverged["error"]
    assert diverged["metrics"]["classifier.steps"] >= 1
    assert "diverged" in (out / "table.md").read_text()


@pytest.mark.on_demand
def test_a_scheduler_gives_more_images_to_the_better_half(ribray, trained, tmp_path):
    study, out = (
        written(
            tmp_path,
            trained,
            stages=["refine", "seed"],
            space={"refine.lr": [4e-4, 1e-9]},
            metric="seed.rib.miou",
            scheduler={"first": 4, "last": 8, "factor": 2},
        ),
        tmp_path / "out",
    )
    assert ribray("sweep", study, "--out", out) == 0
    for trial in ledger(out)["trials"]:
        images = 8 if trial["status"] == "finished" else 4
        assert trial["metrics"]["refine.images"] == images
        assert len(list((out / trial["directory"] / "maps").rglob("*.npz"))) == images
    assert sorted(statuses(out)) in (["finished", "finished"], ["finished", "stopped"])


def overrides(settings: list[str]) -> dict:
    return {key: yaml.safe_load(value) for key, value in (setting.split("=", 1) for setting in settings)}
