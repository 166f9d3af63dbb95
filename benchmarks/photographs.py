"""CAM against RIB on photographs, with networks trained on ImageNet: which settings serve which network.

    OMP_NUM_THREADS=1 python benchmarks/photographs.py --out photographs.json

The same command goes on where it ended.

The photographs are those of ``../shared/data/voc-mini`` (those of ``coco-mini`` are the same ones), reduced to a long
side of 256. Networks are EfficientNet-Lite0, 1 and 2 where their packages of weights are installed. Four heads give
the 20 classes of VOC from a network's averaged features:

    strongest  ImageNet's own: of the members of a VOC class (`MEMBERS`) the one with the highest logit in the image
    mean       ImageNet's own: the mean of the members' weights, whose logit is the mean of their logits
    bce        fitted to the photographs' labels by binary cross entropy, the features frozen
    ce         the same by cross entropy, against labels that share a probability of one

Judged is a photograph's IoU, the mean over its present classes, at the threshold that is best over all photographs:
each method has its own. Intervals are of a bootstrap over photographs in which both methods see the same ones and
each finds its threshold anew. They do not know that many settings were tried: of twenty without any effect one leaves
its interval.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pictures import VOC_MINI
from PIL import Image
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from ribray.api import RIB
from ribray.config import RIBConfig, load_experiment
from ribray.data import open_dataset
from ribray.data.dataset import IGNORE
from ribray.data.transforms import normalise
from ribray.errors import UsageError
from ribray.evaluation.bootstrap import COVERAGE, image_weights
from ribray.evaluation.threshold_curve import ThresholdCurve
from ribray.masks.seed import winner
from ribray.methods.stop_reasons import EXPLOSION, StopTally, stopped_early
from ribray.networks.adopt import adopt, class_names
from ribray.networks.classifier import Classifier
from ribray.networks.weights import drawn_with, pretrained_network

LONG_SIDE = 256
OUTPUT_STRIDE = 16
THRESHOLDS = np.arange(0.02, 0.9, 0.02).round(2)
CENTRE: dict[str, Any] = {
    "iterations": 6,
    "scales": (1.0,),
    "crop_size": 192,
    "resize_long": (192, 288),
    "batch_size": 1,
    "lr": 1e-4,
    "pooling_threshold": 0.4,
}
NO_TEST = 1.0
"""An explode_ratio that no map passes."""

MEMBERS = {
    "aeroplane": ["airliner", "warplane"],
    "bicycle": ["mountain bike", "bicycle-built-for-two"],
    "bird": [*range(7, 25), *range(80, 101), *range(127, 147)],
    "boat": ["canoe", "fireboat", "lifeboat", "speedboat", "yawl", "catamaran", "schooner", "trimaran", "gondola"],
    "bottle": ["beer bottle", "pop bottle", "water bottle", "wine bottle"],
    "bus": ["minibus", "school bus", "trolleybus"],
    "car": ["beach wagon", "cab", "convertible", "jeep", "limousine", "minivan", "Model T", "racer", "sports car"],
    "cat": [*range(281, 286)],
    "chair": ["barber chair", "folding chair", "rocking chair", "throne"],
    "cow": ["ox"],
    "diningtable": ["dining table"],
    "dog": [*range(151, 269)],
    "horse": ["sorrel"],
    "motorbike": ["moped", "motor scooter"],
    "person": ["ballplayer", "groom", "scuba diver"],
    "pottedplant": ["pot"],
    "sheep": ["ram"],
    "sofa": ["studio couch"],
    "train": ["electric locomotive", "steam locomotive", "bullet train", "passenger car"],
    "tvmonitor": ["television", "screen", "monitor"],
}
"""Classes of ImageNet by VOC class: first names, or indices where they stand in a row. It has no person as such."""


@dataclass(frozen=True)
class Photograph:
    """One photograph, reduced."""

    id: str
    pixels: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    present: list[int]
    """VOC's indices of the classes that its labels name."""


def read_photographs(side: int = LONG_SIDE, count: int | None = None) -> list[Photograph]:
    """Return the photographs that have labels, their long side reduced; their masks by nearest neighbours."""
    found = []
    config = load_experiment("voc12", [f"data.root={VOC_MINI}", "data.train_split=train", "data.eval_split=val"]).data
    for split in (config.train_split, config.eval_split):
        dataset = open_dataset(config, split)
        for id in dataset.ids:
            present = np.flatnonzero(dataset.labels[dataset.index(id)]).tolist()
            truth = dataset.mask(id)
            if present and truth is not None:
                image, mask = Image.fromarray(dataset.image(id)), Image.fromarray(truth)
                image.thumbnail((side, side), Image.Resampling.BICUBIC)
                mask = mask.resize(image.size, Image.Resampling.NEAREST)
                found.append(Photograph(id, np.array(image), np.array(mask), present))
    return found[:count]


