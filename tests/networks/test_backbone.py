"""What makes the ResNets those of the paper."""

import pytest
import torch
import torchvision

from ribray.networks import build_backbone
from ribray.networks.residual import ARCHITECTURES, Network


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_resnet_and_its_random_weights_are_torchvisions(name: str) -> None:
    built = []
    for build in (torchvision.models.get_model, Network):
        torch.manual_seed(0)
        built.append((build(name).eval(), torch.rand(1)))  # as many random numbers are drawn
    (theirs, after), (ours, next_number) = built
    assert torch.equal(after, next_number)
    weights = ours.state_dict()
    assert list(weights) == list(theirs.state_dict())
    assert all(torch.equal(weights[key], value) for key, value in theirs.state_dict().items())
    x = torch.randn(1, 64, 9, 7, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            expected = theirs.get_submodule(stage)(x)
            x = ours.get_submodule(stage)(x)
            assert torch.equal(x, expected)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnet_at_stride_16_is_torchvisions_with_a_denser_last_stage(name: str, images: torch.Tensor) -> None:
    images = images.double()
    theirs = torchvision.models.get_model(name, weights=None).eval().double()
    ours = build_backbone(name, 16).double()
    ours.load_state_dict({key: value for key, value in theirs.state_dict().items() if not key.startswith("fc.")})
    with torch.no_grad():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
        x = theirs.layer3(theirs.layer2(theirs.layer1(x)))
        levels = ours.features(images)
        torch.testing.assert_close(levels[3], x)
        # Without dilation, every other cell of the first dense block is the strided block's.
        dense = ours.get_submodule("layer4.0")(x)
        first = theirs.layer4[0](x)
    assert dense.shape[2:] == x.shape[2:]
    if name == "resnet50":
        torch.testing.assert_close(dense[:, :, ::2, ::2], first)


def test_resnet_at_stride_16_has_no_dilation_and_at_stride_8_two_and_four() -> None:
    def dilations(backbone: torch.nn.Module, stage: str) -> set[tuple[int, ...]]:
        modules = backbone.get_submodule(stage).modules()
        return {m.dilation for m in modules if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)}

    for stage, expected in (("layer3", 1), ("layer4", 1)):
        assert dilations(build_backbone("resnet50", 16), stage) == {(expected, expected)}
    for stage, expected in (("layer2", 1), ("layer3", 2), ("layer4", 4)):
        assert dilations(build_backbone("resnet50", 8), stage) == {(expected, expected)}
