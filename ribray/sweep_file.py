"""The sweep file: which keys of a recipe take which values, and how often; and the trials that follow from it.

A trial is the base recipe with some keys set. Nothing here runs one.
"""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from ribray import config, storage
from ribray.errors import UsageError

MOST_TRIALS = 10_000
_RUN_FILE = "experiment.yaml"  # in the directory of a run: its recipe


class Axis(config.Section):
    """The values of one key; exactly one of these is given. A plain list is a grid."""

    grid: tuple[Any, ...] | None = None  # every value, together with every value of the other grids
    choice: tuple[Any, ...] | None = None  # one of these at random
    uniform: tuple[float, float] | None = None  # a number between these two, at random
    loguniform: tuple[config.Positive, config.Positive] | None = None  # the same, its logarithm evenly spread
    seeds: tuple[int, ...] | None = None  # repeats: results are averaged over these
    times: "Axis | None" = None  # any of the above but seeds, as factors on the base's own value

    @model_validator(mode="before")
    @classmethod
    def _plain_list(cls, value: Any) -> Any:
        return {"grid": value} if isinstance(value, list | tuple) else value

    @model_validator(mode="after")
    def _one_kind(self) -> "Axis":
        kinds = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(kinds) != 1:
            raise ValueError("give one of grid, choice, uniform, loguniform, seeds, times")
        values = getattr(self, kinds[0])
        if kinds[0] == "times" and (values.times is not None or values.seeds is not None):
            raise ValueError("times takes a grid, choice, uniform or loguniform")
        if kinds[0] in ("grid", "choice", "seeds") and not values:
            raise ValueError(f"{kinds[0]} is empty")
        if kinds[0] in ("uniform", "loguniform") and values[0] >= values[1]:
            raise ValueError(f"{kinds[0]} must be [smallest, largest], not {list(values)}")
        return self

    @property
    def plain(self) -> "Axis":
        """The axis, or the axis of factors inside it."""
        return self.times or self

    @property
    def is_drawn(self) -> bool:
        """Whether its values are drawn at random, or found by a search."""
        return self.plain.grid is None and self.seeds is None

    def value(self, key: str, value: Any, base: Mapping[str, Any]) -> Any:
        """Return what a value of the axis stands for: a factor for as many times the base's; an integer stays one."""
        if self.times is None:
            return value
        for number in (base.get(key), value):
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise UsageError(f"space.{key}: times multiplies numbers, and {number} is none.")
        product = base[key] * value
        return round(product) if isinstance(base[key], int) else float(f"{product:.6g}")

    def without_factors(self, key: str, base: Mapping[str, Any]) -> "Axis":
        if self.times is None:
            return self
        (kind, values), *_ = self.times.model_dump(exclude_none=True).items()
        return Axis.model_validate({kind: [self.value(key, value, base) for value in values]})


class BaseRecipe(config.Section):
    """What every trial starts from."""

    recipe: str
    """A shipped recipe, the path of one, or the directory of a run, whose finished stages are then reused; a shipped
    recipe's name always means that recipe."""
    set: dict[str, Any] = {}  # keys of the recipe that are changed for all trials

    @model_validator(mode="before")
    @classmethod
    def _plain_name(cls, value: Any) -> Any:
        return {"recipe": value} if isinstance(value, str) else value


class Scheduler(config.Section):
    """ASHA: every trial refines `first` images; only the best go on to `factor` times as many, up to `last`."""

    kind: Literal["asha"] = "asha"
    first: config.Count
    last: config.Count
    factor: Annotated[int, Field(ge=2)] = 3

    @model_validator(mode="after")
    def _grows(self) -> "Scheduler":
        if self.first > self.last:
            raise ValueError("first must not be above last")
        return self

    @property
    def rungs(self) -> list[int]:
        """Numbers of images, rising, at which trials are compared."""
        rungs = [self.first]
        while rungs[-1] * self.factor < self.last:
            rungs.append(rungs[-1] * self.factor)
        return rungs + ([self.last] if self.last > rungs[-1] else [])


class Search(config.Section):
    """How the drawn axes are drawn."""

    kind: Literal["random", "optuna"] = "random"
    """random: independent draws; optuna: each draw learns from the trials before it (extra ribray[optuna])."""
    samples: Annotated[int, Field(ge=1, le=MOST_TRIALS)]
    seed: config.Seed = 0


