"""The command line in processes of their own, which can be killed, on the Ray cluster of the tests.

They are forked off a process that has imported everything already, so that one costs no more than its work.
"""

import itertools
import multiprocessing
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import ray

from tests.tiny import TINY

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["ribray.cli", "ribray.commands.run"])
_NUMBERS = itertools.count()
SECONDS = 240


class Driver:
    """A ``ribray run`` that has been started."""

    def __init__(self, out: Path, settings: Sequence[str], stages: str = "refine,seed") -> None:
        sets = [*TINY, *settings, f"cluster.address={ray.get_runtime_context().gcs_address}"]
        arguments = ["run", "quickstart", "--out", str(out), "--stages", stages]
        arguments += [part for setting in sets for part in ("--set", setting)]
        self._log = out.with_name(f"{out.name}-{next(_NUMBERS)}.log")
        self._process = _PROCESSES.Process(target=_command, args=(arguments, self._log), daemon=True)
        self._process.start()

    def send(self, number: signal.Signals) -> None:
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """Kill it, unless it has ended."""
        self._process.kill()
        self._process.join()

    def wait(self) -> int:
        """Return its exit code."""
        self._process.join(SECONDS)
        return self._process.exitcode

    @property
    def is_running(self) -> bool:
        return self._process.exitcode is None

    @property
    def text(self) -> str:
        """What it has printed."""
        return self._log.read_text()


def _command(arguments: list[str], log: Path) -> None:
    stream = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    from ribray.cli import main

    main(arguments)
