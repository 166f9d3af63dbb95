"""Everything that has to be seen on a GPU, in one command of at most nine minutes on an H100.

    python -m benchmarks gpu [--only a,d] [--json gpu.json]
    python -m benchmarks gpu --device cpu --small

It needs torch, numpy, pillow, pydantic, safetensors and this checkout, no network and no Ray; weights are random. A
part yields figures by name, and notes as texts. One that raises is an error of that part, and the others go on; one
that lacks something, or for which no time is left, is left out with the reason.
"""

import argparse
import contextlib
import gc
import json
import math
import os
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from gpu_refine import Bench, LeftOut, Yields, busy, compiled, deterministic, engines, seconds, several_workers
from harness import cells, circumstances, figure, interleave, not_measured, ratios, where
from oracles import example
from pictures import CLASSES, ROOT, SIZE
from refine import THREADS, device, without_tf32
from torch import Tensor, nn
from torch.nn import functional

from ribray.commands.verify import Check, verify
from ribray.config import IrnConfig, SegmentationConfig
from ribray.data.transforms import normalise
from ribray.demo.creatures import draw
from ribray.errors import UsageError
from ribray.irn.loss import irn_loss
from ribray.irn.random_walk import random_walk
from ribray.masks.confident import cut
from ribray.masks.crf import LABEL_CRF, require_crf
from ribray.networks import build_classifier
from ribray.networks.deeplab import build_deeplab, segmentation_loss
from ribray.networks.irnet import build_irnet
from ribray.networks.weights import drawn_with, load_backbone_weights

MINUTES = 9.0
GOLDEN = ROOT.parent / "shared" / "golden"
ON_CPU = ("irn_", "random_walk_", "dense_crf_")
"""Kinds of golden cases that take a moment on a CPU."""
ROUNDS = 3
WITHOUT = "Left out, as they need Ray, W&B or a network: pools, Ray Train, sweeps, tracking, ImageNet weights."


def golden(bench: Bench) -> Iterator[Yields]:
    """Compare recorded outputs of the reference implementations with what is computed here, TF32 off."""
    if not bench.golden.is_dir():
        raise LeftOut(f"There is no folder {bench.golden} with recorded cases; --golden names another.")
    with without_tf32():
        found = [verify(bench.golden, only, str(device())) for only in (ON_CPU if bench.small else (None,))]
    groups: dict[str, list[Check]] = {}
    for check in (each for checks in found for each in checks):
        if math.isnan(check.error) and check.note:
            yield f"{check.case}: {check.note}"
            continue
        case, _, way = check.case.partition(", ")
        kind = next((kind for kind in ("rib", "advcam", *ON_CPU) if case.startswith(kind)), case).strip("_")
        groups.setdefault(f"{kind}, {way}" if way else kind, []).append(check)
    for name, checks in groups.items():
        outside = [check for check in checks if not check.ok]
        shares = [check.error / check.tolerance for check in checks if check.tolerance and math.isfinite(check.error)]
        yield f"{name}: outside its tolerance, of {len(checks)} quantities", figure(len(outside), "", at_most=0)
        yield f"{name}: largest error, of its tolerance", figure(max(shares, default=0.0), "")
        for check in outside[:5]:
            yield f"{check.case}, {check.quantity}: {check.error:.3g}, tolerance {check.tolerance:.3g} {check.note}"


# --- trainings ---------------------------------------------------------------------------------------------------


