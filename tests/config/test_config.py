"""Reading recipes, overrides, and the sentences for what is wrong with them."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ribray.config import Experiment, flatten, load_experiment, shipped_recipes, to_values, to_yaml
from ribray.errors import UsageError

VOC = {"data": {"kind": "voc", "root": "somewhere"}}


def write(tmp_path, values) -> str:
    file = tmp_path / "recipe.yaml"
    file.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return str(file)


@pytest.mark.parametrize("name", ["quickstart", "voc12", "coco14"])
def test_shipped_recipes_are_valid_and_open_with_their_command(name):
    experiment = load_experiment(name)
    text = shipped_recipes()[name].read_text()
    assert text.startswith("# ")
    assert "ribray " in text.split("data:")[0]
    assert experiment.refine.iterations == 10


def test_paper_settings_of_voc_and_coco():
    voc, coco = load_experiment("voc12"), load_experiment("coco14")
    assert (voc.refine.lr, voc.refine.stop_threshold, voc.refine.pooling_threshold) == (8e-6, 600, 0.4)
    assert (coco.refine.lr, coco.refine.stop_threshold, coco.refine.explode_ratio) == (5e-6, 1000, 0.8)
    assert voc.seed_eval.thresholds == tuple(round(0.2 + 0.01 * step, 2) for step in range(30))
    assert coco.refine.pooling_first_classes is None


def test_seed_is_the_default_of_every_section_and_a_section_may_differ():
    experiment = load_experiment("quickstart", ["seed=3", "refine.seed=7"])
    assert (experiment.data.seed, experiment.classifier.seed, experiment.refine.seed) == (3, 3, 7)


def test_overrides_are_yaml_and_the_later_one_wins():
    experiment = load_experiment(
        "quickstart",
        ["refine.lr=1e-5", "refine.scales=[1.0, 2.0]", "refine.loss_scales=[1.0]", "refine.lr=2e-5"],
    )
    assert experiment.refine.lr == 2e-5
    assert experiment.refine.scales == (1.0, 2.0)


def test_a_threshold_for_plain_cams_drops_the_band_that_would_hide_it():
    band, threshold = "pseudo.ignore_band=[0.2, 0.5]", "masks.cam.pseudo_threshold=0.3"
    for overrides, expected in (
        ([band], (0.27, (0.2, 0.5))),
        ([band, threshold], (0.3, None)),
        ([band, threshold, "masks.cam.ignore_band=[0.1, 0.3]"], (0.3, (0.1, 0.3))),
        ([threshold], (0.3, None)),
    ):
        experiment = load_experiment("voc12", overrides)
        pseudo = experiment.on_source("cam").pseudo
        assert (pseudo.threshold, pseudo.ignore_band) == expected
        assert experiment.on_own_source().pseudo == experiment.pseudo


@pytest.mark.parametrize(("source", "own"), [("rib", "rib"), ("cam", "cam"), ("both", "rib")])
def test_a_runs_own_directory_holds_the_first_source(source, own):
    experiment = load_experiment("voc12", [f"masks.source={source}"])
    assert experiment.on_own_source().masks.source == own
    assert experiment.on_source("cam").masks.source == "cam"


def test_printed_configuration_is_a_recipe_with_the_same_meaning(tmp_path):
    experiment = load_experiment("voc12", ["seed=4"])
    assert load_experiment(write(tmp_path, to_yaml(experiment))) == experiment


SEEDED = ("data", "classifier", "refine", "irn", "segmentation")


def seeds(experiment: Experiment) -> list[int]:
    return [experiment.seed, *(getattr(experiment, section).seed for section in SEEDED)]


def test_a_seed_that_is_set_wins_over_those_that_a_resolved_recipe_has_from_its_own(tmp_path):
    recipe = write(tmp_path, to_yaml(load_experiment("quickstart", ["seed=4"])))
    assert seeds(load_experiment(recipe)) == [4] * 6
    assert seeds(load_experiment(recipe, ["seed=7"])) == [7] * 6
    assert seeds(load_experiment(recipe, [{"seed": 7}])) == [7] * 6
    assert seeds(load_experiment(recipe, ["seed=1e1"])) == [10] * 6
    assert seeds(load_experiment(recipe, ["seed=3.0"])) == [3] * 6
    assert seeds(load_experiment(recipe, ["refine.seed=4", "seed=7"])) == [7, 7, 7, 4, 7, 7]
    assert seeds(load_experiment(recipe, ["seed=7", "refine.seed=5"])) == [7, 7, 7, 5, 7, 7]


def test_a_seed_that_is_set_leaves_sections_that_a_recipe_gave_one_of_their_own(tmp_path):
    both = write(tmp_path, {**VOC, "seed": 0, "refine": {"seed": 5}})
    assert seeds(load_experiment(both, ["seed=7"])) == [7, 7, 7, 5, 7, 7]
    resolved = write(tmp_path, to_yaml(load_experiment(both)))
    assert seeds(load_experiment(resolved, ["seed=7"])) == [7, 7, 7, 5, 7, 7]
    section_only = write(tmp_path, {**VOC, "refine": {"seed": 0}})
    assert seeds(load_experiment(section_only, ["seed=7"])) == [7, 7, 7, 0, 7, 7]


@pytest.mark.parametrize("name", ["quickstart", "voc12"])
def test_a_resolved_recipe_without_overrides_reads_as_before(name, tmp_path):
    experiment = load_experiment(name, ["seed=2", "irn.seed=5"])
    again = load_experiment(write(tmp_path, to_yaml(experiment)))
    assert to_values(again) == to_values(experiment)


def test_text_stays_text_and_exponents_are_numbers_where_a_number_belongs(tmp_path):
    file = write(tmp_path, "data: {kind: voc, root: x}\nsegmentation: {iterations: 3e4}\ntracking: {group: '1e5'}\n")
    for experiment in (
        load_experiment(file),
        load_experiment("voc12", ["segmentation.iterations=3e4", "tracking.group='1e5'", "data.root=x"]),
        load_experiment("voc12", ["segmentation.iterations=3e4", 'tracking.group="1e5"', "data.root=x"]),
        load_experiment("voc12", [{"segmentation.iterations": "3e4", "tracking.group": "1e5"}]),
    ):
        assert experiment.segmentation.iterations == 30_000
        assert experiment.tracking.group == "1e5"
    assert load_experiment("voc12", ["refine.lr=1e-5"]).refine.lr == 1e-5


@pytest.mark.parametrize("text", ["2024", "2024-01-02", "on", "1_000"])
def test_text_that_yaml_takes_for_something_else_is_answered_with_the_quotes(text):
    with pytest.raises(UsageError, match=r"tracking\.group: .* is text in quotes"):
        load_experiment("voc12", [f"tracking.group={text}"])
    assert load_experiment("voc12", [f'tracking.group="{text}"']).tracking.group == text


def test_a_path_that_does_not_exist_is_no_shipped_recipe():
    with pytest.raises(UsageError, match=r"no recipe '/no/such/quickstart.yaml' \(did you mean quickstart\?\)"):
        load_experiment("/no/such/quickstart.yaml")


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("refine.bath_size=3", ["refine.bath_size", "did you mean batch_size", "valid here"]),
        ("refin.lr=1", ["unknown key 'refin'", "did you mean refine"]),
        ("refine.batch_size=many", ["refine.batch_size", "integer", "'many'"]),
        ("refine.batch_size=0", ["refine.batch_size", "greater than or equal to 1", "0"]),
        ("refine.scales=[0.5, 1.0]", ["scales must begin with 1.0"]),
        ("refine.loss_scales=[3.0]", ["loss_scales", "[3.0]"]),
        ("data.kind=pascal", ["data.kind", "'voc'", "'pascal'"]),
        ("data.root=null", ["data.root is missing"]),
        ("classifier.workers=3", ["batch_size 16 cannot be shared by 3 workers"]),
        ("classifier.resize_long=[640, 320]", ["[640, 320]"]),
        ("refine.lr=.nan", ["refine.lr", "finite"]),
        ("seed_eval.thresholds=[0.3, 0.2]", ["thresholds must increase"]),
        ("seed_eval.thresholds=[0.1, a]", ["seed_eval.thresholds", "'a'"]),
        ("seed_eval.thresholds=[0.1, 0.1000000001]", ["thresholds must increase"]),
        ("seed_eval.thresholds={start: 0, stop: .inf, step: 1}", ["are numbers"]),
        ("seed_eval.thresholds={start: 0, stop: 1, step: 1.0e-9}", ["at most"]),
        ("refine=3", ["refine", "3"]),
        ("refine.lr.x=3", ["'lr' is a value"]),
        ("nonsense", ["key=value"]),
        ("refine.lr=[1", ["not valid YAML"]),
    ],
)
def test_a_wrong_value_is_one_sentence_that_names_the_key(override, parts):
    with pytest.raises(UsageError) as caught:
        load_experiment("voc12", [override])
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_missing_section_and_unknown_recipe_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"'data\.kind' is missing"):
        load_experiment(write(tmp_path, {"seed": 1}))
    with pytest.raises(UsageError, match="did you mean voc12"):
        load_experiment("voc2012")


@pytest.mark.parametrize(
    "text", ["", "- a\n- b\n", "data: [", "a: &a [*a]\n", "\x00", "!!python/object/apply:os.system ['true']"]
)
def test_a_file_that_is_no_recipe_is_refused_in_a_sentence(tmp_path, text):
    with pytest.raises(UsageError):
        load_experiment(write(tmp_path, text))


@settings(max_examples=500, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from([*Experiment.model_fields, *flatten(to_values(load_experiment("voc12")))])
                | st.text(max_size=6),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_any_values_give_an_experiment_or_a_sentence(values):
    from ribray.config import validate_experiment

    for candidate in (values, {**VOC, "refine": values}, {"data": values}):
        if isinstance(candidate, dict):
            try:
                validate_experiment(candidate, "fuzz")
            except UsageError as error:
                assert str(error).startswith("fuzz: ")


def test_a_whole_number_that_is_written_as_text_keeps_all_its_digits():
    assert load_experiment("voc12", ['seed="9007199254740993"']).seed == 9007199254740993
    assert load_experiment("voc12", ["segmentation.iterations=3e4"]).segmentation.iterations == 30000


# --- methods -----------------------------------------------------------------------------------------------------

BOTH = "refine.method=[rib,advcam]"


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["refine.method=advcam", "refine.lr=1"], "refine.lr belongs to method rib, and refine.method here is advcam"),
        (["refine.regularizer=1"], "refine.regularizer belongs to method advcam, and refine.method here is rib"),
        (["refine.advcam.iterations=2"], "refine.advcam holds keys of method advcam, and refine.method here is rib"),
        ([BOTH, "refine.iterations=3"], "write refine.rib.iterations or refine.advcam.iterations"),
        ([BOTH, "refine.rib.limit=3"], "the limit holds for every method; write refine.limit"),
        ([BOTH, "refine.rib.lr=-1"], "refine.rib.lr: input should be greater than or equal to 0, not -1"),
        (["refine.method=advcm"], "there is no method 'advcm' (did you mean advcam?); there are rib, advcam"),
        (["refine.method=maps"], "ribray.methods.maps has 0 classes with Settings of a method, not one"),
        (["refine.method=json.decoder"], "json.decoder has 0 classes with Settings of a method, not one"),
        (["refine.method=../rib"], "there is no method '../rib'"),
        (["refine.method=mine.occlusion"], "there is no module mine.occlusion to import; is its folder on PYTHONPATH"),
        (["refine.method=[rib,rib]"], "refine.method names two methods 'rib'"),
        (["refine.method=3"], "refine.method is the name of a method or a list of names, not 3"),
        (["refine=3"], "refine must hold keys and values"),
        (["masks.source=advcam"], "masks.source: the run has no maps 'advcam'; it has cam, rib"),
        (["masks.source=[rib,rib]"], "source names a map twice"),
        (["masks.source=[]"], "source is the name of a map or a list of names"),
    ],
)
def test_what_is_wrong_with_methods_is_said_in_a_sentence(overrides, sentence):
    with pytest.raises(UsageError) as error:
        load_experiment("voc12", overrides)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_keys_go_to_the_method_that_has_them():
    both = load_experiment("quickstart", [BOTH, "refine.lr=0.5", "refine.advcam.iterations=4", "seed=3"])
    rib, advcam = both.methods["rib"], both.methods["advcam"]
    assert (rib.lr, rib.seed, rib.iterations, advcam.iterations) == (0.5, 3, 10, 4)
    assert (rib.limit, advcam.limit, both.refine.limit) == (200, 200, 200)
    assert (rib.keep_steps, advcam.keep_steps) == (True, True)
    assert rib.scales == (1.0, 0.5, 1.5), "the recipe's scales are those of its method"
    assert advcam.scales == (1.0, 0.5, 1.5, 2.0)
    changed = both.with_values({"refine.lr": 0.25, "refine.keep_steps": False, "seed": 7})
    assert (changed.methods["rib"].lr, changed.methods["rib"].seed) == (0.25, 7)
    assert not any(method.keep_steps for method in changed.methods.values())
    assert both.with_values({"refine.method": "advcam"}).methods == {"advcam": advcam}
    assert both.only("rib").refine == load_experiment("quickstart", ["refine.lr=0.5", "seed=3"]).refine


def test_several_methods_are_written_so_that_they_are_read_back(tmp_path):
    both = load_experiment("quickstart", [BOTH, "masks.source=[advcam,cam]", "refine.limit=5"])
    again = load_experiment(write(tmp_path, to_yaml(both)))
    assert to_values(again) == to_values(both)
    assert again == both
    assert "method" not in to_values(load_experiment("quickstart"))["refine"], "older recipes have no such key"


@pytest.mark.parametrize(
    ("overrides", "sources", "own"),
    [
        ([], ("rib",), "rib"),
        (["refine.method=advcam"], ("advcam",), "advcam"),
        (["refine.method=advcam", "masks.source=both"], ("advcam", "cam"), "advcam"),
        ([BOTH, "masks.source=[cam,advcam,rib]"], ("cam", "advcam", "rib"), "advcam"),
        ([BOTH, "masks.source=cam"], ("cam",), "rib"),
    ],
)
def test_masks_are_made_from_the_methods_own_maps_or_from_those_that_are_named(overrides, sources, own):
    experiment = load_experiment("voc12", overrides)
    assert (experiment.sources, experiment.own_source) == (sources, own)
    assert experiment.on_source("cam").sources == ("cam",)
