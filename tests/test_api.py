"""RIB from Python: one network, one photograph, no Ray."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import ribray
from ribray.api import RIB, AdvCAM, map_maker
from ribray.errors import ImageError, UsageError

NAMES = ["cat", "dog", "sea", "red fox, Vulpes vulpes"]
QUICK = {
    "iterations": 2,
    "lr": 1e-3,
    "scales": (1.0, 0.5),
    "crop_size": 32,
    "resize_long": (32, 48),
    "explode_ratio": 1.0,
}


class Network(nn.Module):
    """Five layers in a row, their average, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 4, 1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, 2, 1),
            nn.ReLU(),
        )
        self.head = nn.Linear(16, len(NAMES))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images).mean((2, 3)))


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network().eval()


@pytest.fixture
def photograph() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)


def test_importing_it_takes_neither_torch_nor_ray() -> None:
    code = "import sys, ribray; assert not {'torch', 'ray'} & set(sys.modules); assert ribray.RIB.__name__ == 'RIB'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_maps_of_the_photographs_size_twice_the_same_and_the_network_is_unchanged(network, photograph) -> None:
    before = copy.deepcopy(network.state_dict())
    rib = RIB(network, names=NAMES, **QUICK)
    result, again = rib(photograph, classes=["dog", 0]), rib(photograph, classes=[1, "cat"])
    assert (result.classes, result.names) == ((0, 1), ("cat", "dog"))
    assert result.maps.shape == result.cams.shape == (2, 40, 56)
    assert result.maps.tobytes() == again.maps.tobytes()
    assert (result.steps, result.stop_reason, len(result.losses), result.notes) == (2, "finished", 1, ())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not network.training


def test_the_plain_map_is_the_networks_own(network, photograph) -> None:
    """One scale: the head on the features of the image and of its flip, above zero."""
    rib = RIB(network, names=NAMES, mean=(0.5,) * 3, std=(0.5,) * 3, iterations=1, scales=(1.0,))
    present = rib(photograph, classes=[2])
    pixels = torch.from_numpy(photograph).permute(2, 0, 1).float() / 127.5 - 1
    with torch.no_grad():
        features = network.body(torch.stack((pixels, pixels.flip(-1))))
        cams = torch.einsum("nfhw,f->nhw", features, network.head.weight[2]).relu()
        merged = nn.functional.interpolate((cams[0] + cams[1].flip(-1))[None, None], (48, 64), mode="bilinear")[0, 0]
    expected = merged[:40, :56] / (merged[:40, :56].max() + 1e-5)
    np.testing.assert_allclose(present.cams[0], expected.numpy(), atol=1e-4)


def test_advcam_has_the_same_form_and_its_own_maps_beside_the_same_plain_ones(network, photograph, tmp_path) -> None:
    before = copy.deepcopy(network.state_dict())
    settings = {"iterations": 3, "scales": (1.0, 0.5), "step_size": 1.0}
    maker = ribray.AdvCAM(network, names=NAMES, **settings)
    others = [(photograph[::-1], ["cat"])]
    result, again = maker(photograph, classes=["sea", "dog"], by_step=True), maker(photograph, [1, 2], extras=others)
    assert result.maps.tobytes() == again.maps.tobytes()
    assert (result.names, result.steps, result.stop_reason) == (("dog", "sea"), 3, "finished")
    assert (result.losses, result.notes, again.notes, result.label) == ((), (), (), "AdvCAM")
    assert len(result.by_step) == 3 and np.array_equal(result.by_step[-1], result.maps)
    assert np.abs(result.by_step[0] - result.maps).max() > 1e-3
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    plain = RIB(network, names=NAMES, **QUICK)(photograph, classes=["sea", "dog"]).cams
    np.testing.assert_allclose(result.cams, plain, atol=1e-5)
    assert Image.open(result.save(tmp_path / "maps.png")).width == 1200
    assert repr(result) == "<dog, sea: 2 × 40 × 56, 3 steps>"


def test_a_method_has_its_own_settings_and_is_found_by_its_name(network) -> None:
    with pytest.raises(UsageError, match=r"AdvCAM has no setting 'lr', which is one of RIB; it has .*step_size"):
        AdvCAM(network, lr=1e-3)
    with pytest.raises(UsageError, match=r"no setting 'step_sise' .did you mean step_size"):
        AdvCAM(network, step_sise=0.1)
    assert (map_maker("advcam"), map_maker("rib")) == (AdvCAM, RIB)
    assert map_maker("ribray.methods.advcam").method == "ribray.methods.advcam"
    with pytest.raises(UsageError, match=r"no method 'advcm' .did you mean advcam"):
        map_maker("advcm")


def test_an_image_comes_in_any_form(network, photograph, tmp_path) -> None:
    rib = RIB(network, names=NAMES, **QUICK)
    Image.fromarray(photograph).save(tmp_path / "photograph.png")
    tensor = torch.from_numpy(photograph).permute(2, 0, 1) / 255
    expected = rib(photograph, classes=[1]).maps
    for form in (str(tmp_path / "photograph.png"), tmp_path / "photograph.png", Image.fromarray(photograph), tensor):
        assert np.array_equal(rib(form, classes=[1]).maps, expected)


