"""The parts of `gpu` that refine: engines, determinism, seconds of an image, how busy the GPU is, several workers."""

import contextlib
import functools
import gc
import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import figure, not_measured, ratios
from networks import BASELINE, ENGINES, LITE, PRECISIONS, RESNET
from pictures import SMALL
from refine import (
    GPU_BUSY,
    GPU_SECONDS,
    TIMED_STEPS,
    TIMES_GPU,
    BaselineWay,
    ProductWay,
    Way,
    differences,
    give_signal,
    largest_difference,
    load,
    on_gpu,
    one_after_another,
    time_parts,
    usable,
)
from refinements import Processes, Workload, images_per_second, prepare, seconds_per_image
from torch import nn

from ribray.data.transforms import normalise
from ribray.methods.maps import map_path
from ribray.networks.engine import Kind
from ribray.networks.weights import save_network

Yields = str | tuple[str, dict[str, Any]]
"""A note, or a figure and its name."""
SMALL_SIZE = (48, 64)
BUSY_IMAGES = 20
NEW_SIZES = 6
WORKERS = (1, 2, 3)
"""On one GPU."""


class LeftOut(Exception):
    """A part lacks something; the text says what."""


@dataclass(frozen=True)
class Bench:
    """What is measured with: images to refine on each network, drawn and drawn up once."""

    folder: Path
    small: bool
    golden: Path
    rounds: int

    @property
    def resnet(self) -> str:
        return "resnet18" if self.small else RESNET

    @property
    def networks(self) -> dict[str, tuple[Kind, ...]]:
        """The networks and their engines."""
        return {self.resnet: ENGINES[RESNET], LITE: ENGINES[LITE]}

    def workload(self, network: str) -> Workload:
        return _workload(self.folder, network, self.small)

    def short(self, network: str) -> Workload:
        """Return the same images, refined in `TIMED_STEPS`."""
        return self.workload(network).but(f"refine.iterations={TIMED_STEPS}")


@functools.cache
def _workload(folder: Path, network: str, small: bool) -> Workload:
    settings = [f"classifier.backbone={network}", *(SMALL if small else [])]
    own = folder / network.replace("/", "_")
    own.mkdir()
    workload = prepare(own, settings, SMALL_SIZE if small else None, in_turn=True)
    if network == LITE:
        settle_norms(workload)
    else:
        give_signal(workload)
    return workload


def settle_norms(workload: Workload) -> None:
    """Give random weights the batch norm of their own signal, which would fade or grow, and maps above zero."""
    dataset, model = workload.dataset, load(workload)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the mean of all that it sees
            module.train()
    normalisation = model.backbone.normalisation
    with torch.no_grad():
        for id in workload.ids()[:4]:
            model.cams(model.stem(normalise(dataset.image(id), normalisation)[None]))
    nn.init.uniform_(model.head.weight, 0.0, 0.01)
    save_network(model, workload.folder / "weights.safetensors")


# --- the parts ---------------------------------------------------------------------------------------------------


def engines(bench: Bench) -> Iterator[Yields]:
    """Compare the maps of both engines after a few steps."""
    workload = bench.short(bench.resnet)
    ids = usable(workload)
    maps = {}
    for engine in ENGINES[RESNET]:
        for precision in PRECISIONS:
            maps[engine, precision] = _maps(workload, precision, engine, ids)
    yield f"Largest differences of the maps of one image after {TIMED_STEPS} steps, of the largest value."
    for precision, most in zip(PRECISIONS, (1e-5, None), strict=True):
        difference = largest_difference(maps["folded", precision], maps["plain", precision])
        yield f"folded engine from the plain one, {precision}", figure(difference, "", at_most=most)
    for engine in ENGINES[RESNET]:
        difference = largest_difference(maps[engine, "bfloat16"], maps[engine, "float32"])
        yield f"bfloat16 from float32, {engine} engine", figure(difference, "")
    if not torch.cuda.is_available():
        return
    yield "A recorded step is a CUDA graph; images of all steps."
    whole = bench.workload(bench.resnet)
    for precision, most in zip(PRECISIONS, (1e-6, 0), strict=True):
        for engine in ENGINES[RESNET]:
            usual = _maps(whole, precision, engine, ids)
            again = largest_difference(_maps(whole, precision, engine, ids), usual)
            yield f"steps that are not recorded, once more, {engine} engine, {precision}", figure(again, "")
            difference = largest_difference(_maps(whole, precision, engine, ids, recorded=True), usual)
            yield f"recorded steps from others, {engine} engine, {precision}", figure(difference, "", at_most=most)


def _maps(workload: Workload, precision: str, engine: Kind, ids: list[str], recorded: bool = False) -> list[np.ndarray]:
    """Return the maps of the first image; recorded ones are those of the last time of three."""
    way = ProductWay(workload, precision, engine, recorded)
    for _ in range(3 if recorded else 1):
        way.image(ids[0], ids[1])
    return way.result(ids[0])


