"""What every backbone promises, and what makes the ResNets those of the paper."""

import pytest
import torch
import torchvision

from ribray.errors import UsageError
from ribray.networks import BACKBONES, build_backbone

EVERY = [(name, stride) for name in BACKBONES for stride in ((8,) if name == "small" else (32, 16, 8))]
OF_TIMM = [
    ("timm/tf_efficientnet_lite0", 16),
    ("timm/tf_efficientnet_lite0", 8),
    ("timm/resnet18", 32),
    ("timm/regnety_002", 16),
]
LIGHT = [(name, stride) for name, stride in EVERY if name in ("resnet18", "resnet50", "small")] + OF_TIMM


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "output_stride"), EVERY + OF_TIMM)
def test_levels_have_the_promised_channels_and_strides(name: str, output_stride: int, images: torch.Tensor) -> None:
    backbone = build_backbone(name, output_stride)
    with torch.no_grad():
        levels = backbone.features(images[:1])
    assert [level.shape[1] for level in levels] == list(backbone.channels)
    assert [level.shape[2:] for level in levels] == [(64 // stride, 96 // stride) for stride in backbone.strides]
    assert backbone.strides[-1] == output_stride


@pytest.mark.parametrize(("name", "output_stride"), LIGHT)
def test_stem_and_trunk_make_the_last_level(name: str, output_stride: int, images: torch.Tensor) -> None:
    backbone = build_backbone(name, output_stride)
    with torch.no_grad():
        assert torch.equal(backbone.trunk(backbone.stem(images)), backbone.features(images)[-1])


@pytest.mark.parametrize(("name", "output_stride"), LIGHT)
def test_batch_norm_keeps_its_statistics_in_training_mode(name: str, output_stride: int, images: torch.Tensor) -> None:
    backbone = build_backbone(name, output_stride).train()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    backbone.trunk(backbone.stem(images))
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


@pytest.mark.parametrize(("name", "output_stride"), LIGHT)
def test_every_parameter_is_either_frozen_or_learnable(name: str, output_stride: int) -> None:
    backbone = build_backbone(name, output_stride)
    frozen, learnable = backbone.frozen_parameters(), backbone.learnable_parameters()
    assert {id(p) for p in frozen} | {id(p) for p in learnable} == {id(p) for p in backbone.parameters()}
    assert len(frozen) + len(learnable) == len(list(backbone.parameters()))


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


def test_unknown_backbone_and_output_stride_are_refused_in_a_sentence() -> None:
    with pytest.raises(UsageError, match=r"no backbone 'resnet51'.*resnet50"):
        build_backbone("resnet51", 16)
    with pytest.raises(UsageError, match="32, 16 or 8, not 4"):
        build_backbone("resnet50", 4)
    with pytest.raises(UsageError, match="stride 8, not 16"):
        build_backbone("small", 16)
