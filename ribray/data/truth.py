"""Truth against labels: do a mask and the labels of its image speak of the same classes?

A mask whose numbers mean other classes than ours is read without an error, and every number that it judges is wrong.
What gives it away are the image-level labels. One mask is compared with the labels of its image (`compare`). Over a
split, the images that hold a value are compared with those that hold a class (`Tally`): it shows masks that count from
0, classes in another order, or one value for all classes.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from ribray.data.dataset import BACKGROUND, IGNORE, Dataset, Problem, values_of
from ribray.data.images import READERS
from ribray.data.names import first_of
from ribray.errors import ImageError, UsageError

UNWRITTEN, UNLABELLED, UNSEEN, RIMS = "mask 0/255", "class not labelled", "label not in mask", "mask rims"
"""Kinds of disagreement of one mask with its image's labels."""
NUMBERS = "mask numbers"  # kind of a disagreement that is the same in all masks of a split
PHRASES = {
    UNWRITTEN: "a mask of 0 and 255 only",
    UNLABELLED: "a class that is not labelled",
    UNSEEN: "a label without a pixel",
    RIMS: "rims of other classes",
}
"""The kinds of one mask, in a sentence."""

_VALUES = IGNORE + 1
_RIM_REACH = 2  # pixels from a rim to what lies on both its sides
_RIM_SHARE = 0.9  # of a value's pixels; so many lie in rims where all of them do
_LEFT_OVER = 0.1  # of the disagreement; another meaning of the values explains it if no more is left
_LEAST_IMAGES = 3  # with a class of another value; of fewer, one wrong mask alone could make it seem so
_LARGE_SHARE = 0.5  # of the images; from here on a disagreement is a warning
_NEVER = 1 << 40  # images that a value and a class are apart in where one cannot stand for the other
_SHOWN = 3
_OFFSETS = (
    (-1, "low", "add 1 to", "has one too many at its beginning"),
    (1, "high", "subtract 1 from", "lacks the first one"),
)


@dataclass(frozen=True)
class Comparison:
    values: np.ndarray  # those that occur in the mask, rising
    problems: tuple[Problem, ...]  # where they disagree
    hidden: tuple[int, ...]  # columns of classes that are labelled and without a pixel, and the data set says why

    @property
    def record(self) -> dict[str, Any]:
        kinds = [problem.kind for problem in self.problems]
        return {"values": self.values.tolist(), "kinds": kinds, "hidden": list(self.hidden)}


def compare(dataset: Dataset, id: str, mask: np.ndarray) -> Comparison:
    """Compare a mask (height, width) uint8 with the labels of its image."""
    values = values_of(mask)
    classes, labelled = dataset.classes, np.flatnonzero(dataset.labels[dataset.index(id)]) + 1
    shown = values[(values != BACKGROUND) & (values != IGNORE)]
    foreign, unseen = np.setdiff1d(shown, labelled), np.setdiff1d(labelled, shown)
    found: list[tuple[str, str]] = []
    if (rims := rim_values(mask, foreign)).size:
        thin = "in thin rims between other regions only, as a smooth resize or JPEG makes them"
        advice = "resize masks with nearest neighbour, and keep them as PNG"
        found.append((RIMS, f"has {_named(rims, classes)} {thin}: {advice}"))
        foreign = np.setdiff1d(foreign, rims)
    hidden = unseen[:0]
    if shown.max(initial=0) > len(classes):  # a value of no class, of which the data set itself tells
        foreign = unseen = hidden
    elif unseen.size and (values != BACKGROUND).any():
        is_hidden = dataset.hidden_classes(id)[unseen - 1]
        hidden, unseen = unseen[is_hidden], unseen[~is_hidden]
    if foreign.size:
        others = f"its labels are {_named(labelled, classes)}" if labelled.size else "it has no label"
        found.append((UNLABELLED, f"shows {_named(foreign, classes)}, which the image is not labelled with: {others}"))
    if unseen.size and not shown.size and IGNORE in values:
        only = " and ".join(map(str, values))
        found.append((UNWRITTEN, f"holds only {only}: {_meaning(values)}. {_advice(unseen, classes)}"))
    elif unseen.size:
        found.append((UNSEEN, f"has no pixel of {_named(unseen, classes)}, which the image is labelled with"))
    problems = (Problem(id, f"The mask of {id} {sentence}.", kind) for kind, sentence in found)
    return Comparison(values, tuple(problems), tuple((hidden - 1).tolist()))


