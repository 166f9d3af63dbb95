"""What a person sees while a stage works: one bar on a terminal, a line every so often in a log file."""

import contextlib
import threading
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

LOG_SECONDS = 10.0


class Bar:
    """Progress of one stage; safe to advance from any thread."""

    def __init__(self, name: str, total: int, done: int, unit: str):
        self.name, self.total, self.unit = name, total, unit
        self.done, self.failed, self.earlier = done, 0, done
        self.note = ""
        self.began = time.monotonic()
        self._lock = threading.Lock()

    def advance(self, done: int, failed: int) -> None:
        """Count items done and failed since the last call."""
        with self._lock:
            self.done += done
            self.failed += failed
        self.refresh()

    def refresh(self) -> None:
        """Show the present state."""

    @property
    def rate(self) -> float:
        """Items per second since the bar began, those done earlier left out."""
        seconds = time.monotonic() - self.began
        return (self.done + self.failed - self.earlier) / seconds if seconds > 0 else 0.0

    @property
    def summary(self) -> str:
        """The state as a line of text."""
        parts = [f"{self.name}: {self.done} of {self.total} {self.unit}", f"{self.rate:.2f} {self.unit}/s"]
        if self.failed:
            parts.append(f"{self.failed} failed")
        if self.rate > 0 and (left := self.total - self.done - self.failed) > 0:
            parts.append(f"{_duration(left / self.rate)} left")
        return ", ".join(parts + ([self.note] if self.note else []))


class _LogBar(Bar):
    """Prints a line every ten seconds."""

    def __init__(self, console: Console, name: str, total: int, done: int, unit: str):
        super().__init__(name, total, done, unit)
        self._console = console
        self._printed = time.monotonic()

    def refresh(self) -> None:
        if time.monotonic() - self._printed >= LOG_SECONDS:
            self._printed = time.monotonic()
            self._console.print(self.summary, highlight=False)


class _TerminalBar(Bar):
    """Draws a rich progress bar."""

    def __init__(self, progress: Progress, name: str, total: int, done: int, unit: str):
        super().__init__(name, total, done, unit)
        self._progress = progress
        self._task = progress.add_task(name, total=total, completed=done, bar=self)

    def refresh(self) -> None:
        self._progress.update(self._task, completed=self.done + self.failed)


class _RateColumn(ProgressColumn):
    """Items per second, failures and a note."""

    def render(self, task: Task) -> Text:
        bar: Bar = task.fields["bar"]
        text = Text(f"{bar.rate:.2f} {bar.unit}/s", style="cyan")
        if bar.failed:
            text.append(f"  {bar.failed} failed", style="red")
        if bar.note:
            text.append(f"  {bar.note}", style="dim")
        return text


@contextlib.contextmanager
def show_progress(console: Console, name: str, total: int, done: int = 0, unit: str = "images") -> Iterator[Bar]:
    """Show the progress of a stage for the length of a ``with`` block and leave one line behind."""
    if not console.is_terminal:
        bar: Bar = _LogBar(console, name, total, done, unit)
        yield bar
    else:
        columns = (
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            _RateColumn(),
            TimeRemainingColumn(compact=True),
        )
        with Progress(*columns, console=console, transient=True) as progress:
            bar = _TerminalBar(progress, name, total, done, unit)
            yield bar
    seconds = time.monotonic() - bar.began
    failed = f", [red]{bar.failed} failed[/red]" if bar.failed else ""
    earlier = f" ({bar.earlier} earlier)" if bar.earlier else ""
    console.print(
        f"[bold]{name}[/bold]: {bar.done} of {total} {unit}{earlier}{failed} in {_duration(seconds)} "
        f"({bar.rate:.2f} {unit}/s)",
        highlight=False,
    )


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"
