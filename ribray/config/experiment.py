"""The whole configuration of an experiment, put together from its sections, and how its values are changed."""

from collections.abc import Iterable, Mapping
from typing import Any

import yaml
from pydantic import ValidationError, model_validator

from ribray.config.data import DataConfig
from ribray.config.masks import IrnConfig, MasksConfig, PseudoConfig
from ribray.config.methods import RefineConfig, SeedEvalConfig
from ribray.config.networks import ClassifierConfig, EvaluateConfig, SegmentationConfig
from ribray.config.running import ClusterConfig, TrackingConfig
from ribray.config.section import Section, Seed, given
from ribray.config.sentences import explain_invalid, shorten
from ribray.errors import UsageError
from ribray.yaml_text import YamlError, parse_yaml


class Experiment(Section):
    """Everything that decides the results of a run, and how it is carried out."""

    seed: Seed = 0
    """Default of the seeds of data, classifier, refine, irn and segmentation; ``--set seed=N`` changes those of a
    recipe that equal its own ``seed``, and leaves others as they are."""
    data: DataConfig
    classifier: ClassifierConfig = ClassifierConfig()
    refine: RefineConfig = RefineConfig()
    seed_eval: SeedEvalConfig = SeedEvalConfig()
    masks: MasksConfig = MasksConfig()
    irn: IrnConfig = IrnConfig()
    pseudo: PseudoConfig = PseudoConfig()
    segmentation: SegmentationConfig = SegmentationConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="before")
    @classmethod
    def _spread_seed(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        spread = dict(values)
        for name in seeded_sections():
            section = spread.get(name, {})
            if isinstance(section, Mapping):
                spread[name] = {**section, "seed": section.get("seed", values.get("seed", 0))}
        return spread

    @model_validator(mode="after")
    def _fits_together(self) -> "Experiment":
        if self.refine.resize_long[1] < 16:
            raise ValueError("refine.resize_long must reach at least 16 pixels")
        return self

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

    def on_first_source(self) -> "Experiment":
        """Return this experiment as a run's own directory holds it: of ``both`` sources of masks with the first."""
        if self.masks.source != "both":
            return self
        return self.model_copy(update={"masks": self.masks.model_copy(update={"source": "rib"})})

    def on_cams(self) -> "Experiment":
        """Return this experiment with masks made from plain CAMs, at thresholds of their own."""
        cam = self.masks.cam
        masks = {"source": "cam", **given(fg_threshold=cam.fg_threshold, bg_threshold=cam.bg_threshold)}
        pseudo = given(threshold=cam.pseudo_threshold, ignore_band=cam.ignore_band)
        if "threshold" in pseudo:  # which a band would hide
            pseudo.setdefault("ignore_band", None)
        return self.model_copy(
            update={"masks": self.masks.model_copy(update=masks), "pseudo": self.pseudo.model_copy(update=pseudo)}
        )


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
    for key, value, shown in settings:
        *sections, last = key.split(".")
        target = changed
        for section in sections:
            inner = target.get(section, {})
            if not isinstance(inner, dict):
                raise UsageError(f"{shown}: '{section}' is a value, not a section.")
            target[section] = dict(inner)  # an alias may have put the same section in another place, too
            target = target[section]
        target[last] = value
    return changed


def _parse_override(override: str) -> tuple[str, Any, str]:
    """Return key and value of ``key.path=value``, and the text to show in messages."""
    key, separator, text = override.partition("=")
    key, shown = key.strip(), f"--set {shorten(' '.join(override.split()))}"
    if not separator or not key:
        raise UsageError(f"{shown}: write it as key=value, for example --set refine.batch_size=30.")
    try:
        return key, parse_yaml(text), shown
    except YamlError as error:
        raise UsageError(f"{shown}: the value is not valid YAML: {error}.") from None


def seeded_sections() -> list[str]:
    sections = {name: field.annotation for name, field in Experiment.model_fields.items()}
    return [name for name, section in sections.items() if "seed" in getattr(section, "model_fields", ())]


def _forget_spread_seeds(values: dict[str, Any]) -> None:
    """Remove the sections' seeds that equal the experiment's own: a resolved recipe has them all written out."""
    for name in seeded_sections() if "seed" in values else ():
        section = values.get(name)
        if isinstance(section, dict) and "seed" in section and section["seed"] == values["seed"]:
            values[name] = {key: value for key, value in section.items() if key != "seed"}


def to_values(experiment: Experiment) -> dict[str, Any]:
    """Return the resolved configuration as plain YAML/JSON values."""
    return experiment.model_dump(mode="json")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested sections into ``{"refine.lr": 8e-06, …}``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def to_yaml(experiment: Experiment) -> str:
    return yaml.safe_dump(to_values(experiment), sort_keys=False, default_flow_style=None, width=120)
