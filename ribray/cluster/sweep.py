"""Trials on Ray Tune. What a trial does is a function passed in; what becomes of each is told as it happens.

A trial reserves next to nothing: each of its stages brings a placement group of its own, so that any number of
trials at a time gets through on any cluster. Tune's own files (TensorBoard events, ``result.json``) are written and
never read: a sweep goes on from its ledger.
"""

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ray import tune
from ray.tune.search import Searcher

from ribray import storage
from ribray.errors import UsageError
from ribray.sweep_file import Axis, Scheduler, Search, Trial, rounded, trial_id

POLL_SECONDS = 0.5
PROCESS_FAILURES = 2
"""How often the process of a trial may die before the trial has failed."""
VALUE, RUNG, OUTCOME = "value", "rung", "outcome"
"""What a trial reports to Tune: its metric, how many images it is over, and everything else as JSON text."""

Status = Literal["waiting", "running", "finished", "diverged", "stopped", "failed"]


@dataclass(frozen=True)
class Outcome:
    """What came of a trial, or of a part of it."""

    status: Status
    value: float | None = None
    """The sweep's metric."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Every number of the trial's metrics, by dotted name."""
    failed_images: int = 0
    error: str | None = None
    seconds: float = 0.0


RunTrial = Callable[[Trial, int | None], Outcome]
"""Runs a trial, where a scheduler compares trials up to a number of images. It travels to other processes."""


@dataclass(frozen=True)
class SweepPlan:
    """How trials are carried out."""

    name: str
    mode: Literal["max", "min"]
    max_concurrent: int
    folder: Path
    """Where Tune writes its files."""
    scheduler: Scheduler | None = None


@dataclass(frozen=True)
class Searched:
    """A search: what it draws from, and what is known already."""

    search: Search
    space: Mapping[str, Axis]
    """By key; factors are resolved to values."""
    drawn: int
    """How many of the samples were drawn already."""
    evaluated: Sequence[tuple[Mapping[str, Any], float | None]]
    """Settings of these trials and their metric; None of one that diverged."""
    unfinished: Sequence[Mapping[str, Any]]
    """Settings of trials that were begun: they come first."""
    integers: Collection[str] = ()
    """Keys whose values are whole numbers."""


def run_sweep(
    trials: Sequence[Trial],
    run_trial: RunTrial,
    plan: SweepPlan,
    on_change: Callable[[Trial, Outcome], None],
    stop_requested: Callable[[], bool],
    while_waiting: Callable[[], None] = lambda: None,
    searched: Searched | None = None,
    on_equal: Callable[[Trial], None] = lambda trial: None,
) -> bool:
    """Run trials, at most ``plan.max_concurrent`` at a time; on a cluster that is connected already.

    Args:
        trials: what to run; none where ``searched`` suggests them.
        run_trial: runs one.
        plan: how.
        on_change: called in this process when a trial begins, and with what came of it.
        stop_requested: asked every half second; once true, trials are left where they are.
        while_waiting: called as often.
        searched: suggests trials in place of ``trials``.
        on_equal: called, in this process, with a trial that the search suggests again; it is not run again.

    Returns:
        False where a stop request ended it.
    """
    _quiet()
    rungs = plan.scheduler.rungs if plan.scheduler is not None else [None]

    def trainable(config: dict[str, Any]) -> None:
        trial = _trial_of(config)
        for place, rung in enumerate(rungs):
            outcome = run_trial(trial, rung)
            is_last = place == len(rungs) - 1 or outcome.status != "finished"
            value = {} if outcome.value is None else {VALUE: outcome.value}
            tune.report({**value, RUNG: rung or 1, OUTCOME: json.dumps(asdict(outcome))})
            if is_last:
                return

    storage_path, filesystem = storage.for_ray(plan.folder)
    token = tune.PlacementGroupFactory([{"CPU": 0, "memory": 1}])
    tuner = tune.Tuner(
        tune.with_resources(trainable, token),
        param_space=_param_space(trials, searched),
        tune_config=tune.TuneConfig(
            metric=VALUE,
            mode=plan.mode,
            max_concurrent_trials=plan.max_concurrent,
            num_samples=1 if searched is None else searched.search.samples - searched.drawn,
            search_alg=None if searched is None else DistinctDraws(searched, plan.mode, on_equal),
            scheduler=_scheduler(plan),
            reuse_actors=True,  # the process has torch already
            trial_dirname_creator=lambda trial: f"{trial.trial_id}-{_trial_of(trial.config).id}",
        ),
        run_config=tune.RunConfig(
            name=f"{plan.name}-{time.strftime('%Y%m%d-%H%M%S')}",
            storage_path=storage_path,
            storage_filesystem=filesystem,
            verbose=0,
            callbacks=[_Telling(on_change, plan.scheduler)],
            failure_config=tune.FailureConfig(max_failures=PROCESS_FAILURES),
        ),
    )
    return _fit(tuner, stop_requested, while_waiting)