class Published(config.Section):
    """What a paper says of this study: a table whose columns are the values of the first axis, a number, a sentence."""

    table: Literal["S1"] | None = None
    value: float | None = None
    std: float | None = None
    text: str | None = None


class SweepFile(config.Section):
    """A sweep: what varies, what a trial runs, what is measured."""

    base: BaseRecipe
    stages: Annotated[
        tuple[str, ...],
        Field(min_length=1),
        BeforeValidator(lambda value: value.split(",") if isinstance(value, str) else value),
    ]
    """Stages of a trial; what comes before them is the base run's, where no key of the space touches it."""
    space: dict[str, Axis]  # by configuration key
    repeats: Annotated[int, Field(ge=1, le=MOST_TRIALS)] = 1  # seeds 0 … N-1 of the first stage of a trial with a seed
    metric: str  # dotted path in metrics.json, such as seed.rib.miou; see `metric_of`
    mode: Literal["max", "min"] = "max"
    max_concurrent: config.Count = 1  # trials at a time
    workers_per_trial: config.Count | None = None  # cluster.workers of a trial; default: the base's
    scheduler: Scheduler | None = None
    search: Search | None = None  # needed where values are drawn
    published: Published | None = None  # laid beside the result

    @model_validator(mode="after")
    def _fits_together(self) -> "SweepFile":
        if not self.space:
            raise ValueError("the space is empty: name a key and its values, such as refine.batch_size: [10, 20]")
        drawn = [key for key, axis in self.space.items() if axis.is_drawn]
        if drawn and self.search is None:
            raise ValueError(f"space.{drawn[0]} is drawn: add search: {{kind: random, samples: 8}}")
        if self.search is not None and not drawn:
            raise ValueError("search has nothing to draw: no key of the space is a choice, uniform or loguniform")
        if self.repeats > 1 and self.seed_keys:
            raise ValueError(f"repeats and seeds of space.{self.seed_keys[0]} are two words for one thing: give one")
        if self.is_suggested:
            grids = [key for key, axis in self.space.items() if not axis.is_drawn]
            if grids or self.repeats > 1:
                what = f"space.{grids[0]}" if grids else "repeats"
                raise ValueError(f"search optuna suggests one trial after the other, which {what} does not go with")
        if self.scheduler is not None and "refine.limit" in self.space:
            raise ValueError("the scheduler itself sets refine.limit: take it out of the space")
        return self

    @property
    def is_suggested(self) -> bool:
        """Whether a search suggests one trial after the other."""
        return self.search is not None and self.search.kind == "optuna"

    @property
    def seed_keys(self) -> list[str]:
        return [key for key, axis in self.space.items() if axis.seeds is not None]

    @property
    def axes(self) -> list[str]:
        return [key for key, axis in self.space.items() if axis.seeds is None]

    def repeated(self) -> dict[str, Sequence[int]]:
        """Return the keys that trials are averaged over, and their values."""
        if self.repeats == 1:
            return {key: self.space[key].seeds or () for key in self.seed_keys}
        stage = next((name for name in config.seeded_sections() if name in self.stages), None)
        if stage is None:
            raise UsageError(f"repeats: none of the stages {', '.join(self.stages)} has a seed to repeat.")
        return {f"{stage}.seed": range(self.repeats)}


@dataclass(frozen=True)
class Trial:
    id: str  # names its directory; a function of the settings
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Trial":
        return cls(trial_id(settings), settings)


def metric_of(metric: str, settings: Mapping[str, Any]) -> str:
    """Return a sweep's metric for one trial: ``{method}`` in it is the trial's value of a key such as refine.method."""
    for key, value in settings.items():
        metric = metric.replace(f"{{{key.rpartition('.')[2]}}}", str(value))
    return metric


def short_keys(keys: Collection[str]) -> dict[str, str]:
    """Return for every dotted key its last part, or the whole key where another one ends alike."""
    lasts = [key.rpartition(".")[2] for key in keys]
    return {key: last if lasts.count(last) == 1 else key for key, last in zip(keys, lasts, strict=True)}


# --- reading -----------------------------------------------------------------------------------------------------


def shipped_sweeps() -> dict[str, Path]:
    return config.shipped_files("sweeps")


def find_sweep(name: str) -> Path:
    location, shipped = storage.absolute(name), shipped_sweeps()
    if location.is_file():
        return location
    if (stem := name.removesuffix(".yaml")) in shipped:
        return shipped[stem]
    raise UsageError(
        f"There is no sweep '{name}'{config.nearest(location.stem, shipped)}; shipped are {', '.join(shipped)}, "
        "or give the path of a YAML file."
    )


