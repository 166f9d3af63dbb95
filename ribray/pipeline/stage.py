"""What a stage is, and what it works with."""

import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from ribray import storage
from ribray.cluster.session import Session, connect, inside_job, require_shared
from ribray.config import ClusterConfig, Experiment, flatten, to_values
from ribray.data import open_dataset
from ribray.data.dataset import Dataset
from ribray.errors import StageError, UsageError
from ribray.runs.keys import StageKey, select_configuration
from ribray.runs.metrics import StageMetrics, Timing
from ribray.runs.records import RECORD_FILE, Failure
from ribray.runs.run import Run
from ribray.runs.stage_facts import StageFacts
from ribray.tracking import Tracker


@dataclass(frozen=True)
class Work:
    """What a stage would do now."""

    total: int
    done: int
    unit: str = "images"
    is_stale: bool = False  # whether the stage's numbers are about other images than those that are there now

    @property
    def left(self) -> int:
        return self.total - self.done


@dataclass(frozen=True)
class Estimate:
    """What the work that is left would roughly cost."""

    seconds: float | None
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Stage(StageFacts):
    """One step of the chain: what it reads decides about reuse, `execute` does what is left to do."""

    upstream: tuple[str, ...]  # stages whose artifacts it reads
    follows: tuple[str, ...] = ()  # the same where they are there; its key does not depend on them
    of_experiment: Callable[[Experiment], Experiment] = lambda experiment: experiment  # as this stage sees it
    also_reads: tuple[str, ...] = ()  # keys, or sections, that its result depends on beside its own section
    leaves_out: tuple[str, ...] = ()  # keys below `reads` that its result does not depend on
    format: int  # version of the files it writes
    fingerprints: "Callable[[Context], Mapping[str, str]]" = lambda context: {}
    """Of the data and weight files it reads, by what to call them in a sentence."""
    work: "Callable[[Context], Work]"  # what there is to do; asked without a cluster
    execute: "Callable[[Context], None]"  # does what is left, writes the artifact and the stage's metrics
    check: "Callable[[Context], object] | None" = None  # refuses at the start what its work would meet after hours
    remark: "Callable[[Context], str | None] | None" = None  # what a person should know of the finished stage
    estimate: "Callable[[Context, Work], Estimate] | None" = None  # a rough guess at time and disk, for a plan
    writes: tuple[str, ...] = ()  # numbers of its metrics that a sweep can compare, by dotted name
    serves_in_part: bool = False  # whether later stages can go on with a part of its items

    @property
    def reads(self) -> tuple[str, ...]:
        return self.also_reads if self.section is None else (self.section, *self.also_reads)

    def configuration(self, experiment: Experiment) -> dict[str, Any]:
        return select_configuration(flatten(to_values(self.of_experiment(experiment))), self.reads, self.leaves_out)


def with_missing(stages: Mapping[str, Stage], name: str, has: Callable[[str], object]) -> str:
    """Name a stage and all that it builds on and that are not there, in their order, as ``--stages`` takes them."""
    wanted = {name}
    for each in reversed([*stages]):
        wanted |= {earlier for earlier in stages[each].upstream if each in wanted and not has(earlier)}
    return ",".join(each for each in stages if each in wanted)


def training_workers(experiment: Experiment, stages: Mapping[str, Stage]) -> int:
    return max(getattr(experiment, stage.section or "").workers for stage in stages.values() if stage.trainings)


