"""Weights: round trips, files from elsewhere, and one clear sentence for each thing that can be wrong."""

import hashlib
import http.server
import os
import pickle
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision

from ribray.errors import UsageError
from ribray.networks import Classifier, build_backbone, build_classifier, fetching, weights


@pytest.fixture(scope="module")
def resnet18() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return torchvision.models.resnet18(weights=None).state_dict()


def randomised(classifier: Classifier) -> Classifier:
    with torch.no_grad():
        for tensor in classifier.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor))
    return classifier


def equal(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    theirs = second.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in first.state_dict().items())


@pytest.mark.parametrize(("backbone", "output_stride"), [("resnet18", 16), ("small", 8)])
def test_a_saved_classifier_is_read_back_exactly(tmp_path: Path, backbone: str, output_stride: int) -> None:
    saved = randomised(build_classifier(backbone, 4, output_stride))
    weights.save_network(saved, tmp_path / "weights.safetensors")
    first = (tmp_path / "weights.safetensors").read_bytes()
    weights.save_network(saved, tmp_path / "weights.safetensors")
    assert (tmp_path / "weights.safetensors").read_bytes() == first
    read = build_classifier(backbone, 4, output_stride)
    weights.load_classifier(read, tmp_path / "weights.safetensors")
    assert equal(read, saved)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_torchvision_state_dicts_load_without_their_last_layer(
    tmp_path: Path, resnet18: dict[str, torch.Tensor], suffix: str, output_stride: int
) -> None:
    file = tmp_path / f"resnet18{suffix}"
    safetensors.torch.save_file(resnet18, file) if suffix == ".safetensors" else torch.save(resnet18, file)
    backbone = build_backbone("resnet18", output_stride)
    weights.load_backbone_weights(backbone, str(file))
    assert all(torch.equal(tensor, resnet18[name]) for name, tensor in backbone.state_dict().items())


def test_none_keeps_random_weights_with_residual_branches_at_zero() -> None:
    backbone = build_backbone("resnet18", 16)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    weights.load_backbone_weights(backbone, "none")
    for name, tensor in backbone.state_dict().items():
        silent = name.startswith("layer") and name.endswith("bn2.weight")
        assert torch.equal(tensor, torch.zeros_like(tensor) if silent else before[name])


@pytest.mark.parametrize("head", ["fc", "head", "classifier"])
@pytest.mark.parametrize("flat", [True, False], ids=["linear", "convolution"])
@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
def test_classifiers_trained_elsewhere_load(tmp_path: Path, head: str, flat: bool, prefix: str) -> None:
    backbone = build_backbone("small", 8).state_dict()
    state = {prefix + name: tensor for name, tensor in backbone.items()}
    weight = torch.randn(4, 128) if flat else torch.randn(4, 128, 1, 1)
    state[f"{'' if prefix == 'backbone.' else prefix}{head}.weight"] = weight
    torch.save({"state_dict": state, "epoch": torch.tensor(3)}, tmp_path / "c.pth")
    classifier = build_classifier("small", 4, 8)
    weights.load_classifier(classifier, tmp_path / "c.pth")
    assert torch.equal(classifier.head.weight, weight.reshape(4, 128, 1, 1))
    assert torch.equal(classifier.backbone.state_dict()["conv1.weight"], backbone["conv1.weight"])


def test_a_bias_is_accepted_only_if_it_is_zero(tmp_path: Path, resnet18: dict[str, torch.Tensor]) -> None:
    classifier = build_classifier("resnet18", 1000, 16)
    torch.save({**resnet18, "fc.bias": torch.zeros(1000)}, tmp_path / "zero.pth")
    weights.load_classifier(classifier, tmp_path / "zero.pth")
    torch.save({**resnet18, "fc.bias": torch.ones(1000)}, tmp_path / "one.pth")
    with pytest.raises(UsageError, match=r"one\.pth has a bias 'fc\.bias'"):
        weights.load_classifier(classifier, tmp_path / "one.pth")


def test_another_architecture_is_named(tmp_path: Path, resnet18: dict[str, torch.Tensor]) -> None:
    torch.save(resnet18, tmp_path / "w.pth")
    with pytest.raises(
        UsageError, match=r"w\.pth.*'layer1\.0\.conv1\.weight' is 64×64×3×3 there and 64×64×1×1.*resnet18"
    ):
        weights.load_backbone_weights(build_backbone("resnet50", 16), str(tmp_path / "w.pth"))
    with pytest.raises(UsageError, match=r"no tensor 'layer1\.2.*=resnet18"):
        weights.load_backbone_weights(build_backbone("resnet34", 16), str(tmp_path / "w.pth"))
    with pytest.raises(UsageError, match=r"w\.pth.*'conv1\.weight' is 64×3×7×7 there.*=resnet18"):
        weights.load_backbone_weights(build_backbone("small", 8), str(tmp_path / "w.pth"))


