"""Which images a report shows, and what of each."""

import numpy as np
import pytest

from ribray.config import DataConfig, SyntheticConfig
from ribray.data import open_dataset
from ribray.data.mask_files import write_mask
from ribray.demo.world import make_world
from ribray.methods.maps import to_arrays, write_maps
from ribray.methods.method import Refined
from ribray.methods.stop_reasons import EXPLOSION, FINISHED
from ribray.report import pictures
from ribray.report.charts import read_losses
from ribray.report.pictures import TILE_PIXELS, draw_growth, gallery_block

SCALES = (1.0, 0.5)
BOTH = {"cam": 0.2, "rib": 0.4}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    world = SyntheticConfig(image_size=64, train_images=8, eval_images=2)
    root = tmp_path_factory.mktemp("world")
    make_world(root, world, 0)
    return open_dataset(DataConfig(kind="synthetic", synthetic=world), "train", root)


def write_map(dataset, folder, id, steps=3, kept=True, ended=FINISHED):
    """A map file whose maps grow from a corner by a row a step."""
    present = np.flatnonzero(dataset.labels[dataset.index(id)])
    by_step = []
    for step in range(1, steps + 1):
        cells = np.zeros((len(present), 8, 8), np.float32)
        cells[:, :step] = 1.0
        by_step.append([cells, cells])
    sums, maps = {"rib": by_step} if kept else {}, {"cam": by_step[0], "rib": by_step[-1]}
    losses, targets = [-10.0 * step for step in range(steps - 1)], [5.0 * step for step in range(steps)]
    refinement = Refined(present, maps, steps, ended, sums, losses, {"target_losses": targets})
    write_maps(folder / f"{id}.npz", id, to_arrays(refinement, (64, 64), SCALES))
    return folder / f"{id}.npz"


@pytest.fixture
def maps(dataset, tmp_path):
    return {id: [write_map(dataset, tmp_path / "maps", id)] for id in dataset.ids}


@pytest.fixture
def masks(dataset, tmp_path):
    """A folder of masks that are the truth."""
    for id in dataset.ids:
        write_mask(tmp_path / "masks" / f"{id}.png", dataset.mask(id), dataset.palette, {"id": id})
    return tmp_path / "masks"


def test_an_image_leads_from_its_truth_over_seeds_to_masks_and_grows_over_the_steps(dataset, maps, masks):
    block = gallery_block("training", dataset, {"pseudo mask, RIB": masks}, maps, BOTH)
    assert len(block.images) == 6
    image = block.images[0]
    assert list(image.tiles) == ["image", "truth", "seed, plain CAM", "seed, RIB", "pseudo mask, RIB"]
    (strip,) = image.strips
    assert list(strip.tiles) == ["plain CAM", "step 2", "step 3"]
    assert all(tile.shape == (64, 64, 3) for tile in (*image.tiles.values(), *strip.tiles.values()))
    grown = [np.ptp(tile.astype(int), axis=2).mean() for tile in strip.tiles.values()]
    assert grown == sorted(grown)
    assert grown[0] < grown[-1]
    assert set(image.class_names) <= set(block.legend)
    np.testing.assert_array_equal(image.tiles["truth"], image.tiles["pseudo mask, RIB"])  # the masks are the truth
    assert (strip.title, strip.remark) == ("The map over the steps", "")


def test_without_steps_there_are_plain_cam_and_rib_and_an_early_end_is_told(dataset, tmp_path):
    maps = {id: [write_map(dataset, tmp_path, id, kept=False, ended=EXPLOSION)] for id in dataset.ids[:2]}
    block = gallery_block("training", dataset, {}, maps)
    (strip,) = block.images[0].strips
    assert list(strip.tiles) == ["plain CAM", "RIB"]
    assert list(block.images[0].tiles) == ["image", "truth"]
    assert strip.remark == "after step 3 the explosion test ended it: most of the image lit up"


def test_many_steps_are_shown_in_part_the_first_and_the_last_among_them(dataset, tmp_path):
    id = dataset.ids[0]
    (image,) = gallery_block("", dataset, {}, {id: [write_map(dataset, tmp_path, id, steps=40)]}).images
    (strip,) = image.strips
    first, *others, last = strip.tiles
    assert (first, len(others), last) == ("plain CAM", 8, "step 40")


def write_other(dataset, folder, id, steps=0):
    """A map file of another method, whose first step is not the plain CAM."""
    present = np.flatnonzero(dataset.labels[dataset.index(id)])
    cells = np.random.default_rng(0).random((2 + steps, len(present), 8, 8), np.float32)
    maps = {"cam": [cells[0]] * 2, "other": [cells[1]] * 2}
    kept = {"other": [[step, step] for step in cells[2:]]} if steps else {}
    write_maps(
        folder / f"{id}.npz", id, to_arrays(Refined(present, maps, max(steps, 1), by_step=kept), (64, 64), SCALES)
    )
    return folder / f"{id}.npz"


def test_every_method_has_its_seed_and_its_strip(dataset, maps, tmp_path):
    files = {id: [*maps[id], write_other(dataset, tmp_path / "other", id, steps=2)] for id in dataset.ids}
    image = gallery_block("", dataset, {}, files, {**BOTH, "other": 0.3}).images[0]
    assert list(image.tiles) == ["image", "truth", "seed, plain CAM", "seed, other", "seed, RIB"]
    assert [strip.title for strip in image.strips] == ["other: the map over the steps", "RIB: the map over the steps"]
    assert list(image.strips[0].tiles) == ["step 1", "step 2"]


