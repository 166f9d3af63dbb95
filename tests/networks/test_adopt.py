"""Networks that were changed before they are handed over: taken as they compute now, or refused."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, weight_norm
from torchvision import models

from ribray.errors import UsageError
from ribray.networks.adopt import adopt
from ribray.networks.engine import engine_for
from ribray.networks.folded import Folded

timm = pytest.importorskip("timm")
pytestmark = pytest.mark.lengthy
IMAGES = torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return models.resnet18().eval()


def cifar_stem(network) -> None:
    network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()


def leaky(network) -> None:
    for block in network.layer4:
        block.relu = nn.LeakyReLU(0.2)


def reflecting(network) -> None:
    network.layer3[0].conv2.padding_mode = "reflect"


def with_group_norm(network) -> None:
    network.layer4[1].bn2 = nn.GroupNorm(4, 512)


def computed_weights(network) -> None:
    network.layer4[1].conv1 = parametrizations.weight_norm(network.layer4[1].conv1)


def without_running_statistics(network) -> None:
    network.layer2[0].bn1 = nn.BatchNorm2d(128, track_running_stats=False).eval()


CHANGES: list[Callable] = [
    cifar_stem,
    leaky,
    reflecting,
    with_group_norm,
    computed_weights,
    lambda network: setattr(network, "relu", nn.GELU()),
    lambda network: setattr(network, "maxpool", nn.AvgPool2d(3, 2, 1)),
    lambda network: setattr(network, "conv1", nn.Conv2d(3, 64, 7, 2, 3, bias=True)),
    lambda network: network.conv1.register_forward_hook(lambda module, inputs, output: 2 * output),
    lambda network: setattr(network, "fc", nn.Sequential(nn.Dropout(0.5), nn.Linear(512, 5)).eval()),
    lambda network: setattr(network, "aux", nn.Linear(512, 5)),
]


def expected_maps(network: nn.Module, layer: nn.Module, weight: Tensor) -> Tensor:
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        network(IMAGES)
    hook.remove()
    return torch.einsum("cf,nfhw->nchw", weight - weight.mean(0) if len(weight) == 1000 else weight, seen[0])


@pytest.mark.parametrize("change", CHANGES)
def test_maps_of_a_changed_resnet_are_those_of_its_own_layers(change) -> None:
    network = resnet()
    change(network)
    head = network.fc[1] if isinstance(network.fc, nn.Sequential) else network.fc
    expected = expected_maps(network, network.layer4, head.weight.detach())
    with torch.no_grad():
        engine = engine_for(adopt(network), torch.float32)
        found = engine.cams(engine.stem(IMAGES))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_an_unchanged_resnet_is_folded_and_a_wrapped_one_is_unwrapped() -> None:
    assert isinstance(engine_for(adopt(resnet()), torch.float32), Folded)
    assert adopt(nn.DataParallel(resnet())).backbone.name == adopt(torch.compile(resnet())).backbone.name == "ResNet"


def test_timms_own_classifier_is_the_head_whatever_else_is_linear() -> None:
    network = timm.create_model("resnet18", num_classes=7).eval()
    network.aux = nn.Linear(512, 5)
    assert adopt(network).classes == 7
    network.fc = nn.Sequential(nn.Dropout(0.5), nn.Linear(512, 6)).eval()
    assert adopt(network).classes == 6


def behind(*layers: nn.Module) -> nn.Sequential:
    body = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*body, *layers).eval()


def changed(change: Callable) -> nn.Module:
    network = resnet()
    change(network)
    return network


def with_small_logits(network) -> None:
    network.avgpool = nn.AdaptiveMaxPool2d(1)
    network.fc.weight.data.mul_(1e-4)
    network.fc.bias.data.zero_()


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        (lambda: models.convnext_tiny().eval(), "a layer behind the pooling"),
        (lambda: behind(nn.Conv2d(16, 16, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)), "layer behind the pooling"),
        (lambda: changed(lambda n: setattr(n, "avgpool", nn.AdaptiveMaxPool2d(1))), "gives other logits than its head"),
        (lambda: changed(with_small_logits), "gives other logits than its head"),
        (lambda: changed(lambda n: n.register_forward_pre_hook(lambda m, i: (i[0] * 0.5,))), "gives other logits"),
        (lambda: changed(lambda n: n.fc.register_forward_pre_hook(lambda m, i: (i[0] * 3 + 1,))), "gives other logits"),
        (
            lambda: changed(lambda n: setattr(n, "fc", nn.Sequential(nn.Linear(512, 9), nn.ReLU(), nn.Linear(9, 5)))),
            "a layer behind the pooling",
        ),
        (lambda: torch.jit.trace(resnet(), IMAGES), "is scripted or traced"),
        (lambda: changed(lambda n: weight_norm(n.layer4[0].conv1)), "remove what computes them first"),
        (lambda: changed(lambda n: prune.l1_unstructured(n.layer4[0].conv1, "weight", 0.2)), "remove what computes"),
        (lambda: timm.create_model("resnet18", in_chans=1).eval(), "cannot run on a colour image"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_has_no_class_activation_map_of_its_own_is_refused(network, sentence) -> None:
    with pytest.raises(UsageError, match=sentence):
        adopt(network())
