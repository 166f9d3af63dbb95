"""The whole configuration of an experiment, put together from its sections, and how its values are changed."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError, model_validator

from ribray.config import sections
from ribray.config.base import Section, Seed, given
from ribray.config.methods import (
    CAM,
    MethodConfig,
    MethodsConfig,
    RefineConfig,
    RIBConfig,
    by_method,
    settings_class,
    short,
    with_methods,
)
from ribray.config.sentences import explain_invalid, shorten
from ribray.errors import UsageError

REFINE, METHOD = "refine", "refine.method"


class Experiment(Section):
    """Everything that decides the results of a run, and how it is carried out."""

    seed: Seed = 0
    """Default of the seeds of data, classifier, refine, irn and segmentation; ``--set seed=N`` changes those of a
    recipe that equal its own ``seed``, and leaves others as they are."""
    data: sections.DataConfig
    classifier: sections.ClassifierConfig = sections.ClassifierConfig()
    refine: RefineConfig = RIBConfig()
    seed_eval: sections.SeedEvalConfig = sections.SeedEvalConfig()
    masks: sections.MasksConfig = sections.MasksConfig()
    irn: sections.IrnConfig = sections.IrnConfig()
    pseudo: sections.PseudoConfig = sections.PseudoConfig()
    segmentation: sections.SegmentationConfig = sections.SegmentationConfig()
    evaluate: sections.EvaluateConfig = sections.EvaluateConfig()
    cluster: sections.ClusterConfig = sections.ClusterConfig()
    tracking: sections.TrackingConfig = sections.TrackingConfig()

    @model_validator(mode="before")
    @classmethod
    def _spread(cls, values: Any) -> Any:
        """Give sections the seed of the experiment, and masks the maps of its method, where they have none."""
        if not isinstance(values, Mapping):
            return values
        spread, seed = dict(values), values.get("seed", 0)
        for name in seeded_sections():
            section = spread.get(name, {})
            if isinstance(section, Mapping) and name != REFINE:
                spread[name] = {**section, "seed": section.get("seed", seed)}
        refine, masks = spread.get(REFINE, {}), spread.get("masks", {})
        if isinstance(refine, Mapping):
            spread[REFINE] = by_method(refine)
            for part in spread[REFINE].values():
                if "seed" in settings_class(part["method"]).model_fields:
                    part.setdefault("seed", seed)
            if isinstance(masks, Mapping):
                spread["masks"] = {"source": _standard_source(refine), **masks}
        return spread

    @model_validator(mode="after")
    def _fits_together(self) -> "Experiment":
        if unknown := [name for name in self.sources if name not in self.maps]:
            raise ValueError(f"masks.source: the run has no maps '{unknown[0]}'; it has {', '.join(self.maps)}")
        return self

    @property
    def methods(self) -> dict[str, MethodConfig]:
        """The settings of every method, in order, by the last part of its name."""
        if isinstance(self.refine, MethodsConfig):
            return self.refine.methods
        return {short(self.refine.method): self.refine}

    @property
    def maps(self) -> dict[str, str]:
        """The names of all maps that the run makes, each with the method that makes it; the plain ones first."""
        methods = self.methods
        return {CAM: next(iter(methods)), **{own: name for name, config in methods.items() for own in config.maps}}

    @property
    def sources(self) -> tuple[str, ...]:
        """The maps that masks are made from."""
        source = self.masks.source
        if source == sections.BOTH:
            return self._standard_source, CAM
        return (source,) if isinstance(source, str) else source

    @property
    def predicted_splits(self) -> tuple[str, ...]:
        """The splits whose masks the segmentation network predicts."""
        return self.evaluate.splits or (self.data.eval_split,)

    @property
    def own_source(self) -> str:
        """The maps whose masks lie in the run's own directory; those of others are variants of it."""
        return next((source for source in self.sources if source != CAM), self._standard_source)

    @property
    def _standard_source(self) -> str:
        return next(name for name in self.maps if name != CAM)

    def only(self, method: str) -> "Experiment":
        """Return this experiment with one of its methods."""
        return self.model_copy(update={"refine": self.methods[method]})

    def with_values(self, values: Mapping[str, Any], source: str = "the experiment") -> "Experiment":
        """Return the experiment with other values of some keys (``refine.lr``), checked as those of a recipe are.

        One of ``seed`` also changes the sections' seeds that equal it now. An error names ``source``.
        """
        return validate_experiment(change(to_values(self), [values]), source)

    @property
    def irn_backbone(self) -> tuple[str, int]:
        """The name and the output stride of IRNet's backbone: by default the classifier's."""
        name = self.irn.backbone or self.classifier.backbone
        return name, 8 if name == "small" else self.classifier.output_stride

    def on_own_source(self) -> "Experiment":
        """Return this experiment as a run's own directory holds it: of several sources of masks with one."""
        return self if len(self.sources) == 1 else self.on_source(self.own_source)

    def on_source(self, source: str) -> "Experiment":
        """Return this experiment with masks made from one kind of maps; plain CAMs have thresholds of their own."""
        cam = self.masks.cam
        masks: dict[str, Any] = {"source": source}
        pseudo: dict[str, Any] = {}
        if source == CAM:
            masks |= given(fg_threshold=cam.fg_threshold, bg_threshold=cam.bg_threshold)
            pseudo = given(threshold=cam.pseudo_threshold, ignore_band=cam.ignore_band)
        if "threshold" in pseudo:  # which a band would hide
            pseudo.setdefault("ignore_band", None)
        return self.model_copy(
            update={"masks": self.masks.model_copy(update=masks), "pseudo": self.pseudo.model_copy(update=pseudo)}
        )


