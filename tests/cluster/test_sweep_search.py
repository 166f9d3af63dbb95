"""What a search is told, and what it suggests; without a cluster."""

import sys

import pytest

from ribray.cluster.sweep import VALUE, DistinctDraws, Searched, require_optuna
from ribray.errors import UsageError
from ribray.sweep_file import Axis, Search

SPACE = {
    "refine.lr": Axis(loguniform=(1e-5, 1e-3)),
    "refine.batch_size": Axis(uniform=(5, 30)),
    "refine.loss": Axis(choice=("rib", "bce_tanh")),
}


def searched(**changes) -> Searched:
    return Searched(
        **{
            "search": Search(kind="optuna", samples=9),
            "space": SPACE,
            "drawn": 0,
            "evaluated": [],
            "unfinished": [],
            "integers": ["refine.batch_size"],
            **changes,
        }
    )


def test_suggestions_lie_in_the_space():
    pytest.importorskip("optuna")
    search = DistinctDraws(searched(), "max", lambda trial: None)
    for number in range(8):
        point = search.suggest(str(number))
        assert 1e-5 <= point["refine.lr"] <= 1e-3
        assert isinstance(point["refine.batch_size"], int)
        assert point["refine.loss"] in ("rib", "bce_tanh")


def test_unfinished_trials_come_first_and_finished_ones_are_known():
    pytest.importorskip("optuna")
    unfinished = {"refine.lr": 2e-4, "refine.batch_size": 7, "refine.loss": "bce_tanh"}
    good = {"refine.lr": 3e-4, "refine.batch_size": 30, "refine.loss": "rib"}
    search = DistinctDraws(searched(unfinished=[unfinished], evaluated=[(good, 60.0)]), "max", lambda trial: None)
    assert search.suggest("0") == unfinished
    assert search.study.best_value == 60.0
    assert search.study.best_params == good


def test_equal_draws_are_one_trial_and_each_counts_as_a_sample():
    pytest.importorskip("optuna")
    again = []
    space = {"refine.loss": Axis(choice=("rib", "bce_tanh"))}
    search = DistinctDraws(searched(space=space, integers=[]), "max", lambda trial: again.append(trial.id))
    first, second = search.suggest("a"), search.suggest("b")
    assert {first["refine.loss"], second["refine.loss"]} == {"rib", "bce_tanh"}
    search.on_trial_complete("a", {VALUE: 50.0})
    search.on_trial_complete("b", {VALUE: 60.0})
    assert search.suggest("c") == DistinctDraws.FINISHED
    assert len(again) == 9 - 2
    assert set(again) == {f"loss={each['refine.loss']}" for each in (first, second)}
    states = {trial.params["refine.loss"]: trial.value for trial in search.study.trials if trial.value}
    assert states == {first["refine.loss"]: 50.0, second["refine.loss"]: 60.0}


def test_a_draw_that_equals_a_running_trial_does_not_wait_for_it():
    pytest.importorskip("optuna")
    space = {"refine.loss": Axis(choice=("rib",))}
    again = []
    search = DistinctDraws(searched(space=space, integers=[]), "max", lambda trial: again.append(trial.id))
    assert search.suggest("a") == {"refine.loss": "rib"}
    assert search.suggest("b") == DistinctDraws.FINISHED
    assert again == ["loss=rib"] * 8
    search.on_trial_complete("a", {VALUE: 50.0})
    assert search.study.best_value == 50.0


def test_a_search_that_goes_on_draws_what_is_left_and_does_not_begin_anew():
    pytest.importorskip("optuna")
    space = {"refine.lr": SPACE["refine.lr"]}

    def draws(**changes):
        search = DistinctDraws(searched(space=space, integers=[], **changes), "max", lambda trial: None)
        found = []
        while (settings := search.suggest(str(len(found)))) != DistinctDraws.FINISHED:
            found.append(settings["refine.lr"])
        return found

    whole = draws()
    assert len(whole) == 9
    known = [({"refine.lr": float(f"{lr:.4g}")}, None if place else 50.0) for place, lr in enumerate(whole[:3])]
    rest = draws(drawn=4, evaluated=known)  # one of them was drawn twice
    assert len(rest) == 5
    assert not set(whole) & set(rest)


def test_a_diverged_trial_has_no_metric_and_ends_no_search():
    pytest.importorskip("optuna")
    search = DistinctDraws(searched(), "min", lambda trial: None)
    search.suggest("a")
    search.on_trial_result("a", {"rung": 1})
    search.on_trial_complete("a", {"rung": 1})
    assert search.suggest("b") != DistinctDraws.FINISHED


def test_earlier_trials_outside_a_space_that_was_narrowed_are_not_told():
    pytest.importorskip("optuna")
    known = [({"refine.lr": 0.5, "refine.batch_size": 7, "refine.loss": "rib"}, 9.0)]
    assert not DistinctDraws(searched(evaluated=known), "max", lambda trial: None).study.trials


def test_without_optuna_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UsageError, match=r"pip install 'ribray\[optuna\]'"):
        require_optuna()
