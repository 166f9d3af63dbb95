"""W&B offline, read back with its own tool; online only as far as a machine without key and network gets."""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ribray import storage
from ribray.runs.run import Run
from ribray.tracking import Tracker, curves, sync_command, table
from tests.tiny import experiment
from tests.wandb_files import folders, read_back

KEY = "0123456789abcdef" * 3
METRICS = {
    "seed": {
        "rib": {"miou": 56.25, "miou_interval": [54.5, 57.75], "per_class": {"St. Bernard/<b>": 40.5, "emu": None}},
        "curve": {"thresholds": [0.1, 0.2, 0.3], "miou": [1.0, 2.0, 3.0]},
    },
    "refine": {"precision": "float32", "images": 60},
    "timing": {"refine": {"seconds": 1.5}},
}


def tracker(directory: Path, *settings: str) -> Tracker:
    """A tracker of a run directory, as each start of the run has one."""
    values = experiment([f"tracking.wandb={settings[0] if settings else 'offline'}", *settings[1:]])
    with Run.open(directory) as run:
        run.write_experiment(values, "quickstart")
    return Tracker(values, run)


def points(first: int, last: int) -> list[dict[str, float]]:
    return [{"step": step, "loss": 1 / (1 + step), "lr": 0.5} for step in range(first, last)]


