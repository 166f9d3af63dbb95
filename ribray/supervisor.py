"""The command in a child process, which may be lost with Ray and is then started again.

A process that is connected to Ray does not outlive its node: what waits for it never returns, and whatever next needs
the node's store ends the process at once, by ``_exit(1)`` in Ray's own code. So the command line forks before it
begins: the child does the work, the parent waits for it and holds nothing but a page of memory that both see, on which
the child notes that it is connected, and why it gave up. On a cluster that the command started itself the same command
is begun again, a finite number of times, and finds what is finished.
"""

import contextlib
import ctypes
import mmap
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

from ribray.errors import EXIT_LOST, EXIT_STOPPED, ClusterLostError

RESTARTS = 3  # how often a command is begun again
QUICK_EXIT = 1  # what Ray ends a process with that has lost its node
STOPPED = "Stopped; the same command continues."

_OWN, _ELSEWHERE = 1, 2
_page = mmap.mmap(-1, mmap.PAGESIZE)
"""Shared with a child: one byte on the connection, and the reason why it was given up."""
_restart: int | None = None
"""Which time the command is begun in this process, from 0 on; None where nobody waits for it."""


def supervise(say: Callable[[str], None]) -> None:
    """Go on in a child, where alone this returns; a cluster lost for good is a `ClusterLostError` in the parent."""
    global _restart
    if not hasattr(os, "fork") or sys.gettrace() is not None:  # a debugger follows one process
        return
    signals = _Signals()
    for restart in range(RESTARTS + 1):
        _page[:] = bytes(len(_page))
        if (child := signals.fork()) == 0:
            _restart = restart
            return
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == QUICK_EXIT and _page[0]:
            _note("its node has ended")
            code = EXIT_LOST
        if code != EXIT_LOST or not _page[0]:
            if code < 0:  # by a signal, and so does this one
                with contextlib.suppress(OSError):  # SIGKILL has no handler
                    signal.signal(-code, signal.SIG_DFL)
                os.kill(os.getpid(), -code)
            sys.exit(code)
        if sys.stdout.isatty():
            sys.stdout.write("\x1b[?25h\n")  # a progress bar has hidden the cursor
        if signals.passed:
            say(STOPPED)
            sys.exit(EXIT_STOPPED)
        if _page[0] == _ELSEWHERE or restart == RESTARTS:
            raise ClusterLostError(_sentence(restart))
        say(f"Ray on this machine was lost: {_reason()}. It is started again ({restart + 1} of {RESTARTS}).")


def is_restarted() -> bool:
    return bool(_restart)


@contextlib.contextmanager
def connected(is_own: bool) -> Iterator[None]:
    _page[0] = _OWN if is_own else _ELSEWHERE
    try:
        yield
    finally:
        _page[0] = 0


def lose(reason: str) -> NoReturn:
    """End this process at once, from any of its threads, since Ray was lost; ``reason`` is a clause of a sentence."""
    _note(reason)
    if _restart is None:
        end(f"error: {_sentence(0)}", EXIT_LOST)
    os._exit(EXIT_LOST)


def end(sentence: str, code: int) -> NoReturn:
    sys.stderr.write(f"\n{sentence}\n")
    sys.stderr.flush()
    os._exit(code)


def _sentence(restarts: int) -> str:
    again = f", {restarts} times in spite of being started again" if restarts else ""
    where = "on this machine" if _page[0] == _OWN else "that this command was connected to"
    return f"Ray {where} was lost{again}: {_reason()}; what is finished is kept, and the same command continues."


def _note(reason: str) -> None:
    content = reason.encode()[: len(_page) - 2]
    _page[1 : len(content) + 2] = content + b"\0"


def _reason() -> str:
    return _page[1:].split(b"\0", 1)[0].decode(errors="replace")


class _Signals:
    NUMBERS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.passed = False
        self._child: int | None = None
        self._earlier = {number: signal.signal(number, self._pass_on) for number in self.NUMBERS}

    def fork(self) -> int:
        """Fork; return 0 in the child, which dies with its parent and takes signals as the parent did before."""
        sys.stdout.flush()
        sys.stderr.flush()
        signal.pthread_sigmask(signal.SIG_BLOCK, self.NUMBERS)  # until it is known whom to pass them on to
        parent, child = os.getpid(), os.fork()
        if child == 0:
            for number, handler in self._earlier.items():
                signal.signal(number, handler)
            _die_with(parent)
        self._child = child
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self.NUMBERS)
        return child

    def _pass_on(self, number: int, frame: object) -> None:
        self.passed = True
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, number)


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:
        os._exit(EXIT_STOPPED)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(EXIT_STOPPED)
