"""Truth against labels: do a mask and the labels of its image speak of the same classes?

A mask whose numbers mean other classes than ours is read without an error, and every number that it judges is wrong.
What gives it away are the image-level labels. One mask is compared with the labels of its image (`compare`). Over a
split, the images that hold a value are compared with those that hold a class (`Tally`): it shows masks that count from
0, classes in another order, or one value for all classes.
"""

import bisect
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from ribray.data.dataset import BACKGROUND, IGNORE, Dataset, Problem, values_of
from ribray.errors import ImageError, UsageError

UNWRITTEN, UNLABELLED, UNSEEN, RIMS = "mask 0/255", "class not labelled", "label not in mask", "mask rims"
"""Kinds of disagreement of one mask with its image's labels."""
NUMBERS = "mask numbers"
"""Kind of a disagreement that is the same in all masks of a split."""
PHRASES = {
    UNWRITTEN: "a mask of 0 and 255 only",
    UNLABELLED: "a class that is not labelled",
    UNSEEN: "a label without a pixel",
    RIMS: "rims of other classes",
}
"""The kinds of one mask, in a sentence."""

MASK_VALUES = IGNORE + 1
RIM_REACH = 2
"""Pixels from a rim to what lies on both its sides."""
RIM_SHARE = 0.9
"""Of a value's pixels; so many lie in rims where all of them do."""
LEFT_OVER = 0.1
"""Of the disagreement; another meaning of the values explains it if no more is left."""
LEAST_IMAGES = 3
"""With a class of another value; of fewer, one wrong mask alone could make it seem so."""
LARGE_SHARE = 0.5
"""Of the images; from here on a disagreement is a warning."""
NAMES_SHOWN = 3
_READERS = 16  # threads; most of the time goes into waiting for files and into PNG decoding


# --- one mask ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """A mask beside the labels of its image."""

    problems: tuple[Problem, ...]
    """Where they disagree."""
    hidden: tuple[int, ...]
    """Classes (their columns) that are labelled and without a pixel, and the data set says why."""


def compare(dataset: Dataset, id: str, mask: np.ndarray, values: np.ndarray) -> Comparison:
    """Compare a mask with the labels of its image.

    Args:
        dataset: whose image it is.
        id: the image.
        mask: (height, width) uint8.
        values: those that occur in the mask, rising.
    """
    classes, labelled = dataset.classes, np.flatnonzero(dataset.labels[dataset.index(id)]) + 1
    shown = values[(values != BACKGROUND) & (values != IGNORE)]
    foreign, unseen = np.setdiff1d(shown, labelled), np.setdiff1d(labelled, shown)
    problems = []
    if foreign.size:
        rims = rim_values(mask, foreign)
        if rims.size:
            problems.append(Problem(id, _of_rims(id, rims, classes), RIMS))
        foreign = np.setdiff1d(foreign, rims)
    if shown.max(initial=0) > len(classes):  # a value of no class, of which the data set itself tells
        return Comparison(tuple(problems), ())
    hidden = unseen[:0]
    if unseen.size and (values != BACKGROUND).any():
        is_hidden = dataset.hidden_classes(id)[unseen - 1]
        hidden, unseen = unseen[is_hidden], unseen[~is_hidden]
    if foreign.size:
        others = f"its labels are {_named(labelled, classes)}" if labelled.size else "it has no label"
        sentence = f"The mask of {id} shows {_named(foreign, classes)}, which the image is not labelled with: {others}."
        problems.append(Problem(id, sentence, UNLABELLED))
    if unseen.size and not shown.size and IGNORE in values:
        problems.append(Problem(id, _of_unwritten(id, values, unseen, classes), UNWRITTEN))
    elif unseen.size:
        sentence = f"The mask of {id} has no pixel of {_named(unseen, classes)}, which the image is labelled with."
        problems.append(Problem(id, sentence, UNSEEN))
    return Comparison(tuple(problems), tuple((hidden - 1).tolist()))


def look(dataset: Dataset, id: str, mask: np.ndarray) -> dict[str, Any]:
    """Return what `Tally.add` counts of a mask (height, width) uint8."""
    values = values_of(mask)
    found = compare(dataset, id, mask, values)
    return record_of(values, found)


