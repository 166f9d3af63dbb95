"""The run directory: which stages it holds, what may be reused, what failed, and the numbers."""

import contextlib
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ribray import storage
from ribray.config import Experiment, to_yaml, validate_experiment
from ribray.errors import DamagedError, HeldError, UsageError
from ribray.runs import lock, records
from ribray.runs.directory import EXPERIMENT_FILE, hold, reached, require_free
from ribray.runs.keys import StageKey, differences
from ribray.runs.metrics import REPLICATES, RunMetrics, StageMetrics
from ribray.runs.records import FAILURES_FILE, RECORD_FILE, WRITTEN_AGAIN, Failure

METRICS_FILE = "metrics.json"
VARIANTS_FOLDER = "variants"


def read_metrics(location: Path) -> dict[str, Any]:
    """Read the numbers of the stage that the file is named after; `FileNotFoundError` where there are none."""
    numbers = storage.read_object(location)
    numbers.pop("sha256", None)  # a hash of the others, which earlier versions wrote
    return numbers


@dataclass
class Run:
    """A run directory that this process holds (or, opened for reading, looks at)."""

    directory: Path
    parent: "Run | None" = None
    _lock: lock.Lock | None = field(default=None, repr=False)
    _events: storage.LineFile | None = field(default=None, repr=False)

    # --- opening ------------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, directory: str | Path, parent: "Run | None" = None, break_lock: bool = False) -> "Run":
        location = storage.absolute(directory)
        held = hold(location, "run", break_lock)
        run = cls(location, parent or cls._recorded_parent(location), held)
        for folder in (run.directory, run.directory / "metrics"):  # nobody else writes while the lock is held
            storage.remove_leftovers(folder, recursive=False)
        return run

    @classmethod
    def look(cls, directory: str | Path, parent: "Run | None" = None) -> "Run":
        """Look at a run directory, or at a place where one may be made, without holding or making it."""
        location = storage.absolute(directory)
        with reached(location):
            require_free(location, "run")
        return cls(location, parent or cls._recorded_parent(location))

    @classmethod
    def read(cls, directory: str | Path) -> "Run":
        location = storage.absolute(directory)
        if not (location / EXPERIMENT_FILE).is_file():
            raise UsageError(f"{location} is no run directory (it has no {EXPERIMENT_FILE}).")
        return cls(location, cls._recorded_parent(location))

    @classmethod
    def _recorded_parent(cls, location: Path) -> "Run | None":
        """Return the run that this one was made from, and so on up to one that was made from none."""
        directories: list[Path] = []
        following: Path | None = location
        while following is not None and (directories or (following / EXPERIMENT_FILE).is_file()):
            if following in directories:
                raise UsageError(
                    f"{location / EXPERIMENT_FILE} is damaged: by its provenance the run is made from itself; "
                    f"{WRITTEN_AGAIN}."
                )
            directories.append(following)
            parent = records.read_provenance(following).get("parent")
            following = storage.resolve(parent, following) if parent else None
        run = None
        for directory in reversed(directories[1:]):
            run = cls(directory, run)
        return run

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _require_hold(self) -> None:
        with reached(self.directory):
            if isinstance(self._lock, lock.StoreLock) and self._lock.is_lost():
                raise HeldError(
                    f"The lock on {self.directory} was broken, and another run may work there by now; start this one "
                    "again to go on."
                )

    @property
    def is_held(self) -> bool:
        return lock.is_taken(self.directory)

    # --- variants and ancestors ---------------------------------------------------------------------------------

    @property
    def variant(self) -> str | None:
        """The name of a variant, which lies in ``variants/NAME`` of its run; None for a run itself."""
        folder, owner = self.directory.parent, self.directory.parent.parent
        is_of_owner = self.parent is not None and self.parent.directory == owner
        is_variant = folder.name == VARIANTS_FOLDER and (is_of_owner or (owner / lock.LOCK_NAME).exists())
        return self.directory.name if is_variant else None

    def variant_directory(self, name: str) -> Path:
        return self.directory / VARIANTS_FOLDER / name

    def variants(self) -> "dict[str, Run]":
        files = sorted(self.directory.glob(f"{VARIANTS_FOLDER}/*/{EXPERIMENT_FILE}"))
        return {file.parent.name: Run(file.parent, self) for file in files}

    @property
    def lineage(self) -> "list[Run]":
        """Return the runs whose artifacts may be used, nearest first: this one, then those it was made from."""
        older = [] if self.parent is None else self.parent.lineage
        name = self.variant
        variants = [Run(run.variant_directory(name), run) for run in older[1:] if name and run.variant is None]
        return [self, *variants, *older]

    # --- configuration ------------------------------------------------------------------------------------------

    def write_experiment(self, experiment: Experiment, recipe: str) -> None:
        """Write ``experiment.yaml``: the resolved configuration, versions and git commit. It is a recipe itself."""
        parent = storage.relative(self.parent.directory, self.directory) if self.parent else None
        made = {"provenance": records.provenance(recipe, parent)}
        text = to_yaml(experiment) + yaml.safe_dump(made, sort_keys=False)
        storage.write_text(self.directory / EXPERIMENT_FILE, text)

    def read_experiment(self) -> Experiment:
        location = self.directory / EXPERIMENT_FILE
        values = records.read_configuration(location)
        found = values.pop("provenance", None) or {}
        if missing := [name for name in records.PROVENANCE if name not in found]:
            # What is cut off between two keys would be taken for its default.
            raise UsageError(f"{location} is cut short: its provenance has no '{missing[0]}'; {WRITTEN_AGAIN}.")
        return validate_experiment(values, str(location))

    # --- stages -------------------------------------------------------------------------------------------------

    def record(self, folder: str) -> dict[str, Any]:
        return records.read_record(self.directory / folder)

    def find_artifact(self, folder: str, key: StageKey) -> Path:
        """Return where the stage's artifact lies: here, or in the nearest ancestor that has it under the same key."""
        run = next((run for run in self.lineage if run.record(folder).get("key") == key.digest), self)
        return run.directory / folder

    def refuse_other_settings(self, folder: str, key: StageKey) -> None:
        record = self.record(folder)
        if not record or record["key"] == key.digest:
            return
        if phrases := differences(record["inputs"], key.inputs):
            raise UsageError(
                f"{self.directory} already holds stage '{key.stage}' made with other settings: {'; '.join(phrases)}. "
                f"Use --redo {key.stage} to make it and what follows again, or --fork DIR to go on in a new directory."
            )
        # Only an earlier stage differs; that stage has been refused by name, or was made again.
        raise UsageError(
            f"{self.directory}: stage '{key.stage}' was made from an earlier {' and '.join(key.upstream)}; "
            f"use --redo {key.stage} to make it again."
        )

    def begin(self, folder: str, key: StageKey, **facts: Any) -> dict[str, Any]:
        """Start or continue a stage and return its record; ``facts`` are kept from the first start on."""
        self._require_hold()
        if not (record := self.record(folder)):
            # Files without a record are what a removal in progress left behind.
            storage.remove_folder(self.directory / folder)
            record = {"key": key.digest, "inputs": key.inputs, **facts}
            storage.write_json(self.directory / folder / RECORD_FILE, record)
        return record

    def update_record(self, folder: str, **facts: Any) -> None:
        storage.write_json(self.directory / folder / RECORD_FILE, {**self.record(folder), **facts})

    def remove_stage(self, stage: str, folder: str) -> None:
        """Forget a stage: its record first, so that a removal cut short is still a removal."""
        (self.directory / folder / RECORD_FILE).unlink(missing_ok=True)
        storage.remove_folder(self.directory / folder)
        self.remove_metrics(stage)
        self.write_failures([failure for failure in self.failures() if failure.stage != stage])

    def remove_metrics(self, stage: str) -> None:
        self._metrics_file(stage).unlink(missing_ok=True)

    # --- numbers, failures, events ------------------------------------------------------------------------------

    def write_metrics(self, stage: str, metrics: StageMetrics) -> None:
        self._require_hold()
        storage.write_json(self._metrics_file(stage), metrics.to_json())
        self.rewrite_metrics()

    def has_metrics(self, stage: str) -> bool:
        try:
            read_metrics(self._metrics_file(stage))
        except (FileNotFoundError, DamagedError):
            return False
        return True

    def _metrics_file(self, stage: str) -> Path:
        return self.directory / "metrics" / f"{stage}.json"

    def rewrite_metrics(self) -> None:
        storage.write_json(self.directory / METRICS_FILE, self.metrics())

    def read_metrics(self) -> RunMetrics:
        try:
            return RunMetrics.model_validate(self._merged())
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(map(str, fault["loc"]))
            raise DamagedError(f"The metrics of {self.directory} are damaged ({where}: {fault['msg']}).") from None

    def metrics(self) -> dict[str, Any]:
        """Return all stages' numbers, each stage's own timing moved under ``timing``, variants under ``variants``."""
        return _without_replicates(self._merged())

    def _merged(self) -> dict[str, Any]:
        files = sorted((self.directory / "metrics").glob("*.json"))
        merged: dict[str, Any] = {file.stem: read_metrics(file) for file in files}
        timing = {name: numbers.pop("timing", {}) for name, numbers in merged.items()}
        if variants := {name: run._merged() for name, run in self.variants().items()}:
            merged["variants"] = variants
        return {**merged, "timing": timing}

    def failures(self) -> list[Failure]:
        return records.read_failures(self.directory / FAILURES_FILE)

    def write_failures(self, failures: Iterable[Failure]) -> None:
        """Replace ``failures.jsonl``, sorted by stage and id so that the order of work leaves no trace."""
        self._require_hold()
        ordered = sorted(failures, key=lambda failure: (failure.stage, failure.id))
        text = "".join(f"{failure.to_json()}\n" for failure in ordered)
        if text or (self.directory / FAILURES_FILE).exists():
            storage.write_text(self.directory / FAILURES_FILE, text)

    def event(self, stage: str, what: str, **facts: Any) -> None:
        now = time.time()
        if self._events is None:
            name = f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**6:06d}.jsonl"
            self._events = storage.LineFile(self.directory / "events" / name)
        self._events.add(json.dumps({"time": round(now, 3), "stage": stage, "what": what, **facts}))

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        self.event(stage, "started")
        try:
            yield
        except BaseException as error:
            self.event(stage, "stopped", error=type(error).__name__)
            raise
        self.event(stage, "finished")


def _without_replicates(numbers: dict[str, Any]) -> dict[str, Any]:
    """Leave out what `read_metrics` alone has use for."""
    return {
        key: _without_replicates(value) if isinstance(value, dict) else value
        for key, value in numbers.items()
        if key != REPLICATES
    }