def _fit(tuner: tune.Tuner, stop_requested: Callable[[], bool], while_waiting: Callable[[], None]) -> bool:
    """Run Tune in a thread: in the main one it would take Ctrl-C for itself."""
    outcome: Future[None] = Future()

    def fit() -> None:
        try:
            tuner.fit()
            outcome.set_result(None)
        except BaseException as error:  # noqa: BLE001  (raised again where the outcome is asked for)
            outcome.set_exception(error)

    threading.Thread(target=fit, name="ray-tune", daemon=True).start()
    while not wait([outcome], timeout=POLL_SECONDS).done:
        while_waiting()
        if stop_requested():
            return False
    outcome.result()
    return True


def _trial_of(config: Mapping[str, Any]) -> Trial:
    if "trial" in config:
        return Trial(config["trial"]["id"], config["trial"]["settings"])
    settings = {key: rounded(value) if isinstance(value, float) else value for key, value in config.items()}
    return Trial(trial_id(settings), settings)


def _param_space(trials: Sequence[Trial], searched: Searched | None) -> dict[str, Any]:
    if searched is None:
        return {"trial": tune.grid_search([{"id": trial.id, "settings": dict(trial.settings)} for trial in trials])}
    return {}


def require_optuna() -> None:
    """Check that a search can work.

    Raises:
        UsageError: optuna is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise UsageError("search optuna needs the package optuna: pip install 'ribray[optuna]'.") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def optuna_search(searched: Searched, mode: str) -> Any:
    """Return the search; it is told of finished trials, and suggests unfinished ones first."""
    from ray.tune.search.optuna import OptunaSearch

    distributions = {key: _distribution(axis, key in searched.integers) for key, axis in searched.space.items()}
    seed = searched.search.seed
    if searched.drawn:  # or the first draws would come again
        seed = int(np.random.SeedSequence([seed, searched.drawn]).generate_state(1)[0])
    search = OptunaSearch(
        space=distributions,
        metric=VALUE,
        mode=mode,
        seed=seed,
        points_to_evaluate=[dict(settings) for settings in searched.unfinished] or None,
    )
    for settings, value in searched.evaluated:
        with contextlib.suppress(ValueError):  # of a space that is smaller now
            search.add_evaluated_point(dict(settings), value, pruned=value is None)
    return search


class DistinctDraws(Searcher):
    """An Optuna search whose equal draws are one trial: each counts as a sample, and is run the first time only.

    A draw that comes again is answered with the metric of its trial; while that has none, Optuna forgets the draw.
    """

    def __init__(self, searched: Searched, mode: Literal["max", "min"], on_equal: Callable[[Trial], None]):
        super().__init__(VALUE, mode)
        self._search, self._on_equal = optuna_search(searched, mode), on_equal
        self._left = searched.search.samples - searched.drawn
        self._values = {trial_id(settings): value for settings, value in searched.evaluated}
        self._drawn: dict[str, tuple[str, str]] = {}
        """By Tune's name of a trial: Optuna's name of the draw, and the trial's id."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to this process, as `_Telling` does."""
        return {**self.__dict__, "_on_equal": None}

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """Return the next settings that were not drawn before, or that there are no more."""
        while self._left:
            self._left -= 1
            draw = f"{trial_id}-{self._left}"
            settings: dict[str, Any] = self._search.suggest(draw)
            trial = _trial_of(settings)
            if trial.id not in self._values:
                self._values[trial.id] = None
                self._drawn[trial_id] = (draw, trial.id)
                return settings
            self._tell(draw, self._values[trial.id])
            self._on_equal(trial)
        return str(self.FINISHED)

    def _tell(self, draw: str, value: float | None) -> None:
        self._search.on_trial_complete(draw, None if value is None else {VALUE: value}, error=value is None)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass on what a scheduler compares trials by; a training that diverged has none."""
        if VALUE in result:
            self._search.on_trial_result(self._drawn[trial_id][0], result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Pass on what came of a trial."""
        draw, name = self._drawn[trial_id]
        self._values[name] = (result or {}).get(VALUE)
        self._search.on_trial_complete(draw, result, error)

    def save(self, checkpoint_path: str) -> None:
        """Save the state of the search, as Tune wants it; nobody reads it."""
        self._search.save(checkpoint_path)


