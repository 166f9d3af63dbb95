"""What an image costs by method, network, precision and setting: seconds, memory, and what a plan says of it.

    ribray bench cost

Each is measured in a process of its own, on photographs of 375×500. RIB's image is put together from one of three steps
as in benchmark ``refine``, AdvCAM's class from climbs of three steps as in benchmark ``advcam``. docs/cost.md says what
comes of it.
"""

import resource
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from advcam import product_seconds
from harness import figure, in_processes, serve
from networks import LITE, RESNET, drawn_up
from refine import ProductWay, device, hardware, image_seconds, load, usable

from ribray import storage
from ribray.config import AdvCAMConfig
from ribray.data.transforms import target_views
from ribray.methods.advcam import AdvCAM

THREADS = 2
PRECISIONS = ("float32", "bfloat16")
TIMED = 3
"""Steps of a timed image: two ordinary ones and the last one."""
RIB = {
    "RIB, B = 20": (),
    "RIB, B = 5": ("refine.batch_size=5",),
    "RIB, B = 1": ("refine.batch_size=1",),
    "RIB, B = 20, crops of 256²": ("refine.crop_size=256", "refine.resize_long=[160, 320]"),
}
"""Settings of RIB, on top of recipe ``voc12``; the steps, K, are told apart below."""
STEPS = (10, 5)
ADVCAM = "AdvCAM of a class"
FACTOR = 1.5
"""A plan is to be at most so many times too long or too short."""


def run(
    *,
    settings: Sequence[str] = (),
    size: tuple[int, int] | None = None,
    networks: Sequence[str] = (RESNET, LITE),
    rounds: int = 2,
) -> dict[str, Any]:
    """Return the figures.

    Args:
        settings: of the refinement, on top of recipe ``voc12`` and those of `RIB`.
        size: (height, width) of drawn pictures; default: photographs where there are any.
        networks: which are measured.
        rounds: images that are timed.
    """
    figures: dict[str, Any] = {}
    for network in networks:
        for precision in PRECISIONS:
            for name in (*RIB, ADVCAM):
                options = {"settings": [*settings], "size": size, "rounds": rounds}
                (own,) = in_processes(measured, network=network, precision=precision, name=name, **options)
                figures |= {f"{network}, {precision}, {each}": found for each, found in own.items()}
    return {
        "settings": {"rounds": rounds, **hardware()},
        "figures": figures,
        "notes": [
            "Seconds of one worker of two threads. Memory is the highest of its process, Python and torch included.",
            "The plan is what `ribray run --plan` would say of such an image, over the seconds measured.",
        ],
    }


def measured(
    network: str, precision: str, name: str, settings: Sequence[str], size: tuple[int, int] | None, rounds: int
) -> dict[str, Any]:
    """Return the figures of a method, or of a setting of RIB, on a network."""
    with tempfile.TemporaryDirectory() as temporary:
        workload = drawn_up(storage.path(temporary), network, [*RIB.get(name, ()), *settings], size)
        experiment = workload.experiment
        dataset, ids = workload.dataset, usable(workload)
        area = float(np.prod(dataset.size(ids[0])))
        found: dict[str, list[float]] = {}
        if name == ADVCAM:
            config = AdvCAMConfig(method="advcam")
            model = load(workload)
            views = target_views(dataset.image(ids[0]), config.scales, model.backbone.normalisation)
            method = AdvCAM(model, config, precision, device())
            present = [int(np.flatnonzero(dataset.labels[dataset.index(ids[0])])[0])]
            method.climb(views[1:2], present)
            found[ADVCAM] = [product_seconds(method, views, present[0]) for _ in range(rounds)]
            passes = {ADVCAM: AdvCAM.cost(config, area, 1.0, 0)}
        else:
            way = ProductWay(workload.but(f"refine.iterations={TIMED}"), precision)
            method = way.worker._method
            way.image(ids[0], ids[1])
            images = [way.image(ids[turn % len(ids)], ids[(turn + 1) % len(ids)]) for turn in range(1, 1 + rounds)]
            passes = {}
            for steps in STEPS:
                of_steps = f"{name}, K = {steps}"
                found[of_steps] = [image_seconds(image, steps) for image in images]
                config = experiment.refine.model_copy(update={"iterations": steps})
                passes[of_steps] = type(method).cost(config, area, 1.0, config.batch_size - 1)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        unit_costs = method.time_passes()
        figures: dict[str, Any] = {}
        for each, seconds in found.items():
            figures[each] = figure(seconds, "s")
            planned = float(np.dot(passes[each], unit_costs)) / float(np.median(seconds))
            figures[f"{each}, plan over measured"] = figure(planned, "", at_least=1 / FACTOR, at_most=FACTOR)
        figures[f"{name}, memory"] = figure(memory, "GB")
        return figures


if __name__ == "__main__":
    serve(globals())
