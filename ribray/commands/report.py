"""``ribray report``: gathers what a run or a sweep has made, and writes it as one HTML page.

Only files are read: nothing is computed anew but pictures, and no cluster starts. What is missing or damaged is said
where it would stand.
"""

import contextlib
import shlex
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ribray import storage
from ribray.cluster.training import read_log
from ribray.config import RIBConfig, label, read_yaml
from ribray.data.dataset import Dataset
from ribray.data.images import read_image
from ribray.errors import ImageError, RibrayError, UsageError
from ribray.pipeline.artifacts import FIRST_FOLDER
from ribray.pipeline.finished_run import FinishedRun
from ribray.pipeline.maps import finished_ids, map_files, map_path, refine_stage, wanted_ids
from ribray.report import sweep_rows
from ribray.report.charts import draw_curve, loss_chart, read_losses, steps_chart
from ribray.report.comparison import RETRAINED, ordered
from ribray.report.html import Refinement, RunPage, SweepPage, render_run, render_sweep
from ribray.report.ledger import read_ledger
from ribray.report.pictures import GalleryBlock, MaskBlock, draw_growth, draw_masks, gallery_block
from ribray.report.plots import write_png
from ribray.report.stage_tables import stage_title
from ribray.report.sweep_figures import TITLES
from ribray.runs.directory import EXPERIMENT_FILE, LEDGER_FILE, SWEEP_FILE
from ribray.runs.metrics import RunMetrics, Timing
from ribray.runs.records import read_provenance
from ribray.runs.run import Run
from ribray.stages import classifier, confident, evaluate, irn, pseudo, segmentation, stages_of

REPORT_FILE, FIGURES_FOLDER = "report.html", "figures"
GROWTH_FILE, MASKS_FILE, CURVE_FILE = "maps.png", "masks.png", "seed_curve.png"
STEPS_FILE, LOSSES_FILE = "steps.png", "losses.png"


def write_report(directory: Path) -> Path:
    """Write ``report.html`` into a run's or a sweep's directory, and a run's figures beside it; return its path."""
    location = storage.absolute(directory)
    if (location / LEDGER_FILE).is_file():
        html = render_sweep(_sweep_page(location))
    elif (location / EXPERIMENT_FILE).is_file():
        gathered = _Gathered(Run.read(location))
        html = render_run(gathered.page())
        _draw(gathered)
    else:
        raise UsageError(
            f"{location} is neither a run (it has no {EXPERIMENT_FILE}) nor a sweep (it has no {LEDGER_FILE})."
        )
    storage.write_text(location / REPORT_FILE, html)
    return location / REPORT_FILE


# --- a run -------------------------------------------------------------------------------------------------------


