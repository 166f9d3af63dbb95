"""What makes the ResNets those of the paper."""

import pytest
import torch
import torchvision

from ribray.networks import build_backbone


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


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
