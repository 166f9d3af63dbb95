"""What refining in bfloat16 costs: the RIB seed's mIoU on drawn worlds, against float32 image by image.

    python benchmarks/bf16_study.py --out runs/bf16 --seeds 0,1,2 --images 400

One seed draws the world, trains the classifier and draws the extra samples. Its float32 run is forked with
``refine.precision=bfloat16``: same data, same classifier. Runs are kept and continued like any other, and ``--partial``
judges the images that both have refined so far.

The mIoU is that of the best threshold of each. The interval is that of the difference, averaged over the seeds, under a
Poisson bootstrap of the images: in every replicate both precisions see the same images equally often.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from quickstart_study import dataset_of, run_quietly

from ribray.evaluation.bootstrap import COVERAGE, Bootstrap
from ribray.evaluation.threshold_curve import ThresholdCurve
from ribray.masks.seed import winner
from ribray.methods.maps import MapRecord, localization_maps
from ribray.pipeline.maps import finished_ids, map_path
from ribray.runs.run import Run

PRECISIONS = ("float32", "bfloat16")
WITHIN = 0.2
"""Points of mIoU that bfloat16 may lie off float32."""
STAGES = ("classifier", "refine")


@dataclass(frozen=True)
class Comparison:
    """One seed's mIoU in percent by precision, of all images and of every replicate (replicates,)."""

    images: int
    miou: dict[str, float]
    threshold: dict[str, float]
    replicates: dict[str, NDArray[np.float64]]
    largest_difference: float
    """Between two maps of an image, which go up to 1."""

    @property
    def difference(self) -> float:
        """bfloat16's mIoU less float32's, in points."""
        return self.miou["bfloat16"] - self.miou["float32"]

    @property
    def replicate_differences(self) -> NDArray[np.float64]:
        """The same for every replicate (replicates,)."""
        return self.replicates["bfloat16"] - self.replicates["float32"]


def refine(out: Path, seed: str, images: int, settings: Sequence[str]) -> None:
    """Refine one seed's images in both precisions, or what is left of them."""
    common = ["refine.keep_steps=false", f"seed={seed}", f"refine.limit={images}"]
    base, other = (out / seed / precision for precision in PRECISIONS)
    for precision, fork in zip(PRECISIONS, (None, other), strict=True):
        run_quietly(base, [*common, f"refine.precision={precision}", *settings], STAGES, fork)


def compare(out: Path, seed: str) -> Comparison:
    """Judge the images that a seed's two runs have both refined."""
    runs = {precision: out / seed / precision for precision in PRECISIONS}
    experiment = Run.read(runs["float32"]).read_experiment()
    dataset = dataset_of(runs["float32"])
    done = set.intersection(*(finished_ids(run / "maps") for run in runs.values()))
    ids = [id for id in dataset.ids if id in done]
    thresholds = experiment.seed_eval.thresholds
    curves = {precision: ThresholdCurve(len(dataset.classes) + 1, thresholds) for precision in PRECISIONS}
    bootstraps = {precision: Bootstrap(len(dataset.classes) + 1, len(thresholds)) for precision in PRECISIONS}
    one = ThresholdCurve(len(dataset.classes) + 1, thresholds)
    largest = 0.0
    for id in ids:
        truth = dataset.mask(id)
        assert truth is not None
        maps = {}
        for precision, run in runs.items():
            record = MapRecord.read(map_path(run / "maps", id))
            maps[precision] = localization_maps(record)
            one.clear()
            one.add(*winner(maps[precision], record.classes), truth)
            counted = one.to_sparse()
            curves[precision].merge_sparse(counted)
            bootstraps[precision].add(f"{seed}/{id}", curves[precision].overlaps(counted))
        if maps["float32"].size:
            largest = max(largest, float(np.abs(maps["bfloat16"] - maps["float32"]).max()))
    best = {precision: curve.best() for precision, curve in curves.items()}
    return Comparison(
        images=len(ids),
        miou={precision: found.miou for precision, found in best.items()},
        threshold={precision: found.threshold for precision, found in best.items()},
        replicates={precision: bootstraps[precision].miou(found.place) for precision, found in best.items()},
        largest_difference=largest,
    )


def summary(comparisons: dict[str, Comparison]) -> dict[str, object]:
    """Return the figures of all seeds as JSON values."""
    difference = float(np.mean([each.difference for each in comparisons.values()]))
    replicates = np.mean([each.replicate_differences for each in comparisons.values()], axis=0)
    low, high = np.nanpercentile(replicates, [50 - COVERAGE / 2, 50 + COVERAGE / 2])
    return {
        "seeds": {
            seed: {
                "images": each.images,
                "miou": each.miou,
                "threshold": each.threshold,
                "difference": each.difference,
                "largest_difference_of_maps": each.largest_difference,
            }
            for seed, each in comparisons.items()
        },
        "difference": difference,
        "interval": [float(low), float(high)],
        "required": {"within": WITHIN, "met": bool(max(abs(low), abs(high)) <= WITHIN)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/bf16"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--partial", action="store_true", help="refine nothing, judge what there is")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    comparisons = {}
    for seed in arguments.seeds.split(","):
        if not arguments.partial:
            refine(arguments.out, seed, arguments.images, arguments.set)
        if all((arguments.out / seed / precision / "maps").is_dir() for precision in PRECISIONS):
            comparisons[seed] = compare(arguments.out, seed)
    result = summary(comparisons)
    for seed, each in comparisons.items():
        values = "  ".join(f"{name} {each.miou[name]:.3f} at {each.threshold[name]:.2f}" for name in PRECISIONS)
        print(f"seed {seed}: {each.images} images  {values}  difference {each.difference:+.3f}", flush=True)
    low, high = result["interval"]
    print(f"mean difference {result['difference']:+.3f}, {COVERAGE:.0f} % interval {low:+.3f} … {high:+.3f} points")
    print(f"within {WITHIN} points: {'yes' if result['required']['met'] else 'no'}")
    if not arguments.partial:
        (arguments.out / "study.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
