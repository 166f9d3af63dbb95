"""Reading YAML: plain values, of a bounded length, and no key twice in a section."""

from typing import Any

import yaml

MOST_CHARACTERS = 2**18  # of a document; a resolved configuration has some five thousand
_MERGE = "tag:yaml.org,2002:merge"


class YamlError(ValueError):
    """A text that is no YAML, or too much of it; the message is the end of a sentence, without full stop."""


def parse_yaml(text: str) -> Any:
    """Return the value of one YAML document; what an alias stands for is the same object in every place."""
    if len(text) > MOST_CHARACTERS:
        raise YamlError(f"it is longer than {MOST_CHARACTERS:,} characters")
    try:
        return _Loader(text).get_single_data()
    except YamlError:
        raise
    except yaml.MarkedYAMLError as error:
        where = "" if error.problem_mark is None else f" (line {error.problem_mark.line + 1})"
        reason = " ".join(str(part) for part in (error.context, error.problem) if part)
        raise YamlError(f"{' '.join(reason.split())}{where}") from None
    except yaml.YAMLError as error:
        raise YamlError(" ".join(str(error).split()).rstrip(".")) from None
    except RecursionError:
        raise YamlError("it is nested too deeply") from None
    except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError) as error:
        # what PyYAML makes of a date that there is not, or of a tag that its value does not go with
        raise YamlError(f"one of its values cannot be read ({error})") from None


class _Loader(yaml.SafeLoader):
    """PyYAML's loader of plain values, which refuses a key that would silently take the place of another."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                line = key.start_mark.line + 1
                if key.value in lines:
                    raise YamlError(f"the key '{key.value[:80]}' stands on line {lines[key.value]} and on line {line}")
                lines[key.value] = line
        return node
