"""The run directory: which stages it holds, what may be reused, what failed, and the numbers.

One mechanism decides about reuse. A stage's *key* is a hash over what the stage reads: configuration values, the keys
of the stages before it, a fingerprint of the data and a format version. The key and what went into it stand in
``stage.json`` in the stage's folder; another key is refused, naming the configuration keys that differ.
"""

import contextlib
import hashlib
import json
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ribray import __version__, storage
from ribray.config import Experiment, read_yaml, to_yaml, validate_experiment
from ribray.errors import DamagedError, HeldError, RibrayError, UsageError
from ribray.machine import describe_machine
from ribray.runs import lock
from ribray.runs.metrics import RunMetrics, StageMetrics

ROOT = Path(__file__).resolve().parents[2]
"""Of the checkout, where ribray runs from one."""
EXPERIMENT_FILE = "experiment.yaml"
LEDGER_FILE = "sweep.json"
MARKS = {"run": EXPERIMENT_FILE, "sweep": LEDGER_FILE}
"""The file by which a directory of a run, or of a sweep, is known."""
FAILURES_FILE = "failures.jsonl"
METRICS_FILE = "metrics.json"
RECORD_FILE = "stage.json"
VARIANTS_FOLDER = "variants"
RECORDED_PACKAGES = ("torch", "torchvision", "ray", "numpy", "pillow", "pycocotools", "wandb")


