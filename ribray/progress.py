"""What a person sees while a stage works: one bar on a terminal, a line every so often in a log file."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from rich import progress
from rich.console import Console
from rich.text import Text

LOG_SECONDS = 10.0


class Bar:
    """Progress of one stage; safe to advance from any thread."""

    def __init__(self, name: str, total: int, done: int, unit: str):
        self.name, self.total, self.unit = name, total, unit
        self.done, self.failed, self.earlier = done, 0, done
        self.note = ""
        self.began = time.monotonic()
        self._first: tuple[int, float] | None = None  # how many were finished when the first was, and when that was
        self._lock = threading.Lock()
        self.show: Callable[[], None] | None = None

    def advance(self, done: int, failed: int) -> None:
        with self._lock:
            self.done += done
            self.failed += failed
            if self._first is None and done + failed > 0:
                self._first = (self._finished, time.monotonic())
        self.refresh()

    def refresh(self) -> None:
        if self.show is not None:
            self.show()

    @property
    def _finished(self) -> int:
        return self.done + self.failed - self.earlier

    @property
    def rate(self) -> float | None:
        """Items per second since the first one was finished, so that no start of a process counts; None before."""
        if self._first is None or self._finished == self._first[0]:
            return None
        return (self._finished - self._first[0]) / max(time.monotonic() - self._first[1], 1e-9)

    @property
    def shown_rate(self) -> str:
        return "" if self.rate is None else f"{self.rate:.2f} {self.unit}/s"

    @property
    def summary(self) -> str:
        left, rate = self.total - self.done - self.failed, self.rate
        parts = [
            f"{self.name}: {self.done} of {self.total} {self.unit}",
            self.shown_rate,
            f"{self.failed} failed" if self.failed else "",
            f"{_duration(left / rate)} left" if rate and left > 0 else "",
            self.note,
        ]
        return ", ".join(part for part in parts if part)


class _RateColumn(progress.ProgressColumn):
    def render(self, task: progress.Task) -> Text:
        bar: Bar = task.fields["bar"]
        text = Text(bar.shown_rate, style="cyan")
        if bar.failed:
            text.append(f"  {bar.failed} failed", style="red")
        if bar.note:
            text.append(f"  {bar.note}", style="dim")
        return text


@contextlib.contextmanager
def show_progress(console: Console, name: str, total: int, done: int = 0, unit: str = "images") -> Iterator[Bar]:
    """Show the progress of a stage for the length of a ``with`` block and leave one line behind."""
    bar = Bar(name, total, done, unit)
    if console.is_terminal:
        columns = (
            progress.SpinnerColumn(),
            progress.TextColumn("[bold]{task.description}"),
            progress.BarColumn(bar_width=None),
            progress.MofNCompleteColumn(),
            _RateColumn(),
            progress.TimeRemainingColumn(compact=True),
        )
        with progress.Progress(*columns, console=console, transient=True) as shown:
            task = shown.add_task(name, total=total, completed=done, bar=bar)
            bar.show = lambda: shown.update(task, completed=bar.done + bar.failed)
            yield bar
    else:
        printed = bar.began

        def print_line() -> None:
            nonlocal printed
            if time.monotonic() - printed >= LOG_SECONDS:
                printed = time.monotonic()
                console.print(bar.summary, highlight=False, markup=False, soft_wrap=True)

        bar.show = print_line
        yield bar
    seconds = time.monotonic() - bar.began
    rate = (bar.done + bar.failed - bar.earlier) / max(seconds, 1e-9)
    failed = f", [red]{bar.failed} failed[/red]" if bar.failed else ""
    earlier = f" ({bar.earlier} earlier)" if bar.earlier else ""
    text = f"[bold]{name}[/bold]: {bar.done} of {total} {unit}{earlier}{failed} in {_duration(seconds)}"
    console.print(f"{text} ({rate:.2f} {unit}/s)", highlight=False, soft_wrap=True)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"
