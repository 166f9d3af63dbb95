"""The sweep file: what it accepts, and the trials that follow from it."""

from datetime import date

import pytest

from ribray.config import flatten, load_experiment, to_values, to_yaml
from ribray.errors import UsageError
from ribray.methods.stop_reasons import STUDY
from ribray.stages import STAGES
from ribray.sweep_file import (
    Scheduler,
    base_experiment,
    find_sweep,
    read_sweep,
    shipped_sweeps,
    title_of,
    trial_id,
    trials_of,
    validate_sweep,
    with_base,
)

PLAIN = {
    "base": "quickstart",
    "stages": ["refine", "seed"],
    "space": {"refine.batch_size": [5, 10]},
    "metric": "seed.rib.miou",
}


def trials(**changes):
    sweep = validate_sweep({**PLAIN, **changes}, "study.yaml")
    return trials_of(sweep, base_experiment(sweep))


def settings(**changes):
    return [dict(trial.settings) for trial in trials(**changes)]


def test_a_grid_is_every_value_with_every_value_with_every_seed():
    found = settings(space={"refine.batch_size": [5, 10], "refine.loss": {"grid": ["rib", "bce_tanh"]}}, repeats=2)
    assert len(found) == 8
    assert found[0] == {"refine.batch_size": 5, "refine.loss": "rib", "refine.seed": 0}
    assert found[-1] == {"refine.batch_size": 10, "refine.loss": "bce_tanh", "refine.seed": 1}


def test_repeats_are_seeds_of_the_first_stage_that_has_one():
    assert [each["classifier.seed"] for each in settings(stages="classifier,refine,seed", repeats=2)] == [0, 1, 0, 1]
    found = settings(space={"refine.seed": {"seeds": [3, 7]}})
    assert found == [{"refine.seed": 3}, {"refine.seed": 7}]
    with pytest.raises(UsageError, match="none of the stages seed has a seed"):
        settings(stages=["seed"], repeats=2)


def test_factors_are_of_the_base_and_integers_stay_integers():
    space = {"refine.lr": {"times": [0.5, 2]}, "refine.batch_size": {"times": [0.33]}}
    assert settings(space=space) == [
        {"refine.lr": 2e-4, "refine.batch_size": 7},
        {"refine.lr": 8e-4, "refine.batch_size": 7},
    ]
    with pytest.raises(UsageError, match=r"space.refine.loss: times multiplies numbers, and rib is none"):
        settings(space={"refine.loss": {"times": [2]}})


def test_draws_lie_in_their_range_and_more_samples_keep_the_first():
    space = {
        "refine.lr": {"loguniform": [1e-5, 1e-3]},
        "refine.pooling_threshold": {"uniform": [0.2, 0.6]},
        "refine.batch_size": {"choice": [5, 10, 20]},
    }
    few = settings(space=space, search={"samples": 4})
    many = settings(space=space, search={"samples": 40})
    assert many[:4] == few
    assert all(1e-5 <= each["refine.lr"] <= 1e-3 for each in many)
    assert sum(each["refine.lr"] < 1e-4 for each in many) in range(10, 31)
    assert all(0.2 <= each["refine.pooling_threshold"] <= 0.6 for each in many)
    assert {each["refine.batch_size"] for each in many} == {5, 10, 20}
    assert settings(space=space, search={"samples": 4, "seed": 1}) != few
    ratios = [
        each["refine.lr"] / 4e-4
        for each in settings(space={"refine.lr": {"times": {"uniform": [0.5, 2]}}}, search={"samples": 20})
    ]
    assert min(ratios) >= 0.5
    assert max(ratios) <= 2


