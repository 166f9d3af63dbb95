"""DeepLab-v2: outputs, what learns and how fast, the balanced loss, prediction and files."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ribray.data.transforms import normalise
from ribray.errors import UsageError
from ribray.networks import build_backbone, build_classifier
from ribray.networks.deeplab import DeepLab, predict, segmentation_loss
from ribray.networks.weights import load_network, save_network

NETWORKS = [("resnet18", None), ("small", None), ("small", 16)]
CLASSES = 5


def deeplab(
    name: str = "small", hidden: int | None = None, seed: int = 0, classes: int = CLASSES, **options
) -> DeepLab:
    torch.manual_seed(seed)
    model = DeepLab(build_backbone(name, 8), classes, hidden=hidden, **options)
    model.backbone.start_at_identity()  # or random features would grow from block to block
    return model


def images(height: int, width: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def labels(height: int, width: int, count: int = 2, seed: int = 2) -> Tensor:
    """(count, height, width) uint8 of random classes, an eighth of them ignored."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(0, CLASSES, (count, height, width), generator=generator)
    ignored = torch.rand(count, height, width, generator=generator) < 1 / 8
    return classes.where(~ignored, 255).to(torch.uint8)


# --- outputs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "hidden"), NETWORKS)
@pytest.mark.parametrize("size", [(97, 131), (64, 96), (33, 18)])
def test_every_scale_has_its_own_output_and_last_comes_the_maximum(
    name: str, hidden: int | None, size: tuple[int, int]
) -> None:
    model = deeplab(name, hidden).train()
    with torch.no_grad():
        outputs = model(images(*size))
        alone = model.eval()(images(*size))
    stride = 4 if hidden else 8
    for scale, output in zip((1.0, 0.75, 0.5), outputs, strict=False):
        sides = (math.ceil(round(side * scale) / stride) for side in size)
        assert output.shape == (2, CLASSES, *sides)
    upsampled = [
        functional.interpolate(output, outputs[0].shape[2:], mode="bilinear", align_corners=False)
        for output in outputs[:3]
    ]
    assert len(outputs) == 4
    torch.testing.assert_close(outputs[3], torch.maximum(torch.maximum(upsampled[0], upsampled[1]), upsampled[2]))
    assert torch.equal(alone, outputs[3])


def test_a_single_scale_gives_its_output_once() -> None:
    model = deeplab(scales=(1.0,)).train()
    outputs = model(images(40, 40))
    assert len(outputs) == 1
    assert torch.equal(model.eval()(images(40, 40)), outputs[0])


def test_scales_without_the_images_own_are_refused() -> None:
    with pytest.raises(ValueError, match=r"1\.0 among them"):
        deeplab(scales=(0.5, 0.75))


@torch.no_grad()
def test_published_logits_are_the_sum_of_dilated_convolutions() -> None:
    model = deeplab("resnet18", scales=(1.0,)).eval()
    features = model.backbone.features(images(97, 131))[-1]
    expected = torch.zeros(())
    for rate, convolution in zip((6, 12, 18, 24), model.head.aspp, strict=True):
        assert convolution.weight.std() == pytest.approx(0.01, rel=0.05)
        assert not convolution.bias.any()
        expected = expected + functional.conv2d(features, convolution.weight, padding=rate, dilation=rate)
    torch.testing.assert_close(model(images(97, 131)), expected)


def test_logits_and_loss_are_float32_under_autocast() -> None:
    model = deeplab("small", 16).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(images(48, 48))
        loss = segmentation_loss(outputs, labels(48, 48))
        half = segmentation_loss([outputs[0].bfloat16()], labels(12, 12))
    assert {output.dtype for output in outputs} == {loss.dtype, half.dtype} == {torch.float32}


# --- what learns --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "hidden"), NETWORKS)
def test_four_groups_of_rates_hold_every_parameter_once(name: str, hidden: int | None) -> None:
    model = deeplab(name, hidden)
    groups = model.parameter_groups(0.25, 5e-4)
    assert [group["lr"] for group in groups] == [0.25, 0.5, 2.5, 5.0]
    assert [group["weight_decay"] for group in groups] == [5e-4, 0, 5e-4, 0]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    listed = [[names[id(parameter)] for parameter in group["params"]] for group in groups]
    assert sorted(name for group in listed for name in group) == sorted(names.values())
    for place, group in enumerate(listed):
        assert group
        assert {name.startswith("head.") for name in group} == {place >= 2}
        assert {name.endswith("bias") for name in group} == {place % 2 == 1}
    assert model.parameter_groups(1.0, 0.0, head_factor=3.0)[2]["lr"] == 3.0
    torch.optim.AdamW(groups, lr=1.0)


# --- the loss -----------------------------------------------------------------------------------------------


def test_balanced_loss_is_the_sum_of_two_means() -> None:
    logits = torch.zeros(1, 3, 2, 3)
    logits[0, :, 0, 0] = torch.tensor([2.0, 0.0, 0.0])
    truth = torch.tensor([[[0, 0, 0], [1, 2, 255]]])
    first = math.log(math.exp(2) + 2) - 2
    background, foreground = (first + 2 * math.log(3)) / 3, math.log(3)
    assert segmentation_loss([logits], truth).item() == pytest.approx(background + foreground, rel=1e-6)
    truth[0, 1, 1] = 255  # half as many foreground pixels weigh as much together
    assert segmentation_loss([logits], truth).item() == pytest.approx(background + foreground, rel=1e-6)


