"""Reports of tiny runs and sweeps: whole, partial, damaged, forked, imported."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from ribray import storage
from ribray.commands.report import write_report
from ribray.errors import UsageError
from tests.pages import MARKUP, ledger
from tests.tiny import EVERYTHING, RETRAINED, chain

pytestmark = pytest.mark.usefixtures("ray_session")

SECTIONS = ("results", "seed", "classes", "gallery", "losses", "throughput", "failures", "configuration")


def sections(html: str) -> dict[str, str]:
    """The page's sections by id."""
    found = dict(re.findall(r'<section id="(\w+)">(.*?)</section>', html, re.DOTALL))
    assert tuple(found) in (SECTIONS, ("study", "results", "trials", "failures", "configuration"))
    return found


def report_of(run: Path) -> dict[str, str]:
    location = write_report(run)
    assert location == run.absolute() / "report.html"
    return sections(location.read_text(encoding="utf-8"))


def is_filled(section: str) -> bool:
    return 'class="empty"' not in section


def test_a_run_up_to_its_seed_shows_curves_classes_pictures_and_losses(undisturbed, copy_of):
    run = copy_of(undisturbed)
    shutil.rmtree(run / "figures")
    found = report_of(run)
    assert all(map(is_filled, found.values()))
    metrics = storage.read_json(run / "metrics.json")
    for method in ("cam", "rib"):
        assert f"{metrics['seed'][method]['miou']:.1f}" in found["results"]
    assert found["seed"].count("<svg") == 2  # over the threshold, over the steps
    assert found["gallery"].count("<article") == 6
    assert found["gallery"].count("seed, plain CAM</figcaption>") == 6
    assert ">step 3</figcaption>" in found["gallery"]
    assert found["losses"].count("<svg") == 3  # classifier, loss and logits of the refinement
    assert "1,464 images at this rate" in found["throughput"]
    assert "No image failed." in found["failures"]
    assert "image_size: 64" in found["configuration"]
    for name in ("seed_curve", "steps", "losses", "maps"):
        with Image.open(run / "figures" / f"{name}.png") as figure:
            assert min(figure.size) > 300
    assert not (run / "figures" / "masks.png").exists()


def test_the_pictures_that_a_run_has_drawn_are_kept(undisturbed, copy_of):
    run = copy_of(undisturbed)
    before = (run / "figures" / "maps.png").stat().st_mtime_ns
    write_report(run)
    assert (run / "figures" / "maps.png").stat().st_mtime_ns == before


def test_a_run_that_has_only_a_classifier_says_what_is_missing(trained, copy_of):
    found = report_of(copy_of(trained))
    filled = {name for name, section in found.items() if is_filled(section)}
    assert filled == {"failures", "configuration"}
    assert "stage 'seed' gives the first mIoU" in found["results"].replace("&#39;", "'")
    assert found["losses"].count("<svg") == 1
    assert "Time per stage" in found["throughput"]


def test_damaged_maps_give_way_to_others(undisturbed, copy_of):
    run = copy_of(undisturbed)
    files = sorted((run / "maps").rglob("*.npz"))
    assert len(files) == 10
    for file in files[:6]:
        file.write_bytes(b"half a file")
    shown = report_of(run)["gallery"].count("<article")
    assert shown == 4
    for file in files:
        file.write_bytes(b"half a file")
    found = report_of(run)
    assert not is_filled(found["gallery"])
    assert is_filled(found["results"])
    assert "<h3>train_" not in found["gallery"]


def test_a_damaged_log_is_named_and_the_rest_stands(undisturbed, copy_of):
    run = copy_of(undisturbed)
    with open(run / "classifier" / "metrics.jsonl", "a", encoding="utf-8") as log:
        log.write('{"epoch": \n')
    losses = report_of(run)["losses"]
    assert f"{run / 'classifier' / 'metrics.jsonl'} is damaged (line " in losses
    assert losses.count("<svg") == 2


