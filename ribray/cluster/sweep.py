"""Trials on Ray Tune. What a trial does is a function passed in; what becomes of each is told as it happens.

A trial reserves next to nothing: each of its stages brings a placement group of its own, so that any number of
trials at a time gets through on any cluster. Tune's own files (TensorBoard events, ``result.json``) are written and
never read: a sweep goes on from what its trials have written.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from ray import tune
from ray.tune.search import Searcher

from ribray import storage
from ribray.cluster import warm
from ribray.cluster.session import in_thread
from ribray.errors import UsageError
from ribray.sweep_file import Axis, Search, SweepFile, Trial, rounded, trial_id

POLL_SECONDS = 0.5
PROCESS_FAILURES = 2  # how often the process of a trial may die before the trial has failed
VALUE, IMAGES = "value", "images"  # what Tune is told: the metric, and how many images a scheduler compares it over

RunTrial = Callable[[Trial, int | None, bool], float | None]
"""Runs a trial, on so many images where a scheduler compares trials over them, for the last time or not.

It returns the metric, None where the trial has come to an end without one, and travels to other processes.
"""


class Watcher(Protocol):
    """Is told what becomes of trials, in the process of the sweep."""

    def begun(self, trial: Trial) -> None: ...

    def ended(self, trial: Trial) -> None: ...

    def died(self, trial: Trial, error: str) -> None: ...

    def drawn_again(self, trial: Trial) -> None:
        """A search suggests a trial that there is; it is not run again."""

    def waiting(self) -> None: ...


@dataclass(frozen=True)
class Searched:
    """A search: what it draws from, and what is known already."""

    search: Search
    space: Mapping[str, Axis]  # by key, without factors
    drawn: int  # how many of the samples were drawn already
    evaluated: Sequence[tuple[Mapping[str, Any], float | None]]  # settings and metric, None of one that diverged
    unfinished: Sequence[Mapping[str, Any]]  # settings of trials that were begun: they come first
    integers: Collection[str] = ()  # keys whose values are whole numbers


def run_sweep(
    name: str,
    definition: SweepFile,
    trials: Sequence[Trial],
    run_trial: RunTrial,
    folder: Path,
    watcher: Watcher,
    stop_requested: Callable[[], bool],
    searched: Searched | None = None,
) -> None:
    """Run trials, or those that a search suggests, until a stop is requested; Tune's own files go into ``folder``."""
    for logger in ("ray.tune", "ray.train", "ray.air"):  # the ledger and the table say it better
        logging.getLogger(logger).setLevel(logging.ERROR)
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    scheduler = definition.scheduler
    rungs = [None] if scheduler is None else scheduler.rungs

    def trainable(config: dict[str, Any]) -> None:
        for images in rungs:
            value = run_trial(_trial_of(config), images, images == rungs[-1])
            tune.report({**({} if value is None else {VALUE: value}), IMAGES: images or 1})
            if value is None:
                return

    asha = scheduler and tune.schedulers.ASHAScheduler(
        time_attr=IMAGES, grace_period=scheduler.first, max_t=scheduler.last, reduction_factor=scheduler.factor
    )
    listed = [{"id": trial.id, "settings": dict(trial.settings)} for trial in trials]
    tuner = tune.Tuner(
        tune.with_resources(trainable, tune.PlacementGroupFactory([{"CPU": 0, "memory": 1}])),
        param_space={"trial": tune.grid_search(listed)} if searched is None else {},
        tune_config=tune.TuneConfig(
            metric=VALUE,
            mode=definition.mode,
            max_concurrent_trials=definition.max_concurrent,
            num_samples=1 if searched is None else searched.search.samples - searched.drawn,
            search_alg=None if searched is None else DistinctDraws(searched, definition.mode, watcher.drawn_again),
            scheduler=asha,
            reuse_actors=True,  # the process has torch already
            trial_dirname_creator=lambda trial: f"{trial.trial_id}-{_trial_of(trial.config).id}",
        ),
        run_config=tune.RunConfig(
            name=f"{name}-{time.strftime('%Y%m%d-%H%M%S')}",
            **storage.for_ray(folder),
            verbose=0,
            callbacks=[_ToldByTune(watcher)],
            failure_config=tune.FailureConfig(max_failures=PROCESS_FAILURES),
        ),
    )
    warm.clear_the_way(of_others=True)
    outcome = in_thread(tuner.fit, "ray-tune")
    while not wait([outcome], timeout=POLL_SECONDS).done:
        watcher.waiting()
        if stop_requested():
            return
    outcome.result()