def rim_values(mask: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return those of ``values`` whose pixels lie between lower and higher ones, as a smooth resize makes them."""
    if not values.size:
        return values
    picture, side = Image.fromarray(mask), 2 * _RIM_REACH + 1
    is_above = np.asarray(picture.filter(ImageFilter.MinFilter(side))) < mask  # a lower value is near
    is_below = np.asarray(picture.filter(ImageFilter.MaxFilter(side))) > mask
    return values[[(is_above & is_below)[mask == value].mean() >= _RIM_SHARE for value in values]]


def _meaning(values: np.ndarray) -> str:
    meanings = {BACKGROUND: f"{BACKGROUND} is background", IGNORE: f"{IGNORE} says that a pixel does not count"}
    return " and ".join(text for value, text in meanings.items() if value in values)


def _advice(labelled: np.ndarray, classes: Sequence[str]) -> str:
    if len(labelled) == 1:
        return f"Where '{classes[labelled[0] - 1]}' is, write {labelled[0]}"
    numbers = [f"{value} for '{classes[value - 1]}'" for value in labelled]
    return f"Where a class is, write its number: {first_of(numbers, _SHOWN)}"


def _named(values: np.ndarray, classes: Sequence[str]) -> str:
    """Name a few mask values with their classes, and how many more there are."""
    shown = values if len(values) <= _SHOWN else values[: _SHOWN - 1]
    names = [f"'{classes[value - 1]}' ({value})" if value <= len(classes) else f"the value {value}" for value in shown]
    if len(values) > len(shown):
        names.append(f"{len(values) - len(shown)} more")
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


class Tally:
    """Counts over the masks of a split: where they disagree with labels, and which values go with which classes."""

    def __init__(self, dataset: Dataset) -> None:
        self.name, self._classes = dataset.name, dataset.classes
        self.images = self.disagreeing = 0
        self.kinds: Counter[str] = Counter()
        self._first: dict[str, str] = {}
        self._labelled = 0
        self._together = np.zeros((_VALUES, len(dataset.classes)), np.int64)  # images with a value and a class
        self._with_value = np.zeros(_VALUES, np.int64)
        self._with_class = np.zeros(len(dataset.classes), np.int64)

    def add(self, id: str, record: Mapping[str, Any], labels: np.ndarray) -> None:
        """Count an image by the record of its `Comparison` and its labels, (classes,) bool."""
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
        return self.disagreeing >= _LARGE_SHARE * self.images

    def sentence(self) -> str | None:
        """Say how many masks disagree with the labels and how; None where none does."""
        if not self.disagreeing:
            return None
        counts = ((kind, self.kinds[kind], phrase) for kind, phrase in PHRASES.items() if self.kinds[kind])
        kinds = ", ".join(f"{count:,} × {phrase}, such as {self._first[kind]}" for kind, count, phrase in counts)
        numbering = self.numbering()
        return (
            f"In {self.disagreeing:,} of {self.images:,} images of {self.name} the mask disagrees with the labels "
            f"({kinds}): see ribray check.{'' if numbering is None else f' {numbering}'}"
        )

    def numbering(self, masks: str = "the masks") -> str | None:
        """Say which other meaning of the masks' values agrees with the labels, where ours does not and one does."""
        return self._other_meaning(masks) or self._objects(masks)

    def _objects(self, masks: str) -> str | None:
        """Say so where values run on beyond the classes, as numbers of objects do."""
        shown = np.flatnonzero(self._with_value[:IGNORE])
        shown, classes = shown[shown != BACKGROUND], len(self._classes)
        top = shown.max(initial=0)
        if self.kinds[RIMS] or top <= classes or len(shown) < top:
            return None
        known = f"there is 1 class, '{self._classes[0]}'" if classes == 1 else f"there are {classes} classes"
        remedy = "write the number of its class on each object (or add the classes that are missing)"
        return f"The values of {masks} run from 1 to {top}, but {known}. If they number the objects, {remedy}."

    def no_background(self) -> str | None:
        """Say so where 255 stands in masks and 0 in none: around the objects, nothing counts."""
        has_shown = self._with_value[BACKGROUND + 1 : IGNORE].any()
        if self._with_value[BACKGROUND] or not self._with_value[IGNORE] or not has_shown:
            return None
        return (
            f"No mask of {self.name} holds {BACKGROUND}, so no pixel of background counts, and covering too much costs "
            f"nothing: write {BACKGROUND} where the background is known, and {IGNORE} only where it is not."
        )

    def _other_meaning(self, masks: str) -> str | None:
        labelled = np.flatnonzero(self._with_class)
        # Images that hold just one of the two: (values, classes)
        apart = self._with_value[:, None] + self._with_class[None, :] - 2 * self._together
        own = self._together[labelled + 1, labelled]
        # 0 is background where every image without the class holds it too, and 255 is none beside the class's value
        has_neither = self.images - self._with_value[BACKGROUND] - self._with_class + self._together[BACKGROUND]
        apart[BACKGROUND, has_neither == 0] = apart[IGNORE, labelled[own > 0]] = _NEVER
        if not apart[labelled + 1, labelled].any():
            return None
        used = np.flatnonzero(self._with_value)
        shown = used[(used != BACKGROUND) & (used != IGNORE)]
        is_everywhere = shown.size == 1 and self._with_value[shown[0]] >= (1 - _LEFT_OVER) * self._labelled
        if is_everywhere and len(labelled) > 1:
            advice = _advice(labelled + 1, self._classes)
            return f"There is one value, {shown[0]}, for all classes in {masks}. {advice}."
        for offset, away, remedy, otherwise in _OFFSETS:
            values = labelled + 1 + offset
            for some in (values >= BACKGROUND, values > BACKGROUND):  # a class of value 0 may be lost in the background
                if self._fits(apart, values[some], labelled[some]):
                    pairs = self._pairs(values[some], labelled[some])
                    return (
                        f"The values of {masks} are one too {away}: {pairs}. Here 0 is background and classes count "
                        f"from 1: {remedy} every value but {IGNORE} (or the list of classes {otherwise})."
                    )
        best = self._best_values(apart, labelled)
        if shown.size and best is not None and self._explains(apart, best, labelled):
            moved = best != labelled + 1
            pairs = self._pairs(best[moved], labelled[moved])
            advice = "Write the classes' numbers, or bring the classes into that order."
            return f"The values of {masks} go with other classes: {pairs}. {advice}"
        return None

    def _fits(self, apart: np.ndarray, values: np.ndarray, columns: np.ndarray) -> bool:
        """Whether classes go with other values than ours; a class is found by its value alone, or nothing is shown."""
        as_near = (apart[np.ix_(np.flatnonzero(self._with_value), columns)] <= apart[values, columns]).sum(0)
        return bool((as_near == 1).any()) and self._explains(apart, values, columns)

    def _explains(self, apart: np.ndarray, values: np.ndarray, columns: np.ndarray) -> bool:
        """Whether hardly an image disagrees if values stand for these classes, where with ours some do."""
        moved = columns[values != columns + 1]
        left, own = apart[values, columns].sum(), apart[columns + 1, columns].sum()
        return bool(left <= _LEFT_OVER * own and self._with_class[moved].sum() >= _LEAST_IMAGES)

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

    def _pairs(self, values: np.ndarray, columns: np.ndarray) -> str:
        pairs = zip(values.tolist(), columns.tolist(), strict=True)
        texts = [f"{value} stands for '{self._classes[column]}' ({column + 1})" for value, column in pairs]
        return first_of(texts, _SHOWN)


def note_on_missing(name: str, without: Collection[str], with_mask: int) -> str | None:
    """Say how many of the images of a split have no mask; None where that is none, or all by design."""
    if not without or not with_mask:
        return None
    share = f"{len(without):,} of {len(without) + with_mask:,} images of {name}"
    return f"{share} have no mask, so they are not judged: {first_of(sorted(without), _SHOWN)}."


def require_foreground(dataset: Dataset, ids: Sequence[str], is_stopped: Callable[[], bool]) -> None:
    """Refuse to judge by masks none of which shows a class, if for some of them the data set does not say why."""
    lacking, first = 0, None
    values, classes = np.zeros(_VALUES, bool), np.zeros(len(dataset.classes), bool)
    has_label = np.asarray(dataset.labels.any(axis=1))
    for id, found in _compare_all(dataset, (id for id in ids if has_label[dataset.index(id)])):
        if is_stopped() or ((found.values != BACKGROUND) & (found.values != IGNORE)).any():
            return
        if found.problems:
            lacking, first = lacking + 1, first or id
            values[found.values] = True
            classes |= dataset.labels[dataset.index(id)]
    if first is None:
        return
    used, labelled = np.flatnonzero(values), np.flatnonzero(classes) + 1
    outlines = "" if IGNORE in used else " (and give outlines in pixels)"
    raise UsageError(
        f"The masks of {dataset.name} show no class, so nothing can be judged by them: those of {lacking:,} labelled "
        f"image(s), such as {first}, hold only {' and '.join(map(str, used))}, where {_meaning(used)}. "
        f"{_advice(labelled, dataset.classes)}{outlines}, or take the masks away."
    )


def _compare_all(dataset: Dataset, ids: Iterator[str]) -> Iterator[tuple[str, Comparison]]:
    """Compare every mask that can be used; the first image's alone, since it mostly is the only one asked for."""

    def look_at(id: str) -> tuple[str, Comparison] | None:
        try:
            mask = dataset.mask(id)
        except ImageError:
            return None
        return None if mask is None else (id, compare(dataset, id, mask))

    size = 1
    with ThreadPoolExecutor(READERS) as readers:
        while part := list(itertools.islice(ids, size)):
            yield from filter(None, readers.map(look_at, part))
            size = 4 * READERS
