"""Reading YAML that anybody may have written: plain values, of a bounded size.

A few lines of YAML can stand for more than a machine holds: aliases that unfold to billions of values, brackets
nested without end, numbers of a million digits. They are refused before a value is built.
"""

from typing import Any

import yaml

MOST_CHARACTERS = 2**18
"""Of a document; a resolved configuration has some five thousand."""
MOST_VALUES = 20_000
"""Of a document, an alias counted as all that it stands for."""
MOST_LEVELS = 40
"""Of sections and lists inside each other."""
MOST_DIGITS = 300
"""Of a number."""

_MERGE = "tag:yaml.org,2002:merge"
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class YamlError(ValueError):
    """A text that is no YAML, or too much of it; the message is the end of a sentence, without full stop."""


def parse_yaml(text: str) -> Any:
    """Return the value of one YAML document; what an alias stands for is a copy.

    Raises:
        YamlError: it is no valid YAML, has a key twice in one section, asks for an object, or is too large.
    """
    if len(text) > MOST_CHARACTERS:
        raise YamlError(f"it is longer than {MOST_CHARACTERS:,} characters")
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        if _unfolded(root, {}) > MOST_VALUES:
            raise YamlError(f"with its aliases it holds more than {MOST_VALUES:,} values")
        return _copied(loader.construct_document(root))
    except YamlError:
        raise
    except yaml.MarkedYAMLError as error:
        where = "" if error.problem_mark is None else f" (line {error.problem_mark.line + 1})"
        reason = " ".join(str(part) for part in (error.context, error.problem) if part)
        raise YamlError(f"{' '.join(reason.split())}{where}") from None
    except yaml.YAMLError as error:
        raise YamlError(" ".join(str(error).split()).rstrip(".")) from None
    except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError) as error:
        # what PyYAML makes of a date that there is not, or of a tag that its value does not go with
        raise YamlError(f"one of its values cannot be read ({error})") from None


class _Loader(yaml.SafeLoader):
    """PyYAML's loader of plain values, which stops at too many or too deep ones."""

    def __init__(self, text: str):
        super().__init__(text)
        self._values = self._levels = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._values += 1
        if self._values > MOST_VALUES:
            raise YamlError(f"it holds more than {MOST_VALUES:,} values")
        if self._levels == MOST_LEVELS:
            raise YamlError(f"it is nested more than {MOST_LEVELS} levels deep")
        self._levels += 1
        node = super().compose_node(parent, index)
        self._levels -= 1
        return node


def _unfolded(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many values a node and all below it are, each alias followed; look at each node once.

    Raises:
        YamlError: one holds itself, a key stands twice, or a number is too long.
    """
    if id(node) in known:
        if known[id(node)] == 0:
            raise YamlError(f"the alias on line {_line(node)} holds itself")
        return known[id(node)]
    known[id(node)] = 0  # until all below is counted
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        _require_single_keys(node)
        children = [child for pair in node.value for child in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    elif node.tag in _NUMBERS and len(node.value) > MOST_DIGITS:
        raise YamlError(f"the number on line {_line(node)} has more than {MOST_DIGITS} digits")
    known[id(node)] = 1 + sum(_unfolded(child, known) for child in children)
    return known[id(node)]


def _require_single_keys(node: yaml.MappingNode) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
            if key.value in lines:
                raise YamlError(
                    f"the key '{key.value[:80]}' stands on line {lines[key.value]} and on line {_line(key)}"
                )
            lines[key.value] = _line(key)


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _copied(value: Any) -> Any:
    """Return a value whose parts are nowhere the same object: to change one must not change another."""
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value
