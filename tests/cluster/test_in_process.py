"""``cluster.workers: 0``: pools and trainings in this process, without Ray, and the same bytes as with it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from bdb import BdbQuit
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console

from ribray import storage
from ribray.cluster.pool import Pool, PoolPlan
from ribray.cluster.session import connect
from ribray.commands.run import Request, plan_chain, read_status
from ribray.config import ClusterConfig
from ribray.errors import UsageError
from ribray.methods.method import Passes
from ribray.networks import build_classifier
from ribray.networks.weights import load_backbone_weights, save_network
from ribray.runs.run import Run
from ribray.stages import refine
from ribray.sweep_file import find_sweep, read_sweep
from tests.conftest import ROOT
from tests.tiny import EVERYTHING, RETRAINED, TINY, chain, experiment, map_bytes

HERE = "cluster.workers=0"
CLASSIFIED = "classifier,refine"
ALONE = """
import sys
from pathlib import Path
from tests.tiny import chain
out, stages, *settings = sys.argv[1:]
chain(Path(out), settings, stages=stages)
print([name for name in sys.modules if name.partition(".")[0] == "ray"])
"""
COMMAND = [sys.executable, "-c", "from ribray.cli import main; main()"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> list[str]:
    """What makes a run small: a classifier that needs no training, its head drawn at random."""
    torch.manual_seed(1)
    model = build_classifier("small", experiment().data.synthetic.classes, 8)
    load_backbone_weights(model.backbone, "synthetic")
    file = tmp_path_factory.mktemp("checkpoint") / "classifier.safetensors"
    save_network(model, file)
    return [f"classifier.checkpoint={file}", "refine.limit=6", "refine.stop_threshold=1e6", "refine.explode_ratio=1.0"]


def alone(out: Path, settings: list[str], stages: str) -> str:
    """Run stages in a process of their own; return which modules of Ray it has imported."""
    command = [sys.executable, "-c", ALONE, str(out), stages, *settings]
    return subprocess.run(command, cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE).stdout


@pytest.fixture(scope="module")
def done(settings, tmp_path_factory) -> Path:
    """A run with its maps, made without Ray; not to be changed."""
    out = tmp_path_factory.mktemp("done") / "run"
    assert alone(out, [*settings, HERE], CLASSIFIED) == "[]\n"
    assert len(map_bytes(out)) == 6
    return out


@pytest.fixture
def classified(done, tmp_path) -> Path:
    """A copy of it without its maps."""
    out = Path(shutil.copytree(done, tmp_path / "classified"))
    Run(out).remove_stage(refine.NAME, refine.STAGE.folder)
    return out


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_maps_are_the_same_bytes_as_those_of_a_pool(workers, done, classified, settings, ray_session):
    chain(classified, [*settings, f"cluster.workers={workers}"], stages="refine")
    assert map_bytes(classified) == map_bytes(done)


def results(out: Path) -> dict[str, object]:
    """Files that hold results, and the numbers but for times."""
    kinds = ("*.npz", "*.safetensors", "*.png", "metrics.jsonl", "*.csv")
    files = {file.relative_to(out): file.read_bytes() for kind in kinds for file in out.rglob(kind)}
    numbers = storage.read_json(out / "metrics.json")
    del numbers["timing"]
    return {**{file: content for file, content in files.items() if file.parts[0] != "wandb"}, "metrics": numbers}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_stages_come_to_the_same_without_ray(tmp_path, ray_session):
    assert alone(tmp_path / "here", [HERE, *RETRAINED], EVERYTHING) == "[]\n"
    chain(tmp_path / "pool", ["cluster.workers=1", *RETRAINED], stages=EVERYTHING)
    here, pool = results(tmp_path / "here"), results(tmp_path / "pool")
    assert here.keys() == pool.keys()
    assert {Path("maps") in Path(file).parents for file in here} == {True, False}
    assert [file for file in here if here[file] != pool[file]] == []


def test_a_command_that_is_told_to_stop_finishes_its_image_and_goes_on_later(classified, done, settings, tmp_path):
    values = [part for setting in [*TINY, *settings, HERE] for part in ("--set", setting)]
    command = [*COMMAND, "run", "quickstart", "--out", str(classified), "--stages", "refine", *values]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    deadline = time.monotonic() + 200
    while not map_bytes(classified) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(200) == 130, (tmp_path / "log").read_text()
    made = map_bytes(classified)
    assert 0 < len(made) < 6
    chain(classified, [*settings, HERE], stages="refine")
    assert map_bytes(classified) == map_bytes(done)
    assert made.items() <= map_bytes(classified).items()


def test_the_table_of_what_is_left_and_the_state_of_a_run(done, classified, settings, monkeypatch):
    monkeypatch.setattr(refine, "_unit_costs", lambda *_: Passes(1e-6, 1e-6, 1e-6, 1e-3))

    def seconds(workers: int) -> float:
        request = Request(experiment([*settings, f"cluster.workers={workers}"]), "quickstart", classified)
        (planned,) = (one for one in plan_chain(request, None) if one.stage == "refine")
        return planned.estimate.seconds

    assert seconds(0) == seconds(1) == pytest.approx(2 * seconds(2))
    _, statuses = read_status(done)
    assert [(one.stage, one.done) for one in statuses] == [("classifier", 1), ("refine", 6)]


# --- what goes wrong ---------------------------------------------------------------------------------------------


class Broken(refine.RefineWorker):
    """Has a bug that shows at one image."""

    item = ""

    def process(self, item: str) -> dict:
        if item == self.item:
            raise ZeroDivisionError("a bug")
        return super().process(item)


def test_a_bug_is_shown_and_recorded_with_its_traceback_and_an_unreadable_image_without(
    classified, done, settings, monkeypatch, caplog
):
    unreadable, broken = sorted(map_bytes(done))[:2]
    unreadable, broken = unreadable.removesuffix(".npz"), broken.removesuffix(".npz")
    (picture,) = classified.joinpath("data").rglob(f"{unreadable}.jpg")
    picture.write_bytes(b"no picture")
    monkeypatch.setattr(Broken, "item", broken)
    monkeypatch.setattr(refine, "RefineWorker", Broken)
    _, shown = chain(classified, [*settings, HERE, "cluster.tries=2"], stages="refine")
    lines = [json.loads(line) for line in (classified / "failures.jsonl").read_text().splitlines()]
    bug, bad = sorted(lines, key=lambda line: line["id"] != broken)
    assert (bug["id"], bug["error"], bug["tries"]) == (broken, "ZeroDivisionError: a bug", 2)
    assert 'raise ZeroDivisionError("a bug")' in bug["traceback"]
    assert (bad["id"], bad["tries"], "traceback" in bad) == (unreadable, 1, False)
    assert [failure.traceback for failure in Run.read(classified).failures()] == [
        line.get("traceback") for line in lines
    ]
    assert caplog.text.count('raise ZeroDivisionError("a bug")') == 1
    assert "Traceback" not in shown
    events = "".join(file.read_text() for file in (classified / "events").iterdir())
    assert events.count("Traceback (most recent call last)") == 1
    expected = {name: content for name, content in map_bytes(done).items() if name[:-4] not in (unreadable, broken)}
    assert map_bytes(classified) == expected


class Silent:
    def advance(self, done, failed):
        """Nobody looks."""


class Left:
    """Its user leaves the debugger at the first item."""

    def process(self, item: str) -> dict:
        raise BdbQuit


class Threads:
    def process(self, item: str) -> dict:
        torch.use_deterministic_algorithms(True)
        return {"threads": torch.get_num_threads(), "environment": os.environ["OMP_NUM_THREADS"]}


def run(worker: type, items: list[str], **plan: int) -> list[dict]:
    records: list[dict] = []
    pool = Pool(PoolPlan("test", 0, **plan), worker, {})
    pool.run(items, lambda item, record: records.append(record), lambda *_: pytest.fail("it failed"), Silent())
    return records


def test_leaving_the_debugger_ends_the_work():
    with pytest.raises(BdbQuit):
        run(Left, ["a", "b"])


@pytest.fixture
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def test_a_worker_leaves_this_process_as_it_was(two_threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert run(Threads, ["a"], threads_per_worker=3) == [{"threads": 3, "environment": "3"}]
    assert torch.get_num_threads() == 2
    assert not torch.are_deterministic_algorithms_enabled()
    assert os.environ["OMP_NUM_THREADS"] == "5"


def test_a_session_without_ray_is_this_machine(monkeypatch):
    config = ClusterConfig(workers=0, address="nowhere:1")
    with connect(config) as session:
        assert session.in_process
        assert PoolPlan.of("test", config, session).workers == 0
        assert session.cpus >= 1
    if not session.gpus:
        with pytest.raises(UsageError, match="this machine has 0"):
            PoolPlan.of("test", ClusterConfig(workers=0, gpus_per_worker=1), session)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with connect(ClusterConfig(workers=0, gpus_per_worker=0)) as session:
        assert session.gpus == 0
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"


def test_a_sweep_refuses_it(tmp_path):
    from ribray.commands.sweep import SweepRequest, sweep

    source = find_sweep("thresholds")
    request = SweepRequest(read_sweep(source), source, "", tmp_path / "sweep", (HERE,))
    with pytest.raises(UsageError, match=r"set cluster\.workers=1 in place of cluster\.workers=0"):
        sweep(request, Console(quiet=True), threading.Event())
