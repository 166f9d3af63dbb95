"""``ribray report``: gathers what a run or a sweep has made, and writes it as one HTML page.

Only files are read: nothing is computed anew but pictures, and no cluster starts. What is missing or damaged is said
where it would stand.
"""

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ribray import storage
from ribray.cluster.training import read_log
from ribray.config import Experiment, read_yaml
from ribray.data.dataset import Dataset
from ribray.data.images import read_image
from ribray.errors import ImageError, RibrayError, UsageError
from ribray.pipeline.artifacts import FIRST_FOLDER
from ribray.pipeline.finished_run import FinishedRun
from ribray.pipeline.maps import finished_ids, map_path, wanted_ids
from ribray.pipeline.stage import Context
from ribray.report import sweep_rows
from ribray.report.charts import RefinementLosses, draw_curve, loss_chart, read_losses, steps_chart
from ribray.report.html import RunPage, SweepPage, render_run, render_sweep
from ribray.report.ledger import read_ledger
from ribray.report.pictures import GalleryBlock, MaskBlock, draw_growth, draw_masks, gallery_block
from ribray.report.plots import Chart, write_png
from ribray.report.stations import METHOD_NAMES, RETRAINED, RIB
from ribray.runs.directory import EXPERIMENT_FILE, LEDGER_FILE
from ribray.runs.metrics import RunMetrics, Timing
from ribray.runs.records import Failure, read_provenance
from ribray.runs.run import Run
from ribray.stages import STAGES, classifier, confident, evaluate, irn, pseudo, refine, segmentation

REPORT_FILE, FIGURES_FOLDER = "report.html", "figures"
GROWTH_FILE, MASKS_FILE, CURVE_FILE = "maps.png", "masks.png", "seed_curve.png"
STEPS_FILE, LOSSES_FILE = "steps.png", "losses.png"
CLASSIFIER, IRN, SEGMENTATION = "Classifier", "IRN", "Segmentation"
TRAINING, HELD_OUT = "training", "held out"
PLOT_TITLES = {
    "plot.png": "The metric over what was varied",
    "steps.png": "Seed mIoU by refinement step",
    "thresholds.png": "Seed mIoU by threshold",
}


def write_report(directory: Path) -> Path:
    """Write ``report.html`` into a run's or a sweep's directory, and a run's figures beside it; return where it lies.

    Raises:
        UsageError: it is neither.
        RibrayError: its numbers are damaged.
    """
    location = storage.absolute(directory)
    if (location / LEDGER_FILE).is_file():
        html = render_sweep(_sweep_page(location))
    elif (location / EXPERIMENT_FILE).is_file():
        gathered = _Gathered(Run.read(location))
        page = gathered.page()
        _draw(gathered, page)
        html = render_run(page)
    else:
        raise UsageError(
            f"{location} is neither a run (it has no {EXPERIMENT_FILE}) nor a sweep (it has no {LEDGER_FILE})."
        )
    storage.write_text(location / REPORT_FILE, html)
    return location / REPORT_FILE


# --- a run -------------------------------------------------------------------------------------------------------


