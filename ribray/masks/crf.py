"""The fully connected CRF of Krähenbühl & Koltun (NeurIPS 2011), which draws labels to the edges of the image.

A Gaussian kernel over positions smooths; a bilateral kernel over positions and colours makes pixels that look
alike agree. Inference is the mean-field approximation of the library pydensecrf2, an optional part of ribray.

Shapes: K keys (background and the present classes), H W the image's pixels.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ribray.errors import UsageError


@dataclass(frozen=True)
class CrfParameters:
    """Kernels and length of the inference."""

    gaussian_sxy: float
    """Width of the Gaussian kernel in pixels."""
    gaussian_weight: float
    bilateral_sxy: float
    """Width of the bilateral kernel in pixels."""
    bilateral_srgb: float
    """Its width in colour, in steps of 8-bit channels."""
    bilateral_weight: float
    iterations: int
    """Mean-field steps."""


LABEL_CRF = CrfParameters(
    gaussian_sxy=3, gaussian_weight=3, bilateral_sxy=50, bilateral_srgb=5, bilateral_weight=10, iterations=10
)
"""For labels cut from localization maps (IRN's reference implementation)."""
PREDICTION_CRF = CrfParameters(
    gaussian_sxy=1, gaussian_weight=3, bilateral_sxy=67, bilateral_srgb=3, bilateral_weight=4, iterations=10
)
"""For probabilities of a segmentation network (DeepLab-v2)."""
LABEL_CERTAINTY = 0.7
"""Probability that a label is right before the image is looked at (IRN's reference implementation)."""
_SMALLEST_PROBABILITY = 1e-5  # below it, probabilities are taken for this, so that their logarithm is finite


def crf_on_labels(kind: str, srgb: float) -> CrfParameters | None:
    """Return the parameters on labels with a bilateral kernel of so wide a colour; None where ``kind`` is "none"."""
    return replace(LABEL_CRF, bilateral_srgb=srgb) if kind == "dense" else None


def require_crf() -> ModuleType:
    """Return the library of the dense CRF.

    Raises:
        UsageError: pydensecrf2 is not installed.
    """
    try:
        return import_module("pydensecrf.densecrf")
    except ImportError:
        raise UsageError(
            'The dense CRF is not installed: `pip install "ribray[crf]"`, or do without it by `masks.crf: none`.'
        ) from None


class Crf:
    """The CRF of one image (H, W, 3) uint8 with K keys: its kernels are made once for whatever it is asked."""

    def __init__(self, image: NDArray[np.uint8], keys: int, parameters: CrfParameters):
        self._image, self._keys, self._parameters = image, keys, parameters

    def from_labels(self, labels: NDArray[np.integer]) -> NDArray[np.uint8]:
        """Return labels (H, W) uint8 that follow the edges of the image, of equally probable keys the lowest.

        Every pixel's label has the probability `LABEL_CERTAINTY`, the other keys share the rest. Label 0 is a key like
        any other, not "unknown".

        Args:
            labels: (H, W) integers in 0 … K − 1. With one key nothing can change.

        Raises:
            UsageError: pydensecrf2 is not installed.
            ValueError: image and labels differ in size, or a label is no key.
        """
        keys = self._keys
        _check_image(self._image, labels.shape)
        if not 1 <= keys <= 256 or labels.min() < 0 or labels.max() >= keys:
            raise ValueError(f"Labels {labels.min()} to {labels.max()} do not go with {keys} keys (1 to 256).")
        if keys == 1:
            return labels.astype(np.uint8)
        certain = labels.reshape(-1) == np.arange(keys)[:, None]  # (K, H·W)
        energy = np.where(certain, -np.log(LABEL_CERTAINTY), -np.log((1 - LABEL_CERTAINTY) / (keys - 1)))
        return self.marginals(energy).argmax(axis=0).astype(np.uint8)

    def marginals(self, energy: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return the marginals (K, H, W) of unary energies (K, H·W)."""
        self._kernels.setUnaryEnergy(np.ascontiguousarray(energy, dtype=np.float32))
        marginals = np.array(self._kernels.inference(self._parameters.iterations), dtype=np.float32)
        return marginals.reshape(self._keys, *self._image.shape[:2])

    @cached_property
    def _kernels(self) -> Any:
        parameters, (height, width) = self._parameters, self._image.shape[:2]
        crf = require_crf().DenseCRF2D(width, height, self._keys)
        crf.addPairwiseGaussian(sxy=parameters.gaussian_sxy, compat=parameters.gaussian_weight)
        crf.addPairwiseBilateral(
            sxy=parameters.bilateral_sxy,
            srgb=parameters.bilateral_srgb,
            rgbim=np.array(self._image, order="C"),  # a copy: the library takes no read-only array
            compat=parameters.bilateral_weight,
        )
        return crf


def crf_from_probabilities(
    image: NDArray[np.uint8], probabilities: NDArray[np.float32], parameters: CrfParameters
) -> NDArray[np.float32]:
    """Return probabilities (K, H, W) float32 that follow the edges of the image and add up to 1 over the keys.

    Args:
        image: (H, W, 3) uint8.
        probabilities: (K, H, W) float32, of each key at each pixel; those below 1e-5 count as 1e-5.
        parameters: the kernels.

    Raises:
        UsageError: pydensecrf2 is not installed.
        ValueError: image and probabilities differ in size, or one of them is none.
    """
    if probabilities.ndim != 3 or not len(probabilities):
        raise ValueError(f"Probabilities of shape {probabilities.shape}, where (keys, height, width) is needed.")
    _check_image(image, probabilities.shape[1:])
    if not np.isfinite(probabilities).all():
        raise ValueError("The probabilities are not all finite numbers.")
    energy = -np.log(np.clip(probabilities, _SMALLEST_PROBABILITY, 1.0))
    return Crf(image, len(probabilities), parameters).marginals(energy.reshape(len(probabilities), -1))


def _check_image(image: NDArray[np.uint8], size: tuple[int, ...]) -> None:
    if image.dtype != np.uint8 or image.shape != (*size, 3) or len(size) != 2 or 0 in size:
        raise ValueError(
            f"An image of shape {image.shape} ({image.dtype}) does not go with labels of shape {size}; "
            "(height, width, 3) uint8 goes with (height, width)."
        )
