"""Stage ``refine``: a pool of workers refines every image on its own and writes its map file.

There is one for each method of a run: RIB's is called ``refine``, that of any other ``refine_NAME``.
"""

import contextlib
import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ribray import storage
from ribray.config import RIB, TIMM_PREFIX, Experiment, MethodConfig
from ribray.data.dataset import Dataset
from ribray.data.depth import Scale
from ribray.data.images import tell_readings
from ribray.errors import ImageError, RibrayError, UsageError
from ribray.machine import best_precision, usable_cores
from ribray.methods.maps import MapRecord
from ribray.methods.method import Passes, method_class
from ribray.methods.stop_reasons import MEAN_STEPS, StopTally, stop_hint, stopped_early
from ribray.methods.worker import RefineWorker
from ribray.networks import build_classifier
from ribray.networks.weights import drawn_with
from ribray.pipeline import maps
from ribray.pipeline.artifacts import trained_weights
from ribray.pipeline.maps import REFINE, are_finished, map_path, wanted_ids
from ribray.pipeline.per_image import StagePool
from ribray.pipeline.stage import Context, Estimate, Stage, Work, of_a_kind
from ribray.runs.metrics import RefineMetrics
from ribray.runs.records import read_record

NAME = REFINE
CHUNK = 1  # images of one call: a refinement takes a good part of a second at least
MOST_EARLIER = 20_000
"""Of more maps that were made earlier, how their refinements ended is not looked up; a line says so."""
SAMPLED_IMAGES = 50  # whose size a plan looks at


