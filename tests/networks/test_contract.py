"""What every backbone promises, and that each part of the method works on it. Images are 64×64, weights random."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ribray.config import RIBConfig
from ribray.errors import UsageError
from ribray.irn.loss import irn_loss
from ribray.methods.rib import FINISHED, Refiner
from ribray.networks import BACKBONES, Backbone, Classifier, build_backbone, build_classifier, norm_folding
from ribray.networks.backbone import ResidualBackbone
from ribray.networks.deeplab import DeepLab, predict, segmentation_loss
from ribray.networks.engine import Engine, Frozen, Plain, engine_for, folded_is_faster
from ribray.networks.folded import Folded
from ribray.networks.irnet import IRNet
from ribray.networks.norm_folding import depthwise_weight_gradient, fold_norms, give_gradients, refresh

pytest.importorskip("timm")

SIDE, CLASSES = 64, 3
ALL = (32, 16, 8)
STRIDES = {"small": (8,), "resnet18": ALL, "resnet50": ALL, "timm/tf_efficientnet_lite0": ALL, "timm/resnet18": ALL}
EVERY = [(name, stride) for name in dict.fromkeys([*BACKBONES, *STRIDES]) for stride in STRIDES.get(name, (16,))]
EVERY.append(("timm/regnety_002", 16))  # whose first level has a stride of 2
KINDS = ["resnet18", "resnet50", "resnext50_32x4d", "timm/tf_efficientnet_lite0", "timm/resnet18"]
METHOD = [("small", 8), *((name, 16) for name in KINDS)]
WIDE = [("wide_resnet50_2", 16)]  # a resnet50 of 69 million parameters, which take their time
SEGMENTATION = [("small", 8, 16), ("small", 8, None), ("resnet18", 16, 16), *((name, 8, None) for name in KINDS)]


def images(count: int = 2, side: int = SIDE) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def classifier(request: pytest.FixtureRequest) -> Classifier:
    """A classifier whose batch norm knows its features, as a trained one's does. Who changes it takes a copy."""
    name, output_stride = request.param
    torch.manual_seed(0)
    built = build_classifier(name, CLASSES, output_stride)
    norms = [module for module in built.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.0)  # timm begins some with 0
        norm.train().momentum = 1.0
    with torch.no_grad():
        built.backbone.features(images(8))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return built.eval()