def trainings(bench: Bench) -> Iterator[Yields]:
    """Compare a step of each training in bfloat16 with the same one in float32."""
    yield (
        "Steps (forward, backward, SGD) on drawn pictures in memory, of recipe voc12's sizes; float32 with torch's own "
        "setting of TF32. Losses are those of the same random weights."
    )
    for name, make in (("classifier", _classifier), ("IRN", _irn), ("DeepLab", _deeplab)):
        model, loss = make(bench)
        optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=1e-6)

        def part(precision: str, loss: Callable[[], Tensor] = loss) -> Tensor:
            with torch.autocast(device().type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
                return loss()

        def step(precision: str, optimizer: Any = optimizer, part: Callable[[str], Tensor] = part) -> None:
            optimizer.zero_grad(set_to_none=True)
            part(precision).backward()
            optimizer.step()

        found = {precision: float(part(precision).detach()) for precision in ("float32", "bfloat16")}
        difference = abs(found["bfloat16"] - found["float32"]) / abs(found["float32"])
        yield f"{name}: loss in float32", figure(found["float32"], "")
        yield f"{name}: bfloat16's relative difference from it", figure(difference, "")
        taken = interleave({p: lambda p=p: step(p) for p in found}, bench.rounds)
        for precision, values in taken.items():
            yield f"{name}: a step in {precision}", figure(values, "s")
        yield f"{name}: bfloat16 over float32, steps/s", figure(ratios(taken["float32"], taken["bfloat16"]), "")


def _classifier(bench: Bench) -> tuple[nn.Module, Callable[[], Tensor]]:
    images, _, labels = _batch(*((2, 64) if bench.small else (16, 512)))
    model = _drawn(lambda: build_classifier(bench.resnet, CLASSES, 16))
    return model, lambda: functional.binary_cross_entropy_with_logits(model(images).float(), labels)


def _irn(bench: Bench) -> tuple[nn.Module, Callable[[], Tensor]]:
    images, masks, _ = _batch(*((2, 64) if bench.small else (32, 512)))
    model = _drawn(lambda: build_irnet(bench.resnet, 16, 64 if bench.small else IrnConfig().displacement_width))

    def loss() -> Tensor:
        boundary, displacement = model(images)
        cells = functional.interpolate(masks[:, None], boundary.shape[2:], mode="nearest-exact")[:, 0]
        return irn_loss(boundary, displacement, cells, 3 if bench.small else IrnConfig().radius).loss

    return model, loss


def _deeplab(bench: Bench) -> tuple[nn.Module, Callable[[], Tensor]]:
    images, masks, _ = _batch(*((2, 65) if bench.small else (10, 321)))
    tiny = {"backbone": bench.resnet, "rates": (1, 2), "scales": (1.0,)} if bench.small else {}
    model = _drawn(lambda: build_deeplab(SegmentationConfig(**tiny), CLASSES))
    return model, lambda: segmentation_loss(model(images), masks)


def _drawn(build: Callable[[], Any]) -> Any:
    """Return a network with random weights, to be trained on the device."""
    with drawn_with(0):
        model = build()
    load_backbone_weights(model.backbone, "none")
    return model.to(device()).train()


def _batch(count: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return drawn images (N, 3, S, S), masks (N, S, S) uint8 and labels (N, C) float32 on the device."""
    drawn = [draw("train", index, 0, side, CLASSES) for index in range(count)]
    images = torch.stack([normalise(image) for image, _, _ in drawn])
    masks, labels = (torch.stack([torch.as_tensor(each[place]) for each in drawn]) for place in (1, 2))
    return images.to(device()), masks.to(device()), labels.float().to(device())


# --- behind the maps ---------------------------------------------------------------------------------------------


def behind_maps(bench: Bench) -> Iterator[Yields]:
    """Time the random walk, and the dense CRF."""
    height, width = (12, 16) if bench.small else (94, 125)
    inputs = example(3, height, width)
    places = dict.fromkeys((device().type, "cpu"))
    walked: dict[str, Tensor] = {}

    def walk(place: str) -> None:
        maps, boundary = (each.to(place) for each in inputs)
        walked[place] = random_walk([maps], [boundary])[0].cpu()

    taken = interleave({place: lambda place=place: walk(place) for place in places}, bench.rounds)
    for place, values in taken.items():
        yield f"random walk of 3 maps of {height}×{width} on {place}", figure(values, "s")
    if device().type != "cpu":
        difference = float((walked[device().type] - walked["cpu"]).abs().max())
        yield "random walk: largest difference from the CPU's", figure(difference, "", at_most=1e-4)
    try:
        require_crf()
    except UsageError as error:
        yield "dense CRF of an image", not_measured("s", str(error))
        return
    height, width = (48, 64) if bench.small else SIZE
    image = draw("train", 0, 0, max(height, width), CLASSES)[0][:height, :width].copy()
    maps = example(2, height, width)[0].numpy()
    taken = interleave({"crf": lambda: cut(image, maps, [0, 1], 0.35, 0.17, LABEL_CRF)}, bench.rounds)
    yield (
        f"dense CRF of an image of {height}×{width} and 2 classes, two readings, on the CPU",
        figure(taken["crf"], "s"),
    )


# --- the command -------------------------------------------------------------------------------------------------

PARTS: dict[str, tuple[str, Callable[[Bench], Iterator[Yields]]]] = {
    "a": ("golden cases, float32 without TF32", golden),
    "b": ("engines against each other", engines),
    "c": ("the same bytes twice", deterministic),
    "d": ("seconds of an image", seconds),
    "e": ("how busy the GPU is", busy),
    "f": ("several workers on one GPU", several_workers),
    "g": ("a training step of each network", trainings),
    "h": ("random walk and dense CRF", behind_maps),
    "d2": ("seconds of an image, compiled", compiled),
}
"""In the order of their work; d2 belongs to d, and comes last as it may take minutes."""


class _OutOfTime(BaseException):
    """The command's time is over; no ``except Exception`` of a library takes it for its own."""


def main(arguments: list[str]) -> int:
    """Carry out the parts, print the table and write the JSON; return 1 where a part raised, 2 where none can be."""
    options = _options(arguments)
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # also for the processes to come
    elif not torch.cuda.is_available():
        print("This machine has no CUDA GPU, so nothing was measured; --device cpu --small runs it in miniature.")
        return 2
    chosen = [part for part in PARTS if not options.only or part[0] in options.only or part in options.only]
    torch.set_num_threads(THREADS)
    began, result = perf_counter(), {"benchmark": "gpu", "device": str(device()), "small": options.small}
    result |= {"minutes": options.minutes, "notes": [WITHOUT], "parts": {}, **circumstances(ROOT)}
    print(where(result), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.small, options.golden, 1 if options.small else ROUNDS)
        for part in chosen:
            left = 60 * options.minutes - (perf_counter() - began)
            result["parts"][part] = _carry_out(part, bench, left, options.minutes)
            gc.collect()
            if device().type == "cuda":
                torch.cuda.empty_cache()  # parts work in other processes, too
            options.json.write_text(json.dumps(result, indent=1, allow_nan=False, ensure_ascii=False), "utf-8")
    print(f"\n{WITHOUT}\n{perf_counter() - began:.0f} s in all; written to {options.json}")
    return int(any(part["state"] == "error" for part in result["parts"].values()))


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny networks and pictures: whether it works, no timing")
    parser.add_argument("--only", default="", help=f"parts, such as a,d, of {', '.join(PARTS)}")
    parser.add_argument("--golden", type=Path, default=GOLDEN, help=f"folder of recorded cases; default: {GOLDEN}")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="file to write; default: gpu.json")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"most that it may take; default: {MINUTES:g}")
    options = parser.parse_args(arguments)
    options.only = [part for part in options.only.split(",") if part]
    if unknown := set(options.only) - set(PARTS):
        parser.error(f"there is no part {min(unknown)}; there are {', '.join(PARTS)}")
    if options.device == "cpu" and not options.small:
        parser.error("on a CPU it takes hours; add --small")
    return options


