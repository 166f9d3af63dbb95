"""The methods that refine an image, and how their maps are judged.

A method is known by its name: one of `BUILT_IN`, or that of a module with one class that has `Settings`
(`ribray.methods.method.Method`). The section ``refine`` holds the keys of one method, or of several, each under its
name.
"""

import importlib
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    Field,
    PlainSerializer,
    PlainValidator,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from ribray.config.base import (
    Count,
    Integer,
    NotNegative,
    Pixels,
    Positive,
    Precision,
    Scales,
    Section,
    Seed,
    Share,
    require_range,
)
from ribray.config.sentences import nearest, shorten

CAM, RIB = "cam", "rib"
LABELS = {CAM: "plain CAM"}
"""What maps are called, by their names."""
ENDED: dict[str, str] = {}
"""Why fewer steps were taken than were asked for, by reason."""
COMMON = ("limit", "deterministic", "keep_steps")
"""Keys that hold for every method of a run where they are given outside of one's own section."""


def label(name: str) -> str:
    """Return what the maps of a name are called."""
    return LABELS.get(name, name)


class MethodConfig(Section):
    """What every method has, and what is known of it without running it."""

    maps: ClassVar[Mapping[str, str]] = {}
    """The maps that it leaves beside the plain class activation map, by name, and what they are called."""
    early: ClassVar[Mapping[str, str]] = {}
    """Reasons for which it takes fewer steps than were asked for, with a sentence each."""

    method: str = RIB
    """Which one: rib, advcam, or the name of a module with one of your own."""
    scales: Scales = (1.0, 0.5, 1.5, 2.0)
    """Scales of the image's views."""
    precision: Precision = "float32"
    """Arithmetic; auto: bfloat16 where hardware has fast units for it, float32 for networks of timm."""
    deterministic: bool = False
    """Deterministic GPU kernels: the same bytes from run to run, slower; a CPU always is."""
    keep_steps: bool = False
    """Keep the maps after every step in the map files (figures, curves over steps)."""
    limit: Count | None = None
    """Refine at most so many images; more can follow later in the same run."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        LABELS.update(cls.maps)
        ENDED.update(cls.early)

    @property
    def steps(self) -> int:
        """The most steps that an image's maps are kept of."""
        return getattr(self, "iterations", 1)

    @model_validator(mode="after")
    def _has_different_scales(self) -> "MethodConfig":
        if len(set(self.scales)) != len(self.scales):
            raise ValueError("scales must differ from each other")
        return self

    @model_serializer(mode="wrap")
    def _in_own_order(self, values_of: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write a method's own keys first; the name of the default method goes without saying."""
        values = values_of(self)
        if values.get("method") == RIB:
            del values["method"]
        own = [name for name in type(self).__annotations__ if name in values]
        return {name: values[name] for name in dict.fromkeys([*own, *values])}


class RIBConfig(MethodConfig):
    """RIB refinement of one image (paper section 3)."""

    maps = {RIB: "RIB"}
    early = {
        "target_loss": "the target loss passed stop_threshold",
        "explosion": "the explosion test ended it: most of the image lit up",
    }

    iterations: Count = 10
    """K, the steps per image."""
    batch_size: Count = 20
    """B: the target image and B-1 extra samples without any of its classes."""
    lr: NotNegative = 8e-6
    """Learning rate of the backbone; polynomial decay with power 0.9 over the K steps."""
    head_lr_factor: Positive = 10.0
    """The head's learning rate over the backbone's."""
    momentum: Share = 1e-4
    """SGD momentum; the reference's value, in effect none."""
    weight_decay: NotNegative = 1e-4
    """L2 penalty of SGD."""
    scales: Scales = (1.0, 0.5, 1.5, 2.0)
    """Scales of the target's views; the first must be 1.0, whose map the explosion test looks at."""
    loss_scales: Scales = (1.0, 1.5, 2.0)
    """The scales whose logits enter the loss."""
    pooling: Literal["gndrp", "gap"] = "gndrp"
    """gndrp: over non-discriminative regions only; gap: plain global average."""
    pooling_threshold: Share = 0.4
    """tau of GNDRP: cells at or above this share of a map's maximum do not count."""
    pooling_first_classes: Annotated[Integer, Field(ge=0)] | None = None
    """GNDRP only for classes below this index; 20 repeats the reference's defect on COCO."""
    stop_threshold: Positive = 600.0
    """m: refinement stops once the target's absolute summed logits pass it."""
    explode_threshold: Positive = 0.3
    """A cell is covered where a present class's map exceeds this share of its maximum."""
    explode_ratio: Positive = 0.7
    """Refinement stops once more than this share of cells is covered."""
    loss: Literal["rib", "bce_sigmoid", "bce_tanh", "bce_softsign"] = "rib"
    """rib: no final activation; bce_*: cross entropy under the named activation, mapped to (0, 1)."""
    crop_size: Pixels = 512
    """Side of an extra sample's random crop, in pixels."""
    resize_long: tuple[Pixels, Pixels] = (320, 640)
    """Range of an extra sample's long side, in pixels."""
    precision: Precision = "auto"
    """float32 is the reference; auto: bfloat16 where hardware has fast units for it, float32 for networks of timm."""
    deterministic: bool = False
    keep_steps: bool = False
    limit: Count | None = None
    seed: Seed = 0
    """Seed of the extra samples and their augmentation."""

    @model_validator(mode="after")
    def _fits_together(self) -> "RIBConfig":
        require_range(self.resize_long, "resize_long")
        if self.resize_long[1] < 16:
            raise ValueError("resize_long must reach at least 16 pixels")
        if self.scales[0] != 1.0:
            raise ValueError("scales must begin with 1.0")
        if unknown := [scale for scale in self.loss_scales if scale not in self.scales]:
            raise ValueError(f"loss_scales {unknown} are not among scales {list(self.scales)}")
        return self


class AdvCAMConfig(MethodConfig):
    """AdvCAM: each view climbs along the gradient of its classes' scores (docs/method.md); VOC's published values."""

    maps = {"advcam": "AdvCAM"}

    iterations: Count = 27
    """K, the steps of a view; of the one at the second place of `scales` about half as many."""
    regularizer: NotNegative = 7.0
    """lambda, the weight of what holds back cells that score high already."""
    step_size: Positive = 0.08
    """xi, how far the pixel that moves most goes in a step, in units of the normalised image."""
    score_threshold: Share = 0.5
    """tau: cells from this share of a map's maximum on are held back."""


class MethodsConfig(Section):
    """Several methods in one run, on the same classifier."""

    methods: dict[str, MethodConfig]
    """By the last part of their names, in order."""

    @property
    def limit(self) -> int | None:
        """Refine at most so many images, by every method."""
        return next(iter(self.methods.values())).limit

    @model_serializer
    def _by_method(self) -> dict[str, Any]:
        own = {
            name: config.model_dump(mode="json", exclude={"method", "limit"}) for name, config in self.methods.items()
        }
        return {"method": [config.method for config in self.methods.values()], "limit": self.limit, **own}


BUILT_IN: dict[str, type[MethodConfig]] = {RIB: RIBConfig, "advcam": AdvCAMConfig}


def short(name: str) -> str:
    """Return what a method's maps and stage are named by: the last part of its name."""
    return name.rpartition(".")[2]


def settings_class(name: str) -> type[MethodConfig]:
    """Return the section of a method.

    Raises:
        ValueError: there is none of that name.
    """
    return BUILT_IN[name] if name in BUILT_IN else load_method(name).Settings


def load_method(name: str) -> Any:
    """Return the class of a method, which is imported.

    Raises:
        ValueError: there is none of that name.
    """
    place = name if "." in name else f"ribray.methods.{name}"
    unknown = (
        f"refine.method: there is no method '{shorten(name, 60)}'{nearest(name, BUILT_IN)}; there are "
        f"{', '.join(BUILT_IN)}, or give the dotted name of a module with one of your own"
    )
    if not all(part.isidentifier() for part in place.split(".")):
        raise ValueError(unknown)
    if "." in name:
        unknown = f"refine.method: there is no module {shorten(name, 60)} to import; is its folder on PYTHONPATH"
    try:
        module = importlib.import_module(place)
    except ModuleNotFoundError as error:
        if f"{place}.".startswith(f"{error.name}."):
            raise ValueError(unknown) from None
        raise  # something that the module itself imports
    classes = [each for each in vars(module).values() if isinstance(each, type) and each.__module__ == place]
    found = [each for each in classes if issubclass(getattr(each, "Settings", object), MethodConfig)]
    if len(found) != 1:
        raise ValueError(f"refine.method: {place} has {len(found)} classes with Settings of a method, not one")
    return found[0]


# --- the section ``refine`` --------------------------------------------------------------------------------------


def by_method(section: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the raw keys of every method in a section ``refine``, ``method`` among them, by `short` name.

    Raises:
        ValueError: a method or a key is unknown, or it is not clear whose a key is.
    """
    found = {short(name): {"method": name} for name in method_names(section)}
    kinds = {name: settings_class(values["method"]) for name, values in found.items()}
    _require_own_names(kinds)
    for key, value in section.items():
        if key == "method" or key in found:
            continue
        owners = [name for name, kind in kinds.items() if key in kind.model_fields]
        if not owners:
            raise ValueError(_foreign("refine", key, kinds))
        if len(owners) > 1 and key not in COMMON:
            own = " or ".join(f"refine.{name}.{key}" for name in owners)
            raise ValueError(f"refine.{key} may be of {' or '.join(owners)}: write {own}")
        for name in owners:
            found[name][key] = value
    for name in found.keys() & section.keys():
        if not isinstance(section[name], Mapping):
            raise ValueError(f"refine.{name} must hold keys of method {name}, not {shorten(repr(section[name]), 60)}")
        for key, value in section[name].items():
            if key == "limit" and len(found) > 1:
                raise ValueError(f"refine.{name}.limit: the limit holds for every method; write refine.limit")
            if key == "method" or key not in kinds[name].model_fields:
                raise ValueError(_foreign(f"refine.{name}", key, {name: kinds[name]}))
            found[name][key] = value
    return found


def method_names(section: Mapping[str, Any]) -> list[str]:
    """Return the names of the methods in a raw section ``refine``."""
    given = section.get("method", RIB)
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"refine.method is the name of a method or a list of names, not {shorten(repr(given), 60)}")
    if twice := [name for place, name in enumerate(names) if short(name) in map(short, names[:place])]:
        raise ValueError(f"refine.method names two methods '{short(twice[0])}'")
    return list(names)


def _require_own_names(kinds: Mapping[str, type[MethodConfig]]) -> None:
    """Refuse methods whose maps have a name that is no plain word, or that is taken."""
    taken = [CAM, "both"]
    for name, kind in kinds.items():
        if not kind.maps:
            raise ValueError(
                f"refine.method: {name} names no maps that it leaves: its Settings need maps = {{NAME: LABEL}}"
            )
        for own in kind.maps:
            if own in taken or not own.isidentifier():
                raise ValueError(f"refine.method: {name} leaves a map named '{own}', which is taken or no plain word")
        taken += kind.maps


def _foreign(section: str, key: str, kinds: Mapping[str, type[MethodConfig]]) -> str:
    """Say what is wrong with a key that none of a run's methods has."""
    here = ", ".join(kinds)
    if key in BUILT_IN and key not in kinds:
        return f"{section}.{key} holds keys of method {key}, and refine.method here is {here}"
    if others := [name for name, kind in BUILT_IN.items() if key in kind.model_fields and name not in kinds]:
        return f"{section}.{key} belongs to method {others[0]}, and refine.method here is {here}"
    valid = list(dict.fromkeys(field for kind in kinds.values() for field in kind.model_fields))
    return f"unknown key '{section}.{key}'{nearest(key, valid)}; valid here: {', '.join(valid)}"


def with_methods(section: Mapping[str, Any], names: Any) -> dict[str, Any]:
    """Return a raw section ``refine`` for other methods: what it says of one goes with it, of others is forgotten."""
    parts, found = by_method(section), {"method": names}
    for name in map(short, method_names(found)):
        own = {key: value for key, value in parts.get(name, {}).items() if key not in ("method", *COMMON)}
        found |= {name: own} if own else {}
    return found | {key: value for part in parts.values() for key, value in part.items() if key in COMMON}


def _read(value: Any) -> "MethodConfig | MethodsConfig":
    if isinstance(value, MethodConfig | MethodsConfig):
        return value
    if not isinstance(value, Mapping):
        raise ValueError("refine must hold keys and values, for example {batch_size: 20}")
    found = {}
    for name, part in value.items():
        try:
            found[name] = settings_class(part["method"]).model_validate(part)
        except ValidationError as error:  # which does not say of which method
            if len(value) == 1:
                raise
            lines: list[Any] = [{**line, "loc": (name, *line["loc"])} for line in error.errors()]
            raise ValidationError.from_exception_data(error.title, lines) from None
    return MethodsConfig.model_construct(methods=found) if len(found) > 1 else found.popitem()[1]


RefineConfig = Annotated[
    Any, PlainValidator(_read), PlainSerializer(lambda config: config.model_dump(mode="json"), return_type=dict)
]
"""The section ``refine``, that of one method, or `MethodsConfig`; read from what `by_method` has taken apart."""
