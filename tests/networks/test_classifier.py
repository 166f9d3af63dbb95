"""The classifier: maps and logits, and what learns."""

import pytest
import torch

from ribray.networks import build_classifier

BACKBONES = [("resnet18", 16), ("small", 8)]


@pytest.mark.parametrize(("backbone", "output_stride"), BACKBONES)
def test_logits_are_the_head_on_average_pooled_features(backbone: str, output_stride: int) -> None:
    torch.manual_seed(0)
    classifier = build_classifier(backbone, 5, output_stride)
    images = torch.randn(3, 3, 64, 48)
    with torch.no_grad():
        features = classifier.backbone.features(images)[-1]
        expected = features.mean((2, 3)) @ classifier.head.weight[:, :, 0, 0].T
        torch.testing.assert_close(classifier(images), expected)
        cams = classifier.cams(classifier.stem(images))
    assert cams.shape == (3, 5, 64 // output_stride, 48 // output_stride)
    assert cams.min() < 0  # raw: no ReLU


def test_head_stays_in_float32_under_autocast() -> None:
    classifier = build_classifier("resnet18", 5, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        stem = classifier.stem(torch.randn(1, 3, 64, 64))
        assert stem.dtype == torch.bfloat16
        assert classifier.cams(stem).dtype == torch.float32


def test_a_classifier_without_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one class"):
        build_classifier("resnet18", 0, 16)
