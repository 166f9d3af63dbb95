"""What a method is: it refines the class activation maps of one image with one classifier (docs/extending.md).

A worker of the pool makes one `Method` and refines image after image; all that it, the map files, a plan and the notes
of a run know of a method stands here and in its `Settings`.

Shapes: V = 2 views of a scale (the image and its horizontal flip), P present classes, C classes of the classifier,
h w cells of a map (different at each scale).
"""

import contextlib
import functools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ribray.config import CAM, MethodConfig, load_method
from ribray.data.transforms import normalise_within
from ribray.errors import ImageError
from ribray.machine import keeping_memory
from ribray.networks.classifier import Classifier
from ribray.networks.engine import Engine, Kind, engine_for
from ribray.networks.recording import Recorder

FINISHED = "finished"
"""The stop reason of a method that took all its steps."""
Maps = list[np.ndarray]
"""Per scale (P, h, w) float32: sums at the network's own stride."""
Series = Sequence[float] | np.ndarray
Extras = Callable[[int], tuple[Tensor, Tensor] | None]
"""From a step to its extra samples: images (n, 3, S, S) float32, labels (n, C) bool; None: there are none."""


@dataclass(frozen=True)
class Refined:
    """What the refinement of one image leaves behind.

    Attributes:
        classes: (P,) int64, the present classes in increasing order; empty for an image without any object.
        maps: by name: ``cam``, the plain class activation map (ReLU(view) + un-flipped ReLU(flipped view) of the
            unchanged network and image), and the method's own, which come last.
        steps: steps begun; 0 for an image without any object.
        stop_reason: `FINISHED`, or one of the ``early`` reasons of its settings.
        by_step: of its own maps by name what they were after each step, ``by_step[name][k]``; of an image that stopped
            early fewer. Empty unless ``keep_steps`` is set.
        losses: loss of every step, where it has one.
        numbers: further series of numbers by name, which the map file keeps.
    """

    classes: np.ndarray
    maps: Mapping[str, Maps]
    steps: int = 1
    stop_reason: str = FINISHED
    by_step: Mapping[str, Sequence[Maps]] = field(default_factory=dict)
    losses: Series = ()
    numbers: Mapping[str, Series] = field(default_factory=dict)

    @property
    def own(self) -> str:
        """The name of the method's own map, of several the last one."""
        return list(self.maps)[-1]


class Passes(NamedTuple):
    """What passes through the parts of a network, in pixels of images; or the seconds that a pixel takes there."""

    stem: float
    """Forward through the frozen part."""
    trunk: float
    """Forward through what learns."""
    backward: float = 0.0
    """Backward through what learns, to the weights and to the stem's output."""
    calls: float = 0.0
    """How often something passes, forward and backward; or the seconds of one time whatever its size."""


def require_whole(refined: Refined, config: MethodConfig, present: Sequence[int]) -> None:
    """Check what a method has made of an image with these classes.

    Raises:
        ImageError: maps are missing, too many, of different sizes or types, or not finite.
    """
    names = [CAM, *config.maps]
    if sorted(refined.maps) != sorted(names) or not refined.by_step.keys() <= config.maps.keys():
        raise ImageError(f"Method {config.method} leaves maps {', '.join(refined.maps)}, not {', '.join(names)}.")
    if refined.classes.tolist() != sorted(present):
        raise ImageError(f"Method {config.method} leaves maps of classes {refined.classes.tolist()}, not {present}.")
    sizes = [(len(present), *maps.shape[1:]) for maps in refined.maps[CAM]]
    steps = [(name, maps) for name, kept in refined.by_step.items() for maps in kept]
    for name, maps in [*refined.maps.items(), *steps]:
        if len(maps) != len(config.scales) or [each.shape for each in maps] != sizes:
            shapes = [each.shape for each in maps]
            raise ImageError(f"Method {config.method} leaves maps '{name}' of shapes {shapes}, where cam has {sizes}.")
        if any(each.dtype != np.float32 or not np.isfinite(each).all() for each in maps):
            raise ImageError(f"Method {config.method} leaves maps '{name}' that are not finite float32 numbers.")


@dataclass(frozen=True)
class ExtraSamples:
    """Other images that a method draws for each step of an image; they share no class with it."""

    per_step: int
    steps: int
    """Steps that draw any."""
    crop_size: int
    """Side of the random crop, in pixels."""
    resize_long: tuple[int, int]
    """Range of the long side before, in pixels."""
    seed: int
    setting: str
    """The setting that asks for them, such as ``refine.batch_size=20``."""
    alone_with: str
    """The one with which an image is refined without any, such as ``refine.batch_size=1``."""
    of_no_use: str | None = None
    """Why an image without any class would be of no use, after "which"; None: it is of use."""


