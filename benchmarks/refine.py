"""The refinement of one image by one worker in this process, against a plain reading of the method.

    ribray bench refine [--full]

The baseline is `refine_baseline.py`. Set-up, an ordinary step and the last step are timed apart, on images of K = 2
steps; an image of K = 10 steps costs a set-up, nine ordinary steps and a last one. With --full, whole images of K = 10
steps are run as well, once each.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any
from unittest import mock

import numpy as np
import torch
from clock import Clock
from harness import figure, not_measured, ratios
from refine_baseline import Baseline
from refinements import Workload, prepare

from ribray import storage
from ribray.methods import worker as product
from ribray.methods.extras import ExtraOrder
from ribray.methods.maps import MapRecord, map_path
from ribray.methods.rib import Refiner
from ribray.methods.worker import RefineWorker
from ribray.networks import Classifier, build_classifier
from ribray.networks.engine import Kind
from ribray.networks.weights import load_classifier, save_network

THREADS = 2
ITEM = ["classifier.backbone=resnet50"]
"""The recipe's own refinement: B = 20, K = 10, four scales, crops of 512²."""
TIMED_STEPS = 2
"""Steps of a timed image: an ordinary one and the last one."""
RESIDUAL_GAIN = 0.25
"""Of random weights: with 1 the signal would grow from block to block, with 0 the blocks would do nothing."""
WAYS = ("baseline", "float32", "bfloat16")
PARTS = ("set-up", "ordinary step", "last step")
PHASES = ("decode", "stem", "forward", "backward", "update", "write", "rest")
TIMES = "times the baseline's images/s"
TIMES_FLOAT32, TIMES_AMX, TIMES_GPU = 1.2, 3.5, 10.0
"""Required of float32 and of bfloat16 on a CPU with amx_bf16, and of bfloat16 on an H100."""
GPU_IMAGES, GPU_SECONDS, GPU_BUSY = 50, 0.35, 95.0
PROFILED_AT_ONCE = 5
"""Images of one profile: its record of every kernel is held in memory."""
WAITS = ("cudaDeviceSynchronize", "cudaStreamSynchronize", "cudaEventSynchronize")


@dataclass
class Timed:
    """What one image took in seconds: by part, and by phase within each part, unless its steps were recorded."""

    whole: float
    parts: dict[str, float]
    phases: dict[str, dict[str, float]]


class Way:
    """One way to refine: an image's seconds from the call to the file, split where steps begin."""

    def __init__(self) -> None:
        self.clock = Clock()
        self._stamps: list[tuple[float, dict[str, float]]] = []

    def image(self, id: str, upcoming: str) -> Timed:
        """Refine an image; the next one is ``upcoming``."""
        self._stamps = []
        self.stamp()
        with self.clock.phase("rest"):
            self.work(id, upcoming)
        self.stamp()
        whole = self._stamps[-1][0] - self._stamps[0][0]
        if len(self._stamps) == 2:
            return Timed(whole, {}, {})
        begin, *steps, last, end = self._stamps
        first = steps[0] if steps else last
        spans = ((begin, first, 1), (first, last, max(len(steps), 1)), (last, end, 1))
        return Timed(
            whole,
            {part: (to[0] - since[0]) / times for part, (since, to, times) in zip(PARTS, spans, strict=True)},
            {
                part: {phase: (to[1].get(phase, 0.0) - since[1].get(phase, 0.0)) / times for phase in PHASES}
                for part, (since, to, times) in zip(PARTS, spans, strict=True)
            },
        )

    def stamp(self) -> None:
        """Note the time: an image begins or ends here, or a step begins."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        with self.clock.phase("rest"):  # what is open until here is added up
            self._stamps.append((perf_counter(), dict(self.clock.seconds)))

    def work(self, id: str, upcoming: str) -> None:
        """Refine an image and write its maps, with a stamp where a step begins."""
        raise NotImplementedError

    def result(self, id: str) -> list[np.ndarray]:
        """Return the last image's summed maps, one for each scale."""
        raise NotImplementedError