@dataclass
class _Gathered:
    """What a run and its variants have made."""

    run: Run
    remarks: dict[str, str] = field(default_factory=dict)
    """What to say of a section, or of a part of one, that is empty."""

    @cached_property
    def experiment(self) -> Experiment:
        return self.run.read_experiment()

    @cached_property
    def main(self) -> FinishedRun:
        return FinishedRun(self.run, self.experiment, STAGES)

    @cached_property
    def own(self) -> str:
        """The maps that the run's own masks are made from."""
        return self.run.variant or RIB

    @cached_property
    def chains(self) -> dict[str, FinishedRun]:
        """Source of the maps -> the run that goes on from them, plain CAM first."""
        variants = {name: FinishedRun(run, run.read_experiment(), STAGES) for name, run in self.run.variants().items()}
        found = {**variants, self.own: self.main}
        return {source: found[source] for source in METHOD_NAMES if source in found}

    @cached_property
    def context(self) -> Context:
        return self.main.context()

    @cached_property
    def training_set(self) -> Dataset | None:
        """The images that were refined; None, with a remark, where they cannot be opened."""
        try:
            return self.context.training_set
        except RibrayError as error:
            self.remarks["gallery"] = f"The images cannot be opened: {error}"
            return None

    @property
    def splits(self) -> tuple[str, ...]:
        """What the segmentation was judged on."""
        return self.experiment.evaluate.splits or (self.experiment.data.eval_split,)

    @cached_property
    def held_out(self) -> list[Dataset]:
        """The images that were predicted."""
        try:
            return evaluate.splits(self.context)
        except RibrayError:
            return []

    @cached_property
    def metrics(self) -> RunMetrics:
        """The run's numbers; of a stage that it reuses, those of the run that it was made in."""
        metrics = self.run.read_metrics()
        for stage, run in self._reused.items():
            older = run.read_metrics()
            if stage not in metrics.stages() and stage in older.stages():
                timing = {**metrics.timing, stage: older.timing.get(stage, Timing())}
                metrics = metrics.model_copy(update={stage: older.stages()[stage], "timing": timing})
        return metrics

    @cached_property
    def _reused(self) -> dict[str, Run]:
        made = {stage: self.main.artifact(stage) for stage in STAGES}
        return {
            stage: artifact.run
            for stage, artifact in made.items()
            if artifact is not None and artifact.run is not self.run
        }

    @cached_property
    def map_files(self) -> dict[str, Path]:
        """Map file by image id: of the images that the run's numbers are about, in the order of the split.

        Of all there are, where the data cannot be opened any more.
        """
        artifact = self.main.artifact(refine.NAME)
        if artifact is None:
            return {}
        done = finished_ids(artifact.folder)
        ids = sorted(done) if self.training_set is None else [id for id in self._wanted if id in done]
        return {id: map_path(artifact.folder, id) for id in ids}

    @property
    def _wanted(self) -> Sequence[str]:
        try:
            return wanted_ids(self.context)
        except RibrayError:  # the list of images is gone
            return self.context.training_set.ids

    def folder(self, source: str, stage: str) -> Path | None:
        """Return what a stage made of some maps; None where that chain has none of its own."""
        artifact = self.chains[source].artifact(stage)
        return None if artifact is None else artifact.folder

    def mask_folders(self, stage: str, title: str) -> dict[str, Path]:
        """Return a stage's folder of masks for all maps, by what the masks are called."""
        found = {source: self.folder(source, stage) for source in self.chains}
        return {f"{title}, {METHOD_NAMES[source]}": folder for source, folder in found.items() if folder is not None}

    @cached_property
    def logs(self) -> dict[str, dict[str, list[dict[str, Any]]]]:
        """Network -> training -> lines of its log."""
        found: dict[str, dict[str, list[dict[str, Any]]]] = {CLASSIFIER: {}, IRN: {}, SEGMENTATION: {}}
        own = self.main.artifact(classifier.NAME)
        if own is not None:
            found[CLASSIFIER][TRAINING] = self._log(own.folder)
        for source in self.chains:
            name = METHOD_NAMES[source]
            if (folder := self.folder(source, irn.NAME)) is not None:
                found[IRN][name] = self._log(folder)
            if (folder := self.folder(source, segmentation.NAME)) is not None:
                first = self._log(folder / FIRST_FOLDER)
                trainings = (
                    {name: first, f"{name}, {RETRAINED}": self._log(folder)} if first else {name: self._log(folder)}
                )
                found[SEGMENTATION] |= trainings
        known = {network: {name: log for name, log in logs.items() if log} for network, logs in found.items()}
        return {network: logs for network, logs in known.items() if logs}

    def _log(self, folder: Path) -> list[dict[str, Any]]:
        try:
            return read_log(folder)
        except RibrayError as error:
            self.remarks["damaged"] = str(error)
            return []

    @cached_property
    def refinement(self) -> RefinementLosses | None:
        return read_losses(list(self.map_files.values()))

    @cached_property
    def gallery(self) -> list[GalleryBlock]:
        data = self.experiment.data
        if self.training_set is None:
            return []
        predicted = self.mask_folders(evaluate.NAME, "prediction")
        judged = self.metrics.seed.methods if self.metrics.seed else {}
        thresholds = {name: part.threshold for name, part in judged.items() if part.threshold is not None}
        blocks = [
            gallery_block(
                f"Training images ({data.train_split})",
                self.training_set,
                {**self.mask_folders(pseudo.NAME, "pseudo mask"), **predicted},
                self.map_files,
                thresholds,
            )
        ]
        blocks += [
            gallery_block(f"Held-out images ({split})", dataset, predicted)
            for split, dataset in zip(self.splits, self.held_out, strict=False)
            if split != data.train_split
        ]
        return [block for block in blocks if block is not None]

    @cached_property
    def failures(self) -> list[dict[str, Any]]:
        def told(failure: Failure, source: str) -> dict[str, Any]:
            stage = failure.stage if source == self.own else f"{source}: {failure.stage}"
            return {**vars(failure), "stage": stage}

        return [
            told(failure, source) for source, finished in self.chains.items() for failure in finished.run.failures()
        ]

    def page(self) -> RunPage:
        """Return what the page shows."""
        experiment, configuration = self.experiment, self.run.directory / EXPERIMENT_FILE
        provenance = read_provenance(self.run.directory)
        machine = provenance.get("machine")
        gallery, logs = self.gallery, self.logs  # what they meet goes into the remarks
        if imported := self.metrics.refine and self.metrics.refine.imported:
            told = f"The maps were imported from {imported}"
            self.remarks["refinement"] = f"{told}: they hold no losses of a refinement."
            self.remarks["pace"] = f"{told}, so no pace of a refinement was measured."
        return RunPage(
            name=self.run.directory.name,
            directory=str(self.run.directory),
            summary=self._summary(provenance),
            written=time.strftime("%Y-%m-%d %H:%M"),
            metrics=self.metrics,
            own=self.own,
            splits=self.splits,
            stages=STAGES,
            data=DATA_NAMES.get(experiment.data.kind, experiment.data.kind),
            batch_size=experiment.refine.batch_size,
            stop_threshold=experiment.refine.stop_threshold,
            iterations=experiment.refine.iterations,
            logs=logs,
            refinement=self.refinement,
            refined=self._refined(),
            machine=None if machine is None else str(machine),
            reused={stage: str(run.directory) for stage, run in self._reused.items() if stage in self.metrics.stages()},
            failures=self.failures,
            gallery=gallery,
            facts=_facts(provenance, self.run),
            configuration=configuration.read_text(encoding="utf-8-sig"),
            remarks=self.remarks,
        )

    def _summary(self, provenance: Mapping[str, Any]) -> str:
        data = self.experiment.data
        images = f"{DATA_NAMES.get(data.kind, data.kind)}, {data.train_split}"
        if self.training_set is not None:
            images += f": {len(self.training_set):,} images of {len(self.training_set.classes)} classes"
        parts = [f"recipe {provenance.get('recipe', '–')}", images]
        if self.map_files:
            parts.append(f"{len(self.map_files):,} refined")
        return " · ".join(parts)

    def _refined(self) -> str:
        config = self.experiment.refine
        precision = (self.metrics.refine and self.metrics.refine.precision) or config.precision
        scales = ", ".join(f"{scale:g}" for scale in config.scales)
        return (
            f"{self.experiment.classifier.backbone}, K = {config.iterations}, B = {config.batch_size}, "
            f"scales {scales}, {precision}"
        )


