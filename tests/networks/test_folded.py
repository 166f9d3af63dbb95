"""The folded classifier is the classifier: same maps, same gradients, and they follow its weights."""

import math

import pytest
import torch

from ribray.networks import build_classifier
from ribray.networks.classifier import Classifier
from ribray.networks.folded import Folded

BACKBONES = [("resnet18", 16), ("resnet50", 8), ("small", 8)]


def make(backbone: str, output_stride: int, dtype: torch.dtype = torch.float64) -> Classifier:
    """A classifier with statistics, scales and shifts of batch norm that are not those of a fresh one."""
    torch.manual_seed(0)
    classifier = build_classifier(backbone, 5, output_stride)
    for module in classifier.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            torch.nn.init.uniform_(module.weight, 0.2, 0.8)
            torch.nn.init.uniform_(module.bias, -0.2, 0.2)
    return classifier.to(dtype, memory_format=torch.channels_last)


def images() -> torch.Tensor:
    return torch.randn(2, 3, 48, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).detach().norm() / expected.detach().norm())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("backbone", "output_stride"), BACKBONES)
def test_maps_and_gradients_are_the_classifiers(
    backbone: str, output_stride: int, dtype: torch.dtype, tolerance: float
) -> None:
    exact = make(backbone, output_stride)
    expected = exact.cams(exact.stem(images()))
    expected.square().mean().backward()

    classifier = make(backbone, output_stride, dtype)
    folded = Folded(classifier, dtype)
    found = folded.cams(folded.stem(images().to(dtype)))
    assert relative_error(found, expected) < tolerance
    found.square().mean().backward()
    folded.give_gradients()
    for one, other in zip(classifier.parameters(), exact.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        if other.grad is not None:
            assert one.grad.stride() == one.stride(), "the optimiser wants gradients laid out as the weights are"
            assert relative_error(one.grad, other.grad) < tolerance


def test_gradients_of_several_passes_add_up_until_the_next_refresh() -> None:
    classifier = make("small", 8)
    folded = Folded(classifier, torch.float64)

    def gradient(*parts: torch.Tensor) -> torch.Tensor:
        folded.refresh()
        for part in parts:
            folded.cams(folded.stem(part)).sum().backward()
        folded.give_gradients()
        return classifier.backbone.block2.conv1.weight.grad.clone()

    together = gradient(images())
    assert relative_error(gradient(images()[:1], images()[1:]), together) < 1e-12
    assert relative_error(gradient(images()[:1]), together) > 0.1


def test_it_follows_the_weights_from_refresh_to_refresh() -> None:
    classifier = make("small", 8)
    folded = Folded(classifier, torch.float64)
    stem = folded.stem(images())
    with torch.no_grad():
        before = folded.cams(stem)
        for parameter in classifier.learnable_groups()[0]:
            parameter.mul_(1.1)
        assert torch.equal(folded.cams(stem), before)
        folded.refresh()
        assert relative_error(folded.cams(stem), classifier.cams(classifier.stem(images()))) < 1e-12
        assert relative_error(folded.cams(stem), before) > 0.1


def test_bfloat16_keeps_head_and_gradients_in_float32() -> None:
    classifier = make("resnet18", 16, torch.float32)
    exact, rounded = (Folded(classifier, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert rounded.stem(images().float()).dtype == torch.bfloat16
    found, expected = (each.cams(each.stem(images().float())) for each in (rounded, exact))
    assert found.dtype == torch.float32
    assert 0 < relative_error(found, expected) < 0.05
    found.sum().backward()
    rounded.give_gradients()
    assert {one.grad.dtype for one in classifier.parameters() if one.grad is not None} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("learning", [True, False])
def test_what_is_not_a_number_does_not_become_one(dtype: torch.dtype, learning: bool) -> None:
    folded = Folded(make("resnet18", 16, torch.float32), dtype)
    broken = images().float()
    broken[1, 0, 20, 20] = math.nan
    with torch.set_grad_enabled(learning):
        maps = folded.cams(folded.stem(broken))
    assert maps[1].isnan().any()
    assert maps[0].isfinite().all()


def test_a_pass_without_gradient_keeps_nothing() -> None:
    folded = Folded(make("small", 8), torch.float64)
    with torch.no_grad():
        assert not folded.cams(folded.stem(images())).requires_grad
    assert folded.cams(folded.stem(images())).requires_grad
    assert not folded.stem(images()).requires_grad
