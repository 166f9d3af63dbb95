"""What a run has made, for commands that only read it: found without the data, without holding the run."""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ribray.config import CAM, Experiment, MethodConfig
from ribray.errors import UsageError
from ribray.networks import Classifier, build_classifier
from ribray.networks.weights import load_classifier
from ribray.pipeline.artifacts import WEIGHTS_FILE, require_recorded
from ribray.pipeline.stage import Context, Stage, with_missing
from ribray.runs.directory import EXPERIMENT_FILE
from ribray.runs.run import Run
from ribray.tracking import Tracker


@dataclass(frozen=True)
class Artifact:
    """A stage's folder in the run, or in a run it was forked from, and its record."""

    run: Run
    folder: Path
    record: Mapping[str, Any]


@dataclass(frozen=True)
class FinishedRun:
    run: Run
    experiment: Experiment
    stages: Mapping[str, Stage]

    @classmethod
    def read(cls, directory: Path, stages_of: Callable[[Experiment], Mapping[str, Stage]]) -> "FinishedRun":
        """Look at a run; of one whose masks are made from plain CAMs only, at the variant that holds them."""
        run = Run.read(directory)
        experiment = run.read_experiment()
        if experiment.sources == (CAM,) and run.variant is None and CAM in run.variants():
            run = run.variants()[CAM]
            experiment = run.read_experiment()
        return cls(run, experiment, stages_of(experiment))

    def artifact(self, stage: str) -> Artifact | None:
        """Return what a stage made; None where neither this run nor one that it may reuse has it."""
        folder = self.stages[stage].folder
        for run in self.run.lineage:
            record = run.record(folder)
            if record and (run is self.run or self._fits(record)):
                return Artifact(run, run.directory / folder, record)
        return None

    def current(self, stage: str) -> Artifact | None:
        """Return what a stage made, if it is in the form that this version of ribray writes."""
        artifact, now = self.artifact(stage), self.stages[stage].format
        if artifact is not None and (written := artifact.record["inputs"]["format"]) != now:
            raise UsageError(
                f"{artifact.folder} was written by another version of ribray (file format {written}, now {now}): make "
                f"it again by `{self.command('--redo', stage)}`."
            )
        return artifact

    def context(self) -> Context:
        return Context(self.experiment, self.run, self.stages, Console(quiet=True), Tracker(self.experiment, self.run))

    def command(self, *arguments: str) -> str:
        """Return the command that makes more of the run."""
        directory = self.run.directory
        return " ".join(
            ["ribray run", shlex.join([str(directory / EXPERIMENT_FILE), "--out", str(directory)]), *arguments]
        )

    def command_for(self, stage: str, *arguments: str) -> str:
        """Return the command that makes a stage, with all that is missing before it."""
        return self.command(*arguments, "--stages", with_missing(self.stages, stage, self.artifact))

    def _fits(self, record: Mapping[str, Any]) -> bool:
        """Whether an older run's stage, and all that it builds on, was made with this run's settings."""
        if record.get("imported") is not None:
            return True
        inputs = record["inputs"]
        stage = self.stages.get(inputs["stage"])
        if stage is None or inputs["configuration"] != stage.configuration(self.experiment.on_own_source()):
            return False
        for name, digest in inputs["upstream"].items():
            earlier = (run.record(self.stages[name].folder) for run in self.run.lineage if name in self.stages)
            if not any(each.get("key") == digest and self._fits(each) for each in earlier):
                return False
        return True


def trained_classifier(
    directory: Path, stages_of: Callable[[Experiment], Mapping[str, Stage]]
) -> tuple[Classifier, list[str], Mapping[str, MethodConfig]]:
    """Return a run's classifier, the names of its classes, and the settings of its methods."""
    finished = FinishedRun.read(directory, stages_of)
    artifact = finished.artifact("classifier")
    if artifact is None or not (artifact.folder / WEIGHTS_FILE).exists():
        raise UsageError(f"{directory} has no trained classifier: train it by `{finished.command_for('classifier')}`.")
    weights = require_recorded(artifact.folder, "classifier")
    written = artifact.run.read_metrics().classifier
    names = (written and written.classes) or list(finished.context().training_set.classes)
    config = finished.experiment.classifier
    classifier = build_classifier(config.backbone, len(names), config.output_stride)
    load_classifier(classifier, weights)
    return classifier, names, finished.experiment.methods