def _standard_source(refine: Mapping[str, Any]) -> str:
    """Return the maps that masks are made from where none are named, of a raw section ``refine``."""
    first = next(iter(by_method(refine).values()))
    return next(iter(settings_class(first["method"]).maps))


def validate_experiment(values: Mapping[str, Any], source: str) -> Experiment:
    """Return the experiment of raw values; what is wrong with the first is one sentence, which names ``source``."""
    try:
        return Experiment.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{source}: {explain_invalid(error, Experiment)}") from None
    except RecursionError:
        raise UsageError(f"{source}: the values are nested too deeply.") from None


def change(values: Mapping[str, Any], overrides: Iterable[str | Mapping[str, Any]]) -> dict[str, Any]:
    """Return raw values with overrides applied; later ones win.

    An override is a text ``key.path=value`` of the command line, its value parsed as YAML, or a mapping of key paths
    to values that are taken as they are. One of ``seed`` also stands for the sections' seeds that ``values`` have from
    their own (see `Experiment.seed`).
    """
    changed, settings = dict(values), list[tuple[str, Any, str]]()
    for override in overrides:
        if isinstance(override, str):
            settings.append(_parse_override(override))
        else:
            settings += [(key, value, key) for key, value in override.items()]
    if any(key == "seed" for key, _, _ in settings):
        _forget_spread_seeds(changed)
    for _, value, shown in (setting for setting in settings if setting[0] == METHOD):
        section, masks = changed.get(REFINE, {}), changed.get("masks", {})
        try:
            changed[REFINE] = with_methods(section, value)
            # Masks that were made from the maps of the recipe's own method are made from the new one's.
            if isinstance(masks, Mapping) and masks.get("source") == _standard_source(section):
                changed["masks"] = {name: source for name, source in masks.items() if name != "source"}
        except ValueError as error:
            raise UsageError(f"{shown}: {error}.") from None
    for key, value, shown in (setting for setting in settings if setting[0] != METHOD):
        *path, last = key.split(".")
        target = changed
        for section in path:
            inner = target.get(section, {})
            if not isinstance(inner, dict):
                raise UsageError(f"{shown}: '{section}' is a value, not a section.")
            target[section] = dict(inner)  # an alias may have put the same section in another place, too
            target = target[section]
        if path == [REFINE]:  # what a method's own section says of it would go first
            own = {name: inner for name, inner in target.items() if isinstance(inner, dict) and last in inner}
            target |= {name: {each: inner[each] for each in inner if each != last} for name, inner in own.items()}
        target[last] = value
    return changed


def _parse_override(override: str) -> tuple[str, Any, str]:
    """Return key and value of ``key.path=value``, and the text to show in messages."""
    from ribray.yaml_text import YamlError, parse_yaml  # values that are given as they are need no YAML

    key, separator, text = override.partition("=")
    key, shown = key.strip(), f"--set {shorten(' '.join(override.split()))}"
    if not separator or not key:
        raise UsageError(f"{shown}: write it as key=value, for example --set refine.batch_size=30.")
    try:
        return key, parse_yaml(text), shown
    except YamlError as error:
        raise UsageError(f"{shown}: the value is not valid YAML: {error}.") from None


def seeded_sections() -> list[str]:
    """Return the sections that have a seed; that of the methods has it where one of them does."""
    kinds = {name: getattr(field.annotation, "model_fields", ()) for name, field in Experiment.model_fields.items()}
    return [name for name, keys in kinds.items() if "seed" in keys or name == REFINE]


def _forget_spread_seeds(values: dict[str, Any]) -> None:
    """Remove the sections' seeds that equal the experiment's own: a resolved recipe has them all written out."""
    if "seed" not in values:
        return

    def without(section: Any) -> Any:
        is_spread = isinstance(section, dict) and section.get("seed", ...) == values["seed"]
        return {key: value for key, value in section.items() if key != "seed"} if is_spread else section

    for name in seeded_sections():
        if name in values:
            values[name] = without(values[name])
    if isinstance(values.get(REFINE), dict):
        values[REFINE] = {key: without(value) for key, value in values[REFINE].items()}


def to_values(experiment: Experiment) -> dict[str, Any]:
    """Return the resolved configuration as plain YAML/JSON values."""
    return experiment.model_dump(mode="json")


def flatten(values: Mapping[str, Any], joint: str = ".", prefix: str = "") -> dict[str, Any]:
    """Turn nested sections into ``{"refine.lr": 8e-06, …}``; ``joint`` stands between the names of a key."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        flat |= flatten(value, joint, f"{key}{joint}") if isinstance(value, Mapping) else {key: value}
    return flat


def to_yaml(experiment: Experiment) -> str:
    import yaml

    return yaml.safe_dump(to_values(experiment), sort_keys=False, default_flow_style=None, width=120)