def test_methods_without_steps_stand_beside_each_other(dataset, tmp_path):
    id = dataset.ids[0]
    files = [write_map(dataset, tmp_path / "rib", id, kept=False), write_other(dataset, tmp_path / "other", id)]
    (strip,) = gallery_block("", dataset, {}, {id: files}).images[0].strips
    assert strip.title == "The maps"
    assert list(strip.tiles) == ["plain CAM", "other", "RIB"]


def test_an_image_without_the_maps_of_one_method_shows_those_of_the_other(dataset, maps):
    image = gallery_block("", dataset, {}, maps, {**BOTH, "other": 0.3}).images[0]
    assert list(image.tiles) == ["image", "truth", "seed, plain CAM", "seed, RIB"]


def test_the_growth_figure_shows_every_method_or_the_steps_of_a_single_one(dataset, maps, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "image_figure", lambda blocks, path: drawn.append(blocks[""][0].maps))
    others = {id: write_other(dataset, tmp_path / "other", id) for id in dataset.ids}
    draw_growth(dataset, {id: [*maps[id], others[id]] for id in dataset.ids}, tmp_path / "maps.png")
    draw_growth(dataset, maps, tmp_path / "maps.png")
    draw_growth(dataset, {id: [file] for id, file in others.items()}, tmp_path / "maps.png")
    many = {id: [write_map(dataset, tmp_path, id, steps=27)] for id in dataset.ids[:2]}
    draw_growth(dataset, many, tmp_path / "maps.png")
    steps = ["plain CAM", "step 1", "step 3", "step 10"]
    several, grown, alone, long = map(list, drawn)
    assert several == ["plain CAM", "other", "RIB"]
    assert (grown, alone, long) == (steps, ["plain CAM", "other"], [*steps, "RIB"])


def test_images_with_everything_come_before_those_with_less(dataset, maps, masks):
    kept = dataset.ids[3]
    for file in masks.glob("*.png"):
        if file.stem != kept:
            file.unlink()
    block = gallery_block("", dataset, {"pseudo mask": masks}, maps, BOTH)
    assert [image.id for image in block.images] == [kept]


def test_what_cannot_be_read_or_does_not_fit_gives_way(dataset, maps, masks):
    broken, odd, foreign, *rest = dataset.ids
    maps[broken][0].write_bytes(b"half a file")
    write_mask(masks / f"{odd}.png", np.zeros((5, 5), np.uint8), dataset.palette, {"id": odd})
    write_mask(masks / f"{foreign}.png", np.full((64, 64), 99, np.uint8), dataset.palette, {"id": foreign})
    block = gallery_block("", dataset, {"pseudo mask": masks}, maps, BOTH)
    assert {image.id for image in block.images} == set(rest)
    for (file,) in maps.values():
        file.write_bytes(b"half a file")
    assert gallery_block("", dataset, {"pseudo mask": masks}, maps, BOTH) is None


def test_maps_of_a_class_that_the_data_does_not_have_give_way(dataset, tmp_path):
    id = dataset.ids[0]
    cells = [np.ones((1, 8, 8), np.float32)] * 2
    strange = Refined(np.array([17]), {"cam": cells, "rib": cells})
    write_maps(tmp_path / "strange.npz", id, to_arrays(strange, (64, 64), SCALES))
    assert gallery_block("", dataset, {}, {id: [tmp_path / "strange.npz"]}) is None


def test_a_split_that_was_only_predicted_shows_its_predictions(dataset, masks, tmp_path):
    block = gallery_block("held out", dataset, {"prediction, RIB": masks, "prediction, plain CAM": tmp_path / "no"})
    assert list(block.images[0].tiles) == ["image", "truth", "prediction, RIB"]
    assert not block.images[0].strips
    assert gallery_block("held out", dataset, {"prediction": tmp_path / "no"}) is None


def test_large_images_are_reduced(dataset, masks, monkeypatch):
    large = np.zeros((600, 800, 3), np.uint8)
    monkeypatch.setattr(type(dataset), "image", lambda self, id: large)
    monkeypatch.setattr(type(dataset), "mask", lambda self, id: None)
    for file in masks.glob("*.png"):
        write_mask(file, np.ones((600, 800), np.uint8), dataset.palette, {"id": file.stem})
    block = gallery_block("", dataset, {"prediction": masks})
    shape = (TILE_PIXELS * 3 // 4, TILE_PIXELS, 3)
    assert [tile.shape for tile in block.images[0].tiles.values()] == [shape, shape]


# --- losses of the refinement ------------------------------------------------------------------------------------


def test_losses_are_quantiles_over_the_images_that_came_to_a_step(dataset, tmp_path):
    short, long, *others = dataset.ids
    files = [write_map(dataset, tmp_path, short, steps=2), write_map(dataset, tmp_path, long, steps=4)]
    losses = read_losses(files)
    assert losses.images == 2
    assert losses.series["losses"][:, 1].tolist() == [0.0, -10.0, -20.0]
    assert losses.series["target_losses"][:, 1].tolist() == [0.0, 5.0, 10.0, 15.0]
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(b"half a file")
    assert read_losses([damaged, *files]).images == 2
    assert read_losses([damaged]) is None
    assert read_losses([]) is None
    single = read_losses([write_map(dataset, tmp_path, others[0], steps=1)])
    assert "losses" not in single.series  # a single step has none
    assert len(single.series["target_losses"]) == 1
