"""Fetching weights: whole or not at all, and given up soon where there is no network."""

import contextlib
import sys
import threading
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch

from ribray.errors import UsageError

_CONNECT_SECONDS = 10.0


@contextlib.contextmanager
def hub() -> Iterator[None]:
    """Let the hub's client look into its cache alone where the hub does not answer: it would ask for a minute."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    try:
        _require_answer(constants.ENDPOINT)
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
    try:
        _require_answer(url)
        location.parent.mkdir(parents=True, exist_ok=True)
        digest = location.stem.rsplit("-", 1)[1]
        torch.hub.download_url_to_file(url, str(location), hash_prefix=digest, progress=sys.stderr.isatty())
    except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: what arrived has another digest
        reason = getattr(error, "reason", None) or error
        raise UsageError(
            f"The ImageNet weights cannot be fetched from {url} ({reason}); without a network, fetch that "
            f"file elsewhere and set {key} to its path, or put it at {location}."
        ) from None


def _require_answer(url: str) -> None:
    """Raise what opening ``url`` raises, or TimeoutError; resolving a name knows no time limit, hence the thread."""
    answer: list[Any] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(url, timeout=_CONNECT_SECONDS).close()
            answer.append(None)
        except (OSError, HTTPException) as error:
            answer.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_CONNECT_SECONDS)
    if not answer:
        raise TimeoutError(f"no answer within {_CONNECT_SECONDS:g} seconds")
    if answer[0] is not None:
        raise answer[0]
