"""What a run notes beside its results: records of stages, failures, and how it came about."""

import json
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ribray import __version__, storage
from ribray.config import read_yaml
from ribray.errors import DamagedError, UsageError
from ribray.machine import describe_machine, git_commit
from ribray.runs.directory import EXPERIMENT_FILE

ROOT = Path(__file__).resolve().parents[2]  # of the checkout, where ribray runs from one
FAILURES_FILE = "failures.jsonl"
RECORD_FILE = "stage.json"
RECORDED_PACKAGES = ("torch", "torchvision", "ray", "numpy", "pillow", "pycocotools", "wandb")


@dataclass
class Failure:
    """One image that could not be done: a line of ``failures.jsonl``."""

    id: str
    stage: str
    error: str
    tries: int = 1
    traceback: str | None = None  # of the last try, where the error is none that is expected of an image

    def to_json(self) -> str:
        values = {name: value for name, value in vars(self).items() if name != "traceback" or value is not None}
        return json.dumps(values, ensure_ascii=False)


def read_failures(location: Path) -> list[Failure]:
    if not location.exists():
        return []
    remedy = "remove it, failed images are tried again anyway"
    try:
        return [Failure(**line) for line in storage.parse_lines(storage.read_bytes(location), location, remedy)]
    except TypeError:
        raise DamagedError(f"{location} is damaged (a line has other keys than a failure has); {remedy}.") from None


def read_record(folder: Path) -> dict[str, Any]:
    location = folder / RECORD_FILE
    if not location.exists():
        return {}
    remedy = f"put a copy of it back, or remove {folder} so that the stage is made again"
    record = storage.read_object(location, remedy)
    if missing := {"key", "inputs"} - record.keys():
        raise DamagedError(f"{location} is damaged (it has no '{min(missing)}'); {remedy}.")
    return record


# --- how a run came about ----------------------------------------------------------------------------------------

PROVENANCE = ("recipe", "ribray", "versions", "commit", "machine", "parent")  # what ``experiment.yaml`` ends with
WRITTEN_AGAIN = "put a copy of it back, or remove it and start the same command again, which writes it anew"


def provenance(recipe: str, parent: str | None) -> dict[str, Any]:
    versions = {name: metadata.version(name) for name in RECORDED_PACKAGES}
    values = (recipe, __version__, versions, git_commit(ROOT), describe_machine(), parent)
    return dict(zip(PROVENANCE, values, strict=True))


def read_provenance(directory: Path) -> dict[str, Any]:
    location = directory / EXPERIMENT_FILE
    if not location.is_file():
        raise UsageError(f"{directory} is no run directory (it has no {EXPERIMENT_FILE}).")
    return read_configuration(location).get("provenance") or {}


def read_configuration(location: Path) -> dict[str, Any]:
    try:
        return read_yaml(location)
    except UsageError as error:
        raise UsageError(f"{str(error).removesuffix('.')}; {WRITTEN_AGAIN}.") from None
