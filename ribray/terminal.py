"""What the command line says to the person at the keyboard, and how it is stopped from there."""

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape

from ribray import supervisor
from ribray.errors import EXIT_FAILURES, EXIT_STOPPED, StageError

if TYPE_CHECKING:
    from ribray.commands.run import Request, Result

ONE_SIGNAL_SECONDS = 0.3
"""Signals within so short a time are one: it came to all processes of a group, and was passed on besides."""

console = Console()
errors = Console(stderr=True)


class Dropped(BaseException):
    """The user asked twice to stop. (The command line parser keeps KeyboardInterrupt to itself.)"""


def stop_on_signals(in_flight: str = "images in flight are", dropped: str = supervisor.STOPPED) -> threading.Event:
    """Let the first Ctrl-C (or SIGTERM) finish what is in flight, and a second one drop it, with these words."""
    stop = threading.Event()
    first = 0.0

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if stop.is_set():
            if time.monotonic() - first > ONE_SIGNAL_SECONDS:
                raise Dropped(dropped)
            return
        first = time.monotonic()
        stop.set()
        errors.print(f"\nStopping: {in_flight} finished first; press Ctrl-C again to drop them.")

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    return stop


def say(sentence: str, where: Console = errors) -> None:
    where.print(sentence, highlight=False, markup=False, soft_wrap=True)


def say_error(error: Exception) -> None:
    errors.print(f"[bold red]error:[/bold red] {escape(str(error))}", highlight=False, soft_wrap=True)


def say_place(label: str, place: Path | str) -> None:
    """Say where something lies, or a command, on one line, to be copied."""
    say(f"{label:<8} {place}", console)


def leave(stopped: bool, failed: bool) -> None:
    """End the command by the exit code for what has become of it."""
    if stopped:
        console.print(supervisor.STOPPED)
        raise typer.Exit(EXIT_STOPPED)
    if failed:
        raise typer.Exit(EXIT_FAILURES)


def told(work: Callable[[], "Result"], tell: Callable[["Result"], None]) -> "Result":
    """Return the result of stages, which is told before, also where one of them failed."""
    try:
        result = work()
    except StageError as error:
        tell(error.result)
        raise
    tell(result)
    return result


def print_run(request: "Request", result: "Result") -> None:
    from ribray.report.summaries import run_summary
    from ribray.report.tables import chain_table, evaluation_tables, seed_table
    from ribray.runs.run import Run
    from ribray.stages import MASK_STAGES, stages_of

    run, experiment = Run.read(request.directory), request.experiment
    metrics, stages = run.read_metrics(), stages_of(experiment)
    own, splits = run.variant or experiment.own_source, experiment.predicted_splits
    tables: list[Any] = []  # of those stages that were asked for
    if metrics.seed and "seed" in request.stages:
        tables.append(seed_table(metrics.seed.maps))
    if {"seed", *MASK_STAGES}.intersection(request.stages):
        tables.append(chain_table(metrics, stages, own, splits=splits))
    if "evaluate" in request.stages:
        tables += evaluation_tables(metrics, stages, own, splits)
    console.print()
    for table in tables:
        if table is not None:
            console.print(table, "")
    failures = [vars(failure) for failure in result.failures]
    if metrics.timing or failures:
        console.print(run_summary(metrics, stages, request.directory, failures=failures))
    for figure in result.figures:
        say_place("picture", figure)
    if result.sync_command is not None:
        say_place("W&B", result.sync_command)
