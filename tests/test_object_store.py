"""Runs and data on ``s3://``, against a server that speaks the protocol: whole objects, listings, the lock."""

import os
import subprocess
import sys
import threading

import pytest
from rich.console import Console

from ribray import storage
from ribray.cli import main
from ribray.commands import trial
from ribray.commands.run import Request
from ribray.config import load_experiment
from ribray.errors import DamagedError, HeldError, UsageError
from ribray.runs import lock
from ribray.runs.metrics import RefineMetrics, Timing
from ribray.runs.records import Failure
from ribray.runs.run import Run


def test_files_are_written_listed_copied_and_removed(bucket, tmp_path):
    folder = bucket / "run" / "maps"
    for id in ("aa/one", "bb/two"):
        storage.write_npz(folder / f"{id}.npz")
    storage.write_json(folder / "stage.json", {"key": "x"})
    assert storage.list_ids(folder, ".npz") == {"aa/one", "bb/two"}
    assert storage.list_ids(bucket / "run" / "ma", ".npz") == set()  # a prefix is no folder
    assert storage.read_json(folder / "stage.json") == {"key": "x"}
    storage.copy(folder / "aa/one.npz", tmp_path / "here" / "one.npz")
    storage.copy(tmp_path / "here" / "one.npz", folder / "cc/three.npz")
    assert (folder / "cc/three.npz").read_bytes() == (folder / "aa/one.npz").read_bytes()
    storage.copy_folder(tmp_path, bucket / "copied")
    assert storage.list_ids(bucket / "copied", ".npz") == {"here/one"}
    storage.remove_folder(folder)
    storage.remove_folder(folder)
    assert not folder.exists()


def test_no_more_is_fetched_than_a_file_of_a_run_may_hold(bucket, monkeypatch):
    requests = []

    async def counted(self, method, *args, **kwargs):
        requests.append((method, kwargs.get("Range")))
        return await call(self, method, *args, **kwargs)

    call = type(bucket.fs)._call_s3
    for name, size in (("large", 51), ("full", 50), ("empty", 0)):
        (bucket / name).write_bytes(b"x" * size)
    monkeypatch.setattr(type(bucket.fs), "_call_s3", counted)
    monkeypatch.setattr(storage, "MOST_BYTES", 50)
    with pytest.raises(DamagedError, match=r"/large is larger than"):
        storage.read_bytes(bucket / "large")
    assert storage.read_bytes(bucket / "full") == b"x" * 50
    assert requests == [("get_object", "bytes=0-50")] * 2  # one each
    assert storage.read_bytes(bucket / "empty") == b""
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(bucket / "missing")


def test_what_another_process_writes_is_seen_at_once(bucket):
    folder = bucket / "maps"
    assert storage.list_ids(folder, ".npz") == set()
    code = f"from ribray import storage; storage.write_npz(storage.path('{folder}/one.npz'))"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (folder / "one.npz").exists()
    assert storage.list_ids(folder, ".npz") == {"one"}


def test_an_upload_in_parts_that_breaks_off_leaves_what_was_there(bucket, monkeypatch):
    location = bucket / "weights"
    storage.write_bytes(location, b"before")
    parts = []

    async def breaking(self, method, *args, **kwargs):
        if method == "upload_part":
            parts.append(kwargs["PartNumber"])
            if len(parts) == 2:
                raise ConnectionError("the network is gone")
        return await call(self, method, *args, **kwargs)

    call = type(bucket.fs)._call_s3
    monkeypatch.setattr(type(bucket.fs), "_call_s3", breaking)
    with pytest.raises(OSError, match="weights cannot be written: the network is gone"):
        storage.write_bytes(location, bytes(110 * 2**20))
    monkeypatch.undo()
    assert len(parts) >= 2
    assert location.read_bytes() == b"before"


def test_an_error_while_writing_puts_nothing(bucket):
    with pytest.raises(ZeroDivisionError), storage.replacing(bucket / "file") as stream:
        stream.write(b"half")
        raise ZeroDivisionError
    assert not (bucket / "file").exists()


def test_a_file_that_grows_is_whole_lines_and_goes_on(bucket, monkeypatch):
    location = bucket / "log.jsonl"
    log = storage.LineFile(location)
    log.add("one")
    assert not location.exists()  # put every few seconds
    log.flush()
    monkeypatch.setattr(storage, "UPLOAD_SECONDS", 0)
    log.add("two")
    assert location.read_text() == "one\ntwo\n"
    log.close()
    again = storage.LineFile(location)
    again.add("three")
    again.close()
    assert location.read_text() == "one\ntwo\nthree\n"


def test_credentials_have_no_place_in_a_url():
    for url in ("s3://key:secret@bucket/run", "s3://bucket/run?secret=1"):
        with pytest.raises(UsageError, match="environment") as caught:
            storage.path(url)
        assert "secret" not in str(caught.value)
    with pytest.raises(UsageError, match="Unsupported filesystem"):
        storage.path("nowhere://bucket")