@pytest.mark.parametrize("kind", [0, 3])
def test_a_side_without_pixels_adds_nothing(kind: int) -> None:
    logits = torch.randn(2, CLASSES, 6, 7, generator=torch.Generator().manual_seed(0))
    truth = torch.full((2, 6, 7), kind)
    expected = functional.cross_entropy(logits, truth)
    torch.testing.assert_close(segmentation_loss([logits], truth), expected)


def test_ignored_pixels_alone_give_no_loss_and_no_gradient() -> None:
    model = deeplab("small", 16).train()
    loss = segmentation_loss(model(images(32, 32)), torch.full((2, 32, 32), 255, dtype=torch.uint8))
    loss.backward()
    assert loss.item() == 0
    assert all(not parameter.grad.any() for parameter in model.parameters())


def test_the_loss_of_a_network_is_that_of_its_outputs_with_labels_of_their_sizes() -> None:
    outputs = deeplab().train()(images(64, 64))
    truth = labels(64, 64)
    expected = torch.zeros(())
    for output in outputs:
        size = tuple(output.shape[2:])
        rows, columns = (((torch.arange(side) + 0.5) * 64 / side).long() for side in size)
        expected = expected + segmentation_loss([output], truth[:, rows][:, :, columns])
    torch.testing.assert_close(segmentation_loss(outputs, truth), expected)


def test_losses_and_gradients_of_two_ranks_add_up_to_those_of_the_whole_batch() -> None:
    pixels, truth = images(48, 56, count=4), labels(48, 56, count=4)
    truth[2:] = truth[2:].where(truth[2:] != 0, 255)  # the second rank has no background at all
    model = deeplab("small", 16).double().train()
    pixels = pixels.double()

    def gradients(*losses: Tensor) -> list[Tensor]:
        model.zero_grad(set_to_none=True)
        for loss in losses:
            loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    whole = segmentation_loss(model(pixels), truth)
    counts: list[Tensor] = []
    halves = [slice(0, 2), slice(2, 4)]
    for half in halves:  # what each rank counts
        segmentation_loss(model(pixels[half]), truth[half], lambda own: counts.append(own) or own)
    assert len(counts) == 2, "the ranks talk once each, whatever the number of outputs"
    parts = [segmentation_loss(model(pixels[half]), truth[half], lambda own: counts[0] + counts[1]) for half in halves]
    torch.testing.assert_close(parts[0] + parts[1], whole)
    for together, apart in zip(gradients(whole), gradients(*parts), strict=True):
        torch.testing.assert_close(apart, together, rtol=1e-5, atol=1e-7)


def test_a_few_steps_learn_two_regions() -> None:
    model = deeplab("small", 16, rates=(1, 2), classes=2).train()
    image = torch.zeros(2, 3, 48, 48)
    image[..., 16:] = 1.0
    truth = (image[:, 0] > 0).long()
    optimizer = torch.optim.AdamW(model.parameter_groups(1e-3, 0.0))
    for _ in range(40):
        optimizer.zero_grad()
        segmentation_loss(model(image), truth).backward()
        optimizer.step()
    photograph = np.full((48, 48, 3), 124, np.uint8)
    photograph[:, 16:] = 181
    assert (predict(model.eval(), photograph, "cpu").argmax(0) == truth[0]).float().mean() > 0.9


# --- prediction and files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(97, 131), (30, 21)])
def test_prediction_is_the_softmax_of_upsampled_logits(size: tuple[int, int]) -> None:
    model = deeplab("small", 16).eval()
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    probabilities = predict(model, image, "cpu")
    assert probabilities.shape == (CLASSES, *size)
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities.sum(0), torch.ones(size))
    with torch.no_grad():
        logits = model(normalise(image)[None])
    expected = functional.interpolate(logits, size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(probabilities.log(), expected[0].log_softmax(0))
    assert not probabilities.requires_grad


@pytest.mark.parametrize(("name", "hidden"), NETWORKS)
def test_a_saved_network_is_read_back_exactly(tmp_path: Path, name: str, hidden: int | None) -> None:
    saved = deeplab(name, hidden, seed=1)
    save_network(saved, tmp_path / "deeplab.safetensors")
    read = deeplab(name, hidden, seed=2)
    load_network(read, tmp_path / "deeplab.safetensors")
    state = saved.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in read.state_dict().items())


def test_a_file_of_another_network_is_refused_in_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_network(deeplab("resnet18", 16), file)
    with pytest.raises(UsageError, match=r"w\.safetensors.*looks like a resnet18"):
        load_network(deeplab("resnet50", 16), file)
    with pytest.raises(UsageError, match=r"'head\.output\.weight' is 5×32×1×1 there and 7×32×1×1.*number of classes"):
        load_network(deeplab("resnet18", 16, classes=7), file)
    with pytest.raises(UsageError, match=r"'head\.aspp\.0\.weight' is 16×512×3×3 there and 5×512×3×3.*other settings"):
        load_network(deeplab("resnet18"), file)
    with pytest.raises(UsageError, match=r"no tensor 'head\.aspp\.2\..*other settings"):
        load_network(deeplab("resnet18", 16, rates=(1, 2)), file)
    save_network(build_classifier("resnet18", 4, 8), file)
    with pytest.raises(UsageError, match=r"no tensor 'head\.aspp\.0\.weight'.*another kind of network"):
        load_network(deeplab("resnet18"), file)


def test_a_damaged_file_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(b"no weights")
    with pytest.raises(UsageError, match=r"cut\.safetensors are damaged"):
        load_network(deeplab(), tmp_path / "cut.safetensors")
