"""Recipes: the files that experiments are read from.

A recipe is a YAML file with any keys of `Experiment`; what it leaves out keeps its default.
"""

from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from ribray import storage
from ribray.config.experiment import Experiment, change, validate_experiment
from ribray.config.sentences import nearest
from ribray.errors import UsageError
from ribray.yaml_text import MOST_CHARACTERS, YamlError, parse_yaml


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that come with the package, by name."""
    return shipped_files("recipes")


def shipped_files(folder: str) -> dict[str, Path]:
    """Return the YAML files in a folder of the package, by name."""
    return {file.stem: file for file in sorted(Path(str(resources.files("ribray") / folder)).glob("*.yaml"))}


def load_experiment(recipe: str, overrides: Iterable[str | Mapping[str, Any]] = ()) -> Experiment:
    """Read a recipe, given by its shipped name (``voc12``) or its path, and apply overrides (see `change`).

    Raises:
        UsageError: no such recipe, broken YAML, an unknown key, or a value of the wrong type or range.
    """
    return validate_experiment(change(read_recipe(recipe), overrides), str(recipe))


def read_recipe(recipe: str) -> dict[str, Any]:
    """Return the raw values of a recipe.

    Raises:
        UsageError: no such recipe, or broken YAML.
    """
    values = read_yaml(find_recipe(recipe))
    values.pop("provenance", None)  # a run's experiment.yaml is a recipe too
    return values


def find_recipe(recipe: str) -> Path:
    """Return the file of a recipe.

    Raises:
        UsageError: neither a shipped name nor a file.
    """
    shipped = shipped_recipes()
    if recipe in shipped:
        return shipped[recipe]
    location = storage.absolute(recipe)
    if location.is_file():
        return location
    raise UsageError(
        f"There is no recipe '{recipe}'{nearest(location.stem, shipped)}; shipped are {', '.join(shipped)}, "
        "or give the path of a YAML file."
    )


def read_yaml(location: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        UsageError: the file cannot be read, is no YAML, is too large (see `ribray.yaml_text`), or holds something else.
    """
    try:
        with location.open("rb") as stream:
            content = stream.read(4 * MOST_CHARACTERS + 1)
        values = parse_yaml(content.decode("utf-8-sig"))
    except OSError as error:
        raise UsageError(f"{location} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{location} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from None
    except YamlError as error:
        raise UsageError(f"{location} is not valid YAML: {error}.") from None
    if not isinstance(values, dict):
        raise UsageError(f"{location} must hold keys and values, for example 'refine: {{batch_size: 20}}'.")
    return values
