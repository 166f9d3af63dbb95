"""Where the time of some work goes: a clock with phases, each with its own time alone."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch


class Clock:
    """Adds up the seconds of phases; what a phase inside another takes counts for the inner one only.

    Attributes:
        seconds: of each phase so far.
        waits: whether to wait for a GPU at the ends of phases, so that what they have queued counts as their time.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.waits = False
        self._open: list[str] = []
        self._since = 0.0

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the ``with`` block for a phase."""
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def around(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``work`` as one that counts for a phase."""

        def timed(*arguments: Any, **options: Any) -> Any:
            with self.phase(name):
                return work(*arguments, **options)

        return timed

    def _charge(self) -> None:
        if self.waits:
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now
