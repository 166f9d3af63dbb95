"""What a sweep goes on from: the file of each trial, and the ledger, which is a view of them. Nothing is run."""

import json
import shutil
from pathlib import Path

import pytest

from ribray import storage
from ribray.commands.sweep import Ledger, SweepRequest
from ribray.errors import UsageError
from ribray.report.ledger import TrialRecord
from ribray.sweep_file import base_experiment, trials_of, validate_sweep

STUDY = {
    "base": "quickstart",
    "stages": ["refine", "seed"],
    "space": {"refine.batch_size": [5, 10]},
    "metric": "seed.rib.miou",
}


def opened(out: Path, *overrides: str, **changes) -> Ledger:
    definition = validate_sweep({**STUDY, **changes}, "study.yaml")
    base = base_experiment(definition, overrides)
    request = SweepRequest(definition, Path("study.yaml"), "A study.", out, overrides)
    return Ledger(out, request, base, trials_of(definition, base))


def found(ledger: Ledger) -> list[tuple[str, float | None]]:
    return [(record.status, record.value) for record in ledger.records.values()]


def finish(ledger: Ledger, id: str, value: float = 50.0, status: str = "finished") -> None:
    """Write what the process of a trial writes."""
    record = ledger.records[id]
    record.status, record.value, record.metrics = status, value, {"seed.rib.miou": value, "seed.rib.images": 8}
    record.write(ledger.out, ledger.key)


def test_a_trial_that_finished_when_the_sweep_was_killed_is_not_run_again(tmp_path):
    ledger = opened(tmp_path)
    ledger.write()
    finish(ledger, "batch_size=5")  # the ledger was never told
    assert [trial["status"] for trial in json.loads((tmp_path / "sweep.json").read_text())["trials"]] == ["waiting"] * 2
    again = opened(tmp_path)
    assert found(again) == [("finished", 50.0), ("waiting", None)]
    assert again.values()["trials"][0]["metrics"] == {"seed.rib.miou": 50.0, "seed.rib.images": 8}


@pytest.mark.parametrize("status", ["failed", "running", "waiting"])
def test_a_trial_that_came_to_no_end_is_run_again(status, tmp_path):
    ledger = opened(tmp_path)
    finish(ledger, "batch_size=10", status=status)
    ledger.write()
    assert found(opened(tmp_path)) == [("waiting", None)] * 2


def test_without_its_ledger_a_sweep_goes_on_from_its_trials(tmp_path):
    finish(opened(tmp_path), "batch_size=10")
    assert not (tmp_path / "sweep.json").exists()
    assert found(opened(tmp_path)) == [("waiting", None), ("finished", 50.0)]
    assert found(opened(tmp_path, "cluster.workers=1")) == [("waiting", None), ("finished", 50.0)]


@pytest.mark.parametrize(
    ("overrides", "changes"),
    [(["refine.iterations=3"], {}), (["seed=1"], {}), ([], {"metric": "seed.cam.miou"}), ([], {"stages": ["seed"]})],
)
def test_results_of_other_settings_are_not_taken_for_this_sweep_s(overrides, changes, tmp_path):
    finish(opened(tmp_path), "batch_size=10")
    assert found(opened(tmp_path, *overrides, **changes)) == [("waiting", None)] * 2


def test_a_sweep_from_before_trials_wrote_files_goes_on_from_its_ledger(tmp_path):
    ledger = opened(tmp_path)
    finish(ledger, "batch_size=5")
    ledger.write()
    shutil.rmtree(tmp_path / "trials")
    assert found(opened(tmp_path)) == [("finished", 50.0), ("waiting", None)]


@pytest.mark.parametrize("content", [b"", b'{"key": "', b"[]", b"\xff"])
def test_a_damaged_file_of_a_trial_is_made_again(content, tmp_path):
    ledger = opened(tmp_path)
    finish(ledger, "batch_size=5")
    (location,) = tmp_path.glob("trials/*/trial.json")
    assert found(opened(tmp_path))[0] == ("finished", 50.0)
    location.write_bytes(content)
    assert found(opened(tmp_path)) == [("waiting", None)] * 2


def test_another_sweep_is_refused_by_what_differs(tmp_path):
    opened(tmp_path).write()
    with pytest.raises(UsageError, match=r"refine\.iterations \(there 10, now 3\).*choose another --out"):
        opened(tmp_path, "refine.iterations=3")
    with pytest.raises(UsageError, match=r"metric \(there seed\.rib\.miou, now seed\.cam\.miou\)"):
        opened(tmp_path, metric="seed.cam.miou")
    opened(tmp_path, "cluster.workers=1", "tracking.group=other")


def test_a_trial_that_has_its_file_and_nothing_else_is_a_run_s_directory(tmp_path):
    from ribray.runs.directory import require_free

    storage.write_json(tmp_path / "trial.json", {})
    require_free(tmp_path, "run")
    (tmp_path / "trial.json").rename(tmp_path / "other.json")
    with pytest.raises(UsageError, match="holds other files"):
        require_free(tmp_path, "run")


def test_draws_are_counted_by_the_ledger(tmp_path):
    ledger = opened(tmp_path)
    finish(ledger, "batch_size=10")
    for record in ledger.records.values():
        record.status, record.draws = "running", 3
    ledger.write()
    assert [record.draws for record in opened(tmp_path).records.values()] == [1, 3]  # what is run again is drawn again
    ledger.put(TrialRecord(**{**vars(ledger.records["batch_size=5"]), "draws": 1, "status": "finished"}))
    assert ledger.records["batch_size=5"].draws == 3
