"""How far RIB's refinement is above its convolutions alone, and what the rest is, on a CPU.

    ribray bench floor

An image of two steps is refined once under watch: every convolution, gradient of one, and matrix product is noted with
the shapes and layouts of its arguments. The *floor* is the time of these calls alone, one after the other, on arguments
that lie ready: what the library needs for the products, and nothing of ribray. Image and floor take turns. ResNet-50 on
the folded engine, EfficientNet-Lite0 on the plain one, float32, B = 20, four scales, crops of 512², 375×500.
"""

import tempfile
from collections import Counter
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import torch
from harness import figure, ratios
from networks import ENGINES, LITE, RESNET, drawn_up
from refine import TIMED_STEPS, ProductWay, usable
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from ribray import storage
from ribray.machine import keeping_memory

THREADS = 2
ABOVE = 1.25
"""Of the floor: the most that ResNet-50 may take."""
SHOWN = 8
_PRODUCTS = ("convolution", "mm", "bmm", "addmm", "addmm_", "baddbmm")


def run(*, settings: Sequence[str] = (), size: tuple[int, int] | None = None, rounds: int = 3) -> dict[str, Any]:
    """Return the figures.

    Args:
        settings: of the refinement, on top of recipe ``voc12``.
        size: (height, width) of drawn pictures; default: photographs where there are any.
        rounds: how often image and floor are timed.
    """
    figures: dict[str, Any] = {}
    for network in (RESNET, LITE):
        figures |= {f"{network}, {name}": each for name, each in _measure(network, settings, size, rounds).items()}
    return {
        "settings": {"rounds": rounds, "iterations": TIMED_STEPS},
        "figures": figures,
        "notes": [
            "Seconds of an image of two steps, pixels and map file included; the floor is the time of its "
            "convolutions, their gradients and matrix products alone, on arguments that lie ready.",
            "Shares are those of the profiler's own time of each operator, in another image.",
        ],
    }


def _measure(
    network: str, settings: Sequence[str], size: tuple[int, int] | None, rounds: int
) -> dict[str, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = storage.path(temporary)
        short = drawn_up(folder, network, settings, size).but(f"refine.iterations={TIMED_STEPS}")
        ids, way = usable(short), ProductWay(short, "float32", ENGINES[network][-1])
        way.image(ids[0], ids[1])
        noted = _Products()
        with noted:
            way.work(ids[0], ids[1])
        images, floors = [], []
        for _ in range(rounds):
            began = perf_counter()
            way.work(ids[0], ids[1])
            images.append(perf_counter() - began)
            floors.append(noted.alone())
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            way.work(ids[0], ids[1])
    found = {
        "an image of two steps": figure(images, "s"),
        "its products alone": figure(floors, "s"),
        "times the floor": figure(ratios(images, floors), "", at_most=ABOVE if network == RESNET else None),
    }
    operators = sorted(profiler.key_averages(), key=lambda each: -each.self_cpu_time_total)
    whole = sum(each.self_cpu_time_total for each in operators)
    for each in operators[:SHOWN]:
        found[f"share of {each.key}"] = figure(100 * each.self_cpu_time_total / whole, "%")
    return found


class _Products(TorchDispatchMode):
    """Notes which products are called, with the shapes and layouts of their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: Counter[tuple[Any, ...]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if "convolution" in name or name in _PRODUCTS:
            self._calls[func, tuple(map(_described, args)), tuple((kwargs or {}).items())] += 1
        return func(*args, **(kwargs or {}))

    def alone(self) -> float:
        """Return the seconds of all calls, each kind after a call that warms it up."""
        seconds = 0.0
        with torch.no_grad(), keeping_memory():
            for (func, described, options), count in self._calls.items():
                arguments = [_made(each) for each in described]
                func(*arguments, **dict(options))
                began = perf_counter()
                for _ in range(count):
                    func(*arguments, **dict(options))
                seconds += perf_counter() - began
        return seconds


def _described(argument: Any) -> Any:
    if isinstance(argument, torch.Tensor):
        return torch.Tensor, tuple(argument.shape), argument.stride(), argument.dtype
    return tuple(argument) if isinstance(argument, list) else argument


def _made(described: Any) -> Any:
    if isinstance(described, tuple) and described and described[0] is torch.Tensor:
        _, shape, strides, dtype = described
        return torch.empty_strided(shape, strides, dtype=dtype).fill_(0.5)
    return list(described) if isinstance(described, tuple) else described