@dataclass(frozen=True)
class _Refinement:
    """What the driver does for one method of a run."""

    method: str
    """The last part of its name."""

    @property
    def stage(self) -> str:
        return maps.refine_stage(self.method)

    def config(self, context: Context) -> MethodConfig:
        return context.experiment.methods[self.method]

    def work(self, context: Context) -> Work:
        wanted = wanted_ids(context)
        return Work(len(wanted), int(are_finished(context.artifact(self.stage), wanted).sum()))

    def execute(self, context: Context) -> None:
        run, dataset, wanted, name = context.run, context.training_set, wanted_ids(context), self.stage
        folder = context.own_folder(name)
        weights = trained_weights(context, "classifier", name)
        source, record = context.artifact(name), context.begin(name)
        if source != folder:  # what the run that this one was forked from has made under the same key
            for id in itertools.compress(wanted, are_finished(source, wanted) & ~are_finished(folder, wanted)):
                storage.copy(map_path(source, id), map_path(folder, id))
            record |= {"precision": read_record(source).get("precision")}
        done = are_finished(folder, wanted)
        failures = maps.left_out(context, name)
        if sentences := [problem.sentence for problem in dataset.problems if problem.id in dataset]:
            context.console.print(f"Note: {of_a_kind(sentences)}", highlight=False, markup=False)
        precision = record.get("precision") or self._precision(context)
        run.update_record(context.stages[name].folder, precision=precision)
        storage.remove_leftovers(folder)
        config, classifier = self.config(context), context.experiment.classifier
        notes = _Notes(context, name, config)
        pool = StagePool(context, name, failures, chunk_size=CHUNK, note=precision)
        left = list(itertools.compress(wanted, ~done))
        if method_class(config.method).per_class:  # so that no worker is left with a long one at the end
            left.sort(key=lambda id: -int(dataset.labels[dataset.index(id)].sum()))
        network = {"backbone": classifier.backbone, "output_stride": classifier.output_stride}
        arguments = {"dataset": dataset, "classifier": network, "weights": weights, "config": config, "folder": folder}
        arguments |= {"precision": precision, "loader_threads": context.experiment.cluster.loader_threads}
        result = pool.run(RefineWorker, arguments, left, notes.take, len(wanted), int(done.sum()))
        if not result.stopped:
            notes.count_stops(folder, list(itertools.compress(wanted, done)))
        notes.tell()
        earlier = [failure for failure in run.failures() if failure.stage == name]
        known = {failure.id for failure in earlier}.intersection(dataset.ids)  # without an index of all ids
        earlier = [failure for failure in earlier if failure.id in known]
        made = are_finished(folder, [failure.id for failure in earlier])
        failures = {failure.id: failure for failure in itertools.compress(earlier, ~made)} | failures
        context.replace_failures(name, failures)
        count = int(done.sum()) + result.done
        if not result.stopped and not count:
            context.require_any_done(name, len(wanted), count, failures, is_empty=not maps.finished_ids(folder))
        numbers = {"images": count, "failed": len(failures), "precision": precision, **notes.stops}
        run.write_metrics(name, RefineMetrics(**numbers, timing=pool.timing(result)))

    def _precision(self, context: Context) -> str:
        wanted = _wanted_precision(context.experiment, self.config(context))
        return context.session.resolve_precision(wanted, context.experiment.cluster)

    def check(self, context: Context) -> None:
        if context.imported(self.stage) is None:
            require_others(context.training_set, self.config(context))

    def estimate(self, context: Context, work: Work) -> Estimate:
        """Guess from a few images' sizes; the time from a few timed passes, where the work is done here."""
        config, dataset, ids = self.config(context), context.training_set, wanted_ids(context)
        method, stride = method_class(config.method), context.experiment.classifier.output_stride
        sample = ids[:: max(1, len(ids) // SAMPLED_IMAGES)]
        areas = []
        for id in sample:
            with contextlib.suppress(ImageError):  # told when it is refined
                areas.append(math.prod(dataset.size(id)))
        if not areas:
            return Estimate(None, 0)
        median = float(np.median(areas))
        present = float(dataset.labels[[dataset.index(id) for id in sample]].sum(1).mean())
        extras, with_class = method.extra_samples(config), dataset.labels[dataset.labels.any(1)]
        # Nobody is without a class that all others show.
        has_any = extras is not None and not (extras.of_no_use and with_class.all(0).any())
        passes = method.cost(config, median, present, extras.per_step if extras is not None and has_any else 0)
        kept = 1 + len(config.maps) * (1 + (config.steps if config.keep_steps else 0))
        cells = median * sum(2 * scale**2 for scale in config.scales) / 2 / stride**2
        size = int(work.left * present * kept * 4 * cells)
        cluster = context.experiment.cluster
        if cluster.address is not None and cluster.workers != 0:
            return Estimate(None, size)
        workers = usable_cores() if cluster.workers is None else max(1, cluster.workers)
        return Estimate(work.left * float(np.dot(passes, _unit_costs(context, config))) / workers, size)


def require_others(dataset: Dataset, config: MethodConfig) -> None:
    """Refuse a class that every image shows where a method draws others without it."""
    extras, everywhere = method_class(config.method).extra_samples(config), np.flatnonzero(dataset.labels.all(axis=0))
    if extras is not None and everywhere.size:
        name = dataset.classes[everywhere[0]]
        raise UsageError(
            f"Every image of {dataset.name} shows the class '{name}', so none can serve as an extra sample of "
            f"another, of which {extras.setting} needs some: set {extras.alone_with}, or add images without "
            f"'{name}', be it without any class."
        )


class _Notes:
    """Collects what workers' records say that a person should know, once each."""

    def __init__(self, context: Context, stage: str, config: MethodConfig):
        self._context, self._stage, self._steps = context, stage, config.steps
        self._extras = method_class(config.method).extra_samples(config)
        self._unreadable: set[str] = set()
        self._few: set[int] = set()
        self._only_empty = 0
        self._remarks: Counter[Scale | str] = Counter()
        self._tally = StopTally(config)
        self.stops: dict[str, Any] = {}

    def take(self, id: str, record: Mapping[str, Any]) -> None:
        for sentence in set(record.get("unreadable", ())) - self._unreadable:
            self._unreadable.add(sentence)
            self._context.run.event(self._stage, "extra sample passed over", error=sentence)
        self._remarks.update(record.get("remarks", ()))
        if record["steps"]:
            self._tally.add(record["stop_reason"], record["steps"])
        self._only_empty += record.get("only_empty", False)
        if self._extras is not None and 0 < record.get("extras", 0) < self._extras.per_step:
            self._few.add(record["extras"])

    def count_stops(self, folder: Path, earlier: Sequence[str]) -> None:
        """Set `stops`, how the refinements of all images ended: of earlier ones from their map files."""
        if len(earlier) > MOST_EARLIER:
            made = f"the {len(earlier):,} refinements made earlier"
            return self._context.say(f"{self._stage}: how {made} ended is not looked up, nor told.")

        def read(id: str) -> MapRecord | None:
            try:
                return MapRecord.read(map_path(folder, id))
            except RibrayError:  # the next stage says so
                return None

        with ThreadPoolExecutor(maps.LISTINGS) as threads:
            for record in filter(None, threads.map(read, earlier)):
                self._tally.add(record.stop_reason, record.steps)
        self.stops = self._tally.summary()

    def tell(self) -> None:
        say, extras, reasons = self._context.say, self._extras, self.stops.get("stop_reasons", {})
        if early := stopped_early(reasons):
            say(f"{self._stage}: stopped early: {early}")
        if hint := stop_hint(reasons, self._steps):
            say(f"Note: {hint}")
        if self._few and extras is not None:
            fewer = f"fewer than {extras.per_step} others without their classes (at least {min(self._few)})"
            say(f"Some images had {fewer}: all there are were drawn.")
        if self._only_empty and extras is not None:
            drawn = f"{extras.of_no_use}, so these were refined as with {extras.alone_with}"
            say(
                f"For {self._only_empty} image(s) there were no others without their classes but those that show no "
                f"class at all, which {drawn if extras.of_no_use else 'were drawn'}."
            )
        if self._unreadable:
            say(f"{len(self._unreadable)} unreadable image(s) were passed over as extra samples; see events/.")
        for sentence in tell_readings(self._remarks):
            say(f"Note: {sentence}")


def _unit_costs(context: Context, config: MethodConfig) -> Passes:
    """Time the parts of the classifier as a worker computes them, on its threads (or the GPU) of this machine."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classifier, dataset = context.experiment.classifier, context.training_set
    precision = _wanted_precision(context.experiment, config)
    if precision == "auto":
        precision = best_precision(on_gpu=device.type == "cuda")
    with drawn_with(classifier.seed):
        model = build_classifier(classifier.backbone, len(dataset.classes), classifier.output_stride)
    threads = torch.get_num_threads()
    torch.set_num_threads(context.experiment.cluster.threads_per_worker)
    try:
        return method_class(config.method)(model, config, precision, device).time_passes()
    finally:
        torch.set_num_threads(threads)


def _wanted_precision(experiment: Experiment, config: MethodConfig) -> str:
    """Return what is asked for; ``auto`` is left to the hardware where bfloat16's effect on a network was measured."""
    is_known = not experiment.classifier.backbone.startswith(TIMM_PREFIX)
    return config.precision if is_known or config.precision != "auto" else "float32"


def stage_of(method: str) -> Stage:
    """Return the stage of a method, named by the last part of its name."""
    refinement = _Refinement(method)
    return Stage(
        name=refinement.stage,
        folder="maps" if method == RIB else f"maps_{method}",
        upstream=("classifier",),
        section="refine",
        of_experiment=lambda experiment: experiment.only(method) if method in experiment.methods else experiment,
        leaves_out=("refine.limit",),
        format=2,
        fingerprints=lambda context: {"ids or labels of data.train_split": context.training_set.fingerprint()},
        work=refinement.work,
        execute=refinement.execute,
        writes=(MEAN_STEPS,),
        check=refinement.check,
        estimate=refinement.estimate,
        serves_in_part=True,
    )


STAGE = stage_of(RIB)