class BaselineWay(Way):
    """`refine_baseline.Baseline`."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        config = workload.experiment.refine
        self._baseline = Baseline(load(workload), workload.dataset, config, device(), self.clock)
        self._folder = workload.folder / "baseline"
        self._sums: list[torch.Tensor] = []

    def work(self, id: str, upcoming: str) -> None:
        self._sums, _ = self._baseline.refine(id, self.stamp)
        self._baseline.write(self._folder / f"{id}.npz", self._sums)

    def result(self, id: str) -> list[np.ndarray]:
        return [maps.cpu().numpy() for maps in self._sums]


class ProductWay(Way):
    """`RefineWorker` in one precision, on the engine of its choice or a given one; the next image is being loaded.

    Where its steps are ``recorded``, as a GPU's usually are, they cannot be told apart.
    """

    def __init__(self, workload: Workload, precision: str, engine: Kind | None = None, recorded: bool = False) -> None:
        super().__init__()
        self._folder = workload.folder / (f"{engine} {precision}" if engine else precision)
        arguments = workload.arguments() | {"precision": precision, "folder": self._folder}
        self.worker = RefineWorker(**arguments)
        if engine is not None:
            chosen = self.worker._method
            self.worker._method = Refiner(chosen.classifier, chosen.config, precision, chosen.device, engine)
        self.worker._method.recorder.is_on &= recorded
        if not self.worker._method.recorder.is_on:
            self._watch()

    def work(self, id: str, upcoming: str) -> None:
        self.worker.prefetch(upcoming)
        with mock.patch.object(product, "write_maps", self.clock.around("write", product.write_maps)):
            self.worker.process(id)

    def result(self, id: str) -> list[np.ndarray]:
        return MapRecord.read(map_path(self._folder, id), id).maps["rib"]

    def _watch(self) -> None:
        """Have the worker's own code tell the clock where it is."""
        around = self.clock.around
        worker: Any = self.worker
        refiner, network = worker._method, worker._method.network
        see = refiner._see_target

        def see_target(*arguments: Any, **options: Any) -> Any:
            self.stamp()
            return see(*arguments, **options)

        refiner._see_target = see_target
        network.stem, network.cams = around("stem", network.stem), around("forward", network.cams)
        refiner._learn = around("backward", refiner._learn)  # what is left of it after the phases within
        refiner._update = around("update", refiner._update)
        refiner.refine = around("rest", refiner.refine)
        prepare = worker._prepare

        def prepare_watched(item: str) -> Any:
            preparation = prepare(item)
            preparation.batch = around("decode", preparation.batch)
            return preparation

        worker._prepare = prepare_watched
        worker.process = around("decode", worker.process)  # what is left of it: waiting for the target's pixels


def run(
    full: bool = False,
    *,
    item: Sequence[str] | None = None,
    size: tuple[int, int] | None = None,
    rounds: int = 5,
    gpu_images: int = GPU_IMAGES,
) -> dict[str, Any]:
    """Return the figures.

    Args:
        full: run whole images, too.
        item: settings of the refinement; default: `ITEM`.
        size: (height, width) of drawn pictures; default: photographs where there are any.
        rounds: how often each way refines an image of two steps.
        gpu_images: images of the profile on a GPU.
    """
    with tempfile.TemporaryDirectory() as temporary:
        chosen = list(ITEM if item is None else item)
        whole = prepare(storage.path(temporary), chosen, size, in_turn=True)
        give_signal(whole)
        steps = whole.experiment.refine.iterations
        short = whole.but(f"refine.iterations={TIMED_STEPS}")
        ids = usable(short)
        ways = {way: make(short, way) for way in WAYS}
        difference = differences(ways, ids)
        timed = time_parts(ways, ids, rounds)
        seconds = {way: [image_seconds(each, steps) for each in found] for way, found in timed.items()}
        figures = {
            f"{part}, {way}": figure([image.parts[part] for image in images], "s")
            for part in PARTS
            for way, images in timed.items()
        }
        for way, found in seconds.items():
            figures[f"image of K = {steps}, {way}"] = figure(found, "s")
        figures |= times_figures(seconds)
        figures["bfloat16 over float32, images/s"] = figure(ratios(seconds["float32"], seconds["bfloat16"]), "")
        figures["largest relative difference, float32"] = figure(difference["float32"], "", at_most=1e-5)
        figures["largest relative difference, bfloat16"] = figure(difference["bfloat16"], "")
        figures |= phase_figures(ways, ids, timed)
        del ways
        if full:
            figures |= whole_images(whole, ids)
        figures |= on_gpu(whole, ids, gpu_images)
    refine = short.experiment.refine
    return {
        "settings": {
            "images": short.images,
            "backbone": short.experiment.classifier.backbone,
            "batch_size": refine.batch_size,
            "iterations": steps,
            "scales": list(refine.scales),
            "crop_size": refine.crop_size,
            "rounds": rounds,
            **hardware(),
        },
        "figures": figures,
        "notes": [
            "The baseline is benchmarks/refine_baseline.py: docs/method.md, section 2, as it stands, in contiguous "
            "float32, with the same weights, photographs and crops.",
            f"An image is a set-up, {steps - 1} ordinary steps and a last one, timed on images of {TIMED_STEPS} steps. "
            "Pictures are labelled in turn with one of 20 classes each, whatever they show, so that every one has its "
            "B − 1 extra samples. All ways take turns; a ratio is one round's. While a product's image is refined, the "
            "next one is decoded, on the same cores.",
            "The product's backward holds the loss and the pooling of the extra samples; decode is waiting for pixels "
            "and normalising them, which on a CPU is no measure of decoding: threads do that meanwhile.",
            "The differences are the largest of all summed maps, over the largest value of a map, of one image "
            f"after {TIMED_STEPS} steps.",
        ],
    }