def test_extras_that_share_a_class_are_left_out_and_told(network, photograph) -> None:
    rib = RIB(network, names=NAMES, batch_size=3, **QUICK)
    others = [(photograph[::-1], ["cat"]), (photograph[:, ::-1], ["dog"])]
    alone, beside = rib(photograph, classes=["dog"]), rib(photograph, classes=["dog"], extras=others)
    assert beside.notes == ("1 of 2 extras share a class with the image, or have none, and were left out.",)
    assert not np.array_equal(alone.maps, beside.maps)


def test_what_is_given_by_name_or_as_a_module_is_the_same(network, photograph) -> None:
    found, named = (
        RIB(network, names=NAMES, **QUICK, **parts) for parts in ({}, {"features": "body", "head": network.head})
    )
    assert np.array_equal(found(photograph, classes=[0]).maps, named(photograph, classes=[0]).maps)


def test_maps_are_written_as_a_picture_and_as_arrays(network, photograph, tmp_path) -> None:
    result = RIB(network, names=NAMES, **QUICK)(photograph, classes=["cat"])
    assert Image.open(result.save(tmp_path / "maps.png")).width == 1200
    with np.load(result.save(tmp_path / "maps.npz")) as arrays:
        assert np.array_equal(arrays["maps"], result.maps)
        assert np.array_equal(arrays["mask"] == 1, result.maps[0] >= result.threshold)
    with pytest.raises(UsageError, match=r"must end with \.png"):
        result.save(tmp_path / "maps.gif")


def test_a_network_for_imagenet_is_asked_for_classes_at_the_size_it_was_trained_at(photograph) -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=1000).eval()
    torch.nn.init.zeros_(network.fc.bias)  # which has no place in a map
    large = np.asarray(Image.fromarray(photograph).resize((560, 400), Image.Resampling.BICUBIC))
    small = np.asarray(Image.fromarray(large).resize((314, 224), Image.Resampling.BICUBIC))
    rib = RIB(network, mean=(0.5,) * 3, std=(0.5,) * 3)
    with torch.no_grad():
        shares = network(torch.from_numpy(small.copy()).permute(2, 0, 1)[None] / 127.5 - 1)[0].softmax(0)
    (name, share), *_ = rib.predict(large)
    assert (name, share) == (rib.name(int(shares.argmax())), pytest.approx(float(shares.max()), rel=1e-3))
    assert rib.confident(large) == {int(shares.argmax()): share}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"classes": ["dgo"]}, "no class 'dgo' .did you mean 'dog'"),
        ({"classes": ["vulpes vulpe"]}, "did you mean 'vulpes vulpes'"),
        ({"classes": [4]}, "no class 4: the network has 4"),
        ({"classes": []}, "classes is empty"),
    ],
)
def test_a_class_that_is_none_is_refused_with_the_nearest(network, photograph, arguments, sentence) -> None:
    with pytest.raises(UsageError, match=sentence):
        RIB(network, names=NAMES, **QUICK)(photograph, **arguments)


def test_what_cannot_be_refined_is_refused_in_a_sentence(network, photograph) -> None:
    class Deep(Network):
        def forward(self, images):
            return self.head(torch.tanh(self.body(images).mean((2, 3))))

    for model, sentence in (
        (Network().train(), "batch norm in training mode"),
        (Network().eval().half(), "float16 weights"),
        (Network().eval().to("meta"), "has weights without values"),
        (Deep().eval(), "does more than to average"),
    ):
        with pytest.raises(UsageError, match=sentence):
            RIB(model)
    with pytest.raises(UsageError, match=r"no setting 'iteration' .did you mean iterations"):
        RIB(network, iteration=3)
    with pytest.raises(UsageError, match="The device hpu:3 cannot be used"):
        RIB(network, device="hpu:3")
    with pytest.raises(UsageError, match="3 names for the 4 classes"):
        RIB(network, names=NAMES[:3])
    rib = RIB(network, names=NAMES, **QUICK)
    with pytest.raises(UsageError, match="before it is normalised"):
        rib(torch.full((3, 8, 8), 2.0), classes=[0])
    with pytest.raises(ImageError, match="does not exist"):
        rib("/nowhere/dog.jpg", classes=[0])
    assert issubclass(ribray.UsageError, ribray.RibrayError)


def test_a_network_by_name_is_the_same_as_one_handed_over(photograph) -> None:
    from ribray.networks.weights import pretrained_network

    name = "timm/tf_efficientnet_lite0"
    by_name = RIB(name, **QUICK)(photograph, classes=["moped"])
    handed_over = RIB(pretrained_network(name, 16)[0].eval(), **QUICK)(photograph, classes=["moped"])
    assert np.array_equal(by_name.maps, handed_over.maps)
    with pytest.raises(UsageError, match="weights=none goes with a network by name"):
        RIB(Network().eval(), weights="none")
