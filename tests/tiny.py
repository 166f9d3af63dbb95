"""A run so small that a test can afford it, in this process."""

import io
import threading
from pathlib import Path

from rich.console import Console

from ribray.config import load_experiment
from ribray.stages.chain import Request, Result, parse_stages, run_chain

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
    "tracking.wandb=disabled",
]


def chain(out: Path, settings: list[str] | None = None, stages: str | None = None, **options) -> tuple[Result, str]:
    """Run stages in this process; return the result and what was printed."""
    experiment = load_experiment("quickstart", [*TINY, *(settings or [])])
    request = Request(experiment, "quickstart", out, parse_stages(stages), **options)
    text = io.StringIO()
    result = run_chain(request, Console(file=text, width=300), threading.Event())
    return result, text.getvalue()


def map_bytes(out: Path) -> dict[str, bytes]:
    """The run's map files by name."""
    return {file.name: file.read_bytes() for file in (out / "maps").rglob("*.npz")}