def differences(ways: Mapping[str, Way], ids: Sequence[str]) -> dict[str, float]:
    """Return how far the maps of an image are off the first way's, and warm everything up by it."""
    with without_tf32():
        for way in ways.values():
            way.image(ids[0], ids[1 % len(ids)])
    first, *others = ways
    expected = ways[first].result(ids[0])
    return {name: largest_difference(ways[name].result(ids[0]), expected) for name in others}


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Keep a GPU from rounding to TF32, as torch does in convolutions; the baseline is timed as torch has it."""
    parts = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [part.allow_tf32 for part in parts]
    try:
        for part in parts:
            part.allow_tf32 = False
        yield
    finally:
        for part, allowed in zip(parts, before, strict=True):
            part.allow_tf32 = allowed


def time_parts(ways: Mapping[str, Way], ids: Sequence[str], rounds: int) -> dict[str, list[Timed]]:
    """Return what the image of every round took; each round every way refines the same one."""
    found: dict[str, list[Timed]] = {way: [] for way in ways}
    for turn in range(1, 1 + rounds):
        for name, way in ways.items():
            found[name].append(way.image(ids[turn % len(ids)], ids[(turn + 1) % len(ids)]))
    return found


def times_figures(seconds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Return how many times the baseline's images a second each precision makes, beside what is required of it."""
    times = {way: ratios(seconds["baseline"], seconds[way]) for way in WAYS[1:]}
    units = bfloat16_units()
    # On a GPU steps are queued one by one here, which is not how it works: `python -m benchmarks gpu` has the figure.
    required = TIMES_AMX if units == "amx_bf16" and not torch.cuda.is_available() else None
    figures = {
        f"{TIMES}, float32": figure(
            times["float32"], "", at_least=None if torch.cuda.is_available() else TIMES_FLOAT32
        ),
        f"{TIMES}, bfloat16 with {units}": figure(times["bfloat16"], "", at_least=required),
    }
    if not torch.cuda.is_available() and units != "amx_bf16":
        reason = "This machine has no amx_bf16; `ribray bench refine` measures it where there is."
        figures[f"{TIMES}, bfloat16 with amx_bf16"] = not_measured("", reason, at_least=TIMES_AMX)
    return figures


def phase_figures(ways: Mapping[str, Way], ids: Sequence[str], timed: Mapping[str, Sequence[Timed]]) -> dict[str, Any]:
    """Return the seconds of each phase of an ordinary step, and those of writing.

    On a GPU a phase is over when its work is done, which has to be waited for, on images of their own.
    """
    if torch.cuda.is_available():
        for way in ways.values():
            way.clock.waits = True
        timed = time_parts(ways, ids, max(map(len, timed.values())))
    figures = {
        f"ordinary step, {phase}, {way}": figure([image.phases["ordinary step"][phase] for image in images], "s")
        for phase in PHASES
        if phase != "write"
        for way, images in timed.items()
    }
    return figures | {
        f"write, {way}": figure([image.phases["last step"]["write"] for image in images], "s")
        for way, images in timed.items()
    }


def whole_images(workload: Workload, ids: Sequence[str]) -> dict[str, Any]:
    """Return the seconds of one image with all its steps, for every way."""
    found = {}
    for way in WAYS:
        image = make(workload, way).image(ids[0], ids[1 % len(ids)])
        steps = workload.experiment.refine.iterations
        found[way] = image_seconds(image, steps)
    figures = {f"whole image, {way}": figure(seconds, "s") for way, seconds in found.items()}
    for way in WAYS[1:]:
        figures[f"whole image, times the baseline, {way}"] = figure(found["baseline"] / found[way], "")
    return figures


