"""Experiment tracking: W&B beside the run's own plain files, behind one small interface.

Nothing is logged to W&B that does not stand in a file of the run: a run without W&B loses nothing.
"""

import logging
import uuid
from collections.abc import Mapping
from typing import Any

from ribray import storage
from ribray.config import Experiment, to_values
from ribray.errors import RibrayError
from ribray.run import Run

ID_FILE = "tracking.json"


class Tracker:
    """Logs to W&B from the driver, or nowhere. W&B starts when there is something to log."""

    def __init__(self, experiment: Experiment, run: Run):
        self._experiment, self._run = experiment, run
        self._wandb: Any = None
        self._defined: set[str] = set()

    @property
    def sync_command(self) -> str | None:
        """What uploads an offline run; None where nothing was logged offline."""
        if self._wandb is None or self._experiment.tracking.wandb != "offline":
            return None
        return f"wandb sync {self._wandb.dir.removesuffix('/files')}"

    def log_step(self, stage: str, step: int, values: Mapping[str, float | None]) -> None:
        """Log one point of a stage's series, with an x-axis of the stage's own."""
        if (session := self._session()) is None:
            return
        if stage not in self._defined:
            session.define_metric(f"{stage}/step")
            session.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            self._defined.add(stage)
        numbers = {f"{stage}/{name}": value for name, value in values.items() if value is not None}
        session.log({f"{stage}/step": step, **numbers})

    def log_summary(self, metrics: Mapping[str, Any]) -> None:
        """Set the run's final numbers: every scalar of `metrics`, nested keys joined by slashes."""
        if (session := self._session()) is not None:
            session.summary.update(_scalars(metrics))

    def close(self) -> None:
        """Finish the W&B run, if one was started."""
        if self._wandb is not None:
            self._wandb.finish()

    def _session(self) -> Any:
        config = self._experiment.tracking
        if config.wandb == "disabled":
            return None
        if self._wandb is None:
            import wandb  # takes its time, and pool workers have no use for it

            logging.getLogger("wandb").setLevel(logging.ERROR)
            try:
                self._wandb = wandb.init(
                    id=self._run_id(),
                    resume="allow" if config.wandb == "online" else None,
                    mode=config.wandb,
                    project=config.project,
                    entity=config.entity,
                    group=config.group,
                    tags=config.tags,
                    name=self._name(),
                    dir=self._run.directory,
                    config=to_values(self._experiment),
                    reinit="create_new",  # a variant of a run logs beside it, in the same process
                    settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, disable_git=True),
                )
            except wandb.Error as error:
                raise RibrayError(
                    f"W&B cannot start ({error}); use --set tracking.wandb=offline or disabled."
                ) from None
        return self._wandb

    def _name(self) -> str:
        run = self._run
        return run.directory.name if run.variant is None else f"{run.directory.parent.parent.name} {run.variant}"

    def _run_id(self) -> str:
        """Return the id of this run directory's W&B run: a resumed run goes on with it."""
        location = self._run.directory / ID_FILE
        if location.exists():
            return storage.read_json(location)["id"]
        run_id = uuid.uuid4().hex[:8]
        storage.write_json(location, {"id": run_id})
        return run_id


def _scalars(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _scalars(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            flat[f"{prefix}{key}"] = value
    return flat
