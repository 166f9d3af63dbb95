"""A stage's key: a hash over what the stage reads.

That is: configuration values, the keys of the stages before it, fingerprints of the data, and a format version. The key
and what went into it stand in ``stage.json`` in the stage's folder; another key is refused, naming what differs.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StageKey:
    stage: str
    format: int
    configuration: Mapping[str, Any]  # flat configuration keys and their resolved values
    upstream: Mapping[str, str]  # keys of the stages it builds on
    data: Mapping[str, str]  # fingerprints of the data and weight files it reads

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.inputs, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def inputs(self) -> dict[str, Any]:
        return dict(vars(self))


def select_configuration(flat: Mapping[str, Any], reads: Iterable[str], leaves_out: Iterable[str]) -> dict[str, Any]:
    """Return the values of ``flat`` whose keys lie under one of ``reads`` and are not in ``leaves_out``."""
    left_out, sections = set(leaves_out), tuple(f"{name}." for name in reads)
    return {key: value for key, value in flat.items() if key not in left_out and f"{key}.".startswith(sections)}


def differences(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Say, one phrase each, where two stages' inputs differ."""

    def changed(part: str) -> list[tuple[str, Any, Any]]:
        old, new = recorded.get(part, {}), wanted[part]
        return [(key, old.get(key), new.get(key)) for key in sorted({*old, *new}) if old.get(key) != new.get(key)]

    phrases = [f"{key} (there {old}, now {new})" for key, old, new in changed("configuration")]
    phrases += [f"the {name} have changed" for name, _, _ in changed("data")]
    if recorded.get("format") != wanted["format"]:
        phrases.append(f"the file format (there {recorded.get('format')}, now {wanted['format']})")
    return phrases
