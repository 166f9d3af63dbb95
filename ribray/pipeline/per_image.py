"""The work of a stage on every image on its own: a pool with a bar, whose failed images are kept."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ribray.cluster.pool import Pool, PoolPlan, PoolResult
from ribray.pipeline.stage import Context, per_second
from ribray.progress import show_progress
from ribray.runs.metrics import Timing
from ribray.runs.records import Failure


@dataclass
class StagePool:
    """A pool for the images of a stage."""

    context: Context
    stage: str
    failures: dict[str, Failure]
    """Takes up the images that fail."""
    title: str | None = None
    """Stands before the bar; default: the stage's name."""
    chunk_size: int = 1
    """Images of one call."""
    gpu: bool = True
    note: str = ""
    """Stands on the bar."""

    def __post_init__(self) -> None:
        cluster, session = self.context.experiment.cluster, self.context.session
        self._plan = PoolPlan.of(self.stage, cluster, session, self.chunk_size, self.gpu)

    def run(
        self,
        worker_class: Callable[..., Any],
        arguments: Mapping[str, Any],
        ids: Iterable[str],
        on_done: Callable[[str, Mapping[str, Any]], None],
        total: int,
        earlier: int = 0,
    ) -> PoolResult:
        """Do ``ids``, of ``total`` images of which ``earlier`` ones are done, until the user asks to stop."""
        run = self.context.run

        def on_failed(id: str, error: str, tries: int, traceback: str | None) -> None:
            self.failures[id] = run.give_up(self.stage, id, error, tries, traceback)

        with show_progress(self.context.console, self.title or self.stage, total, earlier) as bar:
            bar.note = self.note
            pool = Pool(self._plan, worker_class, arguments)
            result = pool.run(ids, on_done, on_failed, bar, self.context.stop.is_set)
        self.context.note_start(self.stage, result.start_seconds)
        return result

    def timing(self, result: PoolResult, done: int | None = None) -> Timing:
        """Return the timing part of the stage's metrics; ``done`` where not all images count that were done."""
        count = result.done if done is None else done
        return per_second(count, result.seconds, result.start_seconds, workers=self._plan.workers)
