"""The whole configuration of an experiment: typed models, read from YAML, changed by key.

Unknown keys and values out of range are refused with a sentence.
"""

from ribray.config.base import TIMM_PREFIX, Count, Positive, Section, Seed
from ribray.config.experiment import (
    Experiment,
    change,
    flatten,
    seeded_sections,
    to_values,
    to_yaml,
    validate_experiment,
)
from ribray.config.methods import (
    CAM,
    ENDED,
    RIB,
    AdvCAMConfig,
    MethodConfig,
    RIBConfig,
    by_method,
    label,
    load_method,
    settings_class,
    short,
)
from ribray.config.recipes import find_recipe, load_experiment, read_yaml, shipped_files, shipped_recipes
from ribray.config.sections import (
    ClassifierConfig,
    ClusterConfig,
    DataConfig,
    IrnConfig,
    SegmentationConfig,
    SyntheticConfig,
)
from ribray.config.sentences import explain_invalid, nearest
