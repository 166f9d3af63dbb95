"""Fetching weights: whole or not at all, and given up soon where there is no network."""

import contextlib
import hashlib
import threading
import urllib.request
import uuid
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

from ribray import storage
from ribray.errors import UsageError

_CONNECT_SECONDS = 10.0
_CHUNK_BYTES = 1 << 20


@contextlib.contextmanager
def hub() -> Iterator[None]:
    """Let the hub's client look into its cache alone where the hub does not answer: it would ask for a minute."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    try:
        _open_within(constants.ENDPOINT, _CONNECT_SECONDS).close()
    except (OSError, HTTPException):
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def fetch(url: str, location: Path, key: str) -> None:
    """Download ``url``, whose name ends with the start of its content's SHA-256, whole or not at all.

    Raises:
        UsageError: it cannot be fetched; ``key`` is the setting that takes a path in its place.
    """
    temporary = location.parent / f"{storage.TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    digest = hashlib.sha256()
    try:
        response = _open_within(url, _CONNECT_SECONDS)
        location.parent.mkdir(parents=True, exist_ok=True)
        with response, temporary.open("wb") as stream:
            while chunk := response.read(_CHUNK_BYTES):
                stream.write(chunk)
                digest.update(chunk)
        expected = location.stem.rsplit("-", 1)[1]
        if not digest.hexdigest().startswith(expected):
            raise OSError("what arrived is incomplete or altered")
        temporary.replace(location)
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise UsageError(
            f"The ImageNet weights cannot be fetched from {url} ({reason}); without a network, fetch that "
            f"file elsewhere and set {key} to its path, or put it at {location}."
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def _open_within(url: str, seconds: float) -> Any:
    """Open ``url`` or give up after ``seconds``; resolving a name knows no time limit, hence the thread."""
    answer: list[Any] = []

    def ask() -> None:
        try:
            answer.append(urllib.request.urlopen(url, timeout=seconds))
        except (OSError, HTTPException) as error:
            answer.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    if not answer:
        raise TimeoutError(f"no answer within {seconds:g} seconds")
    if isinstance(answer[0], Exception):
        raise answer[0]
    return answer[0]