DATA_NAMES = {"voc": "PASCAL VOC", "coco": "COCO", "folder": "a folder of images", "synthetic": "the drawn world"}


def _facts(provenance: Mapping[str, Any], run: Run) -> dict[str, str]:
    versions = provenance.get("versions") or {}
    facts = {
        "directory": str(run.directory),
        "recipe": provenance.get("recipe"),
        "made from": str(run.parent.directory) if run.parent is not None else None,
        "machine": provenance.get("machine"),
        "ribray": provenance.get("ribray"),
        "commit": provenance.get("commit"),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    return {name: str(value) for name, value in facts.items() if value}


def _draw(gathered: _Gathered, page: RunPage) -> None:
    """Draw the figures of a run: charts always, pictures where the run itself has not drawn them."""
    folder = gathered.run.directory / FIGURES_FOLDER
    judged = page.metrics.seed.methods if page.metrics.seed else {}
    if any(part.curve for part in judged.values()):
        draw_curve(judged, folder / CURVE_FILE)
    charts: list[Chart] = [loss_chart(logs, network) for network, logs in page.logs.items()]
    if charts:
        write_png(charts, folder / LOSSES_FILE)
    if (by_step := steps_chart(judged, "Seed mIoU by refinement step")) is not None:
        write_png([by_step], folder / STEPS_FILE)
    if gathered.training_set is None or not gathered.map_files:
        return
    if not (folder / GROWTH_FILE).exists():
        draw_growth(gathered.training_set, gathered.map_files, folder / GROWTH_FILE)
    if not (folder / MASKS_FILE).exists():
        draw_masks(_mask_blocks(gathered, gathered.training_set), folder / MASKS_FILE)


def _mask_blocks(gathered: _Gathered, dataset: Dataset) -> list[MaskBlock]:
    made = gathered.mask_folders(confident.NAME, "confident labels") | gathered.mask_folders(pseudo.NAME, "pseudo mask")
    files = gathered.map_files
    blocks = [MaskBlock("training images", dataset, list(files), made, files, gathered.own)]
    predicted = gathered.mask_folders(evaluate.NAME, "prediction")
    return blocks + [MaskBlock("held-out images", each, each.ids, predicted) for each in gathered.held_out]


# --- a sweep -----------------------------------------------------------------------------------------------------


def _sweep_page(directory: Path) -> SweepPage:
    from ribray.commands.sweep import SWEEP_FILE  # brings Ray Tune, which the report of a run does without

    ledger = read_ledger(directory / LEDGER_FILE)
    definition = directory / SWEEP_FILE
    text = definition.read_text(encoding="utf-8-sig", errors="replace") if definition.is_file() else ""
    names = sorted(file.name for file in directory.glob("*.png"))
    ordered = [*(name for name in PLOT_TITLES if name in names), *(name for name in names if name not in PLOT_TITLES)]
    return SweepPage(
        directory=str(directory),
        written=time.strftime("%Y-%m-%d %H:%M"),
        ledger=ledger,
        plots={
            PLOT_TITLES.get(name, Path(name).stem): content
            for name in ordered
            if (content := _picture(directory / name)) is not None
        },
        failures={trial["id"]: found for trial in ledger["trials"] if (found := _trial_failures(directory, trial))},
        facts=_sweep_facts(directory, ledger, definition),
        configuration=text,
    )


def _picture(location: Path) -> bytes | None:
    """Return a PNG file, None where it is damaged: the next run of the sweep draws it again."""
    try:
        read_image(location)
        return location.read_bytes()
    except ImageError:
        return None


def _trial_failures(directory: Path, trial: Mapping[str, Any]) -> list[dict[str, Any]]:
    location = directory / trial["directory"]
    if not (location / EXPERIMENT_FILE).is_file():
        return []
    return [vars(failure) for failure in Run.read(location).failures()]


def _sweep_facts(directory: Path, ledger: Mapping[str, Any], definition: Path) -> dict[str, str]:
    base, published = ledger.get("base") or {}, ledger.get("published") or {}
    varied: dict[str, list[str]] = {}
    for trial in ledger["trials"]:
        for key, value in trial["settings"].items():
            varied.setdefault(key, []).append(sweep_rows.setting_text(value))
    keys = {"varied": ledger["axes"], "averaged over": ledger["repeats"]}
    facts = {
        "command": _command(directory, ledger, definition),
        "base": f"{base.get('recipe', '–')}, run in {base.get('directory', '–')}",
        "stages of a trial": ", ".join(ledger["stages"]),
        **{
            name: "; ".join(f"{key}: {', '.join(dict.fromkeys(varied.get(key, [])))}" for key in chosen)
            for name, chosen in keys.items()
        },
        "the paper": published.get("text"),
        "directory": str(directory),
    }
    return {name: text for name, text in facts.items() if text}


def _command(directory: Path, ledger: Mapping[str, Any], definition: Path) -> str:
    """Return the command that goes on with the sweep."""
    recipe = (ledger.get("base") or {}).get("recipe")
    try:
        own = read_yaml(definition).get("base")
    except UsageError:  # it is gone or damaged: the base is named then
        own = None
    own = own.get("recipe") if isinstance(own, Mapping) else own
    other: Sequence[str] = ["--base", recipe] if recipe and recipe != own else []
    return shlex.join(["ribray", "sweep", ledger["name"], *other, "--out", str(directory)])