def test_a_deeper_network_that_holds_every_tensor_is_still_refused(tmp_path: Path) -> None:
    torch.save(build_backbone("resnet34", 16).state_dict(), tmp_path / "w.pth")
    with pytest.raises(UsageError, match=r"has no tensor 'layer1\.2\..*=resnet34"):
        weights.load_backbone_weights(build_backbone("resnet18", 16), str(tmp_path / "w.pth"))


def test_another_number_of_classes_is_named(tmp_path: Path) -> None:
    weights.save_network(build_classifier("small", 7, 8), tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match=r"'head\.weight' is 7×128×1×1 there and 4×128×1×1.*7 classes, the data has 4"):
        weights.load_classifier(build_classifier("small", 4, 8), tmp_path / "w.safetensors")


def test_a_backbone_alone_is_no_classifier(tmp_path: Path) -> None:
    torch.save(build_backbone("small", 8).state_dict(), tmp_path / "w.pth")
    with pytest.raises(UsageError, match="has no head"):
        weights.load_classifier(build_classifier("small", 4, 8), tmp_path / "w.pth")


class Intruder:
    def __reduce__(self) -> tuple:
        return os.system, ("echo this must not run",)


@pytest.mark.parametrize("name", ["missing.pth", "truncated.safetensors", "text.pth", "list.pth", "intruder.pth"])
def test_unreadable_files_are_refused_in_a_sentence(tmp_path: Path, name: str, capfd: pytest.CaptureFixture) -> None:
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("not weights")
    (tmp_path / "intruder.pth").write_bytes(pickle.dumps({"conv1.weight": Intruder()}, protocol=2))
    content = safetensors.torch.save({"conv1.weight": torch.zeros(8, 3, 7, 7)})
    (tmp_path / "truncated.safetensors").write_bytes(content[:100])
    with pytest.raises(UsageError, match=name.replace(".", r"\.")):
        weights.load_backbone_weights(build_backbone("small", 8), str(tmp_path / name))
    assert "must not run" not in capfd.readouterr().out


# --- ImageNet -----------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that accepts a connection and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/resnet18-00000000.pth"


def test_imagenet_weights_come_from_torchs_cache(hub: Path, resnet18: dict[str, torch.Tensor]) -> None:
    hub.mkdir(parents=True)
    torch.save(resnet18, hub / "resnet18-f37072fd.pth")
    backbone = build_backbone("resnet18", 16)
    weights.load_backbone_weights(backbone, "imagenet")
    assert torch.equal(backbone.state_dict()["conv1.weight"], resnet18["conv1.weight"])


def test_a_host_that_never_answers_is_given_up(hub: Path, silent_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_CONNECT_SECONDS", 0.3)
    start = time.monotonic()
    with pytest.raises(UsageError, match=r"cannot be fetched.*set classifier.weights to its path"):
        fetching.fetch(silent_server, hub / "resnet18-00000000.pth", "classifier.weights")
    assert time.monotonic() - start < 5
    assert not list(hub.glob("*"))


def test_no_network_is_said_in_a_sentence(hub: Path) -> None:
    with socket.socket() as listener:  # bound but not listening: the connection is refused
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/resnet18-00000000.pth"
        with pytest.raises(UsageError, match=r"cannot be fetched.*refused.*without a network, fetch that file"):
            fetching.fetch(url, hub / "resnet18-00000000.pth", "classifier.weights")


def test_only_a_whole_download_is_kept(tmp_path: Path, hub: Path) -> None:
    content = b"weights" * 1000

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        right = hub / f"w-{hashlib.sha256(content).hexdigest()[:8]}.pth"
        fetching.fetch(f"{address}/{right.name}", right, "classifier.weights")
        assert right.read_bytes() == content
        with pytest.raises(UsageError, match="invalid hash value"):
            fetching.fetch(f"{address}/w-00000000.pth", hub / "w-00000000.pth", "key")
    finally:
        server.shutdown()
        server.server_close()
    assert [file.name for file in hub.iterdir()] == [right.name]


def test_the_small_backbone_has_no_imagenet_weights() -> None:
    with pytest.raises(UsageError, match="no ImageNet weights"):
        weights.load_backbone_weights(build_backbone("small", 8), "imagenet")
