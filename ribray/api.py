"""RIB and AdvCAM from Python: a trained network, a photograph, and nothing else; no Ray and no run directory.

    rib = ribray.RIB(timm.create_model("resnet50", pretrained=True))    # or "timm/resnet50"
    result = rib("dog.jpg", classes=["golden retriever"])
    result.save("maps.png")

The pool's workers refine by the same code (`ribray.methods`).

Shapes: H W an image's height and width, P the classes that maps are made of.
"""

import difflib
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from PIL import Image
from pydantic import ValidationError
from torch import nn

from ribray import storage
from ribray.config import ENDED, MethodConfig, RIBConfig, explain_invalid, label, settings_class, short
from ribray.config.methods import BUILT_IN
from ribray.data.dataset import IGNORE, Dataset
from ribray.data.images import Picture
from ribray.data.pixels import Photograph, read_pixels
from ribray.data.transforms import Normalisation, normalise, rescaled
from ribray.errors import UsageError
from ribray.machine import usable_device
from ribray.masks.otsu import otsu_threshold
from ribray.methods.extras import ExtraOrder
from ribray.methods.maps import MapRecord, localization_maps, to_arrays
from ribray.methods.method import method_class
from ribray.methods.preparation import Preparation
from ribray.networks.adopt import Part, adopt, class_names, is_softmax, trained_side
from ribray.networks.classifier import Classifier
from ribray.networks.pretrained import open_network
from ribray.networks.weights import IMAGENET

ClassName = str | int

NOT_READ = ("limit", "method")
"""Keys of the section ``refine`` that belong to a run."""
CONFIDENT_SHARE = 0.25
"""Of a softmax: classes from this probability on are taken for present, and the most probable one in any case."""
CONFIDENT_SIGMOID = 0.5
"""Of independent classes: the same."""
SUGGESTIONS = 3
TARGET = "target"


