"""IRNet: sizes on every backbone, what learns, and files."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ribray.errors import UsageError
from ribray.networks import build_backbone
from ribray.networks.irnet import IRNet, _at_stride
from ribray.networks.weights import load_network, read_state, save_network

BACKBONES = [("resnet18", 16), ("small", 8)]
SIZES = [(97, 131), (64, 96), (33, 18)]


def irnet(name: str, output_stride: int, seed: int = 0, width: int = 64) -> IRNet:
    torch.manual_seed(seed)
    return IRNet(build_backbone(name, output_stride), width)


def images(height: int, width: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "output_stride"), BACKBONES)
@pytest.mark.parametrize("size", SIZES)
def test_both_outputs_have_stride_four_rounded_up(name: str, output_stride: int, size: tuple[int, int]) -> None:
    model = irnet(name, output_stride).train()
    boundary, displacement = model(images(*size))
    cells = tuple(math.ceil(side / 4) for side in size)
    assert boundary.shape == (2, 1, *cells)
    assert displacement.shape == (2, 2, *cells)
    assert model.boundary_probability(images(*size)).shape == cells


@pytest.mark.parametrize(("name", "output_stride"), BACKBONES)
def test_only_the_heads_learn_each_by_its_own_output(name: str, output_stride: int) -> None:
    model = irnet(name, output_stride).train()
    boundary, displacement = model(images(65, 47))
    boundary.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.boundary_parameters())
    assert all(parameter.grad is None for parameter in model.displacement_parameters())
    displacement.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.displacement_parameters())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.backbone.parameters())
    heads = [*model.boundary_parameters(), *model.displacement_parameters()]
    assert {id(head) for head in heads} == {id(every) for every in model.parameters() if every.requires_grad}


def test_the_published_network_has_the_published_layers() -> None:
    model = IRNet(build_backbone("resnet50", 16))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.named_parameters() if tensor.ndim == 4}
    channels = (64, 256, 512, 1024, 2048)
    for level, (inputs, width) in enumerate(zip(channels, (64, 128, 256, 256, 256), strict=True)):
        assert shapes[f"boundary_levels.{level}.0.0.weight"] == (32, inputs, 1, 1)
        assert shapes[f"displacement_levels.{level}.0.0.weight"] == (width, inputs, 1, 1)
    assert shapes["boundary_output.weight"] == (1, 160, 1, 1)
    assert shapes["displacement_upper.0.weight"] == (256, 768, 1, 1)
    assert shapes["displacement_output.0.0.weight"] == (256, 448, 1, 1)
    assert shapes["displacement_output.2.weight"] == (2, 256, 1, 1)
    groups = [module.num_groups for module in model.modules() if isinstance(module, torch.nn.GroupNorm)]
    assert groups == [4] * 5 + [8, 16, 16, 16, 16] + [16, 16]
    biased = [name for name, module in model.named_modules() if getattr(module, "bias", None) is not None]
    assert [name for name in biased if "output" in name and "0.1" not in name] == ["boundary_output"]


@torch.no_grad()
def test_evaluation_takes_the_mean_displacement_off() -> None:
    model = irnet("small", 8)
    _, raw = model.train()(images(40, 52))
    _, unset = model.eval()(images(40, 52))
    assert torch.equal(unset, raw)
    model.displacement_mean.copy_(torch.tensor([0.5, -2.0]))
    boundary, displacement = model(images(40, 52))
    torch.testing.assert_close(displacement, raw - torch.tensor([0.5, -2.0])[:, None, None])
    assert torch.equal(boundary, model.train()(images(40, 52))[0])
    assert torch.equal(model(images(40, 52))[1], raw)


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet18", "small"])
def test_boundary_probability_averages_logits_of_the_image_and_its_flip(name: str) -> None:
    model = irnet(name, 8).eval()
    model.boundary_output.weight.mul_(20)  # so that the mean of logits is not that of probabilities
    image = images(51, 70, count=1)[0]
    views = torch.stack((image, image.flip(-1)))
    first, second = (model(view[None])[0][0, 0] for view in views)
    probability = model.boundary_probability(views)
    torch.testing.assert_close(probability, torch.sigmoid((first + second.flip(-1)) / 2))
    torch.testing.assert_close(model.boundary_probability(views.flip(0)), probability.flip(-1))
    assert probability.dtype == torch.float32


def test_levels_go_up_bilinearly_and_down_by_means_without_losing_the_last_cell() -> None:
    maps = images(7, 5)
    upwards = functional.interpolate(maps, scale_factor=4, mode="bilinear", align_corners=False)
    assert torch.equal(_at_stride(maps, 16, 4, (27, 19)), upwards[:, :, :27, :19])
    assert torch.equal(_at_stride(maps, 4, 4, (7, 5)), maps)
    downwards = _at_stride(maps, 2, 4, (4, 3))
    halved = functional.interpolate(maps, scale_factor=0.5, mode="bilinear", align_corners=False)
    torch.testing.assert_close(downwards[:, :, :3, :2], halved)
    torch.testing.assert_close(downwards[:, :, 3, :2], maps[:, :, 6, :4].unflatten(-1, (2, 2)).mean(-1))
    assert torch.equal(downwards[:, :, 3, 2], maps[:, :, 6, 4])


def test_outputs_follow_the_image_when_it_moves_by_whole_cells() -> None:
    torch.manual_seed(0)
    backbone = build_backbone("small", 8)
    boundary = IRNet(backbone, 64).eval()
    for module in boundary.modules():
        if isinstance(module, torch.nn.GroupNorm):  # its statistics are those of the whole image
            module.forward = lambda x: x  # type: ignore[method-assign]
    wide = images(64, 256, count=1)
    with torch.no_grad():
        whole, _ = boundary(wide)
        part, _ = boundary(wide[..., 64:192])
    torch.testing.assert_close(part[..., 12:20], whole[..., 28:36])


def test_a_width_that_groups_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 64, not 100"):
        irnet("small", 8, width=100)


# --- files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "output_stride"), BACKBONES)
def test_a_saved_network_is_read_back_exactly(tmp_path: Path, name: str, output_stride: int) -> None:
    saved = irnet(name, output_stride, seed=1).eval()
    saved.displacement_mean.copy_(torch.tensor([0.25, -1.5]))
    save_network(saved, tmp_path / "irnet.safetensors")
    read = irnet(name, output_stride, seed=2).eval()
    load_network(read, tmp_path / "irnet.safetensors")
    state = saved.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in read.state_dict().items())
    with torch.no_grad():
        for first, second in zip(saved(images(33, 47)), read(images(33, 47)), strict=True):
            assert torch.equal(first, second)


def test_a_file_of_another_network_is_refused_in_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_network(irnet("resnet18", 16), file)
    with pytest.raises(UsageError, match=r"w\.safetensors.*backbone\..*looks like a resnet18"):
        load_network(irnet("resnet50", 16), file)
    with pytest.raises(UsageError, match=r"'backbone\.conv1\.weight' is 64×3×7×7 there and 16×3×5×5"):
        load_network(irnet("small", 8), file)
    with pytest.raises(UsageError, match=r"'displacement_levels\.0\.0\.0\.weight' is 16×64×1×1 there and 32×64×1×1"):
        load_network(irnet("resnet18", 16, width=128), file)
    save_network(irnet("resnet34", 16), file)  # has every tensor of a resnet18, and more
    with pytest.raises(UsageError, match=r"no tensor 'backbone\.layer1\.2\..*looks like a resnet34"):
        load_network(irnet("resnet18", 16), file)


def test_a_damaged_or_missing_file_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    model = irnet("small", 8)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    save_network(irnet("small", 8, seed=1), tmp_path / "w.safetensors")
    assert read_state(tmp_path / "w.safetensors").keys() == before.keys()
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:-100])
    with pytest.raises(UsageError, match=r"cut\.safetensors are damaged"):
        load_network(model, tmp_path / "cut.safetensors")
    with pytest.raises(UsageError, match=r"no\.safetensors cannot be read"):
        load_network(model, tmp_path / "no.safetensors")
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