@dataclass(frozen=True)
class StageKey:
    """What a stage reads, and the hash of it."""

    stage: str
    format: int
    configuration: Mapping[str, Any]
    """Flat configuration keys and their resolved values."""
    upstream: Mapping[str, str]
    """Keys of the stages it builds on."""
    data: Mapping[str, str]
    """Fingerprints of the data and weight files it reads."""

    @property
    def digest(self) -> str:
        """The key itself: 16 hex digits."""
        return hashlib.sha256(json.dumps(self.inputs, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def inputs(self) -> dict[str, Any]:
        """Everything the digest covers, as JSON values."""
        return {
            "stage": self.stage,
            "format": self.format,
            "configuration": dict(self.configuration),
            "upstream": dict(self.upstream),
            "data": dict(self.data),
        }


def select_configuration(flat: Mapping[str, Any], reads: Iterable[str], leaves_out: Iterable[str]) -> dict[str, Any]:
    """Return the values of ``flat`` whose keys lie under one of ``reads`` and are not in ``leaves_out``."""
    reads, leaves_out = tuple(reads), set(leaves_out)
    return {
        key: value
        for key, value in flat.items()
        if key not in leaves_out and any(key == prefix or key.startswith(prefix + ".") for prefix in reads)
    }


def differences(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Say, one phrase each, where two stages' inputs differ."""
    phrases = []
    old, new = recorded.get("configuration", {}), wanted["configuration"]
    for key in sorted(set(old) | set(new)):
        if old.get(key) != new.get(key):
            phrases.append(f"{key} (there {old.get(key)}, now {new.get(key)})")
    old_data, new_data = recorded.get("data", {}), wanted["data"]
    phrases += [
        f"the {name} have changed"
        for name in sorted(set(old_data) | set(new_data))
        if old_data.get(name) != new_data.get(name)
    ]
    if recorded.get("format") != wanted["format"]:
        phrases.append(f"the file format (there {recorded.get('format')}, now {wanted['format']})")
    return phrases


def hold(location: Path, kind: str, break_lock: bool = False) -> lock.Lock:
    """Take hold of a directory, one of `MARKS`, making it if needed; see `ribray.runs.lock` for ``break_lock``.

    Raises:
        HeldError: another process holds the directory.
        UsageError: it cannot be written, or it holds something else.
    """
    with _told(location):
        require_free(location, kind)
        storage.require_writable(location)
        try:
            return lock.take(location, break_lock)
        except lock.TakenError as error:
            owner = f" ({error})" if str(error) else ""
            hint = "; --break-lock takes the place of one that no longer exists" if owner else ""
            raise HeldError(
                f"Another {kind} is working in {location}{owner}; wait for it, or stop it first{hint}."
            ) from None


def require_free(location: Path, kind: str) -> None:
    """Check that a directory is there for a run (or a sweep), or may become one's; nothing is written.

    Raises:
        UsageError: it holds something else.
    """
    if storage.is_local(location):
        there = next(place for place in (location, *location.parents) if place.exists())
        if there == location and not there.is_dir():
            raise UsageError(f"{location} is a file; --out must name a directory.")
        if not there.is_dir():
            raise UsageError(f"Cannot write in {location}: {there} is a file; choose another --out directory.")
    other = next((name for name, mark in MARKS.items() if name != kind and (location / mark).exists()), None)
    if other is not None:
        raise UsageError(f"{location} holds a {other}, not a {kind}; choose another --out.")
    is_ours = (location / lock.LOCK_NAME).exists() or (location / MARKS[kind]).exists()
    if not is_ours and location.is_dir() and any(location.iterdir()):
        raise UsageError(f"{location} holds other files and is no {kind} directory; choose another --out.")


def require_outside(location: Path, allowed: str | None = None) -> None:
    """Check that what is to be written at ``location`` gets in the way of no run, and of no sweep.

    Args:
        location: absolute path or URL of a file or a folder.
        allowed: a folder of a run where it may lie.

    Raises:
        UsageError: it lies in the directory of one, which removes and replaces what is in its way.
    """
    for folder in (location, *location.parents):
        kind = next((name for name, mark in MARKS.items() if (folder / mark).is_file()), None)
        if kind is not None:
            inside = location.relative_to(folder).parts[:1]
            if inside == (allowed,):
                return
            hint = f", or one in {folder / allowed}" if allowed is not None else ""
            raise UsageError(f"{location} lies in {folder}, which holds a {kind}; choose another --out{hint}.")


@contextlib.contextmanager
def _told(location: Path) -> Iterator[None]:
    """Turn what an object store's client raises in a ``with`` block into a sentence."""
    try:
        yield
    except RibrayError:
        raise
    except Exception as error:
        if storage.is_local(location):
            raise
        raise UsageError(f"{location} cannot be used: {storage.reason(error)}.") from error


@dataclass
class Failure:
    """One image that could not be done: a line of ``failures.jsonl``."""

    id: str
    stage: str
    error: str
    tries: int = 1
    traceback: str | None = None
    """Of the last try, where the error is none that is expected of an image."""

    def to_json(self) -> str:
        """Return the line; it has a traceback only where there is one."""
        values = {name: value for name, value in vars(self).items() if name != "traceback" or value is not None}
        return json.dumps(values, ensure_ascii=False)


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
        """Take hold of a run directory, making it if needed.

        Raises:
            UsageError: another run holds the directory, it cannot be written, or it holds something else.
        """
        location = storage.absolute(directory)
        held = hold(location, "run", break_lock)
        run = cls(location, parent or cls._recorded_parent(location), held)
        for folder in (run.directory, run.directory / "metrics"):  # nobody else writes while the lock is held
            storage.remove_leftovers(folder, recursive=False)
        return run

    @classmethod
    def look(cls, directory: str | Path, parent: "Run | None" = None) -> "Run":
        """Look at a run directory, or at a place where one may be made, without holding or making it.

        Raises:
            UsageError: it holds something else.
        """
        location = storage.absolute(directory)
        with _told(location):
            require_free(location, "run")
        return cls(location, parent or cls._recorded_parent(location))

    @classmethod
    def read(cls, directory: str | Path) -> "Run":
        """Look at a run directory without holding it.

        Raises:
            UsageError: it is no run directory.
        """
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
                    f"{_WRITTEN_AGAIN}."
                )
            directories.append(following)
            parent = read_provenance(following).get("parent")
            following = storage.resolve(parent, following) if parent else None
        run = None
        for directory in reversed(directories[1:]):
            run = cls(directory, run)
        return run

    def close(self) -> None:
        """Let go of the directory."""
        if self._events is not None:
            self._events.close()
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _require_hold(self) -> None:
        if isinstance(self._lock, lock.StoreLock):
            with _told(self.directory):
                is_lost = self._lock.is_lost()
            if is_lost:
                raise HeldError(
                    f"The lock on {self.directory} was broken, and another run may work there by now; start this one "
                    "again to go on."
                )

    @property
    def is_held(self) -> bool:
        """Whether some process is working in the directory now."""
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
        """Return where a variant of this run lies."""
        return self.directory / VARIANTS_FOLDER / name

    def variants(self) -> "dict[str, Run]":
        """Return this run's variants by name."""
        files = sorted(self.directory.glob(f"{VARIANTS_FOLDER}/*/{EXPERIMENT_FILE}"))
        return {file.parent.name: Run(file.parent, self) for file in files}

    @property
    def lineage(self) -> "list[Run]":
        """Return the runs whose artifacts may be used: this one, then those it was made from, nearest first.

        A variant of a forked run comes after the same variant of the run that was forked.
        """
        if self.parent is None:
            return [self]
        older = self.parent.lineage
        if self.variant is None:
            return [self, *older]
        same = [Run(run.variant_directory(self.variant), run) for run in older[1:] if run.variant is None]
        return [self, *same, *older]

    # --- configuration ------------------------------------------------------------------------------------------

    def write_experiment(self, experiment: Experiment, recipe: str) -> None:
        """Write ``experiment.yaml``: the resolved configuration, versions and git commit. It is a recipe itself."""
        provenance = {
            "recipe": recipe,
            "ribray": __version__,
            "versions": {name: metadata.version(name) for name in RECORDED_PACKAGES},
            "commit": git_commit(),
            "machine": describe_machine(),
            "parent": storage.relative(self.parent.directory, self.directory) if self.parent else None,
        }
        text = to_yaml(experiment) + yaml.safe_dump({"provenance": provenance}, sort_keys=False)
        storage.write_text(self.directory / EXPERIMENT_FILE, text)

    def read_experiment(self) -> Experiment:
        """Read the configuration this run was last started with.

        Raises:
            UsageError: the file is missing or damaged.
        """
        location = self.directory / EXPERIMENT_FILE
        values = _read_configuration(location)
        provenance = values.pop("provenance", None) or {}
        if missing := [name for name in PROVENANCE if name not in provenance]:
            # What is cut off between two keys would be taken for its default.
            raise UsageError(f"{location} is cut short: its provenance has no '{missing[0]}'; {_WRITTEN_AGAIN}.")
        return validate_experiment(values, str(location))

    # --- stages -------------------------------------------------------------------------------------------------

    def record(self, folder: str) -> dict[str, Any] | None:
        """Return the record of the stage kept in ``folder``, or None where the stage never began.

        Raises:
            RibrayError: it is damaged.
        """
        location = self.directory / folder / RECORD_FILE
        return read_record(location) if location.exists() else None

    def find_artifact(self, folder: str, key: StageKey) -> Path:
        """Return where the stage's artifact lies: here, or in the nearest ancestor that has it under the same key."""
        for run in self.lineage:
            record = run.record(folder)
            if record is not None and record.get("key") == key.digest:
                return run.directory / folder
        return self.directory / folder

    def refuse_other_settings(self, folder: str, key: StageKey) -> None:
        """Check that the stage kept in ``folder`` was made with the same inputs.

        Raises:
            UsageError: it was not; the sentence names the configuration keys that differ.
        """
        record = self.record(folder)
        if record is None or record.get("key") == key.digest:
            return
        phrases = differences(record.get("inputs", {}), key.inputs)
        if phrases:
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
        record = self.record(folder)
        if record is None:
            # Files without a record are what a removal in progress left behind.
            storage.remove_folder(self.directory / folder)
            record = {"key": key.digest, "inputs": key.inputs, **facts}
            storage.write_json(self.directory / folder / RECORD_FILE, record)
        return record

    def update_record(self, folder: str, **facts: Any) -> None:
        """Add facts to the record of a stage."""
        storage.write_json(self.directory / folder / RECORD_FILE, {**(self.record(folder) or {}), **facts})

    def remove_stage(self, stage: str, folder: str) -> None:
        """Forget a stage: its record first, so that a removal cut short is still a removal."""
        (self.directory / folder / RECORD_FILE).unlink(missing_ok=True)
        storage.remove_folder(self.directory / folder)
        self.remove_metrics(stage)
        self.write_failures([failure for failure in self.failures() if failure.stage != stage])

    def remove_metrics(self, stage: str) -> None:
        """Forget a stage's numbers."""
        self._metrics_file(stage).unlink(missing_ok=True)

    # --- numbers, failures, events ------------------------------------------------------------------------------

    def write_metrics(self, stage: str, metrics: StageMetrics) -> None:
        """Write a stage's numbers and the merged view ``metrics.json``."""
        self._require_hold()
        plain = metrics.to_json()
        storage.write_json(self._metrics_file(stage), {**plain, SEAL_KEY: _seal(stage, plain)})
        self.rewrite_metrics()

    def has_metrics(self, stage: str) -> bool:
        """Whether a stage's numbers are there, as it has written them."""
        try:
            read_metrics(self._metrics_file(stage))
        except (FileNotFoundError, DamagedError):
            return False
        return True

    def _metrics_file(self, stage: str) -> Path:
        return self.directory / "metrics" / f"{stage}.json"

    def rewrite_metrics(self) -> None:
        """Write the merged view of all stages' and variants' numbers."""
        storage.write_json(self.directory / METRICS_FILE, self.metrics())

    def read_metrics(self) -> RunMetrics:
        """Return the numbers of all stages and variants.

        Raises:
            RibrayError: they are not what the stages have written.
        """
        try:
            return RunMetrics.model_validate(self.metrics())
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(map(str, fault["loc"]))
            raise DamagedError(f"The metrics of {self.directory} are damaged ({where}: {fault['msg']}).") from None

    def metrics(self) -> dict[str, Any]:
        """Return all stages' numbers, each stage's own timing moved under ``timing``, variants under ``variants``.

        Raises:
            RibrayError: a stage's file is not what the stage has written.
        """
        merged: dict[str, Any] = {}
        timing: dict[str, Any] = {}
        for location in sorted((self.directory / "metrics").glob("*.json")):
            numbers = read_metrics(location)
            timing[location.stem] = numbers.pop("timing", {})
            merged[location.stem] = numbers
        if variants := {name: run.metrics() for name, run in self.variants().items()}:
            merged["variants"] = variants
        return {**merged, "timing": timing}

    def failures(self) -> list[Failure]:
        """Return the images that failed and have not been done since."""
        location = self.directory / FAILURES_FILE
        if not location.exists():
            return []
        remedy = "remove it, failed images are tried again anyway"
        failures = []
        for line in storage.parse_lines(storage.read_bytes(location), location, remedy):
            types = _FAILURE_TYPES | ({"traceback": str} if "traceback" in line else {})
            if fault := _fault(line, types) or (line.keys() - types and "it has other keys"):
                raise DamagedError(f"{location} is damaged ({fault}); {remedy}.")
            failures.append(Failure(**line))
        return failures

    def write_failures(self, failures: Iterable[Failure]) -> None:
        """Replace ``failures.jsonl``, sorted by stage and id so that the order of work leaves no trace."""
        self._require_hold()
        ordered = sorted(failures, key=lambda failure: (failure.stage, failure.id))
        text = "".join(f"{failure.to_json()}\n" for failure in ordered)
        if text or (self.directory / FAILURES_FILE).exists():
            storage.write_text(self.directory / FAILURES_FILE, text)

    def give_up(self, stage: str, id: str, error: str, tries: int, traceback: str | None = None) -> Failure:
        """Write into `events/` that an image has failed; return what becomes its line of ``failures.jsonl``."""
        self.event(stage, "failed", id=id, error=error, **({} if traceback is None else {"traceback": traceback}))
        return Failure(id, stage, error, tries, traceback)

    def event(self, stage: str, what: str, **facts: Any) -> None:
        """Append one line to this process's own file in ``events/``."""
        now = time.time()
        if self._events is None:
            name = f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**6:06d}.jsonl"
            self._events = storage.LineFile(self.directory / "events" / name)
        self._events.add(json.dumps({"time": round(now, 3), "stage": stage, "what": what, **facts}))

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Write the beginning and the end of a stage as events."""
        self.event(stage, "started")
        try:
            yield
        except BaseException as error:
            self.event(stage, "stopped", error=type(error).__name__)
            raise
        self.event(stage, "finished")


# --- what other files of a run hold -----------------------------------------------------------------------------------


SEAL_KEY = "sha256"
"""In a stage's metrics: a hash of all the others, since whoever reads them takes their form for granted."""
_FAILURE_TYPES = {"id": str, "stage": str, "error": str, "tries": int}
_RECORD_TYPES = {"key": str, "inputs": dict}
_INPUT_TYPES = {"stage": str, "format": int, "configuration": dict, "upstream": dict, "data": dict}
_FACT_TYPES = {"imported": str, "source": str, "covers": str, "precision": str, "weights": dict}


def read_record(location: Path) -> dict[str, Any]:
    """Read the record of a stage.

    Raises:
        RibrayError: it is damaged, or cannot be read.
    """
    remedy = f"put a copy of it back, or remove {location.parent} so that the stage is made again"
    record = storage.read_object(location, remedy)
    known = {name: kind for name, kind in _FACT_TYPES.items() if record.get(name) is not None}
    fault = _fault(record, _RECORD_TYPES | known) or _fault(record["inputs"], _INPUT_TYPES)
    if fault:
        raise DamagedError(f"{location} is damaged ({fault}); {remedy}.")
    return record


def _fault(values: Mapping[str, Any], types: Mapping[str, type]) -> str:
    """Say which of these keys is missing or of another type; nothing where none is."""
    for name, kind in types.items():
        if name not in values:
            return f"it has no {name!r}"
        if not isinstance(values[name], kind) or isinstance(values[name], bool):
            return f"its {name!r} is of another type"
    return ""


def read_metrics(location: Path) -> dict[str, Any]:
    """Read the numbers of the stage that the file is named after.

    Raises:
        FileNotFoundError: there are none.
        DamagedError: the file is not what the stage has written.
        RibrayError: it cannot be read.
    """
    numbers = storage.read_object(location)
    if numbers.pop(SEAL_KEY, None) != _seal(location.stem, numbers):
        raise DamagedError(f"{location} is not what stage '{location.stem}' has written; {storage.MADE_AGAIN}.")
    return numbers


def _seal(stage: str, numbers: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([stage, numbers], sort_keys=True).encode()).hexdigest()


def read_provenance(directory: Path) -> dict[str, Any]:
    """Return what ``experiment.yaml`` says of how a run came about.

    Raises:
        UsageError: the file is missing or damaged.
    """
    location = directory / EXPERIMENT_FILE
    if not location.is_file():
        raise UsageError(f"{directory} is no run directory (it has no {EXPERIMENT_FILE}).")
    found = _read_configuration(location).get("provenance") or {}
    versions = found.get("versions") or {} if isinstance(found, dict) else None
    if not isinstance(found, dict) or not isinstance(versions, dict) or not isinstance(found.get("parent") or "", str):
        raise UsageError(f"{location} is damaged: its provenance is no list of what it should be; {_WRITTEN_AGAIN}.")
    return found


PROVENANCE = ("recipe", "ribray", "versions", "commit", "machine", "parent")
"""What ``experiment.yaml`` ends with."""
_WRITTEN_AGAIN = "put a copy of it back, or remove it and start the same command again, which writes it anew"


def _read_configuration(location: Path) -> dict[str, Any]:
    try:
        return read_yaml(location)
    except UsageError as error:
        raise UsageError(f"{str(error).removesuffix('.')}; {_WRITTEN_AGAIN}.") from None


def git_commit(folder: Path = ROOT) -> str | None:
    """Return a checkout's commit, marked "-dirty" where its files differ from it; None without git."""
    if not (folder / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return answer.stdout.strip() or None