@dataclass(frozen=True)
class Result:
    """The maps of one photograph."""

    image: np.ndarray
    """(H, W, 3) uint8."""
    maps: np.ndarray
    """(P, H, W) float32 in 0…1, the method's localization maps."""
    cams: np.ndarray
    """(P, H, W) float32 in 0…1, the plain class activation maps."""
    classes: tuple[int, ...]
    """The network's indices of the classes, increasing."""
    names: tuple[str, ...]
    losses: tuple[float, ...]
    """Of every step whose update was used; of a method without a loss none."""
    steps: int
    """Steps begun."""
    stop_reason: str
    """finished, or why fewer steps were taken: target_loss or explosion."""
    by_step: tuple[np.ndarray, ...] = ()
    """The maps after each step, where they were asked for."""
    notes: tuple[str, ...] = ()
    """Sentences on extra samples that were left out."""
    mask_values: tuple[int, ...] = ()
    """Of the classes in `mask`: index + 1, or 1, 2, … where the network has more classes than a mask can hold."""
    label: str = "RIB"
    """What the method's maps are called."""

    def __repr__(self) -> str:
        why = f", {ENDED[self.stop_reason]}" if self.stop_reason in ENDED else ""
        height, width = self.maps.shape[1:]
        return f"<{', '.join(self.names)}: {len(self.names)} × {height} × {width}, {self.steps} steps{why}>"

    @property
    def threshold(self) -> float:
        """From which score on a pixel is in `mask`: Otsu's threshold of the largest score over the classes."""
        return otsu_threshold(self.maps.max(0))

    @property
    def mask(self) -> np.ndarray:
        """(H, W) uint8: the class with the largest score, as its mask value; 0 where no score reaches `threshold`."""
        values = np.array(self.mask_values or range(1, len(self.classes) + 1), np.uint8)
        return np.where(self.maps.max(0) >= self.threshold, values[self.maps.argmax(0)], 0).astype(np.uint8)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what `save` writes into an .npz file: maps, cams, classes, names, mask, threshold."""
        return {
            "maps": self.maps,
            "cams": self.cams,
            "classes": np.array(self.classes),
            "names": np.array(self.names),
            "mask": self.mask,
            "threshold": np.array(self.threshold),
        }

    def save(self, location: str | Path) -> Path:
        """Write a PNG with image, CAM, map and mask beside each other, a row per class; or, as .npz, the arrays."""
        target = storage.absolute(location)
        if target.suffix.lower() == ".npz":
            storage.write_npz(target, **self.arrays())
        elif target.suffix.lower() == ".png":
            draw_side_by_side([self], target)
        else:
            raise UsageError(f"{location} must end with .png (a picture) or .npz (the arrays).")
        return target

    def figure(self) -> Any:
        """Return the picture that `save` writes, as a PIL image."""
        with tempfile.TemporaryDirectory() as folder:
            return Image.open(self.save(Path(folder) / "figure.png")).copy()


def draw_side_by_side(results: Sequence[Result], target: Path) -> None:
    """Draw what methods have made of one photograph: image, CAM, each one's maps, then each one's mask."""
    from ribray.report.pictures import draw_photograph

    first = results[0]
    drawn = {result.label: (result.maps, result.mask, result.threshold) for result in results}
    draw_photograph(first.image, first.names, first.cams, drawn, target)


class MapMaker:
    """Refines the class activation maps of photographs with one network, by one method.

    Args:
        model: a classifier: a linear head on globally averaged features (timm's and torchvision's are found out; of any
            other one say ``features`` and ``head`` where they are not the layers before its last linear one). It is
            copied, never changed. Or the name of a network, ``timm/NAME`` or one of torchvision's.
        weights: of a network by name: "imagenet", which is the default, "none" (random ones), or a file.
        features: the module, or its dotted name, that gives the features (1, F, h, w).
        head: the linear layer, or 1×1 convolution, that classifies their average.
        frozen: dotted names of the first layers, which do not learn; default: those up to a stride of 8.
        mean: of the pixels in 0…1 that it was trained on, per channel; default: timm's own, else ImageNet's.
        std: their standard deviation.
        device: "auto" (a GPU where there is one), "cpu", "cuda", …
        names: of the classes, in the order of the head; default: ImageNet's, where it is timm's or torchvision's.
        settings: keys of the section ``refine``, such as ``iterations=10``, ``lr=8e-6``, ``scales=(1.0, 0.5)``.

    Raises:
        UsageError: the network is not built so, a setting is unknown or out of range, or there is no such device.
    """

    method: ClassVar[str]
    """Its name, as ``refine.method`` has it."""
    _is_softmax = False
    _side: int | None = None  # of a network for ImageNet: that of the images it was trained at

    def __init__(
        self,
        model: nn.Module | str,
        *,
        weights: str | None = None,
        features: Part | None = None,
        head: Part | None = None,
        frozen: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        device: str | torch.device = "auto",
        names: Sequence[str] | None = None,
        **settings: Any,
    ) -> None:
        config = read_settings(settings, self.method)
        if isinstance(model, str):
            model, _ = open_network(model, weights or IMAGENET, "weights")
        elif weights is not None:
            raise UsageError(f"weights={weights} goes with a network by name; the one handed over has its own.")
        normalisation = _normalisation(mean, std)
        classifier = adopt(model, features=features, head=head, frozen=frozen, normalisation=normalisation)
        self._is_softmax, self._side = is_softmax(model), trained_side(model)
        self._set_up(classifier, class_names(model) if names is None else list(names), config, device)

    @classmethod
    def from_run(cls, directory: str | Path, *, device: str | torch.device = "auto", **settings: Any) -> Self:
        """Take the classifier that a run has trained, its classes, and its settings of this method, if it has any.

        Raises:
            UsageError: it is no run directory, or has no finished classifier.
        """
        from ribray.pipeline.finished_run import trained_classifier
        from ribray.stages import stages_of

        classifier, names, methods = trained_classifier(storage.absolute(directory), stages_of)
        own = methods.get(short(cls.method))
        of_run = own.model_dump(exclude={*NOT_READ}) if own is not None else {}
        maker = cls.__new__(cls)
        maker._set_up(classifier, names, read_settings({**of_run, **settings}, cls.method), device)
        return maker

    def _set_up(
        self, classifier: Classifier, names: list[str] | None, config: MethodConfig, device: str | torch.device
    ) -> None:
        if names is not None and len(names) != classifier.classes:
            raise UsageError(f"There are {len(names)} names for the {classifier.classes} classes of the network.")
        precision = "float32" if config.precision == "auto" else config.precision
        self.config, self.names = config, names
        self._classifier, self._normalisation = classifier, classifier.backbone.normalisation
        self._refiner = method_class(self.method)(classifier, config, precision, usable_device(device))

    def __call__(
        self,
        image: Photograph,
        classes: ClassName | Sequence[ClassName] | None = None,
        *,
        extras: Dataset | Sequence[tuple[Photograph, Sequence[ClassName]]] = (),
        by_step: bool = False,
    ) -> Result:
        """Refine the maps of one photograph.

        Args:
            image: see `Photograph`.
            classes: what is to be seen in it, as names or indices; default: what the network is confident of.
            extras: other photographs with their classes, or a data set; of these, RIB draws ``batch_size - 1`` a step
                that share no class with this one. Without any, it is refined alone. Other methods do not look at them.
            by_step: keep the maps after each step.

        Raises:
            UsageError: a class is unknown, or the image is of another kind.
            ImageError: the file cannot be read.
        """
        pixels = read_pixels(image)
        present = self.indices(classes) if classes is not None else list(self.confident(pixels))
        gallery = _Gallery([(pixels, present), *self._others(extras)], self._classifier.classes)
        self._refiner.config = config = self.config.model_copy(update={"keep_steps": by_step})
        with ThreadPoolExecutor(1) as threads:
            needs = self._refiner.extra_samples(config)
            order = None if needs is None else ExtraOrder(gallery.ids, gallery.labels, needs.seed)
            preparation = Preparation(TARGET, gallery, config.scales, threads, self._normalisation, needs, order)
            try:
                views = preparation.target().views
                refinement = self._refiner.refine(views, present, lambda step: preparation.batch(self._refiner))
            finally:
                preparation.cancel()
        record = MapRecord.from_arrays(to_arrays(refinement, pixels.shape[:2], config.scales))
        chosen, steps = tuple(int(index) for index in record.classes), range(refinement.steps if by_step else 0)
        notes, given = list(preparation.unreadable.values()), len(gallery.ids) - 1
        if order is not None and (shared := given - len(order.candidates(TARGET, present))):
            said = f"{shared} of {given} extras share a class with the image, or have none, and were left out."
            notes.insert(0, said)
        return Result(
            image=pixels,
            maps=localization_maps(record),
            cams=localization_maps(record, "cam"),
            classes=chosen,
            names=tuple(self.name(index) for index in chosen),
            losses=tuple(refinement.losses),
            steps=refinement.steps,
            stop_reason=refinement.stop_reason,
            by_step=tuple(localization_maps(record, (record.own, step)) for step in steps),
            notes=tuple(notes),
            mask_values=tuple(index + 1 for index in chosen) if self._classifier.classes < IGNORE else (),
            label=label(record.own),
        )

    def name(self, index: int) -> str:
        """Return the name of a class, or its index where the names are not known."""
        return str(index) if self.names is None else self.names[index]

    def predict(self, image: Photograph) -> list[tuple[str, float]]:
        """Return the classes of a photograph with their probabilities, the most probable one first.

        The network is asked as it came, but for the bias of its head. One for ImageNet sees the image at the size that
        it was trained at: on a larger one, the average over the image drowns what is seen of an object.
        """
        shares = self._probabilities(read_pixels(image))
        return [(self.name(int(index)), float(shares[index])) for index in shares.argsort(descending=True)]

    def confident(self, image: Photograph) -> dict[int, float]:
        """Return the classes that are taken for present, increasing, with their probabilities: those from `confidence`
        on, and the most probable one in any case.
        """
        shares = self._probabilities(read_pixels(image))
        present = {int(shares.argmax()), *torch.nonzero(shares >= self.confidence).flatten().tolist()}
        return {index: float(shares[index]) for index in sorted(present)}

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._refiner.device

    @property
    def takes_extras(self) -> bool:
        """Whether it draws extra samples."""
        return self._refiner.extra_samples(self.config) is not None

    @property
    def confidence(self) -> float:
        """From which probability on a class is taken for present."""
        return CONFIDENT_SHARE if self._is_softmax else CONFIDENT_SIGMOID

    @torch.no_grad()
    def _probabilities(self, pixels: np.ndarray) -> torch.Tensor:
        self._refiner.restore()
        if self._side is not None:
            pixels = rescaled(pixels, min(1.0, self._side / min(pixels.shape[:2])))
        views = normalise(pixels, self._normalisation)[None].to(self._refiner.device)
        logits = self._classifier(views)[0].float().cpu()
        return logits.softmax(0) if self._is_softmax else logits.sigmoid()

    def indices(self, classes: ClassName | Iterable[ClassName]) -> list[int]:
        """Return the indices of classes, given by name or index, each once, increasing."""
        given = [classes] if isinstance(classes, str | int) else list(classes)
        if not given:
            raise UsageError("classes is empty: name what is to be seen in the image, or leave it out.")
        return sorted({self._index(each) for each in given})

    def _index(self, name: ClassName) -> int:
        if isinstance(name, int | np.integer):
            if not 0 <= name < self._classifier.classes:
                raise UsageError(f"There is no class {name}: the network has {self._classifier.classes}, from 0.")
            return int(name)
        if self.names is None:
            raise UsageError(
                f"The names of the network's classes are not known: give the index of '{name}', or names=."
            )
        known: dict[str, int] = {}
        for index, full in enumerate(self.names):
            for alias in (full, *full.split(",")):  # ImageNet's names are lists of synonyms
                known.setdefault(alias.strip().casefold(), index)
        if (found := known.get(name.strip().casefold())) is None:
            close = [repr(each) for each in difflib.get_close_matches(name.casefold(), known, n=SUGGESTIONS)]
            hint = f" (did you mean {' or '.join(close)}?)" if close else ""
            raise UsageError(f"The network has no class '{name}'{hint}.")
        return found

    def _others(
        self, extras: Dataset | Sequence[tuple[Photograph, Sequence[ClassName]]]
    ) -> list[tuple[Any, list[int]]]:
        """Return extra samples, files unread, with the indices of their classes."""
        if isinstance(extras, Dataset):
            shown = [np.flatnonzero(row).tolist() for row in extras.labels]
            return [
                (extras.image_path(id), self.indices([extras.classes[place] for place in places]) if places else [])
                for id, places in zip(extras.ids, shown, strict=True)
            ]
        return [(image, self.indices(classes)) for image, classes in extras]


class RIB(MapMaker):
    """Refines maps by fine-tuning a copy of the network on each photograph (Lee et al., NeurIPS 2021)."""

    method = "rib"


class AdvCAM(MapMaker):
    """Refines maps by moving each photograph along the gradient of its classes' scores (Lee et al., CVPR 2021).

    Its settings were published for a ResNet-50 that was trained on VOC; other networks need others.
    """

    method = "advcam"


def map_maker(name: str) -> type[MapMaker]:
    """Return what makes maps by a method: `RIB`, `AdvCAM`, or one of your own by its dotted name.

    Raises:
        UsageError: there is no such method.
    """
    for known in (RIB, AdvCAM):
        if known.method == name:
            return known
    try:
        return type(method_class(name).__name__, (MapMaker,), {"method": name})
    except ValueError as error:
        raise UsageError(f"{error}.") from None


class _Gallery:
    """The photograph and its extra samples, as a data set is read: by id."""

    def __init__(self, images: Sequence[tuple[Any, list[int]]], classes: int) -> None:
        self.ids = [TARGET, *(f"extra {number}" for number in range(len(images) - 1))]
        self.labels = np.zeros((len(images), classes), dtype=bool)
        for row, (_, indices) in enumerate(images):
            self.labels[row, indices] = True
        self._images = dict(zip(self.ids, (image for image, _ in images), strict=True))

    def index(self, id: str) -> int:
        return self.ids.index(id)

    def picture(self, id: str) -> Picture:
        return Picture(self.image(id))

    def image(self, id: str) -> np.ndarray:
        return read_pixels(self._images[id])


def read_settings(settings: dict[str, Any], method: str) -> MethodConfig:
    """Return settings of a method, checked; one that does not matter to a single image is refused."""
    kind = settings_class(method)
    known = [name for name in kind.model_fields if name not in NOT_READ]
    for name in settings:
        if name not in known:
            owners = [label(other) for other, of in BUILT_IN.items() if name in {*of.model_fields} - {*NOT_READ}]
            close = [f" (did you mean {other}?)" for other in difflib.get_close_matches(name, known, n=1)]
            hint = f", which is one of {owners[0]}" if owners else "".join(close)
            raise UsageError(f"{label(short(method))} has no setting '{name}'{hint}; it has {', '.join(known)}.")
    if kind is RIBConfig and "scales" in settings and "loss_scales" not in settings:
        standard = RIBConfig().loss_scales
        settings = {**settings, "loss_scales": [each for each in settings["scales"] if each in standard or each == 1.0]}
    try:
        return kind.model_validate({**settings, "method": method})
    except ValidationError as error:
        raise UsageError(explain_invalid(error, kind)) from None


def _normalisation(mean: Sequence[float] | None, std: Sequence[float] | None) -> Normalisation | None:
    if mean is None and std is None:
        return None
    if mean is None or std is None or len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise UsageError("mean and std go together: three numbers each, of pixels in 0…1, and std above 0.")
    first, second, third, one, two, three = map(float, (*mean, *std))
    return Normalisation((first, second, third), (one, two, three))
