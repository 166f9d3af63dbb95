"""Commands do what they say, and nothing else."""

import io
import threading
from pathlib import Path

import pytest
from rich.console import Console

from ribray.cluster.sweep import Outcome, Searched
from ribray.config import load_experiment
from ribray.report.ledger import read_ledger
from ribray.stages import sweep as sweeps
from ribray.sweep_file import Trial, trial_id, validate_sweep

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

    def go_on(self, *outcomes: tuple[str, Outcome | None]) -> tuple[Searched | None, str]:
        """Start the search; tell it of a loss and what came of it, where None is a draw that was drawn before.

        Returns:
            what Ray Tune was asked for (None: nothing), and what was printed.
        """
        asked: list[Searched] = []

        def run_sweep(left, runner, plan, on_change, stop, while_waiting, searched, on_equal):
            asked.append(searched)
            for loss, outcome in outcomes:
                settings = {"refine.loss": loss}
                trial = Trial(trial_id(settings), settings)
                on_equal(trial) if outcome is None else on_change(trial, outcome)

        self._monkeypatch.setattr(sweeps, "run_sweep", run_sweep)
        request = sweeps.SweepRequest(validate_sweep(SEARCH, "study.yaml"), Path("study.yaml"), "A study.", self._out)
        experiment, text = load_experiment("quickstart"), io.StringIO()
        ledger = sweeps._Ledger(self._out, request, experiment, [])
        job = sweeps._Job(request, self._out, {}, self._out / "base", ("refine", "seed"))
        sweeps._run_trials(job, ledger, experiment, Console(file=text, width=300), threading.Event())
        return (asked[0] if asked else None), text.getvalue()


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Search:
    return Search(tmp_path, monkeypatch)


def finished(value: float) -> Outcome:
    return Outcome("finished", value)


def test_a_search_whose_draws_were_partly_equal_is_done_once_all_samples_are_drawn(search, tmp_path):
    asked, _ = search.go_on(("rib", finished(50.0)), ("bce_tanh", finished(40.0)), ("rib", None), ("rib", None))
    assert asked.drawn == 0
    assert [trial["draws"] for trial in read_ledger(tmp_path / "sweep.json")["trials"]] == [3, 1]
    asked, text = search.go_on()
    assert asked is None
    assert "4 of 4 trials, done already" in text


def test_a_diverged_trial_counts_as_a_sample_and_a_failed_one_is_run_again(search):
    search.go_on(("rib", finished(50.0)), ("bce_tanh", Outcome("diverged")), ("bce_sigmoid", Outcome("failed")))
    asked, text = search.go_on()
    assert asked.search.samples - asked.drawn == 2
    assert asked.evaluated == [({"refine.loss": "rib"}, 50.0), ({"refine.loss": "bce_tanh"}, None)]
    assert asked.unfinished == [{"refine.loss": "bce_sigmoid"}]
    assert "told of the 2 finished trials" in text


def test_draws_that_equal_a_failed_trial_are_drawn_again(search):
    search.go_on(("rib", Outcome("failed")), ("rib", None), ("bce_tanh", finished(40.0)))
    asked, _ = search.go_on()
    assert asked.search.samples - asked.drawn == 3


def test_a_ledger_without_counts_of_draws_is_read(search, tmp_path):
    search.go_on(("rib", finished(50.0)), ("bce_tanh", finished(40.0)))
    ledger = tmp_path / "sweep.json"
    ledger.write_text(ledger.read_text().replace('"draws": 1,', ""))
    asked, _ = search.go_on()
    assert asked.drawn == 2


def test_only_the_end_of_a_trials_log_is_read(tmp_path):
    log = tmp_path / "trial.log"
    assert sweeps._last_line(log) == ""
    log.write_bytes(b"x" * 10_000_000 + "\nläuft\nrefine: 3 of 9 images\n\n".encode())
    assert sweeps._last_line(log) == "refine: 3 of 9 images"
    log.write_text("")
    assert sweeps._last_line(log) == ""


def test_a_log_on_an_object_store_is_not_asked_for():
    from ribray import storage

    place = storage.path("memory://sweep/trials/one.log")
    place.write_text("refine: 3 of 9 images\n")
    assert sweeps._last_line(place) == ""