def deterministic(bench: Bench) -> Iterator[Yields]:
    """Refine the same images twice in one process, with ``refine.deterministic`` and without."""
    usual = bench.workload(bench.resnet)
    ids = usable(usual)[:3]
    fixed = usual.but("refine.deterministic=true")
    seconds: dict[str, list[float]] = {"usual": [], "deterministic": []}
    files: dict[str, list[list[bytes]]] = {name: [] for name in seconds}
    with Processes(usual, 1) as first, Processes(fixed, 1) as second:
        for _ in range(max(2, bench.rounds)):
            for name, process in zip(seconds, (first, second), strict=True):
                seconds[name].append(statistics.median(seconds_per_image(process.refine(ids))))
                files[name].append([map_path(usual.folder / "maps", id).read_bytes() for id in ids])
    yield f"{len(ids)} images, {len(files['usual'])} times each in turn, {usual.precision}, in processes of their own."
    for name, most in (("deterministic", 0), ("usual", None)):
        differ = sum(len(set(of_image)) > 1 for of_image in zip(*files[name], strict=True))
        yield f"images whose map files differ from time to time, {name}", figure(differ, "", at_most=most)
        yield f"an image, {name}", figure(seconds[name], "s")
    yield "deterministic over usual, seconds", figure(ratios(seconds["deterministic"], seconds["usual"]), "")


def seconds(bench: Bench) -> Iterator[Yields]:
    """Time an image by network, engine and precision against the plain reading on the same device."""
    steps = bench.workload(bench.resnet).experiment.refine.iterations
    yield (
        f"Channels-last; whole images of K = {steps} and of one size, all ways in turn. Baseline: "
        "benchmarks/refine_baseline.py on the same network, weights, pictures and device, timed in torch's own float32 "
        f"(TF32 in convolutions), compared after {TIMED_STEPS} steps with TF32 off. Required where the GPU is an H100, "
        "of the fastest way. First of its size: its steps are not recorded yet."
    )
    for network, kinds in bench.networks.items():
        if (lack := _lacks(network)) is not None:
            yield lack
            continue
        ids = usable(bench.workload(network))
        apart = differences(_ways(bench.short(network), kinds), ids)
        ways = _ways(bench.workload(network), kinds)
        found = _whole(ways, ids, bench.rounds)
        yield from _timings(network, found, apart)
        fastest = min(list(found)[1:], key=lambda way: statistics.median(found[way]))
        on_h100 = torch.cuda.is_available() and "H100" in torch.cuda.get_device_name()
        bounds = (GPU_SECONDS, TIMES_GPU) if on_h100 else (None, None)
        yield f"{network}, fastest way ({fastest})", figure(found[fastest], "s", at_most=bounds[0])
        times = ratios(found[BASELINE], found[fastest])
        yield f"{network}, fastest way, times the plain reading", figure(times, "", at_least=bounds[1])
        del ways
        yield from _of_new_sizes(bench.workload(network), kinds[-1], network)


def _of_new_sizes(workload: Workload, engine: Kind, network: str) -> Iterator[Yields]:
    """Time images of which none of the same size came before, and say what memory all of that took."""
    ids = usable(workload)
    before = _reserved()
    way = ProductWay(workload, "bfloat16", engine, recorded=True)
    for turn in range(3):
        way.image(ids[turn % len(ids)], ids[turn % len(ids)])
    others = [of_size[0] for of_size in workload.by_size() if of_size != ids][:NEW_SIZES]
    seconds = [way.image(id, id).whole for id in others]
    if seconds:
        yield f"{network}, {engine}, bfloat16, first of its size", figure(seconds, "s")
    if torch.cuda.is_available():
        yield f"{network}, {engine}, bfloat16, memory of the GPU", figure((_reserved() - before) / 1e9, "GB")


def _reserved() -> float:
    """Return the bytes of the GPU that this process holds, without those that it could give back at once."""
    gc.collect()
    if not torch.cuda.is_available():
        return 0.0
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved()


def _ways(workload: Workload, kinds: Sequence[Kind]) -> dict[str, Way]:
    ways: dict[str, Way] = {BASELINE: BaselineWay(workload)}
    for engine in kinds:
        for precision in PRECISIONS:
            ways[f"{engine}, {precision}"] = ProductWay(workload, precision, engine, recorded=True)
    return ways