def on_gpu(workload: Workload, ids: Sequence[str], images: int) -> dict[str, Any]:
    """Return seconds an image, the share of time the GPU computes, and how often the host waits for it in an image.

    Each is taken over images that follow one another in one worker, with the next ones being loaded.
    """
    names = {
        "bfloat16 on a GPU, an image": ("s", {"at_most": GPU_SECONDS}),
        "bfloat16 on a GPU, busy": ("%", {"at_least": GPU_BUSY}),
        "bfloat16 on a GPU, waits of the host in an image": ("", {"at_most": None}),
    }
    if not torch.cuda.is_available():
        reason = "This machine has no GPU; `ribray bench refine` measures it where there is one."
        return {name: not_measured(unit, reason, **bound) for name, (unit, bound) in names.items()}
    worker, seconds = one_after_another(workload, ids, images)
    busy = span = 0.0
    waits = 0
    for first in range(0, images, PROFILED_AT_ONCE):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            in_turn(worker, ids, first, PROFILED_AT_ONCE)
        computing, lasted, waited = gpu_use(profile)
        busy, span, waits = busy + computing, span + lasted, waits + waited
    profiled = -(-images // PROFILED_AT_ONCE) * PROFILED_AT_ONCE
    values = (seconds, 100 * busy / span, waits / profiled)
    return {
        name: figure(value, unit, **bound) for (name, (unit, bound)), value in zip(names.items(), values, strict=True)
    }


def one_after_another(workload: Workload, ids: Sequence[str], images: int) -> tuple[RefineWorker, float]:
    """Return a worker in bfloat16 that has warmed up, and its seconds an image over so many."""
    worker = RefineWorker(**workload.arguments() | {"precision": "bfloat16", "folder": workload.folder / "gpu"})
    in_turn(worker, ids, 0, 3)
    began = perf_counter()
    in_turn(worker, ids, 3, images)
    return worker, (perf_counter() - began) / images


def in_turn(worker: RefineWorker, ids: Sequence[str], first: int, count: int) -> None:
    """Refine images one after the other, while the next two are being loaded."""
    for place in range(first, first + count):
        for upcoming in (place + 1, place + 2):
            worker.prefetch(ids[upcoming % len(ids)])
        worker.process(ids[place % len(ids)])


def gpu_use(profile: torch.profiler.profile) -> tuple[float, float, int]:
    """Return the time in which the GPU computes, that from its first work to its last, and the host's waits."""
    events = profile.events()
    assert events is not None
    on_device = sorted(
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    busy, reached = 0.0, on_device[0][0]
    for start, end in on_device:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return busy, reached - on_device[0][0], sum(event.name in WAITS for event in events)


# --- what is measured --------------------------------------------------------------------------------------------


def device() -> torch.device:
    """Return where the worker computes."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def hardware() -> dict[str, str]:
    """Return what a result's settings say of it."""
    return {"device": str(device()), "bfloat16 units": bfloat16_units()}


def bfloat16_units() -> str:
    """Return what multiplies bfloat16 matrices here."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    if torch.cpu._is_amx_tile_supported():
        return "amx_bf16"
    return "avx512_bf16" if torch.cpu._is_avx512_bf16_supported() else "no units for it"


def usable(workload: Workload) -> list[str]:
    """Return images of one size; each has as many extra samples as a step takes, or the ways would differ in work."""
    config, dataset = workload.experiment.refine, workload.dataset
    order = ExtraOrder(dataset.ids, dataset.labels, config.seed)
    ids = workload.ids()
    for id in ids:
        present = np.flatnonzero(dataset.labels[dataset.index(id)]).tolist()
        enough = bool(present) and len(order.candidates(id, present)) >= config.batch_size - 1
        assert enough, f"{id} has too few extra samples to be measured with"
    return ids


def make(workload: Workload, way: str) -> Way:
    """Return one way to refine."""
    return BaselineWay(workload) if way == "baseline" else ProductWay(workload, way)


def image_seconds(image: Timed, steps: int) -> float:
    """Return what an image of so many steps costs."""
    return image.parts["set-up"] + (steps - 1) * image.parts["ordinary step"] + image.parts["last step"]


def largest_difference(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Return the largest difference of two images' maps, relative to the largest value of the map."""
    assert all(other.max() > 0 for other in expected), "a map that is zero everywhere compares with anything"
    return max(float(np.abs(one - other).max() / other.max()) for one, other in zip(found, expected, strict=True))


def give_signal(workload: Workload) -> None:
    """Give random weights residual branches that do something, without growing the signal, and maps above zero."""
    model = load(workload)
    for block in (*model.backbone.stem_blocks(), *model.backbone.trunk_blocks()):
        torch.nn.init.constant_(block.main[-1][1].weight, RESIDUAL_GAIN)
    model.head.weight.data.abs_()
    save_network(model, workload.folder / "weights.safetensors")


def load(workload: Workload) -> Classifier:
    """Return the classifier that every way starts from."""
    config = workload.experiment.classifier
    model = build_classifier(config.backbone, len(workload.dataset.classes), config.output_stride)
    load_classifier(model, workload.folder / "weights.safetensors")
    return model
