"""Recipes: YAML files with any keys of `Experiment`; what one leaves out keeps its default."""

from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from ribray import storage
from ribray.config.experiment import Experiment, change, validate_experiment
from ribray.config.sentences import nearest
from ribray.errors import UsageError


def shipped_files(folder: str) -> dict[str, Path]:
    """Return the YAML files that come with the package in a folder within it, or in a checkout beside it, by name."""
    package = Path(str(resources.files("ribray")))
    place = next(each for each in (package / folder, package.parent / folder) if each.is_dir())
    return {file.stem: file for file in sorted(place.glob("*.yaml"))}


def shipped_recipes() -> dict[str, Path]:
    return shipped_files("recipes")


def load_experiment(recipe: str, overrides: Iterable[str | Mapping[str, Any]] = ()) -> Experiment:
    """Read a recipe, given by its shipped name (``voc12``) or its path, and apply overrides (see `change`)."""
    values = read_yaml(find_recipe(recipe))
    values.pop("provenance", None)  # a run's experiment.yaml is a recipe too
    return validate_experiment(change(values, overrides), str(recipe))


def find_recipe(recipe: str) -> Path:
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
    """Read a YAML file that holds a mapping, and is not too long (see `ribray.yaml_text`)."""
    from ribray.yaml_text import MOST_CHARACTERS, YamlError, parse_yaml

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