def _trial_of(config: Mapping[str, Any]) -> Trial:
    if "trial" in config:
        return Trial(**config["trial"])
    return Trial.of({key: rounded(value) if isinstance(value, float) else value for key, value in config.items()})


class _ToldByTune(tune.Callback):
    def __init__(self, watcher: Watcher):
        self._watcher = watcher

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to this process: Tune writes its callbacks into a file, which nobody reads."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._watcher.begun(_trial_of(trial.config))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._watcher.ended(_trial_of(trial.config))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        error = str(trial.get_error() or "").strip() or "no reason is known"
        died = "ActorDiedError" in error or "ActorUnavailableError" in error
        self._watcher.died(_trial_of(trial.config), "its process died" if died else error.splitlines()[-1].strip())


# --- a search ----------------------------------------------------------------------------------------------------


def require_optuna() -> None:
    try:
        import optuna
    except ImportError:
        raise UsageError("search optuna needs the package optuna: pip install 'ribray[optuna]'.") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)


class DistinctDraws(Searcher):
    """Optuna's suggestions, trials that were begun first; a draw that comes again counts as a sample, and is not run.

    It is answered with the metric of its trial; while that has none, Optuna forgets the draw.
    """

    def __init__(self, searched: Searched, mode: Literal["max", "min"], drawn_again: Callable[[Trial], None]):
        import optuna

        super().__init__(VALUE, mode)
        self._drawn_again = drawn_again
        self._space = {key: _distribution(axis, key in searched.integers) for key, axis in searched.space.items()}
        self._left = searched.search.samples - searched.drawn
        self._values = {trial_id(settings): value for settings, value in searched.evaluated}
        self._draws: dict[str, Any] = {}  # by Tune's name of a trial
        seed = searched.search.seed
        if searched.drawn:  # or the first draws would come again
            seed = int(np.random.SeedSequence([seed, searched.drawn]).generate_state(1)[0])
        direction = "maximize" if mode == "max" else "minimize"
        self.study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed), direction=direction)
        for settings in searched.unfinished:
            self.study.enqueue_trial(dict(settings))
        for settings, value in searched.evaluated:
            state, values = _state(value), {"params": dict(settings), "value": value}
            with contextlib.suppress(ValueError):  # of a space that is smaller now
                self.study.add_trial(optuna.trial.create_trial(state=state, distributions=self._space, **values))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to this process, as `_ToldByTune` does."""
        return {**self.__dict__, "_drawn_again": None}

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        while self._left:
            self._left -= 1
            draw = self.study.ask(self._space)
            trial = _trial_of(draw.params)
            if trial.id not in self._values:
                self._values[trial.id], self._draws[trial_id] = None, draw
                return dict(draw.params)
            value = self._values[trial.id]
            self.study.tell(draw, value, _state(value, failed=value is None))
            self._drawn_again(trial)
        return str(self.FINISHED)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        draw, value = self._draws[trial_id], (result or {}).get(VALUE)
        self._values[_trial_of(draw.params).id] = value
        self.study.tell(draw, value, _state(value, failed=error))

    def save(self, checkpoint_path: str) -> None:
        """Tune wants to save the search; nobody would read it."""


def _state(value: float | None, failed: bool = False) -> Any:
    from optuna.trial import TrialState

    return TrialState.COMPLETE if value is not None else TrialState.FAIL if failed else TrialState.PRUNED


def _distribution(axis: Axis, is_integer: bool) -> Any:
    from optuna import distributions

    if axis.choice is not None:
        return distributions.CategoricalDistribution(list(axis.choice))
    bounds, is_log = axis.uniform or axis.loguniform or (), axis.loguniform is not None
    if is_integer:
        return distributions.IntDistribution(*map(round, bounds), log=is_log)
    return distributions.FloatDistribution(*map(rounded, bounds), log=is_log)
