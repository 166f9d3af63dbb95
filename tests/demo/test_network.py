"""The small backbone and its pretrained weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ribray.data.transforms import normalise
from ribray.demo.creatures import FAMILIES, draw
from ribray.demo.network import SmallBackbone
from ribray.networks.classifier import Classifier
from ribray.networks.weights import load_backbone_weights
from tests.conftest import ROOT
from tools import pretraining

SHIPPED = ROOT / "ribray/demo/network.safetensors"
REACH = 28  # pixels around the middle of a cell


def pretrained() -> SmallBackbone:
    backbone = SmallBackbone()
    load_backbone_weights(backbone, "synthetic")
    return backbone.eval()


@torch.no_grad()
def last_level(backbone: SmallBackbone, image: np.ndarray) -> Tensor:
    return backbone.trunk(backbone.stem(normalise(image)[None]))[0]  # (C, h, w)


def test_five_levels_have_the_promised_channels_and_strides():
    size = (75, 91)  # nothing but remainders
    backbone = SmallBackbone().eval()
    images = torch.randn(2, 3, *size)
    levels = backbone.features(images)
    expected = [
        (2, channels, *(-(-side // stride) for side in size))
        for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
    ]
    assert [tuple(level.shape) for level in levels] == expected
    assert torch.equal(backbone.stem(images), levels[2])
    assert torch.equal(backbone.trunk(backbone.stem(images)), levels[-1])


def test_only_the_last_two_blocks_learn():
    backbone = SmallBackbone()
    Classifier(backbone, 6)
    learning = {name.split(".")[0] for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert learning == {"block2", "block3"}


def test_another_output_stride_is_refused():
    with pytest.raises(ValueError, match="output stride 8, not 16"):
        SmallBackbone(16)


def test_a_cell_does_not_see_beyond_its_surroundings():
    torch.manual_seed(0)
    backbone = SmallBackbone().eval()
    near, far = torch.zeros(1, 3, 128, 128), torch.zeros(1, 3, 128, 128)
    cell, middle = 8, 8 * 8
    near[..., middle, middle + REACH // 2] = 5
    far[..., middle, middle + REACH :] = 5
    with torch.no_grad():
        blank, seen, unseen = (backbone.features(x)[-1][0, :, cell, cell] for x in (torch.zeros_like(near), near, far))
    assert not torch.equal(blank, seen)
    assert torch.equal(blank, unseen)


def test_shipped_weights_are_small_and_complete():
    weights = load_file(SHIPPED)
    assert SHIPPED.stat().st_size < 500_000
    assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {torch.float16}
    assert weights.keys() == SmallBackbone().state_dict().keys()


def test_shipped_features_are_large_on_creatures_and_small_behind_them():
    backbone = pretrained()
    on_creature, behind = [], []
    for index in range(12):
        image, mask, _ = draw("val", index, seed=11)
        norms = last_level(backbone, image).norm(dim=0)
        share = adaptive_avg_pool2d(torch.from_numpy(mask > 0).float()[None], norms.shape)[0]
        on_creature.append(norms[share > 0.9].mean())
        behind.append(norms[share == 0].mean())
    assert torch.stack(on_creature).mean() > 3 * torch.stack(behind).mean()


def test_shipped_features_tell_the_families_of_bodies_apart():
    backbone = pretrained()
    features, families = [], []
    for index in range(240):
        image, family, kind = pretraining.draw_single(99, index)
        if family is not None and kind is None:
            features.append(last_level(backbone, image).mean((1, 2)))
            families.append(family)
    rows, truth = torch.stack(features), torch.tensor(families)
    known = torch.arange(len(truth)) % 2 == 0
    centres = torch.stack([rows[known & (truth == family)].mean(0) for family in range(FAMILIES)])
    similarity = torch.nn.functional.cosine_similarity(rows[~known, None], centres[None], dim=2)
    assert (similarity.argmax(1) == truth[~known]).double().mean() > 0.85


def test_pretraining_is_repeatable_and_reports_its_progress():
    steps: list[tuple[int, int]] = []
    first = pretraining.pretrain(5, images=64, epochs=1, progress=lambda done, total, loss: steps.append((done, total)))
    again = pretraining.pretrain(5, images=64, epochs=1)
    other = pretraining.pretrain(6, images=64, epochs=1)
    assert steps == [(1, 2), (2, 2)]
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])
    assert not torch.equal(first["bn1.running_mean"], torch.zeros(16))


def test_pretraining_does_not_touch_the_global_random_state():
    before = torch.get_rng_state()
    pretraining.pretrain(0, images=32, epochs=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_saved_weights_load_back_in_half_precision(tmp_path: Path):
    state = SmallBackbone().state_dict()
    pretraining.save(state, tmp_path / "new" / "weights.safetensors")
    loaded = load_file(tmp_path / "new" / "weights.safetensors")
    assert loaded.keys() == state.keys()
    assert all(torch.allclose(loaded[name].float(), state[name].float(), rtol=1e-3, atol=1e-6) for name in state)