@dataclass
class Context:
    experiment: Experiment
    run: Run
    stages: Mapping[str, Stage]
    console: Console
    tracker: Tracker
    stop: threading.Event = field(default_factory=threading.Event)  # set: finish what is in flight, start no more
    resources: ExitStack = field(default_factory=ExitStack)
    session_of: "Context | None" = None  # whose cluster is used; None: its own
    _datasets: dict[tuple[str, bool], Dataset] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)
    _keys: dict[str, StageKey] = field(default_factory=dict, init=False)

    @cached_property
    def session(self) -> Session:
        """The Ray cluster, or this machine without; connected to when first asked for."""
        if self.session_of is not None:
            return self.session_of.session
        workers = training_workers(self.experiment, self.stages)
        directory, cluster = self.run.directory, self.experiment.cluster
        return open_session(self.resources, self.console, cluster, directory, self.stop, workers)

    @property
    def data_root(self) -> Path:
        """The data root; a drawn world without a root of its own lies in the (first) run directory."""
        if self.experiment.data.root is not None:
            root = storage.path(self.experiment.data.root)
            if inside_job() and not root.expanduser().is_absolute():
                raise UsageError(
                    f"data.root={root} is relative, and a job runs in a temporary copy of the working directory; give "
                    "an absolute path on storage that every node shares."
                )
            return storage.absolute(root)
        world, seed = self.experiment.data.synthetic, self.experiment.data.seed
        name = f"seed{seed}-{world.image_size}px-{world.classes}classes-{world.train_images}+{world.eval_images}"
        return self.run.lineage[-1].directory / "data" / name

    def dataset(self, split: str, labelled: bool = True) -> Dataset:
        """Return a split of the data, opened once; of one that is only predicted, labels need not be known.

        It is said how data was read where it could be read in another way, and what is wrong with it as a whole.
        """
        if (split, labelled) not in self._datasets:
            dataset = open_dataset(self.experiment.data, split, self.data_root, labelled=labelled)
            for other in self._datasets.values():
                if other.classes != dataset.classes:
                    raise UsageError(
                        f"{dataset.name} has other classes than {other.name}; all splits need the same, in one order."
                    )
            self._datasets[split, labelled] = dataset
            by_kind: dict[str, list[str]] = {}
            for finding in dataset.findings:
                by_kind.setdefault(finding.kind, []).append(finding.sentence)
            for sentence in [*dataset.notes, *map(of_a_kind, by_kind.values())]:
                self.tell(sentence)
        return self._datasets[split, labelled]

    def say(self, sentence: str) -> None:
        self.console.print(sentence, highlight=False, markup=False, soft_wrap=True)

    def tell(self, sentence: str) -> None:
        """Print a note, once however often it is told."""
        if self.is_news(sentence):
            self.say(f"Note: {sentence}")

    def is_news(self, topic: str) -> bool:
        """Whether something was not told yet by this command; from now on it was."""
        is_news = topic not in self._told
        self._told.add(topic)
        return is_news

    @property
    def training_set(self) -> Dataset:
        """The split that the classifier learns from and that is refined."""
        return self.dataset(self.experiment.data.train_split)

    @property
    def held_out(self) -> Dataset:
        """The split that the classifier and the segmentation network are judged on."""
        return self.dataset(self.experiment.data.eval_split)

    @property
    def own_maps(self) -> str:
        """The name of the maps that the masks in this run directory are made from."""
        return self.run.variant or self.experiment.own_source

    def key(self, stage: str) -> StageKey:
        """Return the key that a stage has under the present configuration and data."""
        if (content := self.imported(stage)) is not None:
            return self.key_of_import(stage, content)
        if stage not in self._keys:
            definition = self.stages[stage]
            self._keys[stage] = StageKey(
                stage=stage,
                format=definition.format,
                configuration=definition.configuration(self.experiment),
                upstream={name: self.key(name).digest for name in definition.upstream},
                data=definition.fingerprints(self),
            )
        return self._keys[stage]

    def imported(self, stage: str) -> str | None:
        """Return the hash of what was imported in place of a stage, here or in the run it is reused from; else None."""
        records = (run.record(self.stages[stage].folder) for run in self.run.lineage)
        return next(filter(None, records), {}).get("imported")

    def key_of_import(self, stage: str, content: str) -> StageKey:
        """Return the key of a stage whose artifact was imported: no configuration and no earlier stage enters it."""
        definition = self.stages[stage]
        data = {**definition.fingerprints(self), "imported files": content}
        return StageKey(stage=stage, format=definition.format, configuration={}, upstream={}, data=data)

    def artifact(self, stage: str) -> Path:
        """Return the folder that holds a stage's artifact: in this run, or in the run it was forked from."""
        return self.run.find_artifact(self.stages[stage].folder, self.key(stage))

    def has(self, stage: str) -> bool:
        """Whether there is an artifact of the stage; files without a record are what a removal left behind."""
        return (self.artifact(stage) / RECORD_FILE).exists()

    def forget_keys(self) -> None:
        """Compute every key anew: what was imported may have been removed."""
        self._keys.clear()

    def begin(self, stage: str, **facts: Any) -> dict[str, Any]:
        """Start or continue a stage and return its record; ``facts`` are kept from the first start on."""
        return self.run.begin(self.stages[stage].folder, self.key(stage), **facts)

    def own_folder(self, stage: str) -> Path:
        return self.run.directory / self.stages[stage].folder

    def require(self, stage: str, needed_by: str) -> Path:
        if not self.has(stage):
            raise UsageError(
                f"Stage '{needed_by}' needs stage '{stage}', which {self.run.directory} does not have: "
                f"add it with --stages {with_missing(self.stages, needed_by, self.has)}."
            )
        return self.artifact(stage)

    def finish(self, stage: str, metrics: StageMetrics, ids: Iterable[str]) -> None:
        """Write a stage's numbers, and which images they are about."""
        self.run.write_metrics(stage, metrics)
        self.run.update_record(self.stages[stage].folder, covers=coverage(ids))

    def replace_failures(self, stage: str, failures: Mapping[str, Failure]) -> None:
        others = [failure for failure in self.run.failures() if failure.stage != stage]
        self.run.write_failures([*others, *failures.values()])

    def require_any_done(
        self, stage: str, wanted: int, done: int, failures: Mapping[str, Failure], is_empty: bool = True
    ) -> None:
        """Check, at a stage's end, that any of the ``wanted`` images are done, by whatever process.

        Else the stage is forgotten, but for its failures, and what it holds of other images, unless it ``is_empty``.
        """
        if done or not wanted:
            return
        if is_empty:
            self.run.remove_stage(stage, self.stages[stage].folder)
        else:
            self.run.remove_metrics(stage)
        self.replace_failures(stage, failures)
        examples = [example(failure.id, failure.error) for failure in failures.values()]
        raise StageError(f"Stage '{stage}' has done none of its {wanted:,} images{''.join(examples[:1])}; {MENDED}.")


