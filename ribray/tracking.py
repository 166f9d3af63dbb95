"""Experiment tracking: W&B beside the run's own plain files, behind one small interface.

Everything logged here stands in a file of the run as well: a run without W&B loses nothing. Notes beside those files
say what W&B has of them, so that a run that goes on in another process logs no point twice.
"""

import contextlib
import getpass
import hashlib
import json
import logging
import os
import shlex
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ribray import storage
from ribray.config import Experiment, flatten, read_yaml
from ribray.errors import DamagedError, RibrayError, UsageError
from ribray.runs.directory import EXPERIMENT_FILE, TRIALS_FOLDER
from ribray.runs.run import Run

STATE_FILE = "tracking.json"  # in the run directory: the id of the W&B run, and what it has
POINTS_FILE = "tracked.json"  # in a training's folder, and gone with it: how many points of that training W&B has
WANDB_FOLDER = "wandb"
START_SECONDS, FINISH_SECONDS = 60.0, 120.0
"""How long W&B is waited for, online: to answer, and to take in the last of a run."""
END_SECONDS = 5.0  # how long W&B's service is waited for where it could not start
FLUSH_SECONDS = 1.0  # what is younger may miss in the W&B file of a killed process
SETTINGS: dict[str, Any] = {"silent": True, "console": "off", "x_disable_stats": True, "disable_git": True}
DATA_VARIABLE, SERVICE_VARIABLE = "WANDB_DATA_DIR", "WANDB_SERVICE"


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Any:
    """Return W&B's table of text and numbers, None where there is nothing."""
    import wandb

    return wandb.Table(columns=list(columns), data=[list(row) for row in rows])


def curves(title: str, x_name: str, x: Sequence[float], lines: Mapping[str, Sequence[float | None]]) -> Any:
    """Return W&B's chart of lines, by their names, over one x-axis that is not time."""
    import wandb

    return wandb.plot.line_series(list(x), list(map(list, lines.values())), keys=list(lines), title=title, xname=x_name)


