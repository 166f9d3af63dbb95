"""Where a worker's bug is told, by a pool and by the command's own process."""

import json
import sys

import pytest
import ray

from ribray.stages import refine

pytestmark = pytest.mark.usefixtures("ray_session")
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Broken(refine.RefineWorker):
    def process(self, item: str) -> dict:
        if item == "dog1":
            raise ZeroDivisionError("a bug")
        return super().process(item)


@pytest.mark.parametrize(("workers", "options", "is_shown"), [(1, (), False), (1, ("--debug",), True), (0, (), True)])
def test_a_bug_is_shown_where_it_is_asked_for_and_recorded_anyway(
    workers, options, is_shown, recipe, ribray, tmp_path, monkeypatch, capfd, caplog
):
    monkeypatch.setattr(refine, "RefineWorker", Broken)
    out = tmp_path / "run"
    arguments = ["run", recipe, "--out", out, "--stages", "classifier,refine", "--set", f"cluster.workers={workers}"]
    assert ribray(*arguments, "--set", "refine.limit=5", *options) == 1
    shown = capfd.readouterr().out
    assert "dog1 (refine) ZeroDivisionError: a bug; --debug shows where" in shown
    assert "Traceback" not in shown
    assert caplog.text.count('raise ZeroDivisionError("a bug")') == is_shown
    (line,) = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    assert (line["id"], line["tries"]) == ("dog1", 3)
    assert 'raise ZeroDivisionError("a bug")' in line["traceback"]
