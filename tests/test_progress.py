"""The line that a log file shows of a stage."""

import io

import pytest
from rich.console import Console

from ribray import progress


@pytest.fixture
def clock(monkeypatch):
    """Sets the time."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def to(seconds: float) -> None:
        now[0] = seconds

    return to


def test_a_rate_counts_from_the_first_that_is_finished(clock) -> None:
    bar = progress.Bar("training", 100, 10, "steps")
    clock(60.0)  # processes start
    assert bar.summary == "training: 10 of 100 steps"
    bar.advance(1, 0)
    assert bar.summary == "training: 11 of 100 steps"
    clock(64.0)
    bar.advance(7, 1)
    assert bar.summary == "training: 18 of 100 steps, 2.00 steps/s, 1 failed, 40 s left"


def test_lines_of_a_log_are_not_wrapped(clock) -> None:
    text = io.StringIO()
    with progress.show_progress(Console(file=text, width=20), "a stage with a long name", 2) as bar:
        clock(20.0)
        bar.note = "a note [that] says how it is going"
        bar.advance(1, 0)
    assert text.getvalue().splitlines() == [
        "a stage with a long name: 1 of 2 images, a note [that] says how it is going",
        "a stage with a long name: 1 of 2 images in 20 s (0.05 images/s)",
    ]