# --- heads -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    """A classifier, and which of its classes are members of each class of VOC."""

    classifier: Classifier
    members: list[list[int]]

    @torch.no_grad()
    def chosen(self, photograph: Photograph) -> dict[int, int]:
        """Return VOC's index by the classifier's, of the strongest member of each present class."""
        views = normalise(photograph.pixels, self.classifier.backbone.normalisation)[None]
        logits = self.classifier(views)[0]
        members = [self.members[index] for index in photograph.present]
        strongest = [max(each, key=lambda member: float(logits[member])) for each in members]
        return dict(zip(strongest, photograph.present, strict=True))


def make_head(backbone: str, name: str, photographs: Sequence[Photograph]) -> tuple[Head, str]:
    """Return a network with a head, and where its weights come from.

    Raises:
        UsageError: the weights cannot be had.
        ValueError: a member is no class of ImageNet.
    """
    network, source = pretrained_network(f"timm/tf_efficientnet_{backbone}", OUTPUT_STRIDE)
    own = adopt(network.eval())
    members = member_indices(class_names(network) or ())
    if name == "strongest":
        return Head(own, members), source
    if name == "mean":
        weights = torch.stack([own.head.weight[each].mean(0) for each in members])
    else:
        weights = fit(own, photographs, len(members), name)
    return Head(_with_head(own, weights), [[index] for index in range(len(members))]), source


def member_indices(names: Sequence[str]) -> list[list[int]]:
    """Return ImageNet's indices, of classes of these names, of the members of each class of VOC."""
    first = [name.partition(",")[0] for name in names]
    return [[each if isinstance(each, int) else first.index(each) for each in found] for found in MEMBERS.values()]


def _with_head(classifier: Classifier, weights: Tensor) -> Classifier:
    """Return a classifier on the same features with a head (C, F, 1, 1)."""
    with drawn_with(0):
        other = Classifier(classifier.backbone, len(weights))
    with torch.no_grad():
        other.head.weight.copy_(weights)
    return other.eval()


PENALTY = 1e-3
"""On the mean square of the fitted weights' rows, so that separable labels give finite weights."""


