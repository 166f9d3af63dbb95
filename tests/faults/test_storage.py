"""Storage that fails in the middle of a run, two runs on one directory, and what a crash leaves of a file."""

import errno
import os

import pytest

from ribray import storage
from ribray.cli import EXIT_FAILURES, main
from ribray.errors import HeldError, RibrayError
from ribray.runs.run import Run
from ribray.stages import refine
from tests.faults.cases import FullDisk, LimitedFiles, ReadOnlyDisk, finished, refined, require_same
from tests.tiny import TINY, chain

SAYS = {
    FullDisk: "No space left on device",
    ReadOnlyDisk: "Read-only file system",
    LimitedFiles: "File too large",
}


@pytest.mark.parametrize(
    "worker", [FullDisk, *(pytest.param(other, marks=pytest.mark.slow) for other in (ReadOnlyDisk, LimitedFiles))]
)
def test_storage_that_cannot_be_written_ends_the_run_and_the_same_command_goes_on(
    worker, monkeypatch, settings, half_done, undisturbed
):
    earlier, own = finished(half_done), [*settings, "cluster.workers=1"]
    with monkeypatch.context() as patched:
        patched.setattr(refine, "RefineWorker", worker)
        with pytest.raises(RibrayError, match=rf"Nothing can be written any more \(.*{SAYS[worker]}.*start again"):
            chain(half_done, own, stages="refine")
    now = finished(half_done)
    assert len(now) == len(earlier) + 2
    assert now.items() >= earlier.items()
    assert not list(half_done.rglob(f"{storage.TEMPORARY_PREFIX}*"))  # half a file is removed, or was never begun
    chain(half_done, own, stages="refine")
    require_same(half_done, undisturbed, now)


def test_a_full_disk_that_the_driver_meets_is_said_in_a_sentence(monkeypatch, settings, half_done, capsys):
    def no_space(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    sets = [part for setting in [*TINY, *settings] for part in ("--set", setting)]
    with monkeypatch.context() as patched, pytest.raises(SystemExit) as ended:
        patched.setattr(os, "fsync", no_space)
        main(["run", "quickstart", "--out", str(half_done), "--stages", "refine", *sets])
    assert ended.value.code == EXIT_FAILURES
    assert "No space left on device" in capsys.readouterr().err


def test_a_second_run_on_a_busy_directory_is_refused_and_changes_nothing(settings, half_done, undisturbed):
    earlier = {file: file.stat().st_mtime_ns for file in half_done.rglob("*") if file.is_file()}
    with Run.open(half_done), pytest.raises(HeldError, match="Another run is working in"):
        chain(half_done, settings)
    now = {file: file.stat().st_mtime_ns for file in half_done.rglob("*") if file.is_file()}
    assert {file: now[file] for file in earlier if file.name != ".lock"} == {
        file: time for file, time in earlier.items() if file.name != ".lock"
    }


@pytest.mark.slow
def test_maps_cut_short_by_a_crash_are_told_of_and_made_again(settings, copy_of, undisturbed):
    out, own = copy_of(undisturbed), [*settings, "cluster.workers=1"]
    cut = {id: refined(out)[id] for id in sorted(refined(out))[3:6]}
    for file, share in zip(cut.values(), (0, 0.5, 0.98), strict=True):
        content = file.read_bytes()
        file.write_bytes(content[: int(share * len(content))])
    (out / "metrics" / "seed.json").unlink()
    earlier = {file: seen for file, seen in finished(out).items() if file not in cut.values()}
    result, _ = chain(out, own)
    told = {failure.id: failure for failure in result.failures}
    assert set(told) == set(cut)
    assert all(told[id].stage == "seed" and str(file) in told[id].error for id, file in cut.items())
    assert result.metrics["seed"]["rib"]["images"] == len(earlier)
    result, _ = chain(out, own)
    require_same(out, undisturbed, earlier)
    assert result.metrics["seed"] == storage.read_json(undisturbed / "metrics.json")["seed"]
