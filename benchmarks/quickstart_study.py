"""What RIB's parts are worth on the quickstart's world: RIB, B = 1, GAP, BCE, and the map after every step.

    python benchmarks/quickstart_study.py --out runs/study --seeds 0,1,2

One seed draws the world, trains the classifier and draws the extra samples. The variants are forks of one run: same
data, same classifier, other refinement. Runs are kept and continued like any other.
"""

import argparse
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ribray.commands.run import Request, run_chain
from ribray.config import load_experiment
from ribray.data import Dataset, open_dataset
from ribray.evaluation.threshold_curve import ThresholdCurve
from ribray.masks.seed import winner
from ribray.methods.maps import MapRecord, localization_maps
from ribray.runs.run import Run

VARIANTS = {
    "B=1 (no extra samples)": ["refine.batch_size=1"],
    "GAP instead of GNDRP": ["refine.pooling=gap"],
    # Of 5e-4, 1e-3, 2e-3 and 4e-3 the learning rate that serves BCE best.
    "BCE (sigmoid) instead of L_RIB": ["refine.loss=bce_sigmoid", "refine.lr=2.0e-3"],
}
STAGES = ("classifier", "refine", "seed")
IMAGES = 64
"""Refined per seed; the quickstart refines more, for the segmentation network to learn from."""


def measure(out: Path, settings: Sequence[str], variants: Sequence[str] = tuple(VARIANTS)) -> dict[str, float]:
    """Return best seed mIoU (percent) by method: plain CAM, the map after each step, RIB, and the variants."""
    base = _seed_metrics(out / "rib", settings)
    table = {"plain CAM": base["cam"]["miou"]} | by_step(out / "rib") | {"RIB": base["rib"]["miou"]}
    for name in variants:
        fork = out / name.split()[0].lower()
        table[name] = _seed_metrics(out / "rib", [*settings, *VARIANTS[name]], fork)["rib"]["miou"]
    return table


def _seed_metrics(out: Path, settings: Sequence[str], fork: Path | None = None) -> dict:
    return run_quietly(out, [f"refine.limit={IMAGES}", *settings], STAGES, fork)["seed"]


def run_quietly(out: Path, settings: Sequence[str], stages: Sequence[str], fork: Path | None = None) -> dict[str, Any]:
    """Run the quickstart in ``out`` or in its ``fork``, or what is left of it, and return its metrics."""
    experiment = load_experiment("quickstart", ["tracking.wandb=disabled", *settings])
    if fork is not None and fork.exists():  # continue it; it knows its parent
        out, fork = fork, None
    request = Request(experiment, "quickstart", out, stages, fork=fork)
    return run_chain(request, Console(quiet=True), threading.Event()).metrics


def dataset_of(run: Path) -> Dataset:
    """Return the images that a run was made of."""
    data = Run.read(run).read_experiment().data
    return open_dataset(data, data.train_split, next((run / "data").iterdir()))


def by_step(run: Path) -> dict[str, float]:
    """Return the best seed mIoU of the map after every step of a run with ``refine.keep_steps``."""
    experiment = Run.read(run).read_experiment()
    dataset = dataset_of(run)
    curves = [
        ThresholdCurve(len(dataset.classes) + 1, experiment.seed_eval.thresholds)
        for _ in range(experiment.refine.iterations)
    ]
    for file in sorted((run / "maps").rglob("*.npz")):
        record, truth = MapRecord.read(file), dataset.mask(file.stem)
        for step, curve in enumerate(curves):
            maps = localization_maps(record, ("rib", step))
            curve.add(*winner(maps, record.classes), truth)
    return {f"after step {step}": curve.best().miou for step, curve in enumerate(curves, start=1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    seeds = arguments.seeds.split(",")
    tables = {seed: measure(arguments.out / seed, [f"seed={seed}", *arguments.set]) for seed in seeds}
    print(f"{'seed mIoU, percent':32}", *(f"seed {seed:>2}" for seed in seeds), "   mean ± sd")
    for name in tables[seeds[0]]:
        values = [tables[seed][name] for seed in seeds]
        spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
        print(f"{name:32}", *(f"{value:7.1f}" for value in values), f"   {np.mean(values):.1f}{spread}")
    (arguments.out / "study.json").write_text(json.dumps(tables, indent=2) + "\n")


if __name__ == "__main__":
    main()
