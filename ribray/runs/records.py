"""What a run notes beside its results: records of stages, failures, and how it came about."""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ribray import __version__, storage
from ribray.config import read_yaml
from ribray.errors import DamagedError, UsageError
from ribray.machine import describe_machine
from ribray.runs.directory import EXPERIMENT_FILE

ROOT = Path(__file__).resolve().parents[2]
"""Of the checkout, where ribray runs from one."""
FAILURES_FILE = "failures.jsonl"
RECORD_FILE = "stage.json"
RECORDED_PACKAGES = ("torch", "torchvision", "ray", "numpy", "pillow", "pycocotools", "wandb")

_FAILURE_TYPES = {"id": str, "stage": str, "error": str, "tries": int}
_RECORD_TYPES = {"key": str, "inputs": dict}
_INPUT_TYPES = {"stage": str, "format": int, "configuration": dict, "upstream": dict, "data": dict}
_FACT_TYPES = {"imported": str, "source": str, "covers": str, "precision": str, "weights": dict}


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


def read_failures(location: Path) -> list[Failure]:
    """Read ``failures.jsonl``; without one there are none.

    Raises:
        DamagedError: a line is no failure.
    """
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


def read_record(location: Path) -> dict[str, Any]:
    """Read the record of a stage.

    Raises:
        RibrayError: it is damaged, or cannot be read.
    """
    remedy = f"put a copy of it back, or remove {location.parent} so that the stage is made again"
    record = storage.read_object(location, remedy)
    known = {name: kind for name, kind in _FACT_TYPES.items() if record.get(name) is not None}
    if fault := _fault(record, _RECORD_TYPES | known) or _fault(record["inputs"], _INPUT_TYPES):
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


# --- how a run came about ----------------------------------------------------------------------------------------

PROVENANCE = ("recipe", "ribray", "versions", "commit", "machine", "parent")
"""What ``experiment.yaml`` ends with."""
WRITTEN_AGAIN = "put a copy of it back, or remove it and start the same command again, which writes it anew"


def provenance(recipe: str, parent: str | None) -> dict[str, Any]:
    """Return what stands in ``experiment.yaml`` beside the configuration."""
    versions = {name: metadata.version(name) for name in RECORDED_PACKAGES}
    values = (recipe, __version__, versions, git_commit(), describe_machine(), parent)
    return dict(zip(PROVENANCE, values, strict=True))


def read_provenance(directory: Path) -> dict[str, Any]:
    """Return what ``experiment.yaml`` says of how a run came about.

    Raises:
        UsageError: the file is missing or damaged.
    """
    location = directory / EXPERIMENT_FILE
    if not location.is_file():
        raise UsageError(f"{directory} is no run directory (it has no {EXPERIMENT_FILE}).")
    found = read_configuration(location).get("provenance") or {}
    versions = found.get("versions") or {} if isinstance(found, dict) else None
    if not isinstance(found, dict) or not isinstance(versions, dict) or not isinstance(found.get("parent") or "", str):
        raise UsageError(f"{location} is damaged: its provenance is no list of what it should be; {WRITTEN_AGAIN}.")
    return found


def read_configuration(location: Path) -> dict[str, Any]:
    """Return the values of ``experiment.yaml``.

    Raises:
        UsageError: the file is missing or damaged.
    """
    try:
        return read_yaml(location)
    except UsageError as error:
        raise UsageError(f"{str(error).removesuffix('.')}; {WRITTEN_AGAIN}.") from None


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