def _carry_out(part: str, bench: Bench, left: float, minutes: float) -> dict[str, Any]:
    """Return what became of a part: its state, seconds, figures and notes, which are printed as they come."""
    title, measure = PARTS[part]
    print(f"\n{part}  {title}", flush=True)
    found: dict[str, Any] = {"title": title, "state": "done", "reason": None, "figures": {}, "notes": []}
    began = perf_counter()
    try:
        with _at_most(left):
            for each in measure(bench):
                _take(found, each)
    except LeftOut as reason:
        found |= {"state": "left out", "reason": str(reason)}
    except _OutOfTime:
        found |= {"state": "left out", "reason": f"It would take longer than the {minutes:g} minutes."}
    except Exception as error:  # noqa: BLE001 - whatever it is, the other parts go on
        traceback.print_exc()
        found |= {"state": "error", "reason": f"{type(error).__name__}: {error}".partition("\n")[0]}
    found["seconds"] = round(perf_counter() - began, 2)
    state = "" if found["state"] == "done" else f"{found['state'].upper()}: {found['reason']}"
    print(f"   {found['seconds']:.1f} s  {state}".rstrip(), flush=True)
    return found


def _take(found: dict[str, Any], each: Yields) -> None:
    if isinstance(each, str):
        found["notes"].append(each)
        print(f"   {each}", flush=True)
        return
    name, measured = each
    if measured["value"] is not None and not math.isfinite(measured["value"]):
        raise ValueError(f"{name} is {measured['value']}")
    found["figures"][name] = measured
    median, span, runs, required = cells(measured)
    columns = f"   {name:<72} {median:>12} {span:>18} {runs:>3}  {required} {measured.get('reason', '')}"
    print(columns.rstrip(), flush=True)


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise in the ``with`` block once so many seconds are over."""
    if seconds <= 0:
        raise _OutOfTime

    def stop(*_: object) -> None:
        raise _OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