def test_a_store_that_does_not_answer_and_a_bucket_that_is_missing_are_sentences(object_store, monkeypatch):
    with pytest.raises(UsageError, match=r"Cannot write in s3://no-such-bucket/run: .*bucket does not exist"):
        Run.open("s3://no-such-bucket/run")
    code = "from ribray.cli import main; main(['status', 's3://bucket/run'])"
    environment = {**os.environ, "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "s3://bucket/run cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr


# --- the lock ----------------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from ribray.runs import lock
from ribray import storage
if sys.argv[2:]:
    lock._place = lambda: sys.argv[2]
held = lock.take(storage.path(sys.argv[1]))
print("held", flush=True)
time.sleep(120)
"""


@pytest.fixture
def holder(bucket):
    """Start a process that holds the bucket: on this machine, or as if on another."""
    started = []

    def start(*place: str) -> subprocess.Popen:
        command = [sys.executable, "-c", HOLD, str(bucket), *place]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_process_of_this_machine_keeps_the_lock_until_it_dies(bucket, holder):
    process = holder()
    assert lock.is_taken(bucket)
    with pytest.raises(lock.TakenError, match=f"process {process.pid} on "):
        lock.take(bucket)
    process.kill()
    process.wait()
    assert not lock.is_taken(bucket)
    held = lock.take(bucket)
    assert storage.list_ids(bucket / lock.LOCK_NAME, ".json") == {"000002"}
    held.release()
    assert not lock.is_taken(bucket)


def test_a_lock_left_on_another_machine_stays_until_it_is_broken_by_hand(bucket, holder):
    process = holder("elsewhere 1")
    process.kill()
    process.wait()
    assert lock.is_taken(bucket)
    with pytest.raises(lock.TakenError, match=f"process {process.pid} on elsewhere since 20"):
        lock.take(bucket)
    held = lock.take(bucket, break_lock=True)
    assert not held.is_lost()
    with pytest.raises(lock.TakenError):
        lock.take(bucket)
    held.release()
    lock.take(bucket).release()


def test_a_process_whose_lock_was_broken_learns_so_and_lets_nothing_go_that_is_the_others(bucket):
    first = lock.take(bucket)
    second = lock.take(bucket, break_lock=True)
    assert first.is_lost()
    assert not second.is_lost()
    first.release()
    assert lock.is_taken(bucket)
    assert not second.is_lost()
    second.release()


@pytest.mark.parametrize("is_left", [False, True])
def test_of_many_that_try_one_takes_the_lock(bucket, holder, is_left):
    if is_left:
        process = holder("elsewhere 1")
        process.kill()
        process.wait()
    held, refused = [], []

    def attempt() -> None:
        try:
            held.append(lock.take(bucket, break_lock=is_left))
        except lock.TakenError:
            refused.append(True)

    barrier = threading.Barrier(8)
    threads = [threading.Thread(target=lambda: (barrier.wait(), attempt())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lasting = [each for each in held if not each.is_lost()]
    assert len(lasting) == 1
    if not is_left:
        assert len(held) == 1
        assert len(refused) == 7
    lasting[0].release()


SETTINGS = ["--set", "data.synthetic.train_images=4", "--set", "data.synthetic.eval_images=2"]


def test_the_command_line_breaks_a_lock_that_is_left(bucket, holder, capsys):
    process = holder("elsewhere 1")
    process.kill()
    process.wait()
    command = ["run", "quickstart", "--out", str(bucket), "--stages", "seed", *SETTINGS]

    def refused(*more: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main([*command, *more])
        assert ended.value.code == 2
        return capsys.readouterr().err

    told = refused()
    assert f"Another run is working in {bucket} (process {process.pid} on elsewhere since " in told
    assert "--break-lock takes the place of one that no longer exists" in told
    assert "needs stage 'classifier'" in refused("--break-lock")
    assert "needs stage 'classifier'" in refused()


def test_a_trial_breaks_the_lock_of_its_own_earlier_attempt_after_a_while(bucket, holder, monkeypatch):
    process = holder("elsewhere 1")
    process.kill()
    process.wait()
    monkeypatch.setattr(trial, "LOCK_SECONDS", 0.5)
    experiment = load_experiment("quickstart", SETTINGS[1::2])
    with pytest.raises(UsageError, match="needs stage 'classifier'"):
        trial._run_when_free(Request(experiment, "quickstart", bucket, ("seed",)), Console(quiet=True))


# --- runs --------------------------------------------------------------------------------------------------------


def test_a_run_keeps_its_files_and_its_lock_there(bucket):
    with Run.open(bucket / "run") as run:
        run.event("refine", "started")
        run.write_failures([Failure("one", "refine", "it is damaged")])
        run.write_metrics("refine", RefineMetrics(images=3, timing=Timing(seconds=1)))
        with pytest.raises(HeldError, match="Another run is working"):
            Run.open(bucket / "run")
        assert run.is_held
    assert not run.is_held
    assert [failure.id for failure in run.failures()] == ["one"]
    assert run.metrics()["refine"] == {"images": 3}
    assert len(storage.list_ids(bucket / "run" / "events", ".jsonl")) == 1
    with pytest.raises(UsageError, match="holds other files"):
        Run.open(bucket)


def test_a_run_whose_lock_was_broken_writes_no_more(bucket):
    with Run.open(bucket / "run") as run, Run.open(bucket / "run", break_lock=True) as other:
        with pytest.raises(HeldError, match="was broken"):
            run.write_metrics("refine", RefineMetrics())
        other.write_failures([])
    assert not (bucket / "run" / "metrics").exists()