def _distribution(axis: Axis, is_integer: bool) -> Any:
    from optuna import distributions

    if axis.choice is not None:
        return distributions.CategoricalDistribution(list(axis.choice))
    bounds = axis.uniform or axis.loguniform
    assert bounds is not None
    is_log = axis.loguniform is not None
    if is_integer:
        return distributions.IntDistribution(round(bounds[0]), round(bounds[1]), log=is_log)
    return distributions.FloatDistribution(*map(rounded, bounds), log=is_log)


def _scheduler(plan: SweepPlan) -> Any:
    scheduler = plan.scheduler
    if scheduler is None:
        return None
    return tune.schedulers.ASHAScheduler(
        time_attr=RUNG, grace_period=scheduler.first, max_t=scheduler.last, reduction_factor=scheduler.factor
    )


class _Telling(tune.Callback):
    """Passes on what Tune does with trials."""

    def __init__(self, on_change: Callable[[Trial, Outcome], None], scheduler: Scheduler | None):
        self._on_change, self._scheduler = on_change, scheduler
        self._last: dict[str, tuple[Outcome, int]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to this process: Tune writes its callbacks into a file, which nobody reads."""
        return {**self.__dict__, "_on_change": None}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say that it runs."""
        self._on_change(_trial_of(trial.config), Outcome("running"))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Keep what it reported."""
        if OUTCOME in result:
            self._last[trial.trial_id] = (Outcome(**json.loads(result[OUTCOME])), result[RUNG])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say how it ended: where the scheduler ended it, as stopped."""
        outcome, rung = self._last[trial.trial_id]
        early = self._scheduler is not None and rung < self._scheduler.last and outcome.status == "finished"
        told = Outcome(**{**asdict(outcome), "status": "stopped"}) if early else outcome
        self._on_change(_trial_of(trial.config), told)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say that it failed."""
        lines = [line.strip() for line in str(trial.get_error() or "").splitlines() if line.strip()]
        died = any("ActorDiedError" in line or "ActorUnavailableError" in line for line in lines)
        error = "its process died" if died else lines[-1] if lines else "no reason is known"
        self._on_change(_trial_of(trial.config), Outcome("failed", error=error))


def _quiet() -> None:
    """Keep Tune's own words off the terminal: the ledger and the table say it better."""
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    for name in ("ray.tune", "ray.train", "ray.air"):
        logging.getLogger(name).setLevel(logging.ERROR)