def read_sweep(location: Path) -> SweepFile:
    return validate_sweep(config.read_yaml(location), str(location))


def validate_sweep(values: Mapping[str, Any], source: str) -> SweepFile:
    """Return the sweep of raw values; an error names ``source``."""
    try:
        return SweepFile.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{source}: {config.explain_invalid(error, SweepFile)}") from None


def with_base(sweep: SweepFile, recipe: str) -> SweepFile:
    """Return the sweep on another base; what it sets for its own base goes with that."""
    return sweep.model_copy(update={"base": BaseRecipe(recipe=recipe)})


def title_of(location: Path) -> str:
    """Return the first line of a sweep file's header, which says what it is."""
    return location.read_text(encoding="utf-8-sig").partition("\n")[0].lstrip("# ").strip()


# --- trials ------------------------------------------------------------------------------------------------------


def base_experiment(sweep: SweepFile, overrides: Iterable[str] = ()) -> config.Experiment:
    """Return what every trial starts from; ``overrides`` are the command line's ``key=value``."""
    run = base_run(sweep)
    recipe = sweep.base.recipe if run is None else str(run / _RUN_FILE)
    return config.load_experiment(recipe, [sweep.base.set, *overrides])


def base_run(sweep: SweepFile) -> Path | None:
    """Return the run's directory that a sweep starts from; None where it starts from a recipe."""
    directory = storage.absolute(sweep.base.recipe)
    is_run = sweep.base.recipe not in config.shipped_recipes() and (directory / _RUN_FILE).is_file()
    return directory if is_run else None


def trials_of(sweep: SweepFile, base: config.Experiment) -> list[Trial]:
    """Return all trials: each draw with each point of the grids with each seed. A search's are not known beforehand."""
    flat = config.flatten(config.to_values(base))
    grids = {
        key: [axis.value(key, value, flat) for value in axis.plain.grid]
        for key, axis in sweep.space.items()
        if axis.plain.grid is not None
    }
    repeated = sweep.repeated()
    draws = sweep.search.samples if sweep.search is not None else 1
    count = draws * math.prod(map(len, [*grids.values(), *repeated.values()]))
    if count > MOST_TRIALS:
        raise UsageError(f"The sweep has {count:,} trials; {MOST_TRIALS:,} are the most that one may have.")
    found: dict[str, Trial] = {}
    for draw in range(draws):
        drawn = {key: _draw(sweep, key, draw, flat) for key, axis in sweep.space.items() if axis.is_drawn}
        for values in itertools.product(*grids.values(), *repeated.values()):
            point = drawn | dict(zip([*grids, *repeated], values, strict=True))
            trial = Trial.of({key: point[key] for key in [*sweep.axes, *repeated]})
            found.setdefault(trial.id, trial)
    return list(found.values())


def _draw(sweep: SweepFile, key: str, draw: int, flat: Mapping[str, Any]) -> Any:
    """Return the value of one draw; it depends on the search's seed, the key and the draw's number alone."""
    assert sweep.search is not None
    axis, rng = sweep.space[key], np.random.default_rng([sweep.search.seed, draw, *key.encode()])
    if axis.plain.choice is not None:
        return axis.value(key, axis.plain.choice[int(rng.integers(len(axis.plain.choice)))], flat)
    if axis.plain.uniform is not None:
        return axis.value(key, rounded(float(rng.uniform(*axis.plain.uniform))), flat)
    low, high = (math.log(bound) for bound in axis.plain.loguniform or ())
    return axis.value(key, rounded(math.exp(float(rng.uniform(low, high)))), flat)


def rounded(value: float) -> float:
    """Return a number to four significant digits: nobody reads more of a random draw."""
    return float(f"{value:.4g}")


def trial_id(settings: Mapping[str, Any]) -> str:
    """Return a name for a set of values that is a safe file name, and differs between sets that mean different runs."""
    values = [value if isinstance(value, str) else json.dumps(value, default=str) for value in settings.values()]
    text = ",".join(f"{name}={value}" for name, value in zip(short_keys(settings).values(), values, strict=True))
    safe = re.sub(r"[^\w.,=+-]", "_", text)
    if safe == text and len(text) <= 100:
        return text
    return f"{safe[:80]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
