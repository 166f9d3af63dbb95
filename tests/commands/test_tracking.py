"""A run as W&B has it: the same numbers as in the run's files."""

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ribray import storage
from ribray.commands.tracking import log_run, open_trackers
from ribray.errors import DivergedError, RibrayError
from ribray.pipeline.stage import Context
from ribray.runs.metrics import ConfidentMetrics, EvaluateMetrics, PseudoMetrics
from ribray.runs.run import Run
from ribray.stages import STAGES
from ribray.tracking import Tracker
from tests.tiny import chain, experiment
from tests.wandb_files import Logged, folders, read_back

OFFLINE = "tracking.wandb=offline"


def numbers(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every scalar of nested metrics, keys joined by slashes."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= numbers(value, f"{prefix}{key}/")
        elif isinstance(value, str | int | float):
            flat[f"{prefix}{key}"] = value
    return flat


def losses(run: Path, training: str) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (run / training / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def per_class(table: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """A table's columns by heading, each a number per class."""
    assert table["columns"][0] == "class"
    return {
        heading: {row[0]: row[place] for row in table["data"]}
        for place, heading in enumerate(table["columns"][1:], start=1)
    }


# --- a real run ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier trained by two workers, maps and their seed; then two more images."""
    out = tmp_path_factory.mktemp("tracked") / "run"
    settings = [OFFLINE, "classifier.workers=2", "refine.keep_steps=true"]
    chain(out, settings)
    shutil.copy(out / "metrics.json", out.parent / "first.json")
    result, _ = chain(out, [*settings, "refine.limit=12"])
    assert result.sync_command == f"wandb sync {out}/wandb"
    return out


@pytest.fixture(scope="module")
def starts(run: Path) -> list[Logged]:
    return [read_back(folder) for folder in folders(run)]


@pytest.mark.slow
def test_each_start_writes_once_under_one_id_whatever_the_number_of_workers(run, starts):
    assert len(starts) == len(list(run.rglob("*.wandb"))) == 2
    assert len({start.run["run_id"] for start in starts}) == 1
    assert [start.exit_code for start in starts] == [0, 0]


@pytest.mark.slow
def test_losses_and_rates_are_those_of_the_training_log_and_logged_once(run, starts):
    first, second = starts
    assert first.series("classifier/loss") == losses(run, "classifier")
    assert len(first.series("classifier/lr")) == len(losses(run, "classifier"))
    assert first.series("classifier/validation_map")
    assert not second.series("classifier/loss")


@pytest.mark.slow
def test_the_summary_is_that_of_metrics_json(run, starts):
    for start, file in zip(starts, (run.parent / "first.json", run / "metrics.json"), strict=True):
        expected = numbers(storage.read_json(file))
        assert {name: start.summary[name] for name in expected} == expected
    assert starts[1].summary["seed/rib/images"] == 12


@pytest.mark.slow
def test_the_seed_s_curve_and_its_growth_are_those_of_its_files(run, starts):
    rows = list(csv.DictReader(io.StringIO((run / "seed" / "curve.csv").read_text())))
    lines = starts[1].lines("curves/seed")
    for name, column in (("plain CAM", "cam_miou"), ("RIB", "rib_miou")):
        expected = [(float(row["threshold"]), float(row[column])) for row in rows]
        assert lines[name] == [pytest.approx(point, abs=1e-6) for point in expected]
    growth = [(one["step"], one["miou"]) for one in storage.read_json(run / "metrics" / "seed.json")["rib"]["by_step"]]
    assert starts[1].lines("curves/seed_by_step") == {"RIB": growth}


@pytest.mark.slow
def test_tables_hold_the_iou_of_every_class_and_the_throughput_of_every_stage(run, starts):
    metrics = storage.read_json(run / "metrics.json")
    assert per_class(starts[1].table("tables/seed")) == {
        "plain CAM": metrics["seed"]["cam"]["per_class"],
        "RIB": metrics["seed"]["rib"]["per_class"],
    }
    throughput = starts[1].table("tables/throughput")
    assert {row[0]: dict(zip(throughput["columns"], row, strict=True)) for row in throughput["data"]} == {
        stage: {"stage": stage, "workers": None, **cost} for stage, cost in metrics["timing"].items()
    }


@pytest.mark.slow
def test_pictures_are_those_of_the_run(run, starts):
    for name in ("maps", "seed_curve"):
        assert starts[1].image(f"figures/{name}").read_bytes() == (run / "figures" / f"{name}.png").read_bytes()


@pytest.mark.slow
def test_the_configuration_is_the_run_s(run, starts):
    assert starts[1].config["refine"]["limit"] == 12
    assert starts[1].config["provenance"]["ribray"]


# --- files as a run leaves them --------------------------------------------------------------------------------------


def context(directory: Path, *settings: str) -> Context:
    values = experiment([OFFLINE, *settings])
    with Run.open(directory) as run:
        run.write_experiment(values, "quickstart")
    return Context(values, run, STAGES, Console(quiet=True), Tracker(values, run))


def judged(value: float) -> dict[str, Any]:
    return {"miou": value, "per_class": {"background": value, "emu": None}}


def test_masks_on_both_sources_stand_side_by_side(tmp_path):
    main = context(tmp_path / "run")
    variant = context(tmp_path / "run" / "variants" / "cam", "masks.source=cam")
    for place, one in enumerate((main, variant)):
        walk = {**judged(20 + place), "curve": {"thresholds": [0.5], "miou": [20 + place]}}
        one.run.write_metrics("confident", ConfidentMetrics(seed_crf=judged(10 + place)))
        one.run.write_metrics("pseudo", PseudoMetrics(**judged(30 + place), walk=walk))
        one.run.write_metrics("evaluate", EvaluateMetrics(**judged(50 + place), before_retraining=judged(40 + place)))
        for folder in ("irn", "segmentation/first", "segmentation"):
            line = json.dumps({"epoch": 0, "step": 0, "loss": 1.5, "lr": 0.5})
            storage.write_text(one.run.directory / folder / "metrics.jsonl", f"{line}\n")
    with open_trackers([main, variant]):
        log_run(main, [])
        log_run(variant, [])
    logged, of_variant = (read_back(folders(one.run.directory)[0]) for one in (main, variant))
    expected = {
        "confident": {"plain CAM": 11, "RIB": 10},
        "pseudo": {"plain CAM, random walk": 21, "plain CAM": 31, "RIB, random walk": 20, "RIB": 30},
        "evaluate": {"plain CAM, before re-training": 41, "plain CAM": 51, "RIB, before re-training": 40, "RIB": 50},
    }
    for stage, columns in expected.items():
        table = per_class(logged.table(f"tables/{stage}"))
        assert table == {heading: {"background": value, "emu": None} for heading, value in columns.items()}
    assert per_class(of_variant.table("tables/confident")) == {"plain CAM": {"background": 11, "emu": None}}
    assert logged.lines("curves/random_walk") == {"RIB": [(0.5, 20)]}
    for training in ("irn", "segmentation_first", "segmentation"):
        assert logged.series(f"{training}/loss") == [(0, 1.5)]


@pytest.mark.parametrize(("error", "exit_code"), [(RibrayError, 1), (DivergedError, 0)])
def test_a_run_that_fails_is_marked_as_failed_and_one_that_diverges_is_not(error, exit_code, tmp_path):
    one = context(tmp_path / "run")
    with pytest.raises(error), open_trackers([one]):
        one.tracker.open()
        raise error("No more.")
    assert read_back(folders(tmp_path / "run")[0]).exit_code == exit_code