def test_ids_are_file_names_that_tell_trials_apart():
    assert trial_id({"refine.batch_size": 5, "refine.seed": 0}) == "batch_size=5,seed=0"
    assert trial_id({"refine.seed": 1, "data.seed": 2}) == "refine.seed=1,data.seed=2"
    odd = [trial_id({"a": "x/y"}), trial_id({"a": "x:y"}), trial_id({"a": "z" * 300}), trial_id({"a": ["p", 1]})]
    assert len(set(odd)) == 4
    assert all("/" not in name and len(name) < 120 for name in odd)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bsae": "x"}, r"unknown key 'bsae' \(did you mean base"),
        ({"space": {}}, "the space is empty"),
        ({"space": {"refine.lr": []}}, r"space.refine.lr: grid is empty"),
        ({"space": {"refine.lr": {"gird": [1]}}}, r"unknown key 'space.refine.lr.gird' \(did you mean grid"),
        ({"space": {"refine.lr": {"grid": [1], "choice": [2]}}}, "give one of grid, choice"),
        ({"space": {"refine.lr": {"uniform": [2, 1]}}}, r"uniform must be \[smallest, largest\]"),
        ({"space": {"refine.lr": {"uniform": [1, 2]}}}, "space.refine.lr is drawn: add search"),
        ({"search": {"samples": 3}}, "search has nothing to draw"),
        ({"repeats": 2, "space": {"refine.seed": {"seeds": [1]}}}, "two words for one thing"),
        ({"mode": "most"}, "mode: "),
        ({"max_concurrent": 0}, "max_concurrent: "),
        (
            {"repeats": 2, "space": {"refine.lr": {"uniform": [1, 2]}}, "search": {"kind": "optuna", "samples": 2}},
            "which repeats does not go with",
        ),
        ({"scheduler": {"first": 9, "last": 3}}, "first must not be above last"),
        ({"scheduler": {"first": 1, "last": 3}, "space": {"refine.limit": [1]}}, "itself sets refine.limit"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(changes, said):
    with pytest.raises(UsageError, match=said):
        validate_sweep({**PLAIN, **changes}, "study.yaml")


def test_rungs_grow_by_the_factor_and_end_at_the_last():
    assert Scheduler(first=15, last=100).rungs == [15, 45, 100]
    assert Scheduler(first=10, last=40, factor=2).rungs == [10, 20, 40]
    assert Scheduler(first=5, last=5).rungs == [5]


@pytest.mark.parametrize("name", list(shipped_sweeps()))
def test_every_shipped_sweep_has_a_header_and_trials_on_its_base_and_on_voc(name):
    location = find_sweep(name)
    assert find_sweep(f"{name}.yaml") == location
    text = location.read_text()
    assert title_of(location).endswith(".")
    assert f"ribray sweep {name}" in text
    sweep = read_sweep(location)
    voc = "voc12_advcam" if "voc12_advcam" in text else "voc12"
    for definition, overrides in ((sweep, []), (with_base(sweep, voc), ["data.root=/data"])):
        base = base_experiment(definition, overrides)
        known = with_method(base)
        found = trials_of(definition, base)
        assert 5 <= len(found) <= 21
        for trial in found:
            assert set(trial.settings) <= set(known)
            changed = with_method(base.with_values(trial.settings))
            assert {key: changed[key] for key in trial.settings} == dict(trial.settings)


def with_method(experiment):
    """Every key; that of the method, too, which goes without saying for RIB."""
    return {"refine.method": "rib", **flatten(to_values(experiment))}


def test_the_studies_of_the_paper_are_all_there():
    names = {"table_s1_batch_size", "error_bars", "learning_rate", "thresholds", "activations"}
    others = {"figure_s1a_from_scratch", "search", "advcam_iterations", "methods", STUDY}
    assert names | others == set(shipped_sweeps())
    sizes = [each.settings["refine.batch_size"] for each in trials_of(*_with_base("table_s1_batch_size"))]
    assert sorted(set(sizes)) == [1, 5, 10, 15, 20, 25, 30]
    assert [each.settings["refine.seed"] for each in trials_of(*_with_base("error_bars"))] == [0, 1, 2, 3, 4]


def _with_base(name):
    sweep = read_sweep(find_sweep(name))
    return sweep, base_experiment(sweep)


def test_the_settings_of_another_network_can_be_judged_without_masks():
    lines = find_sweep(STUDY).read_text().splitlines()
    judged, other = (line.removeprefix("# ") for line in lines if line.removeprefix("# ").startswith("metric: "))
    assert judged == f"metric: {read_sweep(find_sweep(STUDY)).metric}"
    stage, _, number = other.removeprefix("metric: ").partition(".")
    assert stage in read_sweep(find_sweep(STUDY)).stages
    assert number in STAGES[stage].writes
    assert {trial.settings["refine.explode_ratio"] for trial in trials_of(*_with_base(STUDY))} == {0.7, 1.0}


def test_an_unknown_sweep_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match="did you mean error_bars"):
        find_sweep("error_bar")


@pytest.mark.parametrize("place", ["/no/such/folder/error_bars.yaml", "./error_bars.yaml", "folder/error_bars"])
def test_a_path_that_does_not_exist_is_no_shipped_sweep(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="There is no sweep") as caught:
        find_sweep(place)
    assert place in str(caught.value)
    assert "did you mean error_bars" in str(caught.value)


def test_a_shipped_recipes_name_is_that_recipe_also_beside_a_run_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()
    (tmp_path / "quickstart" / "experiment.yaml").write_text("data: {kind: voc, root: elsewhere}\n")
    named = validate_sweep(PLAIN, "study.yaml")
    assert base_experiment(named).data.kind == "synthetic"
    assert base_experiment(with_base(named, "./quickstart")).data.kind == "voc"


def resolved(folder, settings=(), recipe="quickstart"):
    """A resolved recipe, as a run has it."""
    file = folder / "experiment.yaml"
    file.write_text(to_yaml(load_experiment(recipe, settings)))
    return str(file)


def test_a_sweep_over_the_seed_of_a_resolved_recipe_varies_every_section(tmp_path):
    resolved(tmp_path, ["seed=4", "irn.seed=9"])
    sweep = validate_sweep({**PLAIN, "base": str(tmp_path), "space": {"seed": {"seeds": [4, 5]}}}, "study.yaml")
    base = base_experiment(sweep)
    found = [base.with_values(trial.settings) for trial in trials_of(sweep, base)]
    assert [(each.seed, each.data.seed, each.refine.seed, each.irn.seed) for each in found] == [
        (4, 4, 4, 9),
        (5, 5, 5, 9),
    ]
    held = validate_sweep({**PLAIN, "base": {"recipe": str(tmp_path), "set": {"seed": 3}}}, "study.yaml")
    assert base_experiment(held).classifier.seed == 3
    assert base_experiment(held, ["refine.seed=8"]).with_values({"seed": 6}).refine.seed == 8
    assert base_experiment(held, ["refine.seed=8"]).with_values({"seed": 6}).data.seed == 6


def test_values_that_look_like_numbers_reach_a_trial_as_what_they_are():
    sweep = validate_sweep({**PLAIN, "base": {"recipe": "quickstart", "set": {"tracking.group": "1e5"}}}, "study.yaml")
    settings = {"classifier.weights": "2e3", "refine.lr": "1e-5", "segmentation.iterations": "3e4"}
    experiment = base_experiment(sweep, ['tracking.tags=["1e5", "on"]']).with_values(settings)
    assert (experiment.tracking.group, experiment.tracking.tags) == ("1e5", ("1e5", "on"))
    assert experiment.classifier.weights == "2e3"
    assert (experiment.refine.lr, experiment.segmentation.iterations) == (1e-5, 30_000)


def test_a_date_in_a_sweep_is_answered_with_the_quotes():
    sweep = validate_sweep({**PLAIN, "space": {"data.train_split": [date(2024, 1, 2)]}}, "study.yaml")
    (trial,) = trials_of(sweep, base_experiment(sweep))
    with pytest.raises(UsageError, match=r"data\.train_split: .* is text in quotes"):
        base_experiment(sweep).with_values(trial.settings)


def test_what_a_sweep_sets_is_not_changed_by_overrides():
    sweep = validate_sweep({**PLAIN, "base": {"recipe": "quickstart", "set": {"irn": {"epochs": 2}}}}, "study.yaml")
    assert base_experiment(sweep, ["irn.epochs=5"]).irn.epochs == 5
    assert base_experiment(sweep).irn.epochs == 2