def on(cases: list[tuple[str, int]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "classifier", cases, ids=[f"{name}-{stride}" for name, stride in cases], indirect=True
    )


def of_stem(backbone: Backbone) -> list[nn.Parameter]:
    return [parameter for module in backbone.stem_modules() for parameter in module.parameters()]


def behind_stem(backbone: Backbone) -> list[nn.Parameter]:
    stem = {id(parameter) for parameter in of_stem(backbone)}
    return [parameter for parameter in backbone.parameters() if id(parameter) not in stem]


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def frozen(classifier: Classifier) -> list[Tensor]:
    """The stem's parameters and every batch norm's statistics."""
    tensors = [*of_stem(classifier.backbone), *classifier.buffers()]
    return [tensor.detach().clone() for tensor in tensors]


# --- levels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "output_stride"), EVERY)
def test_levels_have_the_promised_channels_and_strides(name: str, output_stride: int) -> None:
    backbone = build_backbone(name, output_stride)
    with torch.no_grad():
        levels = backbone.features(images(1))
        assert torch.equal(backbone.trunk(backbone.stem(images(1))), levels[-1])
    assert [level.shape[1] for level in levels] == list(backbone.channels)
    assert [level.shape[2:] for level in levels] == [(SIDE // stride,) * 2 for stride in backbone.strides]
    assert len(levels) == 5
    assert backbone.strides[-1] == output_stride
    is_frozen, learns = of_stem(backbone), behind_stem(backbone)
    assert {id(each) for each in is_frozen} | {id(each) for each in learns} == {id(p) for p in backbone.parameters()}
    assert len(is_frozen) + len(learns) == len(list(backbone.parameters()))


@pytest.mark.parametrize(
    ("name", "output_stride", "sentence"),
    [
        ("timm/mobilenetv3_small_100", 16, "a layer behind the pooling"),
        ("timm/convnext_atto", 32, "a layer behind the pooling"),  # a layer norm
        ("timm/vit_tiny_patch16_224", 16, "cannot run on a colour image of 64 × 64 pixels .*224"),
        ("timm/hrnet_w18_small", 32, "not built of layers that follow one another"),
        ("timm/densenet121", 16, "no output stride 16 in timm"),
        ("timm/tf_eficientnet_lite0", 16, "did you mean timm/tf_efficientnet_lite0"),
        ("resnet51", 16, r"no backbone 'resnet51'.*resnet50"),
        ("resnet50", 4, "32, 16 or 8, not 4"),
        ("small", 16, "stride 8, not 16"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(name: str, output_stride: int, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as refused:
        build_backbone(name, output_stride)
    assert "\n" not in str(refused.value)


# --- the method on top -------------------------------------------------------------------------------------------


@on(METHOD + WIDE)
def test_a_step_of_training_moves_all_but_the_stem_and_lowers_the_loss(classifier: Classifier) -> None:
    network = copy.deepcopy(classifier).train()
    body, head = network.learnable_groups()
    learnable = [*body, *head]
    assert {id(each) for each in body} == {id(each) for each in behind_stem(network.backbone)}
    before, kept = [each.detach().clone() for each in learnable], frozen(network)
    targets = torch.eye(CLASSES)[:2]

    def loss() -> Tensor:
        return functional.multilabel_soft_margin_loss(network(images()), targets)

    first = loss()
    first.backward()
    length = torch.stack([each.grad.norm() for each in learnable]).norm()
    torch.optim.SGD(learnable, lr=float(0.01 / length)).step()
    assert first.isfinite()
    assert loss() < first
    assert not any(torch.equal(each, old) for each, old in zip(learnable, before, strict=True))
    assert all(each.grad is None for each in of_stem(network.backbone))
    assert all(torch.equal(now, old) for now, old in zip(frozen(network), kept, strict=True))


@on(METHOD)
def test_refinement_adds_the_maps_of_a_moved_network(classifier: Classifier) -> None:
    with torch.no_grad():
        strongest = int(classifier.cams(classifier.stem(images())).amax((0, 2, 3)).argmax())
    config = RIBConfig(
        iterations=2, lr=1e-5, scales=(1.0, 0.5), loss_scales=(1.0,), explode_ratio=1.0, stop_threshold=1e9
    )
    refiner = Refiner(copy.deepcopy(classifier), config)
    kept = frozen(classifier)
    extras = images(3, 32), torch.eye(CLASSES, dtype=torch.bool)
    result = refiner.refine([images(), images(2, SIDE // 2)], [strongest], lambda step: extras)
    assert (result.stop_reason, result.steps) == (FINISHED, 2)
    assert np.isfinite(result.losses).all()
    stride = classifier.backbone.strides[-1]
    for scale, initial, refined in zip(config.scales, *result.maps.values(), strict=True):
        assert refined.shape == (1, *[-(-int(SIDE * scale) // stride)] * 2)
        assert np.isfinite(refined).all()
        assert not np.array_equal(refined, 2 * initial), "the second step saw other weights"
    assert all(torch.equal(now, old) for now, old in zip(frozen(refiner.classifier), kept, strict=True))
    refiner.restore()
    assert all(torch.equal(tensor, classifier.state_dict()[name]) for name, tensor in state(refiner.classifier).items())


@on(METHOD)
def test_irn_learns_on_it_and_leaves_it_alone(classifier: Classifier) -> None:
    model = IRNet(copy.deepcopy(classifier.backbone), 64).train()
    before = state(model.backbone)
    boundary, displacement = model(images())
    labels = torch.zeros(2, SIDE // 4, SIDE // 4, dtype=torch.long)
    labels[:, 4:12, 4:12] = 1
    irn_loss(boundary, displacement, labels, radius=4).loss.backward()
    heads = [*model.boundary_parameters(), *model.displacement_parameters()]
    assert all(each.grad.isfinite().all() for each in heads)
    assert {id(each) for each in heads} == {id(each) for each in model.parameters() if each.requires_grad}
    torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1).step()
    assert not any(module.training for module in model.backbone.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(model.backbone).items())
    assert model.boundary_probability(images()).shape == (SIDE // 4, SIDE // 4)


@pytest.mark.parametrize(("name", "output_stride", "hidden"), SEGMENTATION)
def test_deeplab_learns_as_a_whole_and_gives_a_mask_of_the_pictures_size(
    name: str, output_stride: int, hidden: int | None
) -> None:
    torch.manual_seed(0)
    backbone = build_classifier(name, 1, output_stride).backbone  # whose stem a classifier froze
    backbone.start_at_identity()  # or random features would grow from block to block
    model = DeepLab(backbone, CLASSES + 1, (1, 2), hidden, (1.0, 0.5)).train()
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    labels = torch.randint(0, CLASSES + 1, (2, SIDE, SIDE), generator=torch.Generator().manual_seed(2))
    side = SIDE // (4 if hidden else output_stride)
    outputs = model(images())
    loss = segmentation_loss(outputs, labels)
    loss.backward()
    assert [output.shape[1:] for output in outputs] == [(CLASSES + 1, *[side] * 2) for side in (side, side // 2, side)]
    assert loss.isfinite()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_buffers())

    photograph = np.random.default_rng(0).integers(0, 256, (SIDE - 13, SIDE + 7, 3), dtype=np.uint8)
    probabilities = predict(model.eval(), photograph, "cpu")
    assert probabilities.shape == (CLASSES + 1, *photograph.shape[:2])
    torch.testing.assert_close(probabilities.sum(0), torch.ones(photograph.shape[:2]))


@on(METHOD + WIDE)
def test_batch_norm_in_the_convolutions_before_it_changes_neither_maps_nor_gradients(classifier: Classifier) -> None:
    classifier = copy.deepcopy(classifier).double().eval()
    folded = fold_norms(classifier)

    def maps_and_gradients(network: Classifier) -> list[Tensor]:
        maps = network.cams(network.stem(images(side=48).double()))
        maps.square().mean().backward()
        give_gradients(network)
        body, head = classifier.learnable_groups()
        found = [each.grad for each in [*body, *head]]
        classifier.zero_grad()
        return [maps.detach(), *found]

    assert folded is not classifier
    for one, other in zip(maps_and_gradients(folded), maps_and_gradients(classifier), strict=True):
        assert (one - other).norm() <= 1e-10 * other.norm()


@on([("timm/tf_efficientnet_lite0", 16)])
def test_a_clamp_within_a_convolution_changes_last_digits_at_most_and_hides_no_nan(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    folded, bounds, fused = fold_norms(copy.deepcopy(classifier)), [], norm_folding.fused_convolution

    def maps_and_gradients() -> list[Tensor]:
        refresh(folded)
        maps = folded.cams(folded.stem(images(side=47)))
        maps.square().mean().backward()
        give_gradients(folded)
        found = [maps.detach(), *(each.grad for each in folded.parameters() if each.grad is not None)]
        folded.zero_grad()
        return found

    def noted(*arguments: object, **options: object) -> Tensor:
        bounds.append(options["bounds"])
        return fused(*arguments, **options)

    monkeypatch.setattr(norm_folding, "fused_convolution", noted)
    within = maps_and_gradients()
    assert set(bounds) == {(0.0, 6.0)}
    monkeypatch.setattr(norm_folding, "has_fused_convolution", lambda *_: False)
    for one, other in zip(within, maps_and_gradients(), strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()

    monkeypatch.undo()
    next(parameter for parameter in folded.backbone.parameters() if parameter.requires_grad).data[0] = torch.nan
    refresh(folded)
    assert folded.cams(folded.stem(images(side=47))).isnan().any()


def test_a_gradient_is_overwritten_only_where_no_one_else_reads_it() -> None:
    torch.manual_seed(0)
    pairs = [(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4).eval()) for _ in range(3)]
    layers = [norm_folding._ConvNorm(conv.double(), norm.double(), (0.0, 6.0)) for conv, norm in pairs]
    plain = [lambda x, pair=pair: functional.relu6(pair[1](pair[0](x))) for pair in pairs]
    image = torch.randn(2, 4, 6, 6, dtype=torch.float64)

    def gradients(first: Callable, second: Callable, third: Callable) -> list[Tensor]:
        for layer in layers:
            layer.refresh()
        x = image.clone().requires_grad_()
        alone = first(x)
        twice = second(alone)  # read by a convolution and by a sum
        added = third(twice + x) + twice.square()
        added.square().sum().backward()
        for layer in layers:
            layer.give_gradients()
        found = [x.grad, *(parameter.grad for pair in pairs for module in pair for parameter in module.parameters())]
        for pair in pairs:
            for module in pair:
                module.zero_grad()
        return found

    for one, other in zip(gradients(*layers), gradients(*plain), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (13, 3)])
@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("side", [1, 3, 5, 7, 9])
def test_the_gradient_of_a_depthwise_kernel_is_put_together_from_parts(
    side: int, dilation: int, size: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    x, gradient = (torch.randn(2, 6, *size, generator=generator, dtype=torch.float64) for _ in range(2))
    kernel = torch.zeros(6, 1, side, side, dtype=torch.float64, requires_grad=True)
    functional.conv2d(x, kernel, None, 1, dilation * (side // 2), dilation, 6).backward(gradient)
    found = depthwise_weight_gradient(x, gradient, kernel.detach(), dilation)
    torch.testing.assert_close(found, kernel.grad, rtol=1e-12, atol=1e-12)


@on(METHOD + WIDE)
def test_the_folded_engine_computes_what_the_plain_one_does_or_refuses(classifier: Classifier) -> None:
    backbone = classifier.backbone
    can_fold = isinstance(backbone, ResidualBackbone) and backbone.name != "resnext50_32x4d"  # grouped convolutions
    assert isinstance(engine_for(classifier, torch.float32), Folded if can_fold else Plain)
    assert isinstance(engine_for(classifier, torch.float32, "plain"), Plain)
    assert [folded_is_faster(torch.device("cuda"), dtype) for dtype in (torch.float32, torch.bfloat16)] == [False, True]
    if not can_fold:
        with pytest.raises(ValueError, match="can be folded"):
            engine_for(classifier, torch.float32, "folded")
        return

    def maps_and_gradients(engine: Engine, network: Classifier) -> list[Tensor]:
        maps = engine.cams(engine.stem(images(side=32).double()))
        maps.square().mean().backward()
        engine.give_gradients()
        body, head = network.learnable_groups()
        return [maps.detach(), *(each.grad for each in [*body, *head])]

    found, expected = (
        maps_and_gradients(engine_for(network, torch.float64, kind), network)
        for kind, network in [(kind, copy.deepcopy(classifier).double()) for kind in ("folded", "plain")]
    )
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= 1e-10 * other.norm()


@on(METHOD + WIDE)
def test_the_frozen_engine_leads_gradients_to_the_pixels_and_to_no_weight(classifier: Classifier) -> None:
    """Against the network itself in float64, its stem with gradient; only the pixels want one."""
    classifier = copy.deepcopy(classifier).double()
    kept = state(classifier)

    def maps_and_gradient(cams: Callable[[Tensor], Tensor]) -> list[Tensor]:
        pixels = images(side=48).double().requires_grad_()
        maps = cams(pixels)
        (gradient,) = torch.autograd.grad(maps.relu().mean((2, 3)).square().sum(), pixels)
        return [maps.detach(), gradient]

    network = Frozen(classifier, torch.float64)
    expected = maps_and_gradient(lambda pixels: classifier.cams(classifier.backbone.stem(pixels)))
    for one, other in zip(maps_and_gradient(network.cams), expected, strict=True):
        assert other.norm() > 0
        assert (one - other).norm() <= 1e-10 * other.norm()
    assert not network.cams(images(side=48).double()).requires_grad
    assert all(each.grad is None for each in classifier.parameters())
    assert all(each.requires_grad for each in classifier.learnable_groups()[0])
    assert all(torch.equal(tensor, kept[name]) for name, tensor in state(classifier).items())
