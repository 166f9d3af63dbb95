"""A run so small that a test can afford it, in this process."""

import io
import threading
from pathlib import Path

from rich.console import Console

from ribray.commands.run import Request, Result, parse_stages, run_chain
from ribray.config import Experiment, change, load_experiment, to_values, validate_experiment
from ribray.stages import STAGES

TINY = [
    "data.synthetic.train_images=30",
    "data.synthetic.eval_images=6",
    "data.synthetic.image_size=64",
    "classifier.crop_size=64",
    "classifier.resize_long=[48, 80]",
    "classifier.batch_size=4",
    "classifier.epochs=1",
    "classifier.workers=1",
    "refine.iterations=3",
    "refine.batch_size=4",
    "refine.crop_size=64",
    "refine.resize_long=[48, 80]",
    "refine.limit=10",
    "irn.epochs=1",
    "irn.batch_size=4",
    "irn.crop_size=64",
    "irn.workers=1",
    "pseudo.exp_times=3",
    "segmentation.iterations=4",
    "segmentation.batch_size=4",
    "segmentation.crop_size=64",
    "segmentation.hidden=8",
    "segmentation.workers=1",
    "masks.source=rib",
    "cluster.workers=1",
    "tracking.wandb=disabled",
]
MAPS = "classifier,refine,seed"
"""The stages up to localization maps and their seed."""
EVERYTHING = ",".join(STAGES)
BAND = "pseudo.ignore_band=[0.2,0.5]"
RETRAINED = ["segmentation.retrain=true", BAND]


def experiment(settings: list[str] | None = None) -> Experiment:
    """The quickstart's configuration, made tiny."""
    tiny = to_values(load_experiment("quickstart", TINY))  # whose keys of refine are RIB's, whatever method is set
    return validate_experiment(change(tiny, settings or []), "quickstart")


def chain(out: Path, settings: list[str] | None = None, stages: str = MAPS, **options) -> tuple[Result, str]:
    """Run stages in this process, by default up to the seed; return the result and what was printed."""
    request = Request(experiment(settings), "quickstart", out, parse_stages(stages), **options)
    text = io.StringIO()
    result = run_chain(request, Console(file=text, width=300), threading.Event())
    return result, text.getvalue()


def map_bytes(out: Path) -> dict[str, bytes]:
    """The run's map files by name."""
    return {file.name: file.read_bytes() for file in (out / "maps").rglob("*.npz")}
