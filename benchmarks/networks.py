"""The refinement of one image by network, engine and precision, each against a plain reading on the same network.

    ribray bench networks

As benchmark ``refine``: an image is a set-up, nine ordinary steps and a last one, timed on images of two steps, and all
ways take turns. B = 20, K = 10, four scales, crops of 512², photographs of 375×500. ResNet-50 has random weights,
EfficientNet-Lite0 those of its package.
"""

import gc
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from harness import figure, in_processes, ratios, serve
from refine import (
    TIMED_STEPS,
    BaselineWay,
    ProductWay,
    Way,
    differences,
    give_signal,
    hardware,
    image_seconds,
    load,
    time_parts,
    usable,
)
from refinements import Workload, prepare

from ribray import storage
from ribray.machine import usable_cores
from ribray.networks.engine import Kind
from ribray.networks.weights import load_backbone_weights, save_network

THREADS = 2
RESNET, LITE = "resnet50", "timm/tf_efficientnet_lite0"
ENGINES: dict[str, tuple[Kind, ...]] = {RESNET: ("plain", "folded"), LITE: ("plain",)}
"""The folded engine takes residual networks only."""
SHARE_STEPS = 3
"""An image begins with fresh memory, which its first step waits for: of two steps that would count nine times."""
PRECISIONS = ("float32", "bfloat16")
BASELINE = "plain reading"
LITE_SHARE = 0.25
"""Of ResNet-50's seconds, each at its fastest in float32: the most that EfficientNet-Lite0 may take."""


def run(*, settings: Sequence[str] = (), size: tuple[int, int] | None = None, rounds: int = 3) -> dict[str, Any]:
    """Return the figures.

    Args:
        settings: of the refinement, on top of recipe ``voc12``.
        size: (height, width) of drawn pictures; default: photographs where there are any.
        rounds: how often each way refines an image of two steps.
    """
    figures: dict[str, Any] = {}
    seconds: dict[str, list[float]] = {}
    for network in ENGINES:
        found, apart, steps, images = _measure(network, settings, size, rounds)
        for way, each in found.items():
            figures[f"{network}, {way}"] = figure(each, "s")
        for way in list(found)[1:]:
            figures[f"{network}, {way}, times the plain reading"] = figure(ratios(found[BASELINE], found[way]), "")
            figures[f"{network}, {way}, largest relative difference"] = figure(
                apart[way], "", at_most=1e-5 if way.endswith("float32") else None
            )
        seconds |= {f"{network}, {way}": each for way, each in found.items()}
    for precision in PRECISIONS:
        folded, plain = (seconds[f"{RESNET}, {engine}, {precision}"] for engine in ("folded", "plain"))
        figures[f"{RESNET}, folded over plain, {precision}, images/s"] = figure(ratios(plain, folded), "")
    figures[f"{LITE}, share of {RESNET}'s seconds"] = figure(share(settings, size, rounds), "", at_most=LITE_SHARE)
    return {
        "settings": {"images": images, "iterations": steps, "rounds": rounds, **hardware()},
        "figures": figures,
        "notes": [
            "Seconds of an image; the plain reading is benchmarks/refine_baseline.py in float32, on the same network, "
            "weights, photographs and crops. The share is taken in float32 by workers of one thread for each core, at "
            "work at the same time, as a pool's are; both networks take turns.",
            f"The differences are those of the summed maps of one image after {TIMED_STEPS} steps from the plain "
            "reading's, over the largest value.",
        ],
    }


def _measure(
    network: str, settings: Sequence[str], size: tuple[int, int] | None, rounds: int
) -> tuple[dict[str, list[float]], dict[str, float], int, str]:
    """Return each way's seconds an image, how far its maps are off, the steps of an image, and what the images are."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = storage.path(temporary)
        workload = drawn_up(folder, network, settings, size)
        short = workload.but(f"refine.iterations={TIMED_STEPS}")
        ids, steps = usable(short), workload.experiment.refine.iterations
        ways: dict[str, Way] = {BASELINE: BaselineWay(short)}
        for engine in ENGINES[network]:
            for precision in PRECISIONS:
                ways[f"{engine}, {precision}"] = ProductWay(short, precision, engine)
        apart = differences(ways, ids)
        timed = time_parts(ways, ids, rounds)
        del ways
        gc.collect()
        found = {name: [image_seconds(image, steps) for image in images] for name, images in timed.items()}
        return found, apart, steps, workload.images


def share(settings: Sequence[str], size: tuple[int, int] | None, rounds: int) -> list[float]:
    """Return what part of ResNet-50's seconds EfficientNet-Lite0 takes in the workers of a pool.

    On a CPU these are as many as there are cores, of one thread each, at work at the same time.
    """
    if torch.cuda.is_available():
        return own_share(settings, size, rounds)
    options = {"settings": [*settings], "size": size, "rounds": rounds}
    found = in_processes(own_share, usable_cores(), threads=1, **options)
    return [each for of_process in found for each in of_process]


def own_share(settings: Sequence[str], size: tuple[int, int] | None, rounds: int) -> list[float]:
    """Return the share in this process, of every round; both networks take turns, each on its engine."""
    with tempfile.TemporaryDirectory() as temporary:
        ways: dict[str, Way] = {}
        for network in (RESNET, LITE):
            folder = storage.path(temporary) / network.replace("/", "-")
            workload = drawn_up(folder, network, settings, size)
            steps = workload.experiment.refine.iterations
            short = workload.but(f"refine.iterations={SHARE_STEPS}")
            ways[network], ids = ProductWay(short, "float32", ENGINES[network][-1]), usable(short)
            ways[network].image(ids[0], ids[1 % len(ids)])
        timed = time_parts(ways, ids, rounds)
    seconds = {network: [image_seconds(image, steps) for image in images] for network, images in timed.items()}
    return ratios(seconds[LITE], seconds[RESNET])


def drawn_up(folder: Path, network: str, settings: Sequence[str], size: tuple[int, int] | None) -> Workload:
    """Return images to refine on a network whose maps are neither zero nor without end."""
    workload = prepare(folder, [f"classifier.backbone={network}", *settings], size, in_turn=True)
    if network != LITE:
        give_signal(workload)
        return workload
    model = load(workload)
    load_backbone_weights(model.backbone, "imagenet")
    torch.nn.init.uniform_(model.head.weight, 0.0, 0.01)
    save_network(model, workload.folder / "weights.safetensors")
    return workload


if __name__ == "__main__":
    serve(globals())
