"""What a pool's worker does of stage ``refine``: images by their ids, refined one after the other into map files."""

import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ribray.config import CAM, MethodConfig
from ribray.data.dataset import Dataset
from ribray.errors import ImageError
from ribray.machine import LOADERS, usable_cores
from ribray.methods.extras import ExtraOrder
from ribray.methods.maps import empty_arrays, map_path, to_arrays, write_maps
from ribray.methods.method import method_class, require_whole
from ribray.methods.preparation import Preparation
from ribray.networks import build_classifier
from ribray.networks.weights import load_classifier

_MOST_LOADERS = 6
"""On a GPU, where 171 extra samples are 1.3 s of a core to decode and resize, and 0.2 s to compute with."""


class Imports:
    """A worker that has imported what refinement needs; torch imports a part of itself with the first optimiser."""

    def __init__(self) -> None:
        torch.optim.SGD([torch.zeros(1)])


class RefineWorker:
    """Refines one image after the other with one copy of the classifier."""

    def __init__(
        self,
        dataset: Dataset,
        classifier: Mapping[str, Any],
        weights: Path,
        config: MethodConfig,
        precision: str,
        folder: Path,
        loader_threads: int | None,
    ):
        if config.deterministic and torch.cuda.is_available():
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.backends.cudnn.benchmark = False
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = build_classifier(classes=len(dataset.classes), **classifier)
        load_classifier(model, weights)
        method = method_class(config.method)
        self._method, self._extras = method(model, config, precision, self._device), method.extra_samples(config)
        self._normalisation = model.backbone.normalisation
        self._dataset, self._config, self._folder = dataset, config, folder
        extras = self._extras
        self._order = None if extras is None else ExtraOrder(dataset.ids, dataset.labels, extras.seed)
        threads = loader_threads or (min(usable_cores(), _MOST_LOADERS) if torch.cuda.is_available() else LOADERS)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="loader")
        self._prepared: dict[str, Preparation] = {}

    def prefetch(self, item: str) -> None:
        """Begin to load an image that comes later."""
        if self._dataset.labels[self._dataset.index(item)].any() and item not in self._prepared:
            self._prepared[item] = self._prepare(item)

    def process(self, item: str) -> dict[str, Any]:
        """Refine an image and write its map file."""
        began = time.monotonic()
        present = np.flatnonzero(self._dataset.labels[self._dataset.index(item)])
        if present.size == 0:
            picture = self._dataset.picture(item)
            height, width = picture.pixels.shape[:2]
            arrays = empty_arrays((height, width), self._config.scales, (CAM, *self._config.maps))
            write_maps(map_path(self._folder, item), item, arrays)
            return {"steps": 0, "remarks": picture.remarks, **_times(began)}
        preparation = self._prepared.pop(item, None) or self._prepare(item)
        try:
            if self._extras is not None and preparation.per_step == 0 and not preparation.is_alone:
                raise ImageError(
                    f"{item} has no image to draw extra samples from: every other one shares a class with it; "
                    f"add images without its classes, be it without any, or set {self._extras.alone_with}."
                )
            target = preparation.target()
            refined = self._method.refine(target.views, present.tolist(), lambda step: preparation.batch(self._method))
        finally:
            preparation.cancel()
        require_whole(refined, self._config, present.tolist())
        write_maps(map_path(self._folder, item), item, to_arrays(refined, target.size, self._config.scales))
        return {
            "steps": refined.steps,
            "stop_reason": refined.stop_reason,
            "extras": preparation.per_step,
            "only_empty": preparation.only_empty,
            "remarks": target.remarks,
            "unreadable": list(preparation.unreadable.values()),
            "waited": preparation.waited,
            **_times(began),
        }

    def _prepare(self, item: str) -> Preparation:
        scales, normalisation = self._config.scales, self._normalisation
        return Preparation(item, self._dataset, scales, self._threads, normalisation, self._extras, self._order)


def _times(began: float) -> dict[str, Any]:
    """Return when this process began and ended an image, in seconds of the machine's monotonic clock."""
    return {"process": os.getpid(), "began": began, "ended": time.monotonic()}
