"""What a Ray cluster of this machine needs, and where to have it from when the surroundings do not give it."""

import contextlib
import logging
import os
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

from ribray.errors import UsageError

OBJECT_STORE_BYTES = 256 * 2**20  # images never pass through Ray's object store, so it stays small
SOCKET_BYTES = (104 if sys.platform == "darwin" else 108) - 1  # of the longest path that a socket may have
SOCKET = "session_2000-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""The longest path of a socket in Ray's folder; the last number is of a process."""
FREE_BYTES = 50 * 2**20  # that Ray's folder must have left, for logs and libraries' files
FOLDERS = ("RAY_TMPDIR", "TMPDIR") if sys.platform == "linux" else ("RAY_TMPDIR",)
"""Environment variables that tell Ray in which folder to make its own; the first that is set counts."""
OF_OTHER_CLUSTERS = ("RAY_ADDRESS", "RAY_REDIS_ADDRESS", "RAY_GCS_SERVER_PORT")
"""Environment variables that would tie a cluster of this machine to another, or to a port that may be taken."""

logger = logging.getLogger(__name__)


def options(cpus: int) -> dict[str, object]:
    """Return what `ray.init` is given to start a cluster of this machine, and set its environment right."""
    for name in OF_OTHER_CLUSTERS:
        os.environ.pop(name, None)
    _provide_token()
    _provide_folder()
    return {"address": "local", "num_cpus": cpus, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}


def _provide_folder() -> None:
    name = next((name for name in FOLDERS if name in os.environ), None)
    told = Path(os.environ[name] if name is not None else "/tmp")
    if (fault := _fault(told / "ray")) is None:
        return
    begin = f"{name}={os.environ[name]}: " if name is not None else ""
    for folder in (Path("/tmp"), Path(f"/tmp/ray-{os.getuid()}")):
        if folder != told and _fault(folder / "ray") is None:
            os.environ["RAY_TMPDIR"] = str(folder)
            logger.warning("%sRay cannot keep its files there (%s); they are in %s.", begin, fault, folder / "ray")
            return
    raise UsageError(
        f"{begin}Ray cannot keep its files in {told / 'ray'} ({fault}), nor in /tmp; set RAY_TMPDIR to a folder with "
        f"room, that can be written and has a path of at most {SOCKET_BYTES - len(SOCKET) - len('/ray/')} bytes."
    )


def _fault(folder: Path) -> str | None:
    if not folder.is_absolute():
        return "it is no absolute path"
    if len(os.fsencode(folder / SOCKET)) > SOCKET_BYTES:
        return f"with the paths of sockets in it, it is longer than the {SOCKET_BYTES} bytes that the system allows"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return error.strerror or type(error).__name__
    return None if free >= FREE_BYTES else f"only {free / 2**20:.0f} MiB are free"


def _provide_token() -> None:
    """Make the token that keeps other users out, where there is none: in the home folder as Ray would, else for now."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    token = secrets.token_hex(32)
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # no home, or a file of something else
        file = Path.home() / ".ray" / "auth_token"
        if file.is_file():
            if file.read_text(encoding="utf-8").strip():
                return
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
                stream.write(token)
            return
    os.environ["RAY_AUTH_TOKEN"] = token
