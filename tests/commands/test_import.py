"""Classifiers and maps that were made elsewhere."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ribray import storage
from ribray.runs.run import Run
from tests.made import CLASSES

pytestmark = pytest.mark.usefixtures("ray_session")


def map_bytes(out: Path) -> dict[str, bytes]:
    return {file.stem: file.read_bytes() for file in (out / "maps").rglob("*.npz")}


# --- a classifier ------------------------------------------------------------------------------------------------


def test_a_torchvision_checkpoint_in_another_class_order_becomes_the_same_classifier(
    recipe, checkpoint, ribray, tmp_path
):
    state = load_file(checkpoint)
    head = state.pop("head.weight")[[2, 0, 1], :, 0, 0]  # rows sea, cat, dog of a linear layer
    foreign = {name.removeprefix("backbone."): tensor for name, tensor in state.items()}
    torch.save({"state_dict": {**foreign, "fc.weight": head}}, tmp_path / "foreign.pth")
    given = ("--stages", "classifier", "--set", f"classifier.checkpoint={tmp_path / 'foreign.pth'}")
    order = ("--set", "classifier.checkpoint_classes=[sea, cat, dog]")
    assert ribray("run", recipe, "--out", tmp_path / "named", *given, *order) == 0
    assert ribray("run", recipe, "--out", tmp_path / "unnamed", *given) == 0
    weights = "classifier/weights.safetensors"
    assert (tmp_path / "named" / weights).read_bytes() == checkpoint.read_bytes()
    assert (tmp_path / "unnamed" / weights).read_bytes() != checkpoint.read_bytes()


@pytest.mark.parametrize(
    ("order", "sentence"),
    [
        ("[cat, dgo, sea]", "names 'dgo', which is no class of the data (did you mean 'dog'?)"),
        ("[cat, sea]", "does not name 'dog'"),
        ("[cat, cat, dog, sea]", "names 'cat' twice"),
    ],
)
def test_class_names_that_do_not_fit_the_data_are_refused(recipe, ribray, tmp_path, capsys, order, sentence):
    settings = ("--set", f"classifier.checkpoint_classes={order}")
    assert ribray("run", recipe, "--out", tmp_path / "run", "--stages", "classifier", *settings) == 2
    assert f"classifier.checkpoint_classes {sentence}" in " ".join(capsys.readouterr().err.split())


def test_a_head_of_other_size_is_refused(recipe, checkpoint, ribray, tmp_path, capsys):
    state = load_file(checkpoint)
    state["head.weight"] = state["head.weight"][:2].clone()
    save_file(state, tmp_path / "two.safetensors")
    settings = ("--set", f"classifier.checkpoint={tmp_path / 'two.safetensors'}")
    assert ribray("run", recipe, "--out", tmp_path / "run", "--stages", "classifier", *settings) == 2
    assert "it knows 2 classes, the data has 3" in " ".join(capsys.readouterr().err.split())


# --- maps --------------------------------------------------------------------------------------------------------


@pytest.fixture
def foreign_maps(tmp_path: Path) -> Path:
    """Maps of all 15 photographs: exactly the patch, in a third of them as folders of npy, at three strides."""
    folder = tmp_path / "foreign"
    for number in range(5):
        for place, name in enumerate(CLASSES):
            cells = np.zeros((44, 60), np.float64)
            cells[8:30, 10:40] = 3.0
            id, cells = f"{name}{number}", cells[:: (1, 4, 1)[place], :: (1, 4, 1)[place]]
            if name == "cat":
                (folder / id).mkdir(parents=True)
                np.save(folder / id / "cat.npy", cells)
            else:
                folder.mkdir(exist_ok=True)
                np.savez(folder / f"{id}.npz", **{name: cells.astype(np.float32), "cat": cells * 0})
    return folder


def test_imported_maps_are_judged_without_a_classifier(recipe, foreign_maps, ribray, tmp_path, capsys):
    out, import_them = tmp_path / "run", ("import-maps", foreign_maps, "--recipe", recipe, "--out", tmp_path / "run")
    assert ribray(*import_them) == 0
    before = map_bytes(out)
    assert ribray("run", recipe, "--out", out, "--stages", "seed") == 0
    seed = storage.read_json(out / "metrics.json")["seed"]
    assert seed["rib"] | {"refinement_ended": None} == seed["cam"] | {"refinement_ended": None}
    assert seed["rib"]["images"] == 15
    assert seed["rib"]["per_class"]["cat"] == seed["rib"]["per_class"]["sea"] == 100.0  # given at full size
    assert 80 < seed["rib"]["per_class"]["dog"] < 100  # every fourth pixel

    # From here on nothing is left to do, whatever is asked for.
    capsys.readouterr()
    assert ribray("status", out) == 0
    assert "15 of 15 images" in capsys.readouterr().out
    other = ("--set", "refine.lr=0.5", "--set", "classifier.lr=0.5", "--stages", "classifier,refine,seed")
    assert ribray("run", recipe, "--out", out, *other) == 0
    shown = capsys.readouterr().out
    assert "classifier: not needed" in shown
    assert "refine: 15 of 15 images, imported" in shown
    assert ribray("run", recipe, "--out", out, "--plan", "--stages", "classifier,refine,seed") == 0
    assert ribray("run", recipe, "--out", out, "--stages", "seed", "--fork", tmp_path / "fork") == 0
    assert not (tmp_path / "fork" / "maps").exists()
    assert ribray(*import_them) == 0
    assert not (out / "classifier").exists()

    np.save(foreign_maps / "cat0" / "cat.npy", np.ones((44, 60)))
    capsys.readouterr()
    assert ribray(*import_them) == 1
    (failure,) = Run.read(out).failures()
    assert failure.error.startswith("The maps of cat0 are not those that were imported before")
    assert map_bytes(out) == before


def test_maps_take_the_names_of_the_run_s_method(recipe, foreign_maps, ribray, tmp_path, capsys):
    out, method = tmp_path / "run", ("--set", "refine.method=advcam")
    assert ribray("import-maps", foreign_maps, "--recipe", recipe, "--out", out, *method) == 0
    assert ribray("run", recipe, "--out", out, "--stages", "seed", *method) == 0
    seed = storage.read_json(out / "metrics.json")["seed"]
    assert seed["advcam"]["images"] == 15
    assert list(seed) == ["cam", "advcam"]
    assert len(list((out / "maps_advcam").rglob("*.npz"))) == 15
    several = ("--set", "refine.method=[rib, advcam]")
    assert ribray("import-maps", foreign_maps, "--recipe", recipe, "--out", tmp_path / "two", *several) == 2
    assert "in place of one method: set refine.method to one of rib, advcam" in " ".join(
        capsys.readouterr().err.split()
    )


def test_redo_refines_what_was_imported(recipe, foreign_maps, ribray, tmp_path, capsys):
    out, few = tmp_path / "run", ("--set", "refine.limit=2")
    assert ribray("import-maps", foreign_maps, "--recipe", recipe, "--out", out, *few) == 0
    before = map_bytes(out)
    assert ribray("run", recipe, "--out", out, "--redo", "refine", "--stages", "classifier,refine", *few) == 0
    assert map_bytes(out).keys() == before.keys()
    assert map_bytes(out) != before
    assert "imported" not in Run.read(out).record("maps")
    capsys.readouterr()
    assert ribray("import-maps", foreign_maps, "--recipe", recipe, "--out", out, *few) == 2
    assert "already holds maps that were refined there" in " ".join(capsys.readouterr().err.split())


def test_bad_maps_fail_by_image_and_are_taken_once_mended(recipe, foreign_maps, ribray, tmp_path):
    sound = tmp_path / "sound"
    shutil.copytree(foreign_maps, sound)
    np.save(foreign_maps / "cat0" / "cat.npy", np.full((44, 60), -1.0))
    np.save(foreign_maps / "cat1" / "cat.npy", np.full((44, 60), np.nan))
    np.save(foreign_maps / "cat2" / "cat.npy", np.array([{"a": 1}]), allow_pickle=True)
    np.save(foreign_maps / "cat3" / "cats.npy", np.ones((44, 60)))
    (foreign_maps / "cat4" / "cat.npy").unlink()
    np.savez(foreign_maps / "dog0.npz", dog=np.ones((3, 44, 60)))
    (foreign_maps / "dog1.npz").write_bytes(b"no zip")
    (foreign_maps / "dog2.npz").unlink()
    out = tmp_path / "run"
    assert ribray("import-maps", foreign_maps, "--recipe", recipe, "--out", out) == 1
    errors = {failure.id: failure.error for failure in Run.read(out).failures()}
    expected = {
        "cat0": "negative or not finite",
        "cat1": "negative or not finite",
        "cat2": "not a readable npy file",
        "cat3": "one of 'cats', which is no class (did you mean 'cat'?)",
        "cat4": "none of 'cat', which the image is labelled with",
        "dog0": "shape (3, 44, 60)",
        "dog1": "not a readable npz file",
        "dog2": "no maps of dog2",
    }
    assert errors.keys() == expected.keys()
    assert all(phrase in errors[id] for id, phrase in expected.items()), errors
    before = map_bytes(out)
    assert len(before) == 7

    shutil.rmtree(foreign_maps)
    shutil.copytree(sound, foreign_maps)
    assert ribray("import-maps", foreign_maps, "--recipe", recipe, "--out", out) == 0
    assert len(map_bytes(out)) == 15
    assert before.items() <= map_bytes(out).items()
    assert Run.read(out).failures() == []


def test_stretched_and_blank_maps_are_taken_and_counted(recipe, foreign_maps, ribray, tmp_path, capsys):
    for id in ("cat1", "cat3"):
        np.save(foreign_maps / id / "cat.npy", np.zeros((50, 30)))
    assert ribray("import-maps", foreign_maps, "--recipe", recipe, "--out", tmp_path / "run") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Note: The maps of 2 of 15 images have other proportions than their image and are stretched to it" in shown
    assert "(such as cat1: 30 × 50 for 60 × 44)." in shown
    assert "The maps of 2 of 15 images are zero in every pixel, so that they show no class (such as cat1)." in shown


def test_a_folder_without_maps_is_refused(recipe, photographs, ribray, tmp_path, capsys):
    assert ribray("import-maps", photographs, "--recipe", recipe, "--out", tmp_path / "run") == 2
    assert "holds maps of none of the 15 images" in " ".join(capsys.readouterr().err.split())
    assert ribray("import-maps", tmp_path / "nowhere", "--recipe", recipe, "--out", tmp_path / "run") == 2
    assert "is no folder" in capsys.readouterr().err