class Tracker:
    """Logs a run to W&B from the driver, or nowhere. W&B starts when there is something to log."""

    def __init__(self, experiment: Experiment, run: Run):
        self._config, self._run, self._directory = experiment.tracking, run, run.directory
        self._has_variant = experiment.sources != (experiment.own_source,)
        self._wandb: Any = None
        self.trouble: str | None = None
        """What W&B could not do, as a sentence."""

    @property
    def is_live(self) -> bool:
        """Whether somebody can watch a run while it works."""
        return self._config.wandb == "online"

    def open(self) -> None:
        """Start W&B, or go on with this run's W&B run; online this finds out whether the server can be had."""
        if self._is_off or self._wandb is not None:
            return
        import wandb  # takes its time, and pool workers have no use for it

        waits = {"init_timeout": START_SECONDS, "finish_timeout": FINISH_SECONDS}
        logging.getLogger("wandb").setLevel(logging.ERROR)
        # A process uses a W&B service of its own: one that is killed leaves its run open in the service.
        os.environ.pop(SERVICE_VARIABLE, None)
        try:
            if self.is_live and not wandb.login(prompt=False):
                raise UsageError(
                    "tracking.wandb=online needs a W&B key: run wandb login, or set WANDB_API_KEY, "
                    "or use --set tracking.wandb=offline."
                )
            self._wandb = wandb.init(
                id=self._state["id"],
                resume="allow",  # offline, this is written down for the upload
                mode=self._config.wandb,
                project=self._config.project,
                entity=self._config.entity,
                tags=self._config.tags,
                **self._place(),
                dir=local_directory(self._directory),
                config=read_yaml(self._directory / EXPERIMENT_FILE),
                reinit="create_new",  # a variant of a run logs beside it, in the same process
                settings=wandb.Settings(**SETTINGS, **waits, x_transaction_log_flush_interval=FLUSH_SECONDS),
            )
        except RibrayError:
            raise
        except Exception as error:  # what W&B raises has no base class
            _end_service()
            told = f"W&B cannot start ({_reason(error)}); use --set tracking.wandb=offline or disabled."
            raise RibrayError(told) from error
        finally:
            os.environ.pop(SERVICE_VARIABLE, None)
        self._write_state()
        for training in self._state["trainings"]:
            self._define(training)

    def log_training(self, folder: Path, points: Sequence[Mapping[str, float]]) -> None:
        """Log what W&B does not have yet of the training in a folder.

        The points are the whole training up to now; each has a "step", which is the x-axis of the others.
        """
        if self._is_off or not (new := points[self._logged_points(folder) :]):
            return
        training = folder.relative_to(self._directory).as_posix()
        with self._going_on():
            self.open()
            storage.write_json(folder / POINTS_FILE, {"id": self._state["id"], "points": len(points)})
            if training not in self._state["trainings"]:
                self._state["trainings"].append(training)
                self._write_state()
                self._define(training)
            for point in new:
                self._wandb.log({f"{_series(training)}/{name}": value for name, value in point.items()})

    def log_results(
        self, metrics: Mapping[str, Any], figures: Mapping[str, Path], media: Callable[[], Mapping[str, Any]]
    ) -> None:
        """Log what a run has come to, in place of what an earlier start logged.

        That is every scalar of the metrics with nested keys joined by slashes, pictures (PNG files), and tables and
        charts (`table`, `curves`) by name.
        """
        summary = {name: value for name, value in flatten(metrics, "/").items() if _is_scalar(value)}
        if self._is_off or not summary:
            return
        digest = _digest(json.dumps([metrics, sorted(figures)], sort_keys=True))
        if self._wandb is None and self._state["results"] == digest:
            return
        local, made = local_directory(self._directory), media()
        with self._going_on():
            self.open()
            self._wandb.summary.update(summary)
            with _data_in(local / WANDB_FOLDER):
                self._wandb.log({**_images(figures, local), **made})
            self._state["results"] = digest
            self._write_state()

    def close(self, failed: bool = False) -> None:
        """Finish the W&B run, if one was started, and keep a copy of its files in the run directory."""
        if self._wandb is None:
            return
        with self._going_on():
            self._wandb.finish(exit_code=int(failed))
            if (folder := local_directory(self._directory)) != self._directory:
                storage.copy_folder(folder / WANDB_FOLDER, self._directory / WANDB_FOLDER)
        self._wandb = None

    @property
    def _is_off(self) -> bool:
        return self._config.wandb == "disabled" or self.trouble is not None

    @contextlib.contextmanager
    def _going_on(self) -> Iterator[None]:
        """Keep trouble with W&B from ending a run whose own files are whole; nothing is logged after it."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  (what W&B raises has no base class)
            self.trouble = f"W&B has not taken everything ({_reason(error)}); all of it stands in the run's files."

    def _define(self, training: str) -> None:
        series = _series(training)
        self._wandb.define_metric(f"{series}/step")
        self._wandb.define_metric(f"{series}/*", step_metric=f"{series}/step")

    def _place(self) -> dict[str, Any]:
        """Where W&B lists the run. Where no group is configured, a run and its variants are one."""
        variant, directory, group = self._run.variant, self._directory, self._config.group
        owner = directory.parent.parent if variant else directory
        if group is None and (self._has_variant or variant):
            group = owner.name
        kind = "variant" if variant else "trial" if directory.parent.name == TRIALS_FOLDER else "run"
        return {"name": f"{owner.name} {variant}" if variant else owner.name, "group": group, "job_type": kind}

    @cached_property
    def _state(self) -> dict[str, Any]:
        """What this run's W&B run has.

        W&B's history can only be added to: where a training that it has was made again since, a new W&B run begins.
        """
        new: dict[str, Any] = {"id": uuid.uuid4().hex[:8], "trainings": [], "results": None}
        state = {**new, **_read_note(self._directory / STATE_FILE)}
        if not isinstance(state["id"], str) or not isinstance(state["trainings"], list):
            return new
        notes = (_read_note(self._directory / training / POINTS_FILE) for training in map(str, state["trainings"]))
        return state if all(note.get("id") == state["id"] for note in notes) else new

    def _write_state(self) -> None:
        storage.write_json(self._directory / STATE_FILE, self._state)

    def _logged_points(self, folder: Path) -> int:
        note = _read_note(folder / POINTS_FILE)
        points = note.get("points") if note.get("id") == self._state["id"] else 0
        return points if isinstance(points, int) and points > 0 else 0


def local_directory(directory: Path) -> Path:
    """Return where W&B writes its files: in the run directory; for one on an object store, on this machine."""
    if storage.is_local(directory):
        return directory
    folder = Path(tempfile.gettempdir()) / f"ribray-{getpass.getuser()}" / _digest(str(directory))
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def sync_command(directories: Iterable[Path]) -> str | None:
    """Return what uploads the W&B files of runs that are on no server yet; None where there are none."""
    left = []
    for folder in (local_directory(directory) / WANDB_FOLDER for directory in directories):
        files = folder.glob("offline-run-*/*.wandb")
        if not all(file.with_name(f"{file.name}.synced").exists() for file in files):
            left.append(str(folder))
    return shlex.join(["wandb", "sync", *left]) if left else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _series(training: str) -> str:
    return training.replace("/", "_")


def _read_note(location: Path) -> dict[str, Any]:
    """Return a note of what W&B has; one that is missing or damaged says nothing, and a new W&B run begins."""
    try:
        return storage.read_object(location)
    except (FileNotFoundError, DamagedError):
        return {}


def _images(figures: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Return W&B's pictures; those that lie elsewhere are copied into ``folder``."""
    import wandb

    images = {}
    for name, file in figures.items():
        local = file if storage.is_local(file) else folder / file.name
        if local != file:
            storage.write_bytes(local, file.read_bytes())
        images[f"figures/{name}"] = wandb.Image(str(local))
    return images


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).removesuffix(".") or type(error).__name__


def _end_service() -> None:
    """End W&B's service now: at this process's exit, one that has missed its call to end is waited for ten minutes."""
    import wandb

    ending = threading.Thread(target=wandb.teardown, daemon=True)
    ending.start()
    ending.join(END_SECONDS)


@contextlib.contextmanager
def _data_in(folder: Path) -> Iterator[None]:
    """Let W&B keep its copies of tables in ``folder``: a home directory may be read-only, or another machine's."""
    given = DATA_VARIABLE in os.environ
    os.environ.setdefault(DATA_VARIABLE, str(folder))
    try:
        yield
    finally:
        if not given:
            del os.environ[DATA_VARIABLE]


def _is_scalar(value: Any) -> bool:
    """Whether a value is a number, a text or a pair of numbers."""
    is_pair = isinstance(value, list) and len(value) == 2 and all(isinstance(one, int | float) for one in value)
    return isinstance(value, str | int | float) or is_pair
