"""Every file that a run reads back, damaged in every way: a sentence, made again or refused, and no wrong number."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from ribray import storage
from ribray.commands.report import write_report
from ribray.commands.run import Request, parse_stages, plan_chain, read_status
from ribray.config import IrnConfig
from ribray.data.dataset import Dataset
from ribray.data.mask_files import mask_path, write_mask
from ribray.errors import ImageError, RibrayError, UsageError
from ribray.methods.maps import MapRecord
from ribray.pipeline.artifacts import read_map, read_own_mask, trained_weights
from ribray.pipeline.batches import MaskedImages
from ribray.pipeline.maps import map_path, refined_ids
from ribray.pipeline.masks import MaskWorker, NewMask
from ribray.pipeline.stage import Context
from ribray.report.ledger import read_ledger
from ribray.runs.run import Run
from ribray.stages import STAGES
from ribray.stages.seed import SeedWorker
from ribray.tracking import Tracker
from tests.pages import ledger
from tests.tiny import MAPS, experiment

Damage = Callable[[bytes], bytes]

CUT: dict[str, Damage] = {
    "half": lambda content: content[: len(content) // 2],
    "ten bytes": lambda content: content[:10],
    "its end cut off": lambda content: content[:-3],
    "empty": lambda content: b"",
    "garbage": lambda content: bytes(range(256)) * 4,
}
OF_OTHER_TYPES: dict[str, Damage] = {
    name: lambda content, text=text: text
    for name, text in {
        "a list": b"[]",
        "a number": b"3",
        "no keys": b"{}",
        "not a number": b'{"a": NaN}',
        "one key twice": b'{"a": 1, "a": 2}',
        "deep": b"[" * 100_000,
        "another encoding": '{"ä": 1}'.encode("latin-1"),
        "many digits": b'{"a": ' + b"9" * 5000 + b"}",
    }.items()
}
"""Of a JSON file."""


def damaged(run: Path, name: str, damage: Damage) -> Path:
    """Damage a file of a run."""
    file = run / name
    file.write_bytes(damage(file.read_bytes()))
    return file


def context(run: Path) -> Context:
    config, opened = experiment(), Run.read(run)
    return Context(config, opened, STAGES, Console(quiet=True), Tracker(config, opened))


def plan(run: Path) -> object:
    return plan_chain(Request(experiment(), "quickstart", run, parse_stages(MAPS)), Console(file=io.StringIO()))


def said(action: Callable[[], object]) -> str:
    """Return the sentence that an action ends with."""
    with pytest.raises(RibrayError) as caught:
        action()
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return sentence


@pytest.fixture
def run(undisturbed: Path, copy_of: Callable[[Path], Path]) -> Path:
    return copy_of(undisturbed)


# --- a run's own files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [*CUT.values(), *OF_OTHER_TYPES.values()], ids=[*CUT, *OF_OTHER_TYPES])
def test_a_damaged_record_is_refused_with_what_to_do(damage, run):
    file = damaged(run, "maps/stage.json", damage)
    for action in (lambda: read_status(run), lambda: plan(run)):
        sentence = said(action)
        assert f"{file} is damaged (" in sentence
        assert f"put a copy of it back, or remove {run / 'maps'}" in sentence


def test_files_of_an_older_version_are_refused_by_name(run):
    def older(content: bytes) -> bytes:
        record = json.loads(content)
        record["inputs"]["format"] -= 1
        return json.dumps({**record, "key": "0123456789abcdef"}).encode()

    damaged(run, "maps/stage.json", older)
    now = STAGES["refine"].format
    sentence = said(lambda: plan(run))
    assert f"the file format (there {now - 1}, now {now})" in sentence
    assert "Use --redo refine" in sentence


NO_OBJECT = {name: damage for name, damage in OF_OTHER_TYPES.items() if name not in ("no keys", "one key twice")}


@pytest.mark.parametrize("damage", [*CUT.values(), *NO_OBJECT.values()], ids=[*CUT, *NO_OBJECT])
def test_damaged_numbers_are_never_shown_and_count_as_missing(damage, run):
    file = damaged(run, "metrics/seed.json", damage)
    for action in (lambda: read_status(run), lambda: write_report(run)):
        sentence = said(action)
        assert str(file) in sentence
        assert "remove it so that it is made again" in sentence
    assert not Run(run).has_metrics("seed")
    assert Run(run).has_metrics("refine")


def test_numbers_with_the_seal_of_earlier_versions_are_read(run):
    numbers = Run(run).metrics()
    damaged(run, "metrics/seed.json", lambda content: json.dumps({**json.loads(content), "sha256": "0" * 64}).encode())
    assert Run(run).metrics() == numbers


@pytest.mark.parametrize(
    "line",
    [b"{", b"[]", b'"x"', b"\xff", b"{}",
     b'{"id": "x", "stage": "seed", "error": "x", "tries": 1, "more": 2}'],
)  # fmt: skip
def test_damaged_failures_are_refused_with_what_to_do(line, run):
    (run / "failures.jsonl").write_bytes(line + b"\n")
    for action in (lambda: read_status(run), lambda: write_report(run)):
        assert "failures.jsonl is damaged (" in said(action)


@pytest.mark.parametrize("damage", CUT.values(), ids=CUT)
def test_a_damaged_configuration_is_refused(damage, run):
    damaged(run, "experiment.yaml", damage)
    for action in (lambda: read_status(run), lambda: write_report(run)):
        assert "experiment.yaml" in said(action)


def test_a_configuration_that_ends_between_two_keys_is_not_filled_up_with_defaults(run):
    lines = (run / "experiment.yaml").read_text().splitlines(keepends=True)
    for kept in range(1, len(lines)):
        (run / "experiment.yaml").write_text("".join(lines[:kept]))
        with pytest.raises(UsageError):
            Run.read(run).read_experiment()


@pytest.mark.parametrize(
    ("provenance", "reason"),
    [
        ("{parent: .}", "made from itself"),
        ("{parent: ../nowhere}", "is no run directory"),
    ],
)
def test_a_provenance_that_leads_nowhere_is_refused(provenance, reason, run):
    damaged(
        run,
        "experiment.yaml",
        lambda content: content.split(b"provenance:")[0] + f"provenance: {provenance}\n".encode(),
    )
    assert reason in said(lambda: read_status(run))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"[]\n" + content,
        lambda content: content[:20] + b"\n" + content[30:],
        lambda content: b'{"step": "one", "loss": 1.0}\n' + content,
        lambda content: b'{"step": 1, "loss": []}\n' + content,
        lambda content: b"\xff\xfe\n" + content,
    ],
    ids=["a list", "a line cut", "a text as step", "a list as loss", "no text"],
)
def test_a_damaged_log_is_told_in_the_report_and_the_rest_stands(damage, run):
    damaged(run, "classifier/metrics.jsonl", damage)
    read_status(run)
    text = write_report(run).read_text(encoding="utf-8")
    assert "metrics.jsonl is damaged (line " in text
    assert "use --redo to train again" in text


# --- weights -----------------------------------------------------------------------------------------------------


def changed(content: bytes) -> bytes:
    """Change the last number."""
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("damage", [*CUT.values(), changed], ids=[*CUT, "one bit"])
def test_weights_other_than_those_that_were_trained_are_refused(damage, run):
    file = damaged(run, "classifier/weights.safetensors", damage)
    sentence = said(lambda: trained_weights(context(run), "classifier", "refine"))
    assert sentence == (
        f"{file} is damaged, or not the file that stage 'classifier' wrote there: put that one back, or use "
        "--redo classifier to train again."
    )


# --- maps --------------------------------------------------------------------------------------------------------


def two_maps(run: Path) -> tuple[Dataset, str, Path, Path]:
    """Return the training images, one of them, its map file, and that of another one with the same classes."""
    dataset = context(run).training_set
    ids = refined_ids(context(run))
    files = {id: map_path(run / "maps", id) for id in ids}
    records = {id: MapRecord.read(file) for id, file in files.items()}
    for id in ids:
        for other in ids:
            if other != id and records[other].classes.tolist() == records[id].classes.tolist():
                return dataset, id, files[id], files[other]
    return dataset, ids[0], files[ids[0]], files[ids[1]]


def set_aside(sentence: str, file: Path) -> None:
    assert f"set aside as {file.name}.damaged" in sentence
    assert "makes it again on its next run" in sentence
    assert not file.exists()
    assert file.with_name(f"{file.name}.damaged").exists()


@pytest.mark.parametrize("damage", CUT.values(), ids=CUT)
def test_a_damaged_map_fails_its_image_and_is_made_again(damage, run):
    dataset, id, file, _ = two_maps(run)
    file.write_bytes(damage(file.read_bytes()))
    worker = SeedWorker(dataset, {"rib": run / "maps"}, [0.2, 0.4])
    set_aside(said(lambda: worker.process(id)), file)
    assert "was damaged and is set aside" in said(lambda: worker.process(id))  # by another stage, or another process
    (work,) = (status for status in read_status(run)[1] if status.stage == "refine")
    assert (work.done, work.total) == (9, 10)


def test_the_map_of_another_image_is_found_out_though_size_and_classes_fit(run):
    dataset, id, file, other = two_maps(run)
    file.write_bytes(other.read_bytes())
    sentence = said(lambda: SeedWorker(dataset, {"rib": run / "maps"}, [0.2]).process(id))
    assert f"should hold the maps of '{id}', and has those of '{other.stem}'" in sentence
    set_aside(sentence, file)


def test_maps_of_another_size_or_unknown_classes_are_found_out(run):
    dataset, id, file, _ = two_maps(run)
    for name, value, reason in (
        ("size", np.array([32, 32]), "is of 32 × 32 pixels, but its image is 64 × 64"),
        ("classes", np.array([77]), "class"),
        ("initial_0", np.full((1, 8, 8), np.nan, np.float32), "no numbers"),
    ):
        arrays = storage.read_npz(file)
        content = file.read_bytes()
        storage.write_npz(file, **{**arrays, name: value})
        with pytest.raises(ImageError, match=reason):
            read_map(file, id, dataset, (64, 64))
        file.write_bytes(content)


def test_a_file_that_cannot_be_renamed_stays_and_is_told(run, monkeypatch):
    dataset, id, file, _ = two_maps(run)
    file.write_bytes(b"")

    def refuse(location: Path) -> Path:
        raise PermissionError("read-only")

    monkeypatch.setattr(storage, "set_aside", refuse)
    assert "remove it so that it is made again" in said(lambda: read_map(file, id, dataset, (64, 64)))
    assert file.exists()


# --- masks -------------------------------------------------------------------------------------------------------


class Worker(MaskWorker):
    """Makes the truth."""

    def make(self, id: str) -> NewMask:
        return NewMask(self.dataset.mask(id))


@pytest.fixture
def masks(undisturbed: Path, tmp_path: Path) -> tuple[Dataset, Path]:
    """Masks as the stages `confident`, `pseudo`, `segmentation` (filling) and `evaluate` write them."""
    dataset = context(undisturbed).training_set
    worker = Worker(dataset, tmp_path / "masks")
    for id in dataset.ids[:2]:
        assert worker.process(id)["made"]
        assert not worker.process(id)["made"]
    return dataset, tmp_path / "masks"


@pytest.mark.parametrize("damage", [*CUT.values(), None], ids=[*CUT, "another image's"])
def test_a_mask_that_is_not_the_images_is_made_again_and_never_learnt_from(damage, masks):
    dataset, folder = masks
    id, other = dataset.ids[:2]
    file = mask_path(folder, id)
    sound = file.read_bytes()
    spoilt = mask_path(folder, other).read_bytes() if damage is None else damage(sound)
    file.write_bytes(spoilt)
    assert Worker(dataset, folder).process(id)["made"]
    assert file.read_bytes() == sound
    file.write_bytes(spoilt)
    images = MaskedImages(dataset, folder, [id], "irn", IrnConfig(crop_size=64, scale_range=(1.0, 1.0)))
    set_aside(images[0, 0].error[1], file)
    assert "was damaged and is set aside" in images[1, 0].error[1]
    assert Worker(dataset, folder).process(id)["made"]


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (np.zeros((5, 9), np.uint8), "is of 9 × 5 pixels, but its image is 64 × 64"),
        (np.full((64, 64), 77, np.uint8), "77"),
    ],
)
def test_masks_of_another_size_or_unknown_classes_are_found_out(mask, reason, masks):
    dataset, folder = masks
    id = dataset.ids[0]
    write_mask(folder / f"{id}.png", mask, dataset.palette, {"id": id})
    with pytest.raises(ImageError, match=reason):
        read_own_mask(folder / f"{id}.png", id, dataset, (64, 64))


# --- the ledger of a sweep ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [*CUT.values(), *OF_OTHER_TYPES.values()], ids=[*CUT, *OF_OTHER_TYPES])
def test_a_damaged_ledger_is_refused(damage, tmp_path):
    storage.write_json(tmp_path / "sweep.json", ledger())
    read_ledger(tmp_path / "sweep.json")
    damaged(tmp_path, "sweep.json", damage)
    for action in (lambda: read_ledger(tmp_path / "sweep.json"), lambda: write_report(tmp_path)):
        assert f"{tmp_path / 'sweep.json'} is " in said(action)


def test_a_ledger_of_another_version_is_refused(tmp_path):
    storage.write_json(tmp_path / "sweep.json", ledger(format=0))
    assert "is of another version of ribray" in said(lambda: read_ledger(tmp_path / "sweep.json"))


def test_damaged_plots_and_definitions_of_a_sweep_are_left_out(tmp_path):
    storage.write_json(tmp_path / "sweep.json", ledger())
    (tmp_path / "plot.png").write_bytes(b"\x89PNG half of it")
    (tmp_path / "sweep.yaml").write_bytes(b"base: [\xff")
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "There is no plot yet" in text
