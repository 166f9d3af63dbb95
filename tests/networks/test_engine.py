"""The two engines behind a method compute the same, and each network gets one that can compute it."""

import numpy as np
import torch

from ribray.config import RIBConfig
from ribray.methods.rib import Refiner
from ribray.networks import build_classifier
from ribray.networks.engine import Plain

STEPS = RIBConfig(iterations=3, lr=1e-4, scales=(1.0, 0.5), loss_scales=(1.0,), explode_ratio=1.0, stop_threshold=1e6)


def refined(engine: str) -> list[np.ndarray]:
    torch.manual_seed(0)
    classifier = build_classifier("resnet18", 4, 16)
    for module in classifier.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.constant_(module.weight, 0.5)
    generator = torch.Generator().manual_seed(1)
    views = [torch.randn(2, 3, side, side, generator=generator) for side in (128, 64)]
    crops = torch.randn(3, 3, 48, 48, generator=generator), torch.eye(4, dtype=torch.bool)[:3]
    return Refiner(classifier, STEPS, engine=engine).refine(views, [3], lambda step: crops).maps["rib"]


def test_both_engines_refine_the_same() -> None:
    plain, folded = refined("plain"), refined("folded")
    largest = max(np.abs(maps).max() for maps in folded)
    assert largest > 1e-3, "maps of nothing but rounding"
    for one, other in zip(plain, folded, strict=True):
        assert np.abs(one - other).max() <= 1e-5 * largest


def test_bfloat16_on_the_plain_engine_stays_near_float32() -> None:
    classifier = build_classifier("resnet18", 3, 16).eval()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    exact, reduced = (Plain(classifier, dtype) for dtype in (torch.float32, torch.bfloat16))
    with torch.no_grad():
        expected, found = exact.cams(exact.stem(images)), reduced.cams(reduced.stem(images))
    assert found.dtype == torch.float32
    difference = (found - expected).norm() / expected.norm()
    assert 0 < difference < 0.05