def record_of(values: np.ndarray, found: Comparison) -> dict[str, Any]:
    """Return the values of a mask, the kinds of disagreement and the hidden classes, as JSON values."""
    kinds = [problem.kind for problem in found.problems]
    return {"values": values.tolist(), "kinds": kinds, "hidden": list(found.hidden)}


def rim_values(mask: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return those of ``values`` whose pixels lie between lower and higher ones, as a smooth resize makes them.

    Args:
        mask: (height, width) uint8.
        values: which ones to look at.
    """
    lowest, highest = _window(mask, np.minimum), _window(mask, np.maximum)
    places = {value: mask == value for value in values}
    return np.array(
        [
            value
            for value, here in places.items()
            if ((lowest[here] < value) & (highest[here] > value)).mean() >= RIM_SHARE
        ],
        dtype=np.intp,
    )


def _window(mask: np.ndarray, take: np.ufunc) -> np.ndarray:
    """Return the smallest or greatest value up to `RIM_REACH` pixels around each pixel."""
    for axis in (0, 1):
        side = mask.shape[axis]
        padding = [(0, 0), (0, 0)]
        padding[axis] = (RIM_REACH, RIM_REACH)
        padded = np.pad(mask, padding, mode="edge")
        parts = (padded.take(range(shift, shift + side), axis=axis) for shift in range(2 * RIM_REACH + 1))
        mask = next(parts)
        for part in parts:
            mask = take(mask, part)
    return mask


def _of_rims(id: str, values: np.ndarray, classes: Sequence[str]) -> str:
    return (
        f"The mask of {id} has {_named(values, classes)} in thin rims between other regions only, as a smooth resize "
        "or JPEG makes them: resize masks with nearest neighbour, and keep them as PNG."
    )


def _of_unwritten(id: str, values: np.ndarray, labelled: np.ndarray, classes: Sequence[str]) -> str:
    only = " and ".join(str(value) for value in values)
    return f"The mask of {id} holds only {only}: {_meaning(values)}. {_advice(labelled, classes)}."


def _meaning(values: np.ndarray) -> str:
    meanings = {BACKGROUND: f"{BACKGROUND} is background", IGNORE: f"{IGNORE} says that a pixel does not count"}
    return " and ".join(text for value, text in meanings.items() if value in values)


def _advice(labelled: np.ndarray, classes: Sequence[str]) -> str:
    if len(labelled) == 1:
        return f"Where '{classes[labelled[0] - 1]}' is, write {labelled[0]}"
    numbers = ", ".join(f"{value} for '{classes[value - 1]}'" for value in labelled[:NAMES_SHOWN])
    return f"Where a class is, write its number: {numbers}{', …' if len(labelled) > NAMES_SHOWN else ''}"


def _named(values: np.ndarray, classes: Sequence[str]) -> str:
    """Name a few mask values with their classes, and how many more there are."""
    shown = values if len(values) <= NAMES_SHOWN else values[: NAMES_SHOWN - 1]
    names = [f"'{classes[value - 1]}' ({value})" if value <= len(classes) else f"the value {value}" for value in shown]
    if len(values) > len(shown):
        names.append(f"{len(values) - len(shown)} more")
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# --- a split -------------------------------------------------------------------------------------------------------


class Tally:
    """Counts over the masks of a split: where they disagree with labels, and which values go with which classes.

    Attributes:
        name: what the split is called.
        images: masks compared.
        disagreeing: of these, those that disagree.
        kinds: masks by kind of disagreement.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.name, self._classes = dataset.name, dataset.classes
        self.images = self.disagreeing = 0
        self.kinds: Counter[str] = Counter()
        self._first: dict[str, str] = {}
        self._labelled = 0
        self._together = np.zeros((MASK_VALUES, len(dataset.classes)), np.int64)  # images with a value and a class
        self._with_value = np.zeros(MASK_VALUES, np.int64)
        self._with_class = np.zeros(len(dataset.classes), np.int64)

    def add(self, id: str, record: Mapping[str, Any], labels: np.ndarray) -> None:
        """Count an image.

        Args:
            id: the image.
            record: `record_of` its mask.
            labels: (classes,) bool, of the image.
        """
        self.images += 1
        self.disagreeing += bool(record["kinds"])
        for kind in record["kinds"]:
            self.kinds[kind] += 1
            self._first[kind] = min(id, self._first.get(kind, id))  # of whatever order they come in
        values, present = np.array(record["values"], np.intp), np.setdiff1d(np.flatnonzero(labels), record["hidden"])
        self._labelled += bool(present.size)
        self._with_value[values] += 1
        self._with_class[present] += 1
        self._together[values[:, None], present] += 1

    @property
    def is_large(self) -> bool:
        """Whether so many masks disagree that what they judge means little."""
        return self.disagreeing >= LARGE_SHARE * self.images

    def sentence(self) -> str | None:
        """Say how many masks disagree with the labels and how; None where none does."""
        if not self.disagreeing:
            return None
        kinds = ", ".join(
            f"{self.kinds[kind]:,} × {phrase}, such as {self._first[kind]}"
            for kind, phrase in PHRASES.items()
            if self.kinds[kind]
        )
        numbering = self.numbering()
        return (
            f"In {self.disagreeing:,} of {self.images:,} images of {self.name} the mask disagrees with the labels "
            f"({kinds}): see ribray check.{'' if numbering is None else f' {numbering}'}"
        )

    def numbering(self, masks: str = "the masks") -> str | None:
        """Say which other meaning of the masks' values agrees with the labels, where ours does not and one does.

        Args:
            masks: what to call them.
        """
        labelled = np.flatnonzero(self._with_class)
        # Images that hold just one of the two: (values, classes)
        apart = self._with_value[:, None] + self._with_class[None, :] - 2 * self._together
        if not apart[labelled + 1, labelled].any():
            return None
        used = np.flatnonzero(self._with_value)
        shown = used[(used != BACKGROUND) & (used != IGNORE)]
        is_everywhere = shown.size == 1 and self._with_value[shown[0]] >= (1 - LEFT_OVER) * self._labelled
        if is_everywhere and len(labelled) > 1:
            advice = _advice(labelled + 1, self._classes)
            return f"There is one value, {shown[0]}, for all classes in {masks}. {advice}."
        for offset in (-1, 1):
            values = labelled + 1 + offset
            for some in (values >= BACKGROUND, values > BACKGROUND):  # a class of value 0 may be lost in the background
                if self._fits(apart, values[some], labelled[some]):
                    return f"The values of {masks} are {self._of_offset(offset, values[some], labelled[some])}"
        best = self._best_values(apart, labelled)
        if shown.size and best is not None and self._explains(apart, best, labelled):
            moved = best != labelled + 1
            pairs = self._pairs(best[moved], labelled[moved])
            return (
                f"The values of {masks} go with other classes: {pairs}. Write the classes' numbers, or bring the "
                "classes into that order."
            )
        return None

    def _fits(self, apart: np.ndarray, values: np.ndarray, columns: np.ndarray) -> bool:
        """Whether classes go with other values than ours; a class is found by its value alone, or nothing is shown."""
        used = np.flatnonzero(self._with_value)
        as_near = (apart[np.ix_(used, columns)] <= apart[values, columns]).sum(0)
        return bool((as_near == 1).any()) and self._explains(apart, values, columns)

    def _explains(self, apart: np.ndarray, values: np.ndarray, columns: np.ndarray) -> bool:
        """Whether hardly an image disagrees if values stand for these classes, where with ours some do."""
        moved = columns[values != columns + 1]
        left, own = apart[values, columns].sum(), apart[columns + 1, columns].sum()
        return bool(left <= LEFT_OVER * own and self._with_class[moved].sum() >= LEAST_IMAGES)

    def _best_values(self, apart: np.ndarray, labelled: np.ndarray) -> np.ndarray | None:
        """Return the value that goes best with each labelled class, all of them different; None where that is open."""
        used = np.flatnonzero(self._with_value)
        among = apart[np.ix_(used, labelled)]
        best = among.min(0)
        is_own = apart[labelled + 1, labelled] <= best
        if ((among == best).sum(0)[~is_own] > 1).any():
            return None
        values = np.where(is_own, labelled + 1, used[among.argmin(0)])
        return values if len(set(values.tolist())) == len(values) and not is_own.all() else None

    def _of_offset(self, offset: int, values: np.ndarray, columns: np.ndarray) -> str:
        away, remedy, otherwise = (
            ("low", "add 1 to", "has one too many at its beginning")
            if offset < 0
            else ("high", "subtract 1 from", "lacks the first one")
        )
        return (
            f"one too {away}: {self._pairs(values, columns)}. Here 0 is background and classes count from 1: {remedy} "
            f"every value but {IGNORE} (or the list of classes {otherwise})."
        )

    def _pairs(self, values: np.ndarray, columns: np.ndarray) -> str:
        pairs = list(zip(values.tolist(), columns.tolist(), strict=True))
        texts = [f"{value} stands for '{self._classes[column]}' ({column + 1})" for value, column in pairs]
        return ", ".join([*texts[:NAMES_SHOWN], *(["…"] if len(texts) > NAMES_SHOWN else [])])


# --- images without a mask -----------------------------------------------------------------------------------------


class Without:
    """Counts images that have no mask, and keeps the first few names."""

    def __init__(self) -> None:
        self.images = 0
        self._names: list[str] = []

    def add(self, id: str) -> None:
        """Count an image; they may come in any order."""
        self.images += 1
        bisect.insort(self._names, id)
        del self._names[NAMES_SHOWN:]

    def note(self, name: str, with_mask: int) -> str | None:
        """Say how many of the images of a split have none; None where that is none, or all by design."""
        if not self.images or not with_mask:
            return None
        more = ", …" if self.images > len(self._names) else ""
        names = f"{', '.join(self._names)}{more}"
        total = self.images + with_mask
        return f"{self.images:,} of {total:,} images of {name} have no mask, so they are not judged: {names}."


# --- truth without foreground --------------------------------------------------------------------------------------


def require_foreground(dataset: Dataset, ids: Sequence[str], is_stopped: Callable[[], bool]) -> None:
    """Refuse to judge by masks without a pixel of any class; looks at one mask where that is in order.

    Args:
        dataset: whose masks.
        ids: the images that would be judged; those without a label, or with a mask that cannot be used, say nothing.
        is_stopped: asked between masks; looks at no more of them.

    Raises:
        UsageError: none of the masks shows a class, and for some of them the data set does not say why.
    """
    lacking, first = 0, None
    values, classes = np.zeros(MASK_VALUES, bool), np.zeros(len(dataset.classes), bool)
    has_label = np.asarray(dataset.labels.any(axis=1))
    for id, found, is_explained in _look_at_all(dataset, (id for id in ids if has_label[dataset.index(id)])):
        if is_stopped() or ((found != BACKGROUND) & (found != IGNORE)).any():
            return
        if not is_explained:
            lacking, first = lacking + 1, first or id
            values[found] = True
            classes |= dataset.labels[dataset.index(id)]
    if first is None:
        return
    used, labelled = np.flatnonzero(values), np.flatnonzero(classes) + 1
    advice = _advice(labelled, dataset.classes)
    if IGNORE not in used:
        advice += " (and give outlines in pixels)"
    raise UsageError(
        f"The masks of {dataset.name} show no class, so nothing can be judged by them: those of {lacking:,} labelled "
        f"image(s), such as {first}, hold only {' and '.join(map(str, used))}, where {_meaning(used)}. {advice}, or "
        "take the masks away."
    )


def _look_at_all(dataset: Dataset, ids: Iterator[str]) -> Iterator[tuple[str, np.ndarray, bool]]:
    """Yield the values of every mask that can be used, and whether the data set says why classes have no pixel.

    The first image is looked at alone, since it mostly is the only one.
    """

    def look_at(id: str) -> tuple[str, np.ndarray, bool] | None:
        try:
            mask = dataset.mask(id)
        except ImageError:
            return None
        if mask is None:
            return None
        values = values_of(mask)
        return id, values, not compare(dataset, id, mask, values).problems

    size = 1
    with ThreadPoolExecutor(_READERS) as readers:
        while part := list(itertools.islice(ids, size)):
            yield from (one for one in readers.map(look_at, part) if one is not None)
            size = 4 * _READERS
