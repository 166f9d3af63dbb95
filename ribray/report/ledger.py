"""Reading a sweep's ledger, ``sweep.json``: what it may hold, so that whoever shows it can rely on that."""

from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ribray import storage
from ribray.config import explain_invalid
from ribray.errors import RibrayError, UsageError

FORMAT = 1
"""Version of the file."""


def _inside(directory: str) -> str:
    path = PurePosixPath(directory)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError("a trial's directory lies below the sweep's")
    return directory


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Trial(_Part):
    id: str
    directory: Annotated[str, AfterValidator(_inside)]
    settings: dict[str, Any]
    draws: int = 1
    status: Literal["waiting", "running", "finished", "diverged", "stopped", "failed"]
    value: float | None
    metrics: dict[str, float | Annotated[list[float], Field(min_length=2, max_length=2)] | None]
    failed_images: int
    error: str | None
    seconds: float


class _Base(_Part):
    recipe: str
    directory: str


class _Published(_Part):
    table: Literal["S1"] | None
    value: float | None
    std: float | None
    text: str | None


class _Ledger(_Part):
    name: str
    title: str | None
    base: _Base | None
    metric: str
    mode: Literal["max", "min"]
    axes: list[str]
    repeats: list[str]
    published: _Published | None
    stages: list[str]
    configuration: dict[str, Any] = {}
    trials: list[_Trial]


def read_ledger(location: Path) -> dict[str, Any]:
    """Return the content of a sweep's ledger.

    Raises:
        UsageError: it is of another version.
        RibrayError: it is damaged, or cannot be read.
    """
    remedy = "put a copy of it back, or remove it: the same sweep then writes it anew, from its trials' directories"
    values = storage.read_object(location, remedy)
    if values.get("format") != FORMAT:
        raise UsageError(f"{location} is of another version of ribray; choose another --out.")
    try:
        _Ledger.model_validate(values)
    except ValidationError as error:
        fault = explain_invalid(error, _Ledger).rstrip(".")
        raise RibrayError(f"{location} is damaged ({fault}); {remedy}.") from None
    return values
