"""Which of many names comes nearest to one that is not there."""

import difflib
import posixpath
import re
from collections.abc import Iterable, Iterator
from functools import cached_property

from ribray.data.images import without_ending
from ribray.data.names import composed, without_zeros

_SEPARATORS = re.compile(r"[_\-. ]+")
_SIMILAR = 0.6  # how alike two names must be to be taken for each other's misspelling, of 1
_COMPARED = 20  # how often a name is compared letter by letter with others: ten thousand times would take minutes
_AMONG = 5_000  # names that it is compared with at most


class Near:
    """Finds among many names the one that another was probably meant for; they are looked at when first asked."""

    def __init__(self, names: Iterable[str], alike: Iterable[str] = ()) -> None:
        """Keep names; ``alike`` are those that may be meant by one of similar spelling even if its numbers differ."""
        self._names, self._alike_names = names, alike
        self._left = _COMPARED

    def find(self, name: str) -> str | None:
        """Return the name that is the same but for case, signs between letters, zeros, ending, folder or an affix.

        Where there is none, return the one of most similar spelling among those with the same numbers: ``img_12`` may
        be meant for ``imgs_0012``, but not for ``img_13``. None where none is similar.
        """
        for part in _parts(name):
            if (found := self._by_key.get(_key(part))) is not None:
                return found
        stem = posixpath.splitext(name)[0]
        for part in (stem, posixpath.basename(stem)):
            if (found := self._without_zeros.get(_key(without_zeros(part)))) is not None:
                return found
        last = posixpath.basename(stem)
        for written, names in ((last, self._by_numbers.get(_digits(last), {})), (stem, self._alike)):
            if self._left and 0 < len(names) <= _AMONG:
                self._left -= 1
                if similar := difflib.get_close_matches(_key(written), names, n=1, cutoff=_SIMILAR):
                    return names[similar[0]]
        return None

    def hint(self, name: str) -> str:
        found = self.find(name)
        return "" if found is None else f" (did you mean {found!r}?)"

    @cached_property
    def _by_key(self) -> dict[str, str]:
        by_key: dict[str, str] = {}
        for name in self._names:
            by_key.setdefault(_key(name), name)
        for name in tuple(by_key.values()):
            by_key.setdefault(_key(posixpath.basename(name)), name)
        return by_key

    @cached_property
    def _without_zeros(self) -> dict[str, str]:
        names = [*self._by_key.values()]
        by_last = {_key(without_zeros(posixpath.basename(name))): name for name in names}
        return by_last | {_key(without_zeros(name)): name for name in names}

    @cached_property
    def _by_numbers(self) -> dict[tuple[str, ...], dict[str, str]]:
        """Names by key, for the numbers in their last parts."""
        by_numbers: dict[tuple[str, ...], dict[str, str]] = {}
        for key, name in self._by_key.items():
            by_numbers.setdefault(_digits(posixpath.basename(name)), {})[key] = name
        return by_numbers

    @cached_property
    def _alike(self) -> dict[str, str]:
        return {_key(name): name for name in self._alike_names}


def _digits(name: str) -> tuple[str, ...]:
    return tuple(number.lstrip("0") for number in re.findall(r"\d+", name))


def _key(name: str) -> str:
    return "".join(letter for letter in composed(name).casefold() if letter.isalnum())


def _parts(name: str) -> Iterator[str]:
    """Yield what of a name may be the name meant, the most of it first."""
    stem = posixpath.splitext(name)[0]
    words = _SEPARATORS.split(posixpath.basename(stem))
    yield from filter(_key, (name, posixpath.basename(name), stem, posixpath.basename(stem)))
    for kept in range(len(words) - 1, 0, -1):
        yield from filter(_key, ("_".join(words[:kept]), "_".join(words[-kept:])))


def last_part(name: str) -> str:
    return without_ending(name.rpartition("/")[2]).casefold()


def difference(name: str, other: str) -> str:
    """Say in what two names differ, such as ``, which differs in case only``; nothing where it is in their letters."""
    if name.casefold() == other.casefold():
        return ", which differs in case only"
    if without_ending(name).casefold() == without_ending(other).casefold():
        return ", with another ending"
    return ", in another folder" if last_part(name) == last_part(other) else ""