def test_data_that_is_gone_leaves_the_numbers(undisturbed, copy_of):
    run = copy_of(undisturbed)
    values = yaml.safe_load((run / "experiment.yaml").read_text(encoding="utf-8"))
    values["data"] |= {"kind": "voc", "root": "/nowhere"}
    (run / "experiment.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    found = report_of(run)
    assert "The images cannot be opened: data.root /nowhere does not exist" in found["gallery"]
    assert is_filled(found["results"])
    assert is_filled(found["seed"])


def test_failures_are_listed_and_escaped(undisturbed, copy_of):
    run = copy_of(undisturbed)
    failure = {"id": "train_0003", "stage": "refine", "error": f"broken: {MARKUP}", "tries": 3}
    (run / "failures.jsonl").write_text(json.dumps(failure) + "\n", encoding="utf-8")
    failures = report_of(run)["failures"]
    assert "train_0003" in failures
    assert "<img" not in failures
    assert "&lt;b&gt;bold&lt;/b&gt; &amp; more" in failures


def test_a_fork_shows_what_it_reuses_and_where_from(undisturbed, tmp_path):
    fork = tmp_path / "fork"
    chain(undisturbed, ["seed_eval.thresholds=[0.1, 0.3]"], stages="seed", fork=fork)
    found = report_of(fork)
    assert is_filled(found["gallery"])
    assert found["losses"].count("<svg") == 3
    assert f"in {undisturbed}" in found["throughput"]
    assert str(undisturbed) in found["configuration"]


def test_imported_maps_have_no_losses_and_no_pace(recipe, ribray, tmp_path):
    maps, out = tmp_path / "foreign", tmp_path / "run"
    maps.mkdir()
    for name in ("cat", "dog", "sea"):
        cells = np.zeros((44, 60))
        cells[8:30, 10:40] = 3.0
        for number in range(5):
            np.savez(maps / f"{name}{number}.npz", **{name: cells})
    assert ribray("import-maps", maps, "--recipe", recipe, "--out", out) == 0
    assert ribray("run", recipe, "--out", out, "--stages", "seed") == 0
    found = report_of(out)
    assert f"The maps were imported from {maps}: they hold no losses" in found["losses"]
    assert "no pace of a refinement was measured" in found["throughput"]
    assert found["gallery"].count("<article") == 6
    assert found["seed"].count("<svg") == 1
    assert "refine.keep_steps" in found["seed"]


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"neither a run .* nor a sweep"):
        write_report(tmp_path)
    with pytest.raises(UsageError, match="neither a run"):
        write_report(tmp_path / "nothing")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_whole_run_fills_every_section(whole, copy_of):
    run = copy_of(whole)
    chain(run, [*RETRAINED, "masks.source=both"], stages=EVERYTHING)
    found = report_of(run)
    assert all(map(is_filled, found.values()))
    assert found["results"].count("<svg") == 1
    for caption in ("pseudo mask, plain CAM", "pseudo mask, RIB", "prediction, plain CAM", "prediction, RIB"):
        assert f">{caption}</figcaption>" in found["gallery"]
    assert "Predicted images (val)" in found["gallery"]
    assert found["losses"].count("<svg") == 5
    assert "cam: segmentation" in found["throughput"]
    assert (run / "report.html").stat().st_size < 3e6
    (variant,) = (run / "variants").iterdir()
    assert all(map(is_filled, report_of(variant).values()))


# --- sweeps ------------------------------------------------------------------------------------------------------


@pytest.fixture
def sweep(tmp_path) -> Path:
    """A sweep's folder, its trials without anything but a failure."""
    out = tmp_path / "sweep"
    content = ledger()
    storage.write_json(out / "sweep.json", content)
    storage.write_text(out / "sweep.yaml", "# A study.\nbase: quickstart\n")
    Image.new("RGB", (960, 555), "white").save(out / "plot.png")
    Image.new("RGB", (960, 555), "white").save(out / "anything.png")
    first = out / content["trials"][0]["directory"]
    storage.write_text(first / "experiment.yaml", "data: {kind: synthetic}\n")
    failure = {"id": "train_0003", "stage": "refine", "error": f"broken: {MARKUP}", "tries": 3}
    storage.write_text(first / "failures.jsonl", json.dumps(failure) + "\n")
    return out


def test_a_sweep_has_its_table_plots_trials_and_failures(sweep):
    found = report_of(sweep)
    assert all(map(is_filled, found.values()))
    assert f"ribray sweep table_s1_batch_size --out {sweep}" in found["study"]
    assert "refine.batch_size: 1, 5, 20, 30" in found["study"]
    assert "refine.seed: 0, 1" in found["study"]
    assert found["results"].count("<img") == 2
    assert ">anything</figcaption>" in found["results"]
    assert found["trials"].count('scope="row"') == len(ledger()["trials"])
    assert "train_0003" in found["failures"]
    assert "It failed: " in found["failures"]
    assert "base: quickstart" in found["configuration"]
    assert "<b>" not in "".join(found.values())


def test_the_command_names_another_base_an_own_file_and_settings(sweep):
    storage.write_json(sweep / "sweep.json", ledger(base={"recipe": "voc12", "directory": "base"}))
    assert "ribray sweep table_s1_batch_size --base voc12 --out" in report_of(sweep)["study"]
    storage.write_json(sweep / "sweep.json", ledger(source="/my/own.yaml", overrides=["refine.lr=0.1"]))
    assert f"ribray sweep /my/own.yaml --out {sweep} --set refine.lr=0.1" in report_of(sweep)["study"]


def test_a_sweep_that_has_just_begun_has_a_page(sweep):
    (sweep / "plot.png").unlink()
    (sweep / "anything.png").unlink()
    shutil.rmtree(sweep / "trials")
    storage.write_json(sweep / "sweep.json", ledger(trials=[]))
    found = report_of(sweep)
    assert "There are no trials yet." in found["results"]
    assert "There is no plot yet" in found["results"]
