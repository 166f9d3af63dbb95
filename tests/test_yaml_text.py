"""YAML that anybody may have written: plain values come out, or a sentence, and neither takes long nor much memory."""

import tracemalloc
from pathlib import Path

import pytest

from ribray.config import change, load_experiment, read_yaml, validate_experiment
from ribray.errors import UsageError
from ribray.sweep_file import read_sweep, trials_of
from ribray.yaml_text import YamlError, parse_yaml

REFUSED = {
    "deep": ("[" * 600, "nested too deeply"),
    "deep sections": ("{a: " * 600, "nested too deeply"),
    "a long text": (f"a: {'x' * 300_000}", "longer than 262,144 characters"),
    "a long number": (f"a: {'9' * 5000}", "4300 digits"),
    "one key twice": ("a: 1\nb: 2\na: 3", "the key 'a' stands on line 1 and on line 3"),
    "an object": ("!!python/object/apply:os.system ['touch canary']", "python/object/apply:os.system"),
    "a name": ("a: !!python/name:os.system", "python/name:os.system"),
    "no date": ("a: 2001-13-45", "cannot be read"),
    "no truth": ("a: !!bool maybe", "cannot be read"),
    "no integer": ("a: !!int ''", "cannot be read"),
    "a list as key": ("? [1]\n: 2", "unhashable key"),
    "two documents": ("a: 1\n---\nb: 2", "single document"),
    "a control character": ("a: \x00", "special characters"),
    "half a list": ("a: [1, 2", "line 1"),
}


@pytest.mark.parametrize(("text", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_is_too_much_or_no_plain_value_is_refused_in_a_sentence(text, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tracemalloc.start()
    with pytest.raises(YamlError, match=reason.replace("/", ".")) as caught:
        parse_yaml(text)
    assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert not list(Path().iterdir())


@pytest.mark.parametrize("name", ["deep", "one key twice", "an object", "a long number"])
def test_recipes_sweeps_and_settings_are_all_read_so(name, tmp_path):
    text, _ = REFUSED[name]
    (tmp_path / "file.yaml").write_text(text)
    for read in (read_yaml, read_sweep, lambda location: load_experiment(str(location))):
        with pytest.raises(UsageError, match=r"file\.yaml is not valid YAML: ") as caught:
            read(tmp_path / "file.yaml")
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=r"^--set refine\.lr=.* is not valid YAML: ") as caught:
        load_experiment("quickstart", [f"refine.lr={text}"])
    assert len(str(caught.value)) < 500


def test_a_file_of_gigabytes_is_not_read(tmp_path):
    with open(tmp_path / "file.yaml", "wb") as stream:
        stream.truncate(2**40)  # takes no place on the disk
    with pytest.raises(UsageError, match="longer than"):
        read_yaml(tmp_path / "file.yaml")


def test_keys_without_end_and_long_values_make_a_short_sentence():
    for setting in (f"refine.lr.{'a.' * 5000}a=1", f"refine.lr=[{'[1],' * 4000}]", f"refine.{'x' * 9000}=1"):
        with pytest.raises(UsageError) as caught:
            load_experiment("voc12", [setting])
        assert len(str(caught.value)) < 20_000


def test_aliases_and_merged_sections_are_usable_and_changed_one_by_one():
    values = parse_yaml("a: &a {x: 1, y: [2]}\nb: {<<: *a, x: 3}\nc: *a\n")
    assert values == {"a": {"x": 1, "y": [2]}, "b": {"x": 3, "y": [2]}, "c": {"x": 1, "y": [2]}}
    changed = change(values, ["a.x=5", {"b.y": [7]}])
    assert changed == {"a": {"x": 5, "y": [2]}, "b": {"x": 3, "y": [7]}, "c": {"x": 1, "y": [2]}}
    assert values["a"] == values["c"] == {"x": 1, "y": [2]}


def test_many_aliases_take_no_memory():
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{number}: &a{number} [{', '.join([f'*a{number - 1}'] * 9)}]\n" for number in range(1, 12)
    )
    tracemalloc.start()
    assert len(parse_yaml(laughs)["a11"]) == 9
    with pytest.raises(UsageError, match=r"^file\.yaml: "):
        validate_experiment(parse_yaml(laughs), "file.yaml")
    assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    tracemalloc.stop()


def test_a_sweep_of_more_trials_than_can_be_is_refused(tmp_path):
    axes = "".join(f"  {key}: [{', '.join(map(str, range(1, 51)))}]\n" for key in ("refine.iterations", "irn.epochs"))
    text = (
        f"base: quickstart\nstages: seed\nmetric: seed.rib.miou\nspace:\n{axes}  refine.batch_size: [1, 2, 3, 4, 5]\n"
    )
    (tmp_path / "sweep.yaml").write_text(text)
    with pytest.raises(UsageError, match="12,500 trials; 10,000 are the most"):
        trials_of(read_sweep(tmp_path / "sweep.yaml"), load_experiment("quickstart"))