class Method(ABC):
    """Refines images one after the other; none leaves a trace in the next.

    The classifier handed over is this object's to change. A method of one's own is a class with `Settings` and
    `refine`.

    Args:
        classifier: with its trained weights.
        config: its settings.
        precision: "float32" (TF32 off), or "bfloat16": convolutions in bfloat16.
        device: where to compute.
        engine: "plain" or "folded"; default: what `ribray.networks.engine.engine_for` chooses.
    """

    Settings: ClassVar[type[MethodConfig]]
    per_class: ClassVar[bool] = False
    """Whether the work of an image grows with its classes: such images are begun first."""

    def __init__(
        self,
        classifier: Classifier,
        config: Any,
        precision: str = "float32",
        device: str | torch.device = "cpu",
        engine: Kind | None = None,
    ) -> None:
        if precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision is float32 or bfloat16, not {precision!r}.")
        self.config = config
        self.device = torch.device(device)
        self.classifier = classifier.eval().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.recorder = Recorder(self.device)
        self.computed_in = torch.bfloat16 if precision == "bfloat16" else self.classifier.head.weight.dtype
        self._engine = engine

    @functools.cached_property
    def network(self) -> Engine:
        """The classifier on an engine."""
        return engine_for(self.classifier, self.computed_in, self._engine)

    @abstractmethod
    def refine(self, views: Sequence[Tensor], present: Sequence[int], extras: Extras) -> Refined:
        """Refine the maps of one image.

        Args:
            views: per scale (V, 3, H, W) float32, the normalised image and its horizontal flip.
            present: the image's classes, at least one.
            extras: called at most once a step, in order, for samples that share no class with the image.

        Raises:
            ImageError: nothing can be made of this image.
        """

    def normalised(self, pixels: Tensor, boxes: Tensor) -> Tensor:
        """Return crops (n, S, S, 3) uint8, real within boxes (n, 4), as the network sees them: (n, 3, S, S) float32."""
        return self.recorder(self._normalise, pixels, boxes)[0]

    def _normalise(self, pixels: Tensor, boxes: Tensor) -> list[Tensor]:
        return [normalise_within(pixels, boxes, self.classifier.backbone.normalisation)]

    def restore(self) -> None:  # noqa: B027  (most have nothing to do)
        """Give the classifier its trained weights again, where `refine` moves them."""

    @classmethod
    def extra_samples(cls, config: Any) -> ExtraSamples | None:
        """Return which other images each step draws; None: none."""
        return None

    @classmethod
    def cost(cls, config: Any, area: float, classes: float, extras: int) -> Passes:
        """Return roughly what passes through the network for one image, for a plan; by default it is seen every step.

        Args:
            config: its settings.
            area: pixels of an image.
            classes: how many of them it shows.
            extras: samples that each step really draws.
        """
        times = config.steps * (classes if cls.per_class else 1)
        pixels = times * area * sum(2 * scale**2 for scale in config.scales)
        return Passes(pixels, pixels, calls=times * len(config.scales))

    def time_passes(self, side: int = 256) -> Passes:
        """Return what the parts of the network take here, from two images of a ``side``, and of an eighth of it.

        Gradients of nothing are left behind: for an object that refines no image afterwards.
        """

        def seconds(work: Callable[[Tensor], Sequence[Tensor]], seen: Tensor) -> float:
            times = []
            for _ in range(3):  # the first one allocates, a recorder's second one records
                began = time.perf_counter()
                self.recorder(work, seen)
                if self.device.type == "cuda":
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - began)
            return min(times[1:])

        def to_stem(images: Tensor) -> list[Tensor]:
            return [self.network.stem(images)]

        @torch.no_grad()
        def to_cams(seen: Tensor) -> list[Tensor]:
            return [self.network.cams(seen)]

        def and_back(seen: Tensor) -> list[Tensor]:
            self.network.cams(seen).sum().backward()
            return []

        def parts(side: int) -> np.ndarray:
            images = torch.zeros(2, 3, side, side, device=self.device)
            [seen] = to_stem(images)
            trunk = seconds(to_cams, seen)
            return np.array([seconds(to_stem, images), trunk, seconds(and_back, seen) - trunk])

        with self.exact_float32(), self.recorder.at_work():
            large, small = parts(side), parts(side // 8)
        per_pixel = (large - small).clip(min=0.0) / (2 * (side**2 - (side // 8) ** 2))
        stem, trunk, backward = per_pixel.tolist()
        return Passes(stem, trunk, backward, float(small.sum()))

    def check(self, views: Sequence[Tensor], present: Sequence[int]) -> None:
        """Refuse what no method can refine.

        Raises:
            ValueError: no present class, an unknown one, or another number of views than scales.
        """
        if not len(present):
            raise ValueError("An image without any present class cannot be refined.")
        if len(set(present)) != len(present) or min(present) < 0 or max(present) >= self.classifier.classes:
            raise ValueError(f"Present classes {list(present)} do not fit {self.classifier.classes} classes.")
        if len(views) != len(self.config.scales):
            raise ValueError(f"There are {len(views)} views for {len(self.config.scales)} scales.")

    @contextlib.contextmanager
    def exact_float32(self) -> Iterator[None]:
        """Keep a GPU from rounding float32 to TF32, and from choosing its algorithms by timing them.

        On a CPU, memory that was freed is used again meanwhile.
        """
        matmul = torch.backends.cuda.matmul
        allowed = matmul.allow_tf32
        deterministic = self.config.deterministic or torch.are_deterministic_algorithms_enabled()
        try:
            matmul.allow_tf32 = False
            keeps = keeping_memory() if self.device.type == "cpu" else contextlib.nullcontext()
            flags = {"enabled": True, "benchmark": False, "deterministic": deterministic, "allow_tf32": False}
            with keeps, torch.backends.cudnn.flags(**flags):
                yield
        finally:
            matmul.allow_tf32 = allowed


def method_class(name: str) -> type[Method]:
    """Return a method by its name.

    Raises:
        ValueError: there is none of that name.
    """
    found = load_method(name)
    if not issubclass(found, Method):
        raise ValueError(f"refine.method: {found.__qualname__} of {name} does not derive from {__name__}.Method")
    return found


def merge_views(cams: Tensor) -> Tensor:
    """Return ReLU(view) + un-flipped ReLU(flipped view), (P, h, w), of ``cams`` (V, P, h, w)."""
    view, flipped = cams.relu()
    return view + flipped.flip(-1)


def to_maps(tensors: Sequence[Tensor]) -> Maps:
    """Return the maps of every scale as arrays."""
    return [tensor.cpu().numpy() for tensor in tensors]
