"""What is wrong with a value, in a sentence."""

import difflib
import reprlib
import typing
from collections.abc import Iterable, Mapping

from pydantic import BaseModel, ValidationError

_BRIEF = reprlib.Repr()
"""Shows the beginning of any value, however large or deep."""
_BRIEF.maxlevel, _BRIEF.maxlist, _BRIEF.maxdict, _BRIEF.maxstring, _BRIEF.maxother = 3, 20, 20, 100, 100


def explain_invalid(error: ValidationError, model: type[BaseModel]) -> str:
    """Say in a phrase what is wrong with the first value that ``model`` refuses, and where it stands."""
    first = error.errors()[0]
    location = [str(part) for part in first["loc"] if not str(part).startswith("function-")]
    key = ".".join(location)
    if first["type"] == "extra_forbidden":
        valid = _valid_keys(location[:-1], model)
        hint = nearest(location[-1], valid)
        return f"unknown key '{key}'{hint}; valid here: {', '.join(valid)}."
    if first["type"] == "missing":
        return f"the key '{key}' is missing."
    message = first["msg"].removeprefix("Value error, ").rstrip(".")
    if first["type"] == "value_error" and isinstance(first["input"], (Mapping, BaseModel)):
        return f"{key + ': ' if key else ''}{message}."
    is_other = first["type"] == "string_type" and not isinstance(first["input"], (Mapping, list, type(None)))
    hint = "; what YAML takes for a number, a date, or on and off is text in quotes" if is_other else ""
    return f"{key}: {message[0].lower() + message[1:]}, not {shorten(_BRIEF.repr(first['input']), 60)}{hint}."


def _valid_keys(section: list[str], model: type[BaseModel]) -> list[str]:
    for name in section:
        field = model.model_fields.get(name)
        if field is None:  # a key of a mapping, whose values are such a section
            continue
        annotations = [field.annotation, *typing.get_args(field.annotation)]
        models = [kind for kind in annotations if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not models:
            return []
        model = models[0]
    return list(model.model_fields)


def shorten(text: str, letters: int = 200) -> str:
    return text if len(text) <= letters else f"{text[: letters - 3]}..."


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Return a hint at the most similar candidates, empty where none is similar."""
    close = difflib.get_close_matches(name, list(candidates), n=2, cutoff=0.5)
    return f" (did you mean {' or '.join(close)}?)" if close else ""
