"""The command in a child process: its end is passed on, and it is begun again where its cluster was lost."""

import os
import signal
import subprocess
import sys
import time

import pytest

BEGIN = """
import os, signal, sys, time
from ribray import supervisor
from ribray.errors import EXIT_LOST, ClusterLostError
try:
    supervisor.supervise(lambda sentence: print(sentence, flush=True))
except ClusterLostError as error:
    print("error:", error, flush=True)
    sys.exit(EXIT_LOST)
print("begun", os.getpid(), supervisor.is_restarted(), flush=True)
"""


@pytest.fixture
def start():
    """Start a program that goes on in a child process."""
    started = []

    def start(program: str, **options) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", BEGIN + program]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def ended(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Its exit code, and what it has printed, but for process numbers."""
    text, _ = process.communicate(timeout=60)
    return process.returncode, [line for line in text.splitlines() if line]


def count(lines: list[str], begin: str) -> int:
    return sum(line.startswith(begin) for line in lines)


@pytest.mark.parametrize("code", [0, 1, 2, 130])
def test_the_command_ends_as_its_child_does(start, code):
    assert ended(start(f"sys.exit({code})"))[0] == code


def test_a_child_ended_by_a_signal_ends_the_command_by_it(start):
    assert ended(start("os.kill(os.getpid(), signal.SIGKILL)"))[0] == -signal.SIGKILL


LOST = """
with supervisor.connected(is_own={is_own}):
    supervisor.lose("its process raylet has ended")
"""
QUICK_EXIT = """
with supervisor.connected(is_own=True):
    os._exit(1)
"""


@pytest.mark.parametrize(
    ("program", "reason"),
    [(LOST.format(is_own=True), "its process raylet has ended"), (QUICK_EXIT, "its node has ended")],
)
def test_a_command_whose_own_cluster_is_lost_is_begun_again_a_finite_number_of_times(start, program, reason):
    code, lines = ended(start(program))
    assert code == 3
    assert [line.split()[-1] for line in lines if line.startswith("begun")] == ["False", "True", "True", "True"]
    assert count(lines, f"Ray on this machine was lost: {reason}. It is started again") == 3
    assert "the same command continues" in lines[-1]


def test_a_command_that_lost_its_cluster_once_goes_on(start):
    code, lines = ended(start(f"if supervisor.is_restarted(): sys.exit(0)\n{QUICK_EXIT}"))
    assert code == 0
    assert count(lines, "begun") == 2


def test_a_cluster_elsewhere_is_not_started_again(start):
    code, lines = ended(start(LOST.format(is_own=False)))
    assert code == 3
    assert count(lines, "begun") == 1
    assert "error: Ray that this command was connected to was lost: its process raylet has ended" in lines[-1]


def test_a_failure_after_the_connection_was_closed_is_no_lost_cluster(start):
    code, lines = ended(start("with supervisor.connected(is_own=True):\n    pass\nsys.exit(1)"))
    assert code == 1
    assert count(lines, "begun") == 1


def test_who_asked_to_stop_is_not_begun_again(start):
    process = start("signal.signal(signal.SIGTERM, lambda *_: None); print('ready', flush=True)\n" + WAITING)
    while process.stdout.readline() != "ready\n":
        pass
    process.send_signal(signal.SIGTERM)
    code, lines = ended(process)
    assert code == 130
    assert lines == ["Stopped; the same command continues."]


WAITING = """
with supervisor.connected(is_own=True):
    time.sleep(1)
    supervisor.lose("it is gone")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_command_reaches_its_child(start, number):
    process = start(f"signal.signal({int(number)}, lambda *_: sys.exit(7)); print('ready', flush=True); time.sleep(60)")
    while process.stdout.readline() != "ready\n":
        pass
    process.send_signal(number)
    assert ended(process)[0] == 7


def test_a_killed_command_takes_its_child_along(start):
    process = start("time.sleep(60)")
    child = int(process.stdout.readline().split()[1])
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while is_alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_what_is_not_supervised_ends_with_the_sentence():
    program = (
        "from ribray import supervisor\nwith supervisor.connected(is_own=True):\n    supervisor.lose('it is gone')"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 3
    assert "error: Ray on this machine was lost: it is gone; what is finished is kept" in ended.stderr
