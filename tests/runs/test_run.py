"""The run directory: keys, refusal, lock, failures, metrics."""

import shutil
import subprocess
import sys
import textwrap

import pytest

from ribray import storage
from ribray.config import load_experiment
from ribray.errors import RibrayError, UsageError
from ribray.runs.keys import StageKey, select_configuration
from ribray.runs.metrics import RefineMetrics, SeedJudgement, SeedMetrics, Timing
from ribray.runs.records import Failure, git_commit
from ribray.runs.run import Run


def key(stage="refine", upstream=None, **configuration) -> StageKey:
    return StageKey(stage, 1, configuration, upstream or {}, {"ids": "abc"})


def test_a_key_changes_with_everything_a_stage_reads():
    base = key(lr=1.0)
    assert key(lr=1.0).digest == base.digest
    others = [
        key(lr=2.0),
        key(lr=1.0, upstream={"classifier": "x"}),
        StageKey("refine", 2, {"lr": 1.0}, {}, {"ids": "abc"}),
        StageKey("refine", 1, {"lr": 1.0}, {}, {"ids": "other"}),
    ]
    assert len({base.digest, *(other.digest for other in others)}) == 5


def test_a_changed_checkout_is_marked_in_the_commit(tmp_path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    assert git_commit(tmp_path) is None
    (tmp_path / "file").write_text("one")
    for command in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "First"], ["tag", "v1"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert git_commit(tmp_path) == head
    (tmp_path / "file").write_text("two")
    assert git_commit(tmp_path) == f"{head}-dirty"


def test_only_named_sections_enter_a_key():
    flat = {"refine.lr": 1, "refine.limit": 5, "refinery.x": 2, "cluster.workers": 3}
    assert select_configuration(flat, ["refine"], ["refine.limit"]) == {"refine.lr": 1}


def test_other_settings_are_refused_by_name(tmp_path):
    with Run.open(tmp_path) as run:
        run.begin("maps", key(lr=1.0, tau=0.4))
        run.refuse_other_settings("maps", key(lr=1.0, tau=0.4))
        with pytest.raises(UsageError, match=r"lr \(there 1.0, now 2.0\).*--redo refine.*--fork") as caught:
            run.refuse_other_settings("maps", key(lr=2.0, tau=0.4))
    assert "tau" not in str(caught.value)


def test_a_stage_made_from_another_upstream_is_refused(tmp_path):
    with Run.open(tmp_path) as run:
        run.begin("maps", key(upstream={"classifier": "old"}))
        with pytest.raises(UsageError, match="earlier classifier"):
            run.refuse_other_settings("maps", key(upstream={"classifier": "new"}))


def test_a_removal_cut_short_is_finished_by_the_next_start(tmp_path):
    with Run.open(tmp_path) as run:
        run.begin("maps", key())
        (tmp_path / "maps" / "00").mkdir()
        (tmp_path / "maps" / "00" / "old.npz").write_bytes(b"x")
        (tmp_path / "maps" / "stage.json").unlink()
        run.begin("maps", key(lr=3))
        assert not (tmp_path / "maps" / "00").exists()


def test_a_second_run_on_a_directory_is_refused(tmp_path):
    with Run.open(tmp_path / "a"), pytest.raises(UsageError, match="Another run is working"):
        Run.open(tmp_path / "a")
    Run.open(tmp_path / "a").close()


def test_a_lock_left_by_a_killed_run_or_copied_along_does_not_block(tmp_path):
    script = f"""
        import os, signal
        from ribray.runs.run import Run
        Run.open({str(tmp_path / "a")!r})
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert done.returncode == -9
    assert (tmp_path / "a" / ".lock").exists()
    with Run.open(tmp_path / "a"):
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        with Run.open(tmp_path / "b"):
            pass


def test_a_directory_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="holds other files"):
        Run.open(tmp_path)
    with pytest.raises(UsageError, match="is no run directory"):
        Run.read(tmp_path)


def test_the_experiment_comes_back_and_knows_its_parent(tmp_path):
    experiment = load_experiment("quickstart", ["seed=2"])
    with Run.open(tmp_path / "base") as base:
        base.write_experiment(experiment, "quickstart")
        with Run.open(tmp_path / "child", parent=base) as child:
            child.write_experiment(experiment, "quickstart")
    child = Run.read(tmp_path / "child")
    assert child.read_experiment() == experiment
    assert child.parent is not None
    assert child.parent.directory == tmp_path / "base"


def test_an_artifact_of_the_parent_is_used_in_place_only_under_the_same_key(tmp_path):
    with Run.open(tmp_path / "base") as base, Run.open(tmp_path / "child", parent=base) as child:
        base.begin("classifier", key("classifier"))
        assert child.find_artifact("classifier", key("classifier")) == tmp_path / "base" / "classifier"
        assert child.find_artifact("classifier", key("classifier", lr=9)) == tmp_path / "child" / "classifier"


def test_failures_are_sorted_and_replaced_as_a_whole(tmp_path):
    with Run.open(tmp_path) as run:
        run.write_failures([Failure("b", "refine", "bad — ünreadable"), Failure("a", "refine", "bad", 3)])
        assert [failure.id for failure in run.failures()] == ["a", "b"]
        assert len((tmp_path / "failures.jsonl").read_text().splitlines()) == 2
        run.write_failures([])
        assert run.failures() == []


def test_metrics_are_merged_with_timing_apart(tmp_path):
    with Run.open(tmp_path) as run:
        run.write_metrics("seed", SeedMetrics(cam=SeedJudgement(miou=1.5), timing=Timing(seconds=2)))
        run.write_metrics("refine", RefineMetrics(images=3, timing=Timing(seconds=4)))
    merged = storage.read_json(tmp_path / "metrics.json")
    assert merged == {
        "refine": {"images": 3},
        "seed": {"cam": {"miou": 1.5}},
        "timing": {"refine": {"seconds": 4}, "seed": {"seconds": 2}},
    }


def test_the_replicates_of_a_bootstrap_stand_in_the_stage_s_own_file_alone(tmp_path):
    with Run.open(tmp_path) as run:
        run.write_metrics("seed", SeedMetrics(cam=SeedJudgement(miou=1.5, miou_replicates=[1.0, None])))
        assert run.read_metrics().seed.cam.miou_replicates == [1.0, None]
    assert storage.read_json(tmp_path / "metrics/seed.json")["cam"]["miou_replicates"] == [1.0, None]
    assert storage.read_json(tmp_path / "metrics.json")["seed"] == {"cam": {"miou": 1.5}}


def test_damaged_files_of_a_run_are_named(tmp_path):
    with Run.open(tmp_path) as run:
        run.begin("maps", key())
        (tmp_path / "maps" / "stage.json").write_text("{")
        with pytest.raises(RibrayError, match=r"stage\.json is damaged"):
            run.record("maps")
        (tmp_path / "failures.jsonl").write_text("{}\n")
        with pytest.raises(RibrayError, match=r"failures\.jsonl is damaged"):
            run.failures()
