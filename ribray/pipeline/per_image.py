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
    context: Context
    stage: str
    failures: dict[str, Failure]  # takes up the images that fail
    title: str | None = None  # stands before the bar; default: the stage's name
    chunk_size: int = 1  # images of one call
    gpu: bool = True
    note: str = ""  # stands on the bar

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
        context, stage = self.context, self.stage

        def on_failed(id: str, error: str, tries: int, traceback: str | None) -> None:
            trace = {} if traceback is None else {"traceback": traceback}
            context.run.event(stage, "failed", id=id, error=error, **trace)
            self.failures[id] = Failure(id, stage, error, tries, traceback)

        with show_progress(context.console, self.title or stage, total, earlier) as bar:
            bar.note = self.note
            result = Pool(self._plan, worker_class, arguments).run(ids, on_done, on_failed, bar, context.stop.is_set)
        context.run.event(stage, "waited for workers", seconds=round(result.start_seconds, 3))
        return result

    def timing(self, result: PoolResult, done: int | None = None) -> Timing:
        """Return the timing part of the stage's metrics; ``done`` where not all images count that were done."""
        count = result.done if done is None else done
        return per_second(count, result.seconds, result.start_seconds, workers=self._plan.workers)