def log_losses(directory: Path, last: int, *settings: str) -> Tracker:
    """Start a run, log the training up to a step, and finish."""
    one = tracker(directory, *settings)
    one.log_training(directory / "classifier", points(0, last))
    one.close()
    return one


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was started twice, in a path with a space."""
    directory = tmp_path_factory.mktemp("with space") / "run"
    log_losses(directory, 3)
    log_losses(directory, 5)
    return directory


def test_a_resumed_run_goes_on_with_its_id_and_logs_only_what_is_new(resumed):
    first, second = map(read_back, folders(resumed))
    assert first.run["run_id"] == second.run["run_id"] == storage.read_json(resumed / "tracking.json")["id"]
    assert [step for step, _ in first.series("classifier/loss")] == [0, 1, 2]
    assert second.series("classifier/loss") == [(3, 1 / 4), (4, 1 / 5)]
    assert second.series("classifier/lr") == [(3, 0.5), (4, 0.5)]
    assert first.run["resume"] and second.run["resume"]  # an upload adds the second to the first


def test_nothing_new_starts_nothing(resumed):
    log_losses(resumed, 5)
    assert len(folders(resumed)) == 2


def test_one_command_uploads_all_starts(resumed):
    program, *arguments = shlex.split(sync_command([resumed]))
    assert program == "wandb"
    command = [sys.executable, "-m", "wandb", *arguments, "--dry-run"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stderr
    assert "Would sync 2 run(s)" in listed
    for folder in folders(resumed):
        assert folder.name in listed or "latest-run" in listed  # which is a link to the last
    assert sync_command([resumed.parent]) is None


def test_a_training_made_again_begins_a_new_wandb_run_with_everything(tmp_path):
    one = tracker(tmp_path)
    for training in ("classifier", "segmentation/first"):
        one.log_training(tmp_path / training, points(0, 2))
    one.close()
    (tmp_path / "segmentation" / "first" / "tracked.json").unlink()
    two = tracker(tmp_path)
    two.log_training(tmp_path / "segmentation" / "first", points(0, 1))
    two.log_training(tmp_path / "classifier", points(0, 2))
    two.close()
    first, second = map(read_back, folders(tmp_path))
    assert first.run["run_id"] != second.run["run_id"]
    assert [step for step, _ in second.series("segmentation_first/loss")] == [0]
    assert [step for step, _ in second.series("classifier/loss")] == [0, 1]


KILLED = """
import os, signal, sys, time
from pathlib import Path
from tests.test_tracking import points, tracker
run = Path(sys.argv[1])
one = tracker(run)
one.log_training(run / "classifier", points(0, 40))
time.sleep(3)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_goes_on_without_a_gap_and_without_a_step_twice(tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path], timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    log_losses(tmp_path, 50)
    first, second = map(read_back, folders(tmp_path))
    assert first.exit_code is None
    assert first.run["run_id"] == second.run["run_id"]
    steps = [step for start in (first, second) for step, _ in start.series("classifier/loss")]
    assert steps == list(range(50))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trial of a sweep with all kinds of results, whose environment holds a key and whose home cannot be used."""
    directory = tmp_path_factory.mktemp("sweep") / "trials" / "batch_size=5,seed=0"
    picture = directory / "figures" / "maps.png"
    one = tracker(directory, "offline", "tracking.group=table_s1", "tracking.tags=[sweep, s1]")
    storage.write_bytes(picture, PICTURE)

    def media() -> dict[str, Any]:
        rows = [["St. Bernard/<b>", None, 40.5], ["emu", 1.0, None]]
        lines = {"plain CAM": [1.0, 2.0], "RIB": [3.0, None]}
        return {
            "tables/seed": table(["class", "plain CAM", "RIB"], rows),
            "curves/seed": curves("Seed", "threshold", [0.1, 0.2], lines),
        }

    results = METRICS, {"maps": picture}, media
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_API_KEY", KEY)
        patch.setenv("XDG_DATA_HOME", "/proc/none")
        one.log_results(*results)
        one.close(failed=True)
        again = tracker(directory, "offline")
        again.log_results(*results)
        again.close()
    return directory


PICTURE = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63606060000000040001f61738"
    "550000000049454e44ae426082"
)
"""A PNG of one black pixel."""


def test_the_summary_holds_every_number_of_the_metrics(finished):
    (folder,) = folders(finished)  # the same results again start nothing
    logged = read_back(folder)
    assert {name: value for name, value in logged.summary.items() if name.startswith(("seed", "refine", "timing"))} == {
        "seed/rib/miou": 56.25,
        "seed/rib/miou_interval": [54.5, 57.75],
        "seed/rib/per_class/St. Bernard/<b>": 40.5,
        "refine/precision": "float32",
        "refine/images": 60,
        "timing/refine/seconds": 1.5,
    }


def test_tables_curves_and_pictures_can_be_read_back(finished):
    logged = read_back(folders(finished)[0])
    assert logged.table("tables/seed") == {
        "columns": ["class", "plain CAM", "RIB"],
        "data": [["St. Bernard/<b>", None, 40.5], ["emu", 1.0, None]],
    }
    assert logged.lines("curves/seed") == {"plain CAM": [(0.1, 1.0), (0.2, 2.0)], "RIB": [(0.1, 3.0), (0.2, None)]}
    assert logged.image("figures/maps").read_bytes() == PICTURE


def test_a_trial_stands_in_its_sweep_s_group_with_its_whole_configuration(finished):
    logged = read_back(folders(finished)[0])
    assert logged.run["display_name"] == "batch_size=5,seed=0"
    assert (logged.run["run_group"], logged.run["job_type"]) == ("table_s1", "trial")
    assert logged.run["tags"] == ["sweep", "s1"]
    assert logged.run["project"] == "ribray"
    assert logged.config["refine"]["iterations"] == 3
    assert logged.config["provenance"]["recipe"] == "quickstart"
    assert logged.exit_code == 1


def test_no_key_lands_in_a_file(finished):
    files = [file for file in finished.rglob("*") if file.is_file()]
    assert any(file.suffix == ".wandb" for file in files)
    assert not [file for file in files if KEY.encode() in file.read_bytes()]


def test_a_variant_stands_beside_its_run(tmp_path):
    log_losses(tmp_path / "run", 1, "offline", "masks.source=both")
    log_losses(tmp_path / "run" / "variants" / "cam", 1, "offline", "masks.source=cam")
    (run,), (variant,) = (folders(tmp_path / "run"), folders(tmp_path / "run" / "variants" / "cam"))
    run, variant = read_back(run), read_back(variant)
    assert (run.run["display_name"], variant.run["display_name"]) == ("run", "run cam")
    assert run.run["run_group"] == variant.run["run_group"] == "run"
    assert (run.run["job_type"], variant.run["job_type"]) == ("run", "variant")
    assert run.run["run_id"] != variant.run["run_id"]


# --- disabled, and online --------------------------------------------------------------------------------------------

ALONE = """
import sys
from pathlib import Path
import ribray.tracking
from ribray.errors import RibrayError
from tests.test_tracking import METRICS, points, tracker
ribray.tracking.START_SECONDS = 3
one = tracker(Path(sys.argv[1]), sys.argv[2])
try:
    one.open()
    one.log_training(Path(sys.argv[1], "classifier"), points(0, 3))
    one.log_results(METRICS, {}, dict)
    one.close()
