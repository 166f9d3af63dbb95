"""What came of a sweep's trials: each writes its ``trial.json``, and the *ledger* ``sweep.json`` is a view of all."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ribray import storage
from ribray.errors import RibrayError, UsageError
from ribray.runs.directory import TRIAL_FILE, TRIALS_FOLDER
from ribray.sweep_file import Trial

FORMAT = 1  # version of the ledger

Status = Literal["waiting", "running", "finished", "diverged", "stopped", "failed"]


@dataclass
class TrialRecord:
    id: str
    directory: str
    settings: dict[str, Any]
    draws: int = 1  # by a search
    status: Status = "waiting"
    value: float | None = None  # the sweep's metric
    metrics: dict[str, Any] = field(default_factory=dict)  # every number, by dotted name
    failed_images: int = 0
    error: str | None = None
    seconds: float = 0.0

    @classmethod
    def of(cls, trial: Trial, status: Status, **more: Any) -> "TrialRecord":
        return cls(trial.id, f"{TRIALS_FOLDER}/{trial.id}", dict(trial.settings), status=status, **more)

    def write(self, out: Path, key: str) -> None:
        """Write the trial's own file, below the sweep's folder; ``key`` stands for what else its result depends on."""
        storage.write_json(out / self.directory / TRIAL_FILE, {"key": key, **asdict(self)})


def read_trial(trial: Trial, out: Path, key: str) -> TrialRecord | None:
    """Return what a trial has written; None where there is nothing, nothing whole, or something with another key."""
    location = out / TRIALS_FOLDER / trial.id / TRIAL_FILE
    try:
        values = storage.read_object(location) if location.is_file() else {}
    except RibrayError:
        return None
    return TrialRecord(**values) if values.pop("key", None) == key else None


def read_ledger(location: Path) -> dict[str, Any]:
    remedy = "put a copy of it back, or remove it: the same sweep then writes it anew, from its trials' directories"
    values = storage.read_object(location, remedy)
    if values.get("format") != FORMAT:
        raise UsageError(f"{location} is of another version of ribray; choose another --out.")
    return values
