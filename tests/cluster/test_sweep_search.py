"""What a search is told, and what it suggests; without a cluster."""

import sys

import pytest

from ribray.cluster.sweep import Searched, optuna_search, require_optuna
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
            "evaluated": [],
            "unfinished": [],
            "integers": ["refine.batch_size"],
            **changes,
        }
    )


def test_suggestions_lie_in_the_space():
    pytest.importorskip("optuna")
    search = optuna_search(searched(), "max")
    for number in range(8):
        point = search.suggest(str(number))
        assert 1e-5 <= point["refine.lr"] <= 1e-3
        assert isinstance(point["refine.batch_size"], int)
        assert point["refine.loss"] in ("rib", "bce_tanh")


def test_unfinished_trials_come_first_and_finished_ones_are_known():
    pytest.importorskip("optuna")
    unfinished = {"refine.lr": 2e-4, "refine.batch_size": 7, "refine.loss": "bce_tanh"}
    good = {"refine.lr": 3e-4, "refine.batch_size": 30, "refine.loss": "rib"}
    search = optuna_search(searched(unfinished=[unfinished], evaluated=[(good, 60.0)]), "max")
    assert search.suggest("0") == unfinished
    study = search._ot_study
    assert study.best_value == 60.0
    assert study.best_params == good


def test_without_optuna_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UsageError, match=r"pip install 'ribray\[optuna\]'"):
        require_optuna()