except RibrayError as error:
    print(type(error).__name__, error)
print("imported" if "wandb" in sys.modules else "not imported")
"""


def alone(directory: Path, mode: str, script: str = ALONE, **variables: str) -> list[str]:
    """Track a run in a process of its own, without any key but those given, and return what it says."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment |= {"NETRC": str(directory / "none"), "HOME": str(directory.parent), **variables}
    command = [sys.executable, "-c", script, str(directory), mode]
    with (directory.parent / "said").open("w+") as said:  # a pipe would end with the last process that holds it
        subprocess.run(command, env=environment, stdout=said, timeout=90, check=True)
        said.seek(0)
        return said.read().splitlines()


def test_disabled_writes_nothing_and_does_not_load_wandb(tmp_path):
    assert alone(tmp_path / "run", "disabled") == ["not imported"]
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == [".lock", "experiment.yaml"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({}, r"UsageError tracking\.wandb=online needs a W&B key: run wandb login, .* tracking\.wandb=offline\."),
        ({"WANDB_API_KEY": "rubbish"}, r"RibrayError W&B cannot start \(WANDB_API_KEY invalid: .*\); use --set .*"),
        (
            {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://127.0.0.1:9"},
            r"RibrayError W&B cannot start \(.*\); use --set tracking\.wandb=offline or disabled\.",
        ),
    ],
    ids=["no key", "a malformed key", "no server"],
)
def test_online_without_key_or_network_ends_soon_with_a_sentence(variables, sentence, tmp_path):
    said, _ = alone(tmp_path / "run", "online", **variables)
    assert re.fullmatch(sentence, said)
    assert "rubbish" not in said


DEAF = f"""
import signal, threading, time
import psutil
def stop():
    while not (services := [each for each in psutil.Process().children() if "wandb-core" in each.name()]):
        time.sleep(0.1)
    time.sleep(3)  # it is connected, and waits for the server
    services[0].send_signal(signal.SIGSTOP)
    print(services[0].pid, flush=True)
threading.Thread(target=stop, daemon=True).start()
{ALONE}"""


@pytest.mark.slow
def test_a_service_of_wandb_that_does_not_end_is_not_waited_for(tmp_path):
    variables = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    service, said, _ = alone(tmp_path / "run", "online", DEAF, **variables)
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(service), signal.SIGKILL)
    assert said.startswith("RibrayError W&B cannot start (")


BEREFT = """
import sys
from pathlib import Path
import psutil
from tests.test_tracking import METRICS, points, tracker
run = Path(sys.argv[1])
one = tracker(run)
one.log_training(run / "classifier", points(0, 3))
for process in psutil.Process().children(recursive=True):
    process.kill()
    process.wait()
one.log_training(run / "classifier", points(0, 5))
one.log_results(METRICS, {}, dict)
one.close()
print(one.trouble)
"""


@pytest.mark.slow
def test_a_run_goes_on_when_wandb_dies(tmp_path):
    command = [sys.executable, "-c", BEREFT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "W&B has not taken everything (Connection lost); all of it stands in the run's files.\n"