def fit(classifier: Classifier, photographs: Sequence[Photograph], classes: int, loss: str) -> Tensor:
    """Fit a head (C, F, 1, 1) without bias to labels, on averaged features of photographs and their mirror images."""
    rows, labels = [], torch.zeros(2 * len(photographs), classes)
    with torch.no_grad():
        for place, each in enumerate(photographs):
            view = normalise(each.pixels, classifier.backbone.normalisation)
            views = torch.stack([view, view.flip(-1)])
            rows.append(classifier.backbone.trunk(classifier.stem(views)).mean((2, 3)))
            labels[2 * place : 2 * place + 2, each.present] = 1.0
    features = torch.cat(rows)
    weights = torch.zeros(classes, features.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = features @ weights.T
        if loss == "bce":
            value = binary_cross_entropy_with_logits(logits, labels)
        else:
            value = cross_entropy(logits, labels / labels.sum(1, keepdim=True))
        value = value + PENALTY * weights.square().sum(1).mean()
        value.backward()
        return value

    optimizer.step(closure)
    return weights.detach()[:, :, None, None]


# --- judging -----------------------------------------------------------------------------------------------------


def photograph_ious(
    maps: NDArray[np.float32], present: Sequence[int], truth: NDArray[np.uint8]
) -> NDArray[np.float64] | None:
    """Return the mean IoU of the present classes at every threshold, (T,) in percent; None where none has a pixel.

    Args:
        maps: (P, H, W), in the order of ``present``.
        present: (P,) VOC's indices.
        truth: (H, W) mask.
    """
    curve = ThresholdCurve(len(MEMBERS) + 1, THRESHOLDS)
    curve.add(*winner(maps, present), truth)
    classes, intersection, union = curve.overlaps(curve.to_sparse())
    shown = np.isin(classes, np.intersect1d(truth[truth != IGNORE], np.array(present) + 1))
    return 100 * (intersection[shown] / union[shown]).mean(0) if shown.any() else None


def compare(ids: Sequence[str], cam: NDArray[np.float64], rib: NDArray[np.float64]) -> dict[str, Any]:
    """Return both methods' best mean IoU and its threshold, and the difference with its interval, in points.

    Args:
        ids: (N,) of the photographs.
        cam: (N, T) IoU of each photograph at every threshold.
        rib: the same.
    """
    weights = np.stack([image_weights(id) for id in ids], axis=1)  # (replicates, N)
    weights = weights[weights.any(1)]
    found: dict[str, Any] = {}
    replicates = {}
    for name, ious in (("cam", cam), ("rib", rib)):
        means = ious.mean(0)
        found[name] = {"iou": float(means.max()), "threshold": float(THRESHOLDS[means.argmax()])}
        replicates[name] = (weights @ ious / weights.sum(1, keepdims=True)).max(1)
    tail = (100 - COVERAGE) / 2
    low, high = np.percentile(replicates["rib"] - replicates["cam"], [tail, 100 - tail])
    return {**found, "difference": found["rib"]["iou"] - found["cam"]["iou"], "interval": [float(low), float(high)]}


def measure(head: Head, photographs: Sequence[Photograph], **changes: Any) -> dict[str, dict[str, Any]]:
    """Refine all photographs with `CENTRE` changed, with the explosion test ("on") and without ("off").

    Those that the test did not end are the same without it, and are refined once.

    Returns:
        Of both what `compare` says, how refinements ended, and the CPU's seconds of refinement.
    """
    settings = CENTRE | changes
    ribs = {"on": RIB(head.classifier, device="cpu", **settings)}
    ribs["off"] = RIB(head.classifier, device="cpu", **settings, explode_ratio=NO_TEST)
    tallies = {test: StopTally(RIBConfig(iterations=settings["iterations"])) for test in ribs}
    seconds = dict.fromkeys(ribs, 0.0)
    rows: dict[str, list[Any]] = {test: [] for test in ribs}
    members = [head.chosen(each) for each in photographs]
    gallery = [(each.pixels, list(chosen)) for each, chosen in zip(photographs, members, strict=True)]
    for place, (each, chosen) in enumerate(zip(photographs, members, strict=True)):
        extras = gallery[:place] + gallery[place + 1 :] if settings["batch_size"] > 1 else ()
        result, taken = None, 0.0
        for test, rib in ribs.items():
            began = time.process_time()
            if result is None or result.stop_reason == EXPLOSION:
                result = rib(each.pixels, list(chosen), extras=extras)
                taken = time.process_time() - began
            seconds[test] += taken
            tallies[test].add(result.stop_reason, result.steps)
            present = [chosen[index] for index in result.classes]
            ious = [photograph_ious(maps, present, each.truth) for maps in (result.cams, result.maps)]
            if ious[0] is not None:
                rows[test].append((each.id, *ious))
    found = {}
    for test, judged in rows.items():
        ids, cam, maps = zip(*judged, strict=True)
        numbers = compare(ids, np.stack(cam), np.stack(maps))
        found[test] = {"photographs": len(ids), **numbers, **tallies[test].summary(), "seconds": seconds[test]}
    return found


# --- the study ---------------------------------------------------------------------------------------------------

STUDY: list[tuple[str, str, dict[str, Any]]] = [
    *(("lite0", head, {}) for head in ("bce", "mean", "ce")),
    ("lite0", "mean", {"lr": 1e-3}),
    ("lite1", "mean", {}),
    ("lite0", "mean", {"batch_size": 5}),
    ("lite0", "strongest", {}),
    *(("lite0", head, {"lr": 1e-3}) for head in ("bce", "ce", "strongest")),
    *(("lite0", "mean", {"pooling_threshold": tau}) for tau in (0.2, 0.7)),
    *(("lite0", head, {"lr": 1e-5}) for head in ("mean", "bce", "ce")),
    ("lite2", "mean", {}),
    ("lite0", "bce", {"batch_size": 5}),
    *((backbone, "bce", {}) for backbone in ("lite1", "lite2")),
    *((backbone, "mean", {"lr": 1e-3}) for backbone in ("lite1", "lite2")),
]
"""What is looked through: network, head, and changes of `CENTRE`; each with the explosion test and without."""

COLUMNS = ("network", "head", "lr", "tau", "B", "test", "CAM", "RIB", "RIB − CAM", "mean steps", "ended early")


def rows(measured: dict[str, Any]) -> Iterator[list[str]]:
    """Yield a measurement's results as the cells of a table, with the explosion test and without."""
    settings = CENTRE | measured["changes"]
    for test, found in measured["found"].items():
        low, high = found["interval"]
        yield [
            measured["backbone"],
            measured["head"],
            f"{settings['lr']:g}",
            f"{settings['pooling_threshold']:g}",
            f"{settings['batch_size']}",
            test,
            *(f"{found[method]['iou']:.1f} at {found[method]['threshold']:.2f}" for method in ("cam", "rib")),
            f"{found['difference']:+.1f} ({low:+.1f} … {high:+.1f})",
            f"{found['mean_steps']:.1f}",
            stopped_early(found["stop_reasons"]) or "none",
        ]


def study(out: Path, photographs: Sequence[Photograph], plan: Sequence[tuple[str, str, dict[str, Any]]]) -> None:
    """Look through a plan, print two rows for each entry, and write what is known after each; go on where it ended."""
    known = json.loads(out.read_text())["results"] if out.exists() else []
    print("|", " | ".join(COLUMNS), "|")
    print("|", " | ".join("---" for _ in COLUMNS), "|")
    for backbone, name, changes in plan:
        entry = {"backbone": backbone, "head": name, "changes": changes}
        measured = next((one for one in known if {key: one[key] for key in entry} == entry), None)
        if measured is None:
            try:
                head, source = make_head(backbone, name, photographs)
            except UsageError as error:
                print(error)
                continue
            measured = {**entry, "weights": source, "found": measure(head, photographs, **changes)}
            known.append(measured)
            out.write_text(json.dumps({"centre": CENTRE, "results": known}, indent=2) + "\n")
        for cells in rows(measured):
            print("|", " | ".join(cells), "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("photographs.json"))
    torch.set_num_threads(1)
    study(parser.parse_args().out, read_photographs(), STUDY)


if __name__ == "__main__":
    main()