class _Gathered:
    def __init__(self, run: Run) -> None:
        self.run, self.experiment = run, run.read_experiment()
        self.stages = stages_of(self.experiment)
        main = FinishedRun(run, self.experiment, self.stages)
        self.context, self.artifacts = main.context(), {stage: main.artifact(stage) for stage in self.stages}
        found = {name: FinishedRun(one, one.read_experiment(), self.stages) for name, one in run.variants().items()}
        self.own = self.context.own_maps
        found[self.own] = main
        self.chains = {maps: found[maps] for maps in ordered(found)}
        """Name of the maps -> the run that goes on from them, plain CAM first."""
        self.reused = {name: made.run for name, made in self.artifacts.items() if made and made.run is not run}
        self.remarks: dict[str, str] = {}  # what to say of a section, or of a part of one, that is empty
        self.training_set: Dataset | None = None  # the images that were refined
        try:
            self.training_set = self.context.training_set
        except RibrayError as error:
            self.remarks["gallery"] = f"The images cannot be opened: {error}"

    @cached_property
    def predicted(self) -> dict[str, Dataset]:
        try:
            return evaluate.splits(self.context)
        except RibrayError:
            return {}

    @cached_property
    def metrics(self) -> RunMetrics:
        """The run's numbers; of a stage that it reuses, those of the run that it was made in."""
        metrics = self.run.read_metrics()
        for stage, run in self.reused.items():
            older = run.read_metrics()
            if stage not in metrics.stages() and stage in older.stages():
                timing = {**metrics.timing, stage: older.timing.get(stage, Timing())}
                metrics = metrics.model_copy(update={stage: older.stages()[stage], "timing": timing})
        return metrics

    @cached_property
    def map_files(self) -> dict[str, list[Path]]:
        """Map files by image id, one of every method, in the order of the split; all there are without data."""
        made = [artifact.folder for name in self.experiment.methods if (artifact := self.artifacts[refine_stage(name)])]
        ids: Sequence[str] = sorted(set().union(*map(finished_ids, made)))
        if self.training_set is not None:
            try:
                ids = wanted_ids(self.context)
            except RibrayError:  # the list of images is gone
                ids = self.training_set.ids
        return map_files(made, ids)

    def folders(self, stage: str) -> dict[str, Path]:
        made = {label(maps): finished.artifact(stage) for maps, finished in self.chains.items()}
        return {name: artifact.folder for name, artifact in made.items() if artifact is not None}

    def masks(self, stage: str, title: str) -> dict[str, Path]:
        return {f"{title}, {name}": folder for name, folder in self.folders(stage).items()}

    @cached_property
    def logs(self) -> dict[str, dict[str, list[dict[str, Any]]]]:
        """Network -> training -> lines of its log."""
        own, networks = self.artifacts[classifier.NAME], {}
        networks["Classifier"] = {"training": self._log(own.folder) if own else []}
        networks["IRN"] = {name: self._log(folder) for name, folder in self.folders(irn.NAME).items()}
        networks["Segmentation"] = {}
        for name, folder in self.folders(segmentation.NAME).items():
            first, last = self._log(folder / FIRST_FOLDER), self._log(folder)
            networks["Segmentation"] |= {name: first, f"{name}, {RETRAINED}": last} if first else {name: last}
        known = {network: {name: log for name, log in logs.items() if log} for network, logs in networks.items()}
        return {network: logs for network, logs in known.items() if logs}

    def _log(self, folder: Path) -> list[dict[str, Any]]:
        try:
            return read_log(folder)
        except RibrayError as error:
            self.remarks["damaged"] = str(error)
            return []

    @cached_property
    def gallery(self) -> list[GalleryBlock]:
        if self.training_set is None:
            return []
        train, predicted = self.experiment.data.train_split, self.masks(evaluate.NAME, "prediction")
        shown = {**self.masks(pseudo.NAME, "pseudo mask"), **predicted}
        thresholds = {name: part.threshold for name, part in self.metrics.seeds.items() if part.threshold is not None}
        blocks = [gallery_block(f"Training images ({train})", self.training_set, shown, self.map_files, thresholds)]
        for split, dataset in self.predicted.items():
            if split != train:
                blocks.append(gallery_block(f"Predicted images ({split})", dataset, predicted))
        return [block for block in blocks if block is not None]

    def page(self) -> RunPage:
        provenance, metrics = read_provenance(self.run.directory), self.metrics
        machine, data = provenance.get("machine"), self.experiment.data
        data_name = DATA_NAMES.get(data.kind, data.kind)
        gallery, logs = self.gallery, self.logs  # what they meet goes into the remarks
        for numbers in metrics.refinements.values():
            if numbers.imported:
                told = f"The maps were imported from {numbers.imported}"
                self.remarks["refinement"] = f"{told}: they hold no losses of a refinement."
                self.remarks["pace"] = f"{told}, so no pace of a refinement was measured."
        images = f"{data_name}, {data.train_split}"
        if self.training_set is not None:
            images += f": {len(self.training_set):,} images of {len(self.training_set.classes)} classes"
        refined = [f"{len(self.map_files):,} refined"] if self.map_files else []
        failures = [
            {**vars(failure), "stage": stage_title(failure.stage, None if source == self.own else source)}
            for source, finished in self.chains.items()
            for failure in finished.run.failures()
        ]
        return RunPage(
            name=self.run.directory.name,
            directory=str(self.run.directory),
            summary=" · ".join([f"recipe {provenance.get('recipe', '–')}", images, *refined]),
            written=time.strftime("%Y-%m-%d %H:%M"),
            metrics=metrics,
            own=self.own,
            splits=self.experiment.predicted_splits,
            stages=self.stages,
            data=data_name,
            batch_size=rib.batch_size if isinstance(rib := self.experiment.methods.get("rib"), RIBConfig) else None,
            logs=logs,
            refinements=[self._refinement(name) for name in self.experiment.methods],
            machine=None if machine is None else str(machine),
            reused={stage: str(run.directory) for stage, run in self.reused.items() if stage in metrics.stages()},
            failures=failures,
            gallery=gallery,
            facts=_facts(provenance, self.run),
            configuration=(self.run.directory / EXPERIMENT_FILE).read_text(encoding="utf-8-sig"),
            remarks=self.remarks,
        )

    def _refinement(self, method: str) -> Refinement:
        config, stage = self.experiment.methods[method], refine_stage(method)
        numbers, artifact = self.metrics.refinements.get(method), self.artifacts[stage]
        batch_size = f", B = {config.batch_size}" if isinstance(config, RIBConfig) else ""
        precision = (numbers and numbers.precision) or config.precision
        settings = f"{self.experiment.classifier.backbone}, K = {config.steps}{batch_size}, scales "
        settings += f"{', '.join(f'{scale:g}' for scale in config.scales)}, {precision}"
        files = [map_path(artifact.folder, id) for id in self.map_files] if artifact else []
        return Refinement(
            method=method,
            maps=list(config.maps)[-1],
            stage=stage,
            steps=config.steps,
            settings=settings,
            losses=read_losses(files),
            stop_threshold=config.stop_threshold if isinstance(config, RIBConfig) else None,
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


def _draw(gathered: _Gathered) -> None:
    """Draw the figures of a run: charts always, pictures where the run itself has not drawn them."""
    folder, seeds = gathered.run.directory / FIGURES_FOLDER, gathered.metrics.seeds
    dataset, files = gathered.training_set, gathered.map_files
    draw_curve(seeds, folder / CURVE_FILE)
    if gathered.logs:
        write_png([loss_chart(logs, network) for network, logs in gathered.logs.items()], folder / LOSSES_FILE)
    if (by_step := steps_chart(seeds, "Seed mIoU by refinement step")) is not None:
        write_png([by_step], folder / STEPS_FILE)
    if dataset is None or not files:
        return
    if not (folder / GROWTH_FILE).exists():
        draw_growth(dataset, files, folder / GROWTH_FILE)
    if not (folder / MASKS_FILE).exists():
        made = gathered.masks(confident.NAME, "confident labels") | gathered.masks(pseudo.NAME, "pseudo mask")
        predicted = gathered.masks(evaluate.NAME, "prediction")
        sources = [maps for maps in (gathered.own, *gathered.chains) if gathered.chains[maps].artifact(confident.NAME)]
        shown = [*sources, gathered.own][0]
        blocks = [MaskBlock("training images", dataset, list(files), made, files, shown)]
        for split, each in gathered.predicted.items():
            blocks.append(MaskBlock(f"predicted images ({split})", each, each.ids, predicted))
        draw_masks(blocks, folder / MASKS_FILE)


# --- a sweep -----------------------------------------------------------------------------------------------------


def _sweep_page(directory: Path) -> SweepPage:
    ledger = read_ledger(directory / LEDGER_FILE)
    definition = directory / SWEEP_FILE
    text = definition.read_text(encoding="utf-8-sig", errors="replace") if definition.is_file() else ""
    files = sorted(directory.glob("*.png"), key=lambda file: ([*TITLES, file.name].index(file.name), file.name))
    plots = {}
    for file in files:
        with contextlib.suppress(ImageError):  # it is damaged: the next run of the sweep draws it again
            read_image(file)
            plots[TITLES.get(file.name, file.stem)] = file.read_bytes()
    runs = {trial["id"]: directory / trial["directory"] for trial in ledger["trials"]}
    known = {id: Run.read(run) for id, run in runs.items() if (run / EXPERIMENT_FILE).is_file()}
    return SweepPage(
        directory=str(directory),
        written=time.strftime("%Y-%m-%d %H:%M"),
        ledger=ledger,
        plots=plots,
        failures={id: [vars(failure) for failure in run.failures()] for id, run in known.items()},
        facts=_sweep_facts(directory, ledger, definition),
        configuration=text,
    )


def _sweep_facts(directory: Path, ledger: Mapping[str, Any], definition: Path) -> dict[str, str]:
    base, published = ledger.get("base") or {}, ledger.get("published") or {}
    varied: dict[str, list[str]] = {}
    for trial in ledger["trials"]:
        for key, value in trial["settings"].items():
            varied.setdefault(key, []).append(sweep_rows.setting_text(value))
    told = {key: f"{key}: {', '.join(dict.fromkeys(values))}" for key, values in varied.items()}
    facts = {
        "command": _command(directory, ledger, definition),
        "base": f"{base.get('recipe', '–')}, run in {base.get('directory', '–')}",
        "stages of a trial": ", ".join(ledger["stages"]),
        "varied": "; ".join(told.get(key, f"{key}: ") for key in ledger["axes"]),
        "averaged over": "; ".join(told.get(key, f"{key}: ") for key in ledger["repeats"]),
        "the paper": published.get("text"),
        "directory": str(directory),
    }
    return {name: text for name, text in facts.items() if text}


def _command(directory: Path, ledger: Mapping[str, Any], definition: Path) -> str:
    recipe = (ledger.get("base") or {}).get("recipe")
    try:
        own = read_yaml(definition).get("base")
    except UsageError:  # it is gone or damaged: the base is named then
        own = None
    own = own.get("recipe") if isinstance(own, Mapping) else own
    other: Sequence[str] = ["--base", recipe] if recipe and recipe != own else []
    settings = [part for override in ledger.get("overrides", ()) for part in ("--set", override)]
    source = ledger.get("source", ledger["name"])  # older ledgers have the name alone
    return shlex.join(["ribray", "sweep", source, *other, "--out", str(directory), *settings])