def _whole(ways: Mapping[str, Way], ids: Sequence[str], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of whole images; each round every way refines the same one, after two that do not count."""
    timed = time_parts(ways, ids, 2 + rounds)
    return {name: [image.whole for image in images[2:]] for name, images in timed.items()}


def _lacks(network: str) -> str | None:
    """Return what a network lacks here."""
    if network != LITE:
        return None
    try:
        import timm  # noqa: F401
    except ImportError as error:
        return f"{LITE} is left out: timm, or what it needs, is not installed ({error})."
    return None


def _timings(
    network: str, found: dict[str, list[float]], apart: dict[str, float], first: str = BASELINE
) -> Iterator[Yields]:
    for way, each in found.items():
        yield f"{network}, {way}", figure(each, "s")
        if way == first:
            continue
        yield f"{network}, {way}, times the {first}", figure(ratios(found[first], each), "")
        most = 1e-5 if way.endswith("float32") else None
        yield f"{network}, {way}, largest difference", figure(apart[way], "", at_most=most)


def compiled(bench: Bench) -> Iterator[Yields]:
    """Time the plain engine with steps queued one by one, recorded, and with stem and trunk compiled."""
    has_gpu = torch.cuda.is_available()
    options: dict[str, Any] = {} if has_gpu else {"backend": "eager"}  # on a CPU only whether it can be traced
    yield "One scale, in bfloat16: every size is compiled on its own, with gradient and without."
    for network in bench.networks:
        if (lack := _lacks(network)) is not None:
            yield lack
            continue
        workload = bench.workload(network).but("refine.scales=[1.0]", "refine.loss_scales=[1.0]")
        ids = usable(workload)
        first = "plain engine, not recorded"
        ways: dict[str, Way] = {
            first: ProductWay(workload, "bfloat16", "plain"),
            "plain engine": ProductWay(workload, "bfloat16", "plain", recorded=True),
            "plain engine, torch.compile": CompiledWay(workload, functools.partial(torch.compile, **options)),
        }
        try:
            found = _whole(ways, ids, bench.rounds)
        except Exception as error:  # noqa: BLE001 - where it cannot be had, that is the finding
            reason = f"It cannot be had: {type(error).__name__}: {error}".partition("\n")[0]
            yield f"{network}, torch.compile", not_measured("s", reason)
        else:
            last = ids[(2 + bench.rounds) % len(ids)]
            maps = {name: way.result(last) for name, way in ways.items()}
            apart = {name: largest_difference(each, maps[first]) for name, each in maps.items()}
            yield from _timings(network, found, apart, first)
        torch._dynamo.reset()


class CompiledWay(ProductWay):
    """The plain engine in bfloat16, its stem and trunk made faster by ``how``."""

    def __init__(self, workload: Workload, how: Callable[[Any], Any]) -> None:
        super().__init__(workload, "bfloat16", "plain", recorded=True)
        # One graph for each size of an image, with gradient and without.
        for name in ("recompile_limit", "cache_size_limit"):
            if hasattr(torch._dynamo.config, name):
                setattr(torch._dynamo.config, name, 64)
        backbone = self.worker._method.network._classifier.backbone
        backbone.stem, backbone.trunk = how(backbone.stem), how(backbone.trunk)


def busy(bench: Bench) -> Iterator[Yields]:
    """Say how much of the time the GPU computes over images that follow one another, and how often the host waits."""
    workload = bench.workload(bench.resnet)
    ids, images = usable(workload), 3 if bench.small else BUSY_IMAGES
    yield f"{images} images one after the other in bfloat16, JPEGs being decoded meanwhile; {workload.images}."
    if not torch.cuda.is_available():
        yield "an image", figure(one_after_another(workload, ids, images)[1], "s")
        yield "GPU busy", not_measured("%", "This machine has no GPU.", at_least=GPU_BUSY)
        return
    found = on_gpu(workload, ids, images)
    yield from found.items()
    (waits,) = (each["value"] for name, each in found.items() if "waits" in name)
    yield "waits of the host in a step", figure(waits / workload.experiment.refine.iterations, "")


def several_workers(bench: Bench) -> Iterator[Yields]:
    """Compare two and three workers on the same GPU with one."""
    workload = bench.workload(bench.resnet)
    ids = list(itertools.islice(itertools.cycle(usable(workload)), 6 if bench.small else 18))
    found: dict[int, list[float]] = {number: [] for number in WORKERS}
    with contextlib.ExitStack() as stack:
        crews = {number: stack.enter_context(Processes(workload, number)) for number in WORKERS}
        for turn in range(1 + bench.rounds):
            for number, crew in crews.items():
                rate = images_per_second(crew.refine(ids))
                if turn:  # the first round warms up
                    found[number].append(rate)
    yield f"Processes without Ray, {workload.precision}; {len(ids)} images a round."
    for number, values in found.items():
        yield f"{number} worker{'s' if number > 1 else ''}", figure(values, "images/s")
    for number in WORKERS[1:]:
        yield f"{number} workers over one, images/s", figure(ratios(found[number], found[1]), "")
