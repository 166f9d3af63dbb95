"""`ribray bench`: what it records, that the ways it compares agree, and what it says where it cannot run."""

import importlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from ribray.cli import main
from ribray.commands import bench
from ribray.errors import UsageError
from ribray.masks.seed import seed

TINY_WALK = {"size": (8, 9), "oracle_sizes": ((5, 6), (6, 7)), "classes": 2, "repeats": 1}
TINY_CURVE = {"images": 3, "size": (34, 45), "repeats": 1}

FAKE = '''"""A benchmark for the tests."""

import torch

from companion import UNIT
from harness import figure


def run():
    figures = {"steps [a]": figure([3.0, 1.0, 8.0], UNIT, at_most=2), "threads": figure(torch.get_num_threads(), "")}
    return {"settings": {"size": [2, 3]}, "figures": figures, "notes": ["One [note]."]}
'''


HARNESS = bench.ROOT / bench.FOLDER / f"{bench.HARNESS}.py"


@pytest.fixture
def harness(monkeypatch):
    monkeypatch.syspath_prepend(str(HARNESS.parent))
    return importlib.import_module(bench.HARNESS)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with one benchmark, a module it shares, and a study that is none."""
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (tmp_path / "pyproject.toml").touch()
    (folder / "two_words.py").write_text(FAKE)
    shutil.copy(HARNESS, folder)
    (folder / "companion.py").write_text('UNIT = "s"\n')
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    return tmp_path


@pytest.fixture
def ribray(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(["bench", *map(str, arguments)])
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return call


def values(result):
    return {name: figure["value"] for name, figure in result["figures"].items()}


def test_a_figure_is_the_median_with_range_and_requirement(harness):
    found = harness.figure([3.0, 1.0, 8.0], "s", at_most=2)
    assert found == {
        "value": 3.0,
        "unit": "s",
        "min": 1.0,
        "max": 8.0,
        "runs": 3,
        "required": {"at_least": None, "at_most": 2, "met": False},
    }
    assert harness.figure(5, "", at_least=5)["required"]["met"]
    assert harness.figure(5, "")["required"] is None


def test_the_record_says_what_ran_where(checkout, ribray):
    file, threads = checkout / "result.json", torch.get_num_threads()
    code, text, error = ribray("two-words", "--json", file)
    assert (code, error) == (0, "")
    assert torch.get_num_threads() == threads
    result = json.loads(file.read_text())
    assert values(result) == {"steps [a]": 3.0, "threads": 1.0}
    assert result["benchmark"] == "two-words"
    assert result["settings"] == {"size": [2, 3]}
    assert result["notes"] == ["One [note]."]
    assert result["versions"]["numpy"] == np.__version__
    assert set(result["versions"]) == {"ribray", "torch", "torchvision", "ray", "numpy", "pillow"}
    assert set(result["machine"]) >= {"cpu", "cores", "threads", "load", "gpus", "cuda"}
    assert result["machine"]["threads"] == 1
    assert result["commit"] is None  # this checkout is no git repository
    assert result["date"].endswith("+00:00")
    for part in ("steps [a]", "3 s", "1 … 8", "≤ 2 missed", "One [note].", "1 thread used"):
        assert part in text


def test_a_benchmark_says_how_many_threads_it_uses(checkout, ribray):
    before = torch.get_num_threads()
    (checkout / "benchmarks" / "two_words.py").write_text(FAKE.replace("def run", "THREADS = 3\n\n\ndef run"))
    _, text, _ = ribray("two-words")
    assert "3 threads used" in text
    assert bench.run_benchmark("two-words")[0]["machine"]["threads"] == 3
    assert torch.get_num_threads() == before


def test_gpus_and_cuda_stand_beside_the_processor(checkout, ribray, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "NVIDIA H100")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "2 × NVIDIA H100, CUDA 13.0" in ribray("two-words")[1]
    result, _ = bench.run_benchmark("two-words")
    assert (result["machine"]["gpus"], result["machine"]["cuda"]) == (["2 × NVIDIA H100"], "13.0")


def test_a_figure_that_cannot_be_had_is_shown_as_such_with_its_reason(checkout, ribray):
    reason = "There is no GPU here; `ribray bench two-words` on one measures it."
    missing = f"not_measured('s', {reason!r}, at_most=0.35)"
    fake = FAKE.replace('figure(torch.get_num_threads(), "")', missing).replace("figure\n", "figure, not_measured\n", 1)
    (checkout / "benchmarks" / "two_words.py").write_text(fake)
    code, text, error = ribray("two-words", "--json", checkout / "result.json")
    assert (code, error) == (0, "")
    (line,) = (line for line in text.splitlines() if line.startswith("threads"))
    assert line.split() == ["threads", "not", "measured", "≤", "0.35", "not", "known"]
    assert f"Not measured: threads. {reason}" in text
    found = json.loads((checkout / "result.json").read_text())["figures"]["threads"]
    assert (found["value"], found["runs"], found["reason"]) == (None, 0, reason)
    assert found["required"] == {"at_least": None, "at_most": 0.35, "met": None}


def test_ways_take_turns_and_the_first_round_does_not_count(monkeypatch, harness):
    order, clock = [], iter(range(100))
    monkeypatch.setattr(harness.time, "perf_counter", lambda: next(clock) ** 2)
    ways = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    seconds = harness.interleave(ways, rounds=2)
    assert order == ["a", "b"] * 3
    assert seconds == {"a": [9, 17], "b": [13, 21]}
    assert harness.ratios(seconds["b"], seconds["a"]) == [13 / 9, 21 / 17]


def test_the_commit_is_recorded_and_changes_to_it_are_marked(checkout):
    git = ["git", "-C", str(checkout), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "pyproject.toml"], ["commit", "-q", "-m", "First"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert bench.run_benchmark("two_words")[0]["commit"] == head
    (checkout / "pyproject.toml").write_text("# changed\n")
    assert bench.run_benchmark("two-words")[0]["commit"] == f"{head}-dirty"


def test_unknown_names_are_answered_with_the_known_ones(checkout, ribray):
    for name in ("nope", "companion", "../two_words"):
        code, _, error = ribray(name)
        assert code == 2
        assert error == f"error: There is no benchmark {name}; there are: two-words.\n"


def test_outside_a_checkout_it_says_so(tmp_path, monkeypatch, ribray):
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    (tmp_path / "benchmarks").mkdir()  # some other package's
    code, _, error = ribray("two-words")
    assert code == 2
    assert error.startswith("error: Benchmarks are part of a checkout")
    assert len(error.splitlines()) == 1


def test_options_that_cannot_be_met_are_refused_before_anything_runs(checkout, ribray):
    code, _, error = ribray("two-words", "--full")
    assert (code, "--full" in error) == (2, True)
    for file in (checkout, checkout / "missing" / "result.json"):
        code, _, error = ribray("two-words", "--json", file)
        assert (code, "folder that exists" in error) == (2, True)


def test_the_benchmarks_of_this_checkout_are_known():
    names = list(bench.known_benchmarks())
    assert names == sorted(names)
    assert {"random-walk", "threshold-curve"} <= set(names)


def test_the_walk_agrees_with_its_oracle_and_says_what_was_scaled():
    result = bench.load("random-walk").run(**TINY_WALK)
    json.dumps(result, allow_nan=False)
    found = result["figures"]
    assert found["largest difference"]["value"] < 1e-5
    assert found["sparse walk 8×9"]["runs"] == found["times faster, oracle scaled up"]["runs"] == 1
    assert 0 <= found["extra memory of the walk"]["value"] < 64
    factor = found["dense oracle 8×9, scaled up"]["value"] / found["dense oracle 6×7"]["value"]
    assert factor == pytest.approx((72 / 42) ** 3)
    assert "At 8×9 the oracle was not run. Its time scaled up is that at 6×7 times 5.0" in result["notes"][0]
    assert "5×6, 6×7." in result["notes"][1]


def test_the_full_walk_is_measured_against_an_oracle_that_was_run():
    result = bench.load("random-walk").run(full=True, **TINY_WALK)
    found = values(result)
    ratio = found["dense oracle 8×9, run"] / found["sparse walk 8×9"]
    assert found["times faster, oracle run"] == pytest.approx(ratio)
    assert "the oracle was run once" in result["notes"][0]
    assert "8×9." in result["notes"][1]


def test_a_full_walk_beyond_the_memory_is_refused():
    with pytest.raises(UsageError, match="leave --full out"):
        bench.load("random-walk").run(full=True, size=(10_000, 10_000))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux begins its record of the highest memory anew")
def test_memory_that_was_free_before_is_counted_and_earlier_peaks_are_not(monkeypatch):
    walk = bench.load("random-walk")
    ballast = np.ones(30_000_000)  # 240 MB, an earlier peak
    del ballast
    monkeypatch.setattr(walk, "random_walk", lambda maps, boundaries: np.ones(5_000_000).sum())  # 40 MB for a moment
    assert 38 < walk.extra_megabytes((8, 9), 2) < 60


def test_the_curves_agree_to_the_last_digit():
    curve = bench.load("threshold-curve")
    result = curve.run(**TINY_CURVE)
    json.dumps(result, allow_nan=False)
    assert result["figures"]["largest difference"]["value"] == 0
    assert len(result["settings"]["thresholds"]) == 30
    assert result["settings"]["thresholds"][-1] == 0.49


def test_curves_that_differ_are_not_timed(monkeypatch):
    curve = bench.load("threshold-curve")
    monkeypatch.setattr(curve, "plain_argmax", lambda maps, present, threshold: seed(maps, present, threshold + 0.01))
    with pytest.raises(RuntimeError, match="differ"):
        curve.run(**TINY_CURVE)


def test_drawn_images_have_up_to_three_classes_and_a_curve_that_moves():
    curve = bench.load("threshold-curve")
    drawn = [curve.draw(index, (75, 100)) for index in range(3)]
    assert [len(image.present) for image in drawn] == [1, 2, 3]
    for maps, present, truth in drawn:
        assert maps.shape == (len(present), 75, 100)
        assert (maps.dtype, truth.dtype) == (np.float32, np.uint8)
        assert maps.min() >= 0 and maps.max() == pytest.approx(1, abs=1e-3)
        assert {0, 255} < set(np.unique(truth).tolist()) <= {0, 255, *(present + 1).tolist()}
    assert np.ptp(curve.one_pass(drawn)) > 5