def open_session(
    resources: ExitStack,
    console: Console,
    cluster: ClusterConfig,
    directory: Path,
    stop: threading.Event,
    training_workers: int = 1,
) -> Session:
    """Connect to the cluster until ``resources`` close; every node of it must share the directory that is written."""
    with nullcontext() if cluster.workers == 0 else console.status("starting Ray"):
        session = resources.enter_context(connect(cluster, training_workers, stop))
    require_shared(directory, session)
    return session


MENDED = "mend them, and the same command goes on"


def example(id: str, error: str) -> str:
    """Return the middle of a sentence on several images: what is wrong with one of them."""
    return f", as with {id}: {error.removesuffix('.')}"


def of_a_kind(sentences: Sequence[str]) -> str:
    """Return the first of several sentences of one kind, and how many more there are."""
    more = f" ({len(sentences) - 1} more of the kind: see ribray check)" if len(sentences) > 1 else ""
    return f"{sentences[0]}{more}"


def coverage(ids: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]


def per_second(count: int, seconds: float, start_seconds: float, **workers: int) -> Timing:
    rate, start = round(count / seconds, 3) if seconds else None, round(start_seconds, 3)
    return Timing(seconds=round(seconds, 3), images=count, images_per_second=rate, start_seconds=start, **workers)
