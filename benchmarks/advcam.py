"""AdvCAM of one image and class on ResNet-50 and EfficientNet-Lite0, against a plain reading, and beside RIB.

    ribray bench advcam

The baseline is `advcam_baseline.py`. At every scale climbs of three steps are timed: the first one, an ordinary one and
the last one, which has no backward pass. A climb of T steps is a first one, T − 2 ordinary ones and a last one; of the
plain reading all steps cost the same, and one is timed. RIB's image is that of benchmark ``refine``.
"""

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from advcam_baseline import Baseline
from harness import figure, now, ratios
from networks import LITE, RESNET, drawn_up
from refine import TIMED_STEPS, ProductWay, device, hardware, image_seconds, largest_difference, load, usable
from torch import Tensor

from ribray import storage
from ribray.config import AdvCAMConfig
from ribray.data.transforms import target_views
from ribray.methods.advcam import AdvCAM, Trace, steps_of

THREADS = 2
NETWORKS = (RESNET, LITE)
PRECISIONS = ("float32", "bfloat16")
BASELINE = "plain reading"
TIMED = 3
"""Steps of a timed climb: the first one, an ordinary one and the last one."""
TIMES = 2.0
"""Required of float32 on a CPU, over the plain reading."""
FIRST_DIFFERENCE = 3e-5
"""What float32 may differ by before the first step; afterwards climbs drift apart."""


def run(*, settings: Sequence[str] = (), size: tuple[int, int] | None = None, rounds: int = 2) -> dict[str, Any]:
    """Return the figures.

    Args:
        settings: of RIB's refinement, on top of recipe ``voc12``.
        size: (height, width) of drawn pictures; default: photographs where there are any.
        rounds: how often each way is timed.
    """
    figures: dict[str, Any] = {}
    config = AdvCAMConfig(method="advcam")
    on_gpu = torch.cuda.is_available()
    for network in NETWORKS:
        seconds, difference, images = _measure(network, config, settings, size, rounds)
        for way, found in seconds.items():
            figures[f"{network}, {way}"] = figure(found, "s")
        for precision in PRECISIONS:
            times = ratios(seconds[f"AdvCAM of a class, {BASELINE}"], seconds[f"AdvCAM of a class, {precision}"])
            required = TIMES if precision == "float32" and not on_gpu else None
            figures[f"{network}, times the {BASELINE}, {precision}"] = figure(times, "", at_least=required)
        figures[f"{network}, AdvCAM of a class over RIB's image, float32"] = figure(
            ratios(seconds["AdvCAM of a class, float32"], seconds["RIB of an image, float32"]), ""
        )
        name = f"{network}, largest relative difference of the first attribution, float32"
        figures[name] = figure(difference, "", at_most=FIRST_DIFFERENCE)
    return {
        "settings": {
            "images": images,
            "iterations": config.iterations,
            "scales": list(config.scales),
            "rounds": rounds,
            **hardware(),
        },
        "figures": figures,
        "notes": [
            f"Seconds of one class of an image: {', '.join(map(str, steps_of(config.iterations, len(config.scales))))} "
            f"steps at scales {', '.join(map(str, config.scales))}, put together from climbs of {TIMED} steps; of the "
            f"{BASELINE} (benchmarks/advcam_baseline.py, float32) from one step at every scale. Decoding and writing "
            "are not in it.",
            "RIB of an image, whatever the number of its classes, is that of benchmark refine by one worker, from the "
            "call to the file, put together from an image of two steps.",
        ],
    }


def _measure(
    network: str, config: AdvCAMConfig, settings: Sequence[str], size: tuple[int, int] | None, rounds: int
) -> tuple[dict[str, list[float]], float, str]:
    """Return each way's seconds, the largest difference before the first step, and what the images are."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = storage.path(temporary)
        workload = drawn_up(folder, network, settings, size)
        short = workload.but(f"refine.iterations={TIMED_STEPS}")
        dataset, ids = workload.dataset, usable(short)
        index = int(np.flatnonzero(dataset.labels[dataset.index(ids[0])])[0])
        model = load(workload)
        views = target_views(dataset.image(ids[0]), config.scales, model.backbone.normalisation)
        baseline = Baseline(load(workload), config, device())
        products = {precision: AdvCAM(model, config, precision, device()) for precision in PRECISIONS}
        rib, steps = ProductWay(short, "float32"), workload.experiment.refine.iterations
        ways: dict[str, Callable[[], float]] = {
            f"AdvCAM of a class, {BASELINE}": partial(_baseline_seconds, baseline, views, index)
        }
        for precision, product in products.items():
            ways[f"AdvCAM of a class, {precision}"] = partial(product_seconds, product, views, index)
        ways["RIB of an image, float32"] = lambda: image_seconds(rib.image(ids[0], ids[1 % len(ids)]), steps)
        difference = _first_difference(products["float32"], baseline, views[:2], index)  # and warms up
        products["bfloat16"].climb(views[1:2], [index])
        found = [[way() for way in ways.values()] for _ in range(rounds)]
        return dict(zip(ways, map(list, zip(*found, strict=True)), strict=True)), difference, workload.images


def _baseline_seconds(baseline: Baseline, views: Sequence[Tensor], index: int) -> float:
    """Return the seconds of all climbs of a class, of which one step at every scale is taken."""
    total = 0.0
    for view, steps in zip(views, steps_of(baseline.config.iterations, len(views)), strict=True):
        began = now()
        baseline.climb([view], 1, index)
        total += steps * (now() - began)
    return total


def product_seconds(product: AdvCAM, views: Sequence[Tensor], index: int) -> float:
    """Return the seconds of all climbs of a class, of which three steps at every scale are taken."""
    config, cams = product.config, product.frozen.cams
    stamps: list[float] = []

    def stamped(images: Tensor) -> Tensor:
        stamps.append(now())
        return cams(images)

    product.config, product.frozen.cams = config.model_copy(update={"iterations": TIMED}), stamped
    try:
        product.climb(views, [index])
    finally:
        product.config, product.frozen.cams = config, cams
    stamps.append(now())
    total = 0.0
    for scale, steps in enumerate(steps_of(config.iterations, len(views))):
        begin, second, last, end = stamps[scale * TIMED : scale * TIMED + TIMED + 1]
        total += (second - begin) + (steps - 2) * (last - second) + (end - last)
    return total


def _first_difference(product: AdvCAM, baseline: Baseline, views: Sequence[Tensor], index: int) -> float:
    """Return how far the attributions of the unchanged views are apart, over the largest value."""
    trace = Trace()
    config = product.config
    product.config = config.model_copy(update={"iterations": 1})
    product.climb(views, [index], trace)
    product.config = config
    expected = [attributions[0].cpu().numpy() for attributions in baseline.climb(views, 1, index)]
    found = [trace.values[scale, index]["cam"][0] for scale in range(len(views))]
    return largest_difference(found, expected)
